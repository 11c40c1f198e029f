"""The built-in row styles: how a row of a known shape becomes the pieces of a prompt, and the built-in templates."""

import json
from collections.abc import Callable
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

# The wordings of commonsense_170k's eight source tasks: how the instruction begins, and what begins its choices.
# BoolQ offers its two choices in the answer format alone.
_ANSWER_FORMAT = "Answer format: "
_WORDINGS = {
    "Please answer the following question with true or false, question: ": _ANSWER_FORMAT,  # boolq
    "Please choose the correct solution to the question: ": "Solution1:",  # piqa
    "Please choose the correct answer to the question: ": "Answer1:",  # social_i_qa, ARC-Easy, ARC-Challenge, openbookqa
    "Please choose the correct ending to complete the given sentence: ": "Ending1:",  # hellaswag
    "Please choose the correct answer to fill in the blank to complete the given sentence: ": "Option1:",  # winogrande
}


@dataclass(frozen=True)
class RowStyle:
    """A known shape of rows: the columns that mark it, the one that is `made` into more than its text, and how a row becomes
    pieces and finds its template.
    """

    name: str
    columns: tuple[str, ...]
    made: str
    pieces: Callable[[Row, str], dict[str, Piece]]
    templates: tuple[Template, ...]
    choose: Callable[[dict[str, Piece]], Template]


def _arc_pieces(row: Row, where: str) -> dict[str, Piece]:
    """`question`, and `choices` as one line `A. text` per choice; the answer key is checked but not shown."""
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
    return {"question": Piece(column_text(row, "question", where)), "choices": Piece(lines)}


def _llm_adapters_pieces(row: Row, where: str) -> dict[str, Piece]:
    """`instruction`, with question and choices as its parts where its wording is known, and `input`."""
    instruction = column_text(row, "instruction", where)
    parts = _instruction_parts(instruction)
    answer = row.get("answer")
    if parts and answer not in (None, ""):
        allowed = instruction[instruction.rfind(_ANSWER_FORMAT) + len(_ANSWER_FORMAT) :].strip().split("/")
        if answer not in allowed:
            raise InputError(f"{where}: answer {answer!r} is none of {', '.join(allowed)}")
    given = "" if row.get("input") is None else column_text(row, "input", where)
    return {"instruction": Piece(instruction, parts), "input": Piece(given)}


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
    RowStyle("arc", ("question", "choices"), "choices", _arc_pieces, (ARC,), lambda pieces: ARC),
    RowStyle(
        "llm-adapters",
        ("instruction", "output"),
        "instruction",
        _llm_adapters_pieces,
        (ALPACA, ALPACA_INPUT),
        lambda pieces: ALPACA_INPUT if pieces["input"].text else ALPACA,
    ),
)
