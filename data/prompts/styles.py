"""The built-in row styles and templates: how a row of a known shape becomes the pieces that every built-in template needs."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UnfitRowError
from ..text import shown
from .paths import some
from .rows import Row
from .templates import ASKED_SPANS, Piece, Span, Template
from .values import choice_lines, column_text, labelled_choices

ARC = Template("arc", "Question: {question}\nChoices:\n{choices}\nAnswer:")

# What LLM-Adapters trains with, its 16 spaces of indentation included, up to the place where the answer begins.
_INDENT = "\n" + 16 * " "
_ALPACA_TASK = "Below is an instruction that describes a task"
_ALPACA_WRITE = "Write a response that appropriately completes the request. \n"
_ALPACA_INSTRUCTION = f"{_INDENT}### Instruction:{_INDENT}{{instruction}}{_INDENT}"
ALPACA = Template("alpaca", f"{_ALPACA_TASK}. {_ALPACA_WRITE}{_ALPACA_INSTRUCTION}{_INDENT}### Response:")
ALPACA_INPUT = Template(
    "alpaca_input",
    f"{_ALPACA_TASK}, paired with an input that provides further context. {_ALPACA_WRITE}{_ALPACA_INSTRUCTION}"
    f"{_INDENT}### Input:{_INDENT}{{input}}{_INDENT}{_INDENT}### Response:",
)

# A row's own text with nothing around it.
PLAIN_ARC = Template("plain", "{question}\n{choices}")
PLAIN = Template("plain", "{instruction}")
PLAIN_INPUT = Template("plain_input", "{instruction}\n{input}")

# The wordings of commonsense_170k's eight source tasks: how the instruction begins, and what begins the line of its choices.
# BoolQ offers its two choices in the answer format alone; winogrande has the answer format in the line of its choices.
ANSWER_FORMAT = "Answer format: "
_ANSWER_TO_QUESTION = "Please choose the correct answer to the question: "
_WORDINGS = {
    "Please answer the following question with true or false, question: ": ANSWER_FORMAT,  # boolq
    "Please choose the correct solution to the question: ": "Solution1:",  # piqa
    _ANSWER_TO_QUESTION: "Answer1:",  # social_i_qa, ARC-Easy, ARC-Challenge, openbookqa
    "Please choose the correct ending to complete the given sentence: ": "Ending1:",  # hellaswag
    "Please choose the correct answer to fill in the blank to complete the given sentence: ": "Option1:",  # winogrande
}
_LINES = {mark: re.compile(rf"^(?P<blank>[ \t\r]*\n)?[ \t]*{re.escape(mark)}", re.M) for mark in _WORDINGS.values()}
_WHOLE_FLOAT = re.compile(r"^(\d+)\.0$")
_ARC_WORDING = Template("instruction", f"{_ANSWER_TO_QUESTION}{{question}}\n\n{{choices}}\n\n{ANSWER_FORMAT}{{answers}}")


@dataclass(frozen=True)
class RowStyle:
    """A known shape of rows.

    columns: what marks it; the first must be text. made: the column that becomes more than its text. derived: pieces that are
    no columns of it. pieces: makes a row's pieces. templates: by their names, the style's own first; where there are two, the
    second has an input.
    """

    name: str
    columns: tuple[str, ...]
    made: str
    derived: tuple[str, ...]
    pieces: Callable[[Row, str], dict[str, Piece]]
    templates: Mapping[str, tuple[Template, ...]]


def _arc_pieces(row: Row, where: str) -> dict[str, Piece]:
    """`question`, `choices` as one line `A. text` per choice, and both as LLM-Adapters' `instruction` for ARC.

    The answer key is checked but not shown.
    """
    choices = labelled_choices(row.get("choices"), "choices", where)
    if not choices:
        raise UnfitRowError("it has no choices")
    question = Piece(column_text(row, "question", where))
    _check_answer(row, "answerKey", [label for label, _ in choices])
    instruction = _arc_instruction(question, [text for _, text in choices])
    return {"question": question, "choices": Piece(choice_lines(choices)), "instruction": instruction}


def _arc_instruction(question: Piece, texts: list[str]) -> Piece:
    """What LLM-Adapters makes of an ARC row, with question and choices as its parts."""
    numbered = enumerate(texts, start=1)
    made = _ARC_WORDING.fill(
        {
            "question": question,
            "choices": Piece(" ".join(f"Answer{number}: {text}" for number, text in numbered)),
            "answers": Piece("/".join(f"answer{number}" for number in range(1, len(texts) + 1))),
        }
    )
    return Piece(made.text, tuple(span for span in made.spans if span.name in ASKED_SPANS))


def _llm_adapters_pieces(row: Row, where: str) -> dict[str, Piece]:
    """`instruction`, with question and choices as its parts where its wording is known, these two, and `input`."""
    instruction = column_text(row, "instruction", where)
    given = "" if row.get("input") is None else column_text(row, "input", where)
    parts = _instruction_parts(instruction)
    if parts:
        _check_answer(row, "answer", offered_answers(instruction))
    inner = {name: Piece("") for name in ASKED_SPANS} | {p.name: Piece(instruction[p.start : p.end]) for p in parts}
    return {"instruction": Piece(instruction, parts), "input": Piece(given), **inner}


def offered_answers(instruction: str) -> list[str]:
    """What the answer format at the end of an LLM-Adapters instruction offers; the whole text where it has none."""
    return instruction.rpartition(ANSWER_FORMAT)[2].split("/")


def _check_answer(row: Row, column: str, choices: Sequence[str]) -> None:
    """Raises UnfitRowError where a row has an answer that is none of the choices."""
    answer = row.get(column)
    text = shown(answer) if isinstance(answer, list | dict) else str(answer)
    if answer is None or not text.strip() or (isinstance(answer, float) and math.isnan(answer)):
        return  # pandas writes NaN for what is not there
    if text not in choices and folded(text) not in map(folded, choices):
        raise UnfitRowError(f"{column} {shown(answer):.40} is none of {some(list(map(str.strip, choices)))}")


def folded(answer: str) -> str:
    """An answer as it is compared: without case and outer blanks, and as 1 where pandas wrote 1.0 for want of another row's."""
    return _WHOLE_FLOAT.sub(r"\1", answer.strip().casefold())


