"""What may follow a prompt: the texts of a row's choices, and its own answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..options.settings import AnswerKind
from .rows import Row
from .styles import ANSWER_FORMAT, folded, offered_answers
from .values import column_text, labelled_choices

_ALPACA_END = "### Response:"
_ALPACA_BREAK = "\n" + 16 * " "  # what stands between that and the answer in LLM-Adapters' prompts
_SAID = "the correct answer is {}"  # how its rows say an answer


@dataclass(frozen=True)
class Answers:
    """What may follow a prompt.

    Args:
        texts: as they follow it, the delimiter included: first those of the choices, then the row's own answer where that is
            none of them.
        lengths: characters of each without the delimiter.
        choices: how many of the texts are choices; 0 where the row has none, or two that are the same.
        own: which text is the row's own answer, None where the row has none.
    """

    texts: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    choices: int = 0
    own: int | None = None


def answers_of(row: Row, style: str, prompt: str, kind: AnswerKind) -> Answers:
    """The answers that may follow a row's prompt; none where the row has no answer of its own, or one that is empty.

    A choice of ARC is said by its label, as in `Answer: B`, or with `text` in full. At the end of an Alpaca prompt the label
    is said as LLM-Adapters' rows do, `the correct answer is answer2`, which is how their choices are said in any case. Of
    wordings that are not known the row's `output` alone is an answer.

    Args:
        row: of the data file; one that `PromptMaker` made a prompt of.
        style: as `PromptMaker.style` has it; only `arc` and `llm-adapters` have answers.
        prompt: the text that is followed.
        kind: `label` or `text`.
    """
    in_alpaca = prompt.rstrip().endswith(_ALPACA_END)
    texts: Sequence[str] = ()
    own: int | None = None
    choices = 0
    if style == "arc":
        texts, own = _of_arc(row, kind, in_alpaca)
        choices = len(texts)
    elif style == "llm-adapters":
        texts, own, choices = _of_llm_adapters(row)
    if own is None or not all(text.strip() for text in texts):
        return Answers()
    if len(set(texts[:choices])) < choices or choices < 2:
        texts, own, choices = [texts[own]], 0, 0
    delimiter = "" if prompt[-1:].isspace() else _ALPACA_BREAK if in_alpaca else " "
    return Answers(tuple(delimiter + text for text in texts), tuple(map(len, texts)), choices, own)


def _of_arc(row: Row, kind: AnswerKind, in_alpaca: bool) -> tuple[list[str], int | None]:
    choices = labelled_choices(row["choices"], "choices", "")
    own = _place(row.get("answerKey"), [label for label, _ in choices])
    if kind == "text":
        return [text for _, text in choices], own
    if in_alpaca:
        return [_SAID.format(f"answer{number}") for number in range(1, len(choices) + 1)], own
    return [label for label, _ in choices], own


def _of_llm_adapters(row: Row) -> tuple[list[str], int | None, int]:
    """The texts, which of them is the row's own answer, and how many are choices."""
    instruction = column_text(row, "instruction", "")
    offered = [text.strip() for text in offered_answers(instruction)] if ANSWER_FORMAT in instruction else []
    said = [_SAID.format(answer) for answer in offered]
    output = row["output"].strip() if isinstance(row.get("output"), str) else ""
    if output in said:
        return said, said.index(output), len(said)
    return [output], 0, 0  # said in other words


def _place(answer: object, labels: Sequence[str]) -> int | None:
    """Where an answer stands among the labels."""
    return next((place for place, label in enumerate(labels) if folded(label) == folded(str(answer))), None)
