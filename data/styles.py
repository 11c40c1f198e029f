"""The built-in row styles and templates: how a row of a known shape becomes the pieces that every built-in template needs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .rows import Row
from .templates import Piece, Span, Template

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

INSTRUCTION_PARTS = ("question", "choices")  # the spans inside an instruction

# The wordings of commonsense_170k's eight source tasks: how the instruction begins, and what begins its choices.
# BoolQ offers its two choices in the answer format alone.
_ANSWER_FORMAT = "Answer format: "
_ANSWER_TO_QUESTION = "Please choose the correct answer to the question: "
_WORDINGS = {
    "Please answer the following question with true or false, question: ": _ANSWER_FORMAT,  # boolq
    "Please choose the correct solution to the question: ": "Solution1:",  # piqa
    _ANSWER_TO_QUESTION: "Answer1:",  # social_i_qa, ARC-Easy, ARC-Challenge, openbookqa
    "Please choose the correct ending to complete the given sentence: ": "Ending1:",  # hellaswag
    "Please choose the correct answer to fill in the blank to complete the given sentence: ": "Option1:",  # winogrande
}
_ARC_WORDING = Template("instruction", f"{_ANSWER_TO_QUESTION}{{question}}\n\n{{choices}}\n\n{_ANSWER_FORMAT}{{answers}}")


@dataclass(frozen=True)
class RowStyle:
    """A known shape of rows.

    columns: what marks it. made: the column that becomes more than its text. derived: pieces that are no columns of it. pieces:
    makes a row's pieces. templates: by their names, the style's own first; where there are two, the second has an input.
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
    choices = row.get("choices")
    if isinstance(choices, str):  # a CSV file cannot nest
        try:
            choices = json.loads(choices)
        except ValueError as error:
            raise InputError(f"{where}: 'choices' is not a JSON object with 'text' and 'label'") from error
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise InputError(f"{where}: 'choices' must hold the lists 'text' and 'label', got {_kind(choices)}")
    texts, labels = choices["text"], choices["label"]
    for name, values in (("text", texts), ("label", labels)):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(f"{where}: 'choices.{name}' must be a list of text, got {_kind(values)}")
    if len(texts) != len(labels):
        raise InputError(f"{where}: {len(texts)} choices but {len(labels)} labels")
    answer = row.get("answerKey")
    if answer not in (None, "") and answer not in labels:
        raise InputError(f"{where}: answerKey {answer!r} is none of the labels {', '.join(labels)}")
    lines = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
    question = Piece(column_text(row, "question", where))
    return {"question": question, "choices": Piece(lines), "instruction": _arc_instruction(question, texts)}


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
    return Piece(made.text, tuple(span for span in made.spans if span.name in INSTRUCTION_PARTS))


def _llm_adapters_pieces(row: Row, where: str) -> dict[str, Piece]:
    """`instruction`, with question and choices as its parts where its wording is known, these two, and `input`."""
    instruction = column_text(row, "instruction", where)
    parts = _instruction_parts(instruction)
    answer = row.get("answer")
    if parts and answer not in (None, ""):
        allowed = instruction[instruction.rfind(_ANSWER_FORMAT) + len(_ANSWER_FORMAT) :].strip().split("/")
        if answer not in allowed:
            raise InputError(f"{where}: answer {answer!r} is none of {', '.join(allowed)}")
    given = "" if row.get("input") is None else column_text(row, "input", where)
    inner = {name: Piece("") for name in INSTRUCTION_PARTS} | {p.name: Piece(instruction[p.start : p.end]) for p in parts}
    return {"instruction": Piece(instruction, parts), "input": Piece(given), **inner}


def _instruction_parts(instruction: str) -> tuple[Span, ...]:
    """The question and choices spans inside an LLM-Adapters instruction; none where its wording is not a known one."""
    opening = next((opening for opening in _WORDINGS if instruction.startswith(opening)), None)
    if opening is None:
        return ()
    choices = instruction.find(_WORDINGS[opening], len(opening))
    answer_format = instruction.rfind(_ANSWER_FORMAT, len(opening))
    if choices < 0 or answer_format < choices:
        return ()
    if choices == answer_format:
        question, offered = (len(opening), choices), (answer_format + len(_ANSWER_FORMAT), len(instruction))
    else:
        question, offered = (len(opening), choices), (choices, answer_format)
    return (_trimmed("question", instruction, *question), _trimmed("choices", instruction, *offered))


def _trimmed(name: str, text: str, start: int, end: int) -> Span:
    """The span without the white space at its ends."""
    inner = text[start:end]
    return (
        Span(name, start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip()))
        if inner.strip()
        else Span(name, start, start)
    )


def column_text(row: Row, column: str, where: str) -> str:
    """The text in a row's column; InputError, saying where, if there is none or it is something else."""
    value = row.get(column)
    if value is None:
        raise InputError(f"{where}: has no '{column}'")
    if not isinstance(value, str):
        raise InputError(f"{where}: '{column}' must be text, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"[:80]


ROW_STYLES = (
    RowStyle(
        "arc",
        ("question", "choices"),
        "choices",
        ("instruction",),
        _arc_pieces,
        {"arc": (ARC,), "alpaca": (ALPACA,), "plain": (PLAIN_ARC,)},
    ),
    RowStyle(
        "llm-adapters",
        ("instruction", "output"),
        "instruction",
        INSTRUCTION_PARTS,
        _llm_adapters_pieces,
        {"alpaca": (ALPACA, ALPACA_INPUT), "arc": (ARC,), "plain": (PLAIN, PLAIN_INPUT)},
    ),
)