def _instruction_parts(instruction: str) -> tuple[Span, ...]:
    """The question and choices spans inside an LLM-Adapters instruction; none where its wording is not a known one."""
    opening = next((opening for opening in _WORDINGS if instruction.startswith(opening)), None)
    if opening is None:
        return ()
    start, mark = len(opening), _WORDINGS[opening]
    answer_format = instruction.rfind(ANSWER_FORMAT, start)
    in_format = mark == ANSWER_FORMAT
    choices = _choices_start(instruction, mark, start, answer_format + in_format * len(mark))
    if choices < 0 or (in_format and choices < answer_format):
        return ()
    offered = (choices + len(mark), len(instruction)) if in_format else (choices, answer_format)
    return (_trimmed("question", instruction, start, choices), _trimmed("choices", instruction, *offered))


def _choices_start(text: str, mark: str, start: int, stop: int) -> int:
    """Where a mark begins a paragraph for the last time, or else a line, as a question may quote it; -1 if nowhere."""
    lines = _LINES[mark].finditer(text, start, max(stop, 0))
    found = ((match["blank"] is not None, match.end() - len(mark)) for match in lines)
    return max(found, default=(False, -1))[1]


def _trimmed(name: str, text: str, start: int, end: int) -> Span:
    """The span without the white space at its ends."""
    inner = text[start:end]
    return (
        Span(name, start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip()))
        if inner.strip()
        else Span(name, start, start)
    )


ROW_STYLES = (
    RowStyle(
        "arc",
        ASKED_SPANS,
        "choices",
        ("instruction",),
        _arc_pieces,
        {"arc": (ARC,), "alpaca": (ALPACA,), "plain": (PLAIN_ARC,)},
    ),
    RowStyle(
        "llm-adapters",
        ("instruction", "output"),
        "instruction",
        ASKED_SPANS,
        _llm_adapters_pieces,
        {"alpaca": (ALPACA, ALPACA_INPUT), "arc": (ARC,), "plain": (PLAIN, PLAIN_INPUT)},
    ),
)
