"""Turns a row into a prompt whose parts are known as character spans.

A template is a text with `{column}` placeholders. Filling one keeps account of where each value went, so that a span is
known exactly when the text is made and never searched for afterwards.
"""

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError
from .rows import Row

BASE_SPANS = ("question", "choices", "template", "special")
ALWAYS_SPANS = ("template", "special")  # whatever the template
MAX_SPANS = 8  # bits in the token mask
MAX_TEMPLATE_CHARS = 16_384  # the template is kept in an HDF5 attribute, which holds 64 KiB


@dataclass(frozen=True)
class Span:
    """A named, half-open range of characters; `start == end` is an empty span."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Prompt:
    """The text a model reads and the spans in it; spans may overlap, and a name may stand for several ranges."""

    text: str
    spans: tuple[Span, ...]

    def span_text(self, name: str) -> str:
        """All text under a span's name, its ranges joined; empty where the prompt has none."""
        return "".join(self.text[span.start : span.end] for span in self.spans if span.name == name)


@dataclass(frozen=True)
class Piece:
    """The value of one placeholder, with the spans known inside it (`parts`, relative to its start)."""

    text: str
    parts: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Template:
    """A named prompt text with `{column}` placeholders; `{{` and `}}` are literal braces.

    Raises InputError when made from a text whose braces do not form plain placeholders.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_TEMPLATE_CHARS:
            raise InputError(f"template {self.name}: longer than {MAX_TEMPLATE_CHARS} characters")
        try:
            pieces = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise InputError(f"template {self.name}: {error}; write {{{{ and }}}} for literal braces") from error
        for _, column, spec, conversion in pieces:
            if column is not None and (not re.fullmatch(r"[^\W\d][\w -]*", column) or spec or conversion):
                raise InputError(f"template {self.name}: {{{column}}} is not a column name; write {{{{ for a literal brace")
        for reserved in ALWAYS_SPANS:
            if reserved in self.columns:
                raise InputError(f"template {self.name}: {{{reserved}}} is the name of a built-in span; rename the column")
        if not self.columns:
            raise InputError(f"template {self.name}: has no {{column}} placeholder")

    @property
    def columns(self) -> tuple[str, ...]:
        """The placeholders' names in order of first appearance."""
        return tuple(dict.fromkeys(c for _, c, _, _ in string.Formatter().parse(self.text) if c is not None))

    def fill(self, pieces: Mapping[str, Piece]) -> Prompt:
        """The prompt made from one piece per placeholder.

        Every placeholder becomes a span of its name, the parts of a piece become spans too, and `template` is all that
        is left: the text of the template itself, and of pieces with parts what lies outside these parts.
        """
        text, spans = "", []
        for literal, column, _, _ in string.Formatter().parse(self.text):
            spans.append(Span("template", len(text), len(text) + len(literal)))
            text += literal
            if column is not None:
                piece = pieces[column]
                spans.append(Span(column, len(text), len(text) + len(piece.text)))
                spans.extend(Span(part.name, len(text) + part.start, len(text) + part.end) for part in piece.parts)
                spans.extend(Span("template", len(text) + start, len(text) + end) for start, end in _outside(piece))
                text += piece.text
        return Prompt(text, tuple(spans))


def _outside(piece: Piece) -> list[tuple[int, int]]:
    """The ranges of a piece that none of its parts covers; nothing for a piece without parts."""
    if not piece.parts:
        return []
    edges = [0, *(edge for part in sorted(piece.parts, key=lambda p: p.start) for edge in (part.start, part.end))]
    return list(zip(edges[::2], [*edges[1::2], len(piece.text)], strict=True))


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
    return {"question": Piece(_text(row, "question", where)), "choices": Piece(lines)}


def _llm_adapters_pieces(row: Row, where: str) -> dict[str, Piece]:
    """`instruction`, with question and choices as its parts where its wording is known, and `input`."""
    instruction = _text(row, "instruction", where)
    parts = _instruction_parts(instruction)
    answer = row.get("answer")
    if parts and answer not in (None, ""):
        allowed = instruction[instruction.rfind(_ANSWER_FORMAT) + len(_ANSWER_FORMAT) :].strip().split("/")
        if answer not in allowed:
            raise InputError(f"{where}: answer {answer!r} is none of {', '.join(allowed)}")
    given = "" if row.get("input") is None else _text(row, "input", where)
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


def _text(row: Row, column: str, where: str) -> str:
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


class PromptMaker:
    """Makes the prompt of each row of one data file, by the file's detected row style or by the user's template.

    source: the file, for messages. columns: the names in its rows. style: arc, llm-adapters, or other. templates: those in use.
    span_names: the spans of its prompts, in the order of the token mask's bits. has_question: whether there is such a span.

    Raises InputError when made for columns of no known style without a template, for a placeholder without a column, and for
    a template with too many placeholders.
    """

    def __init__(self, source: Path, columns: Sequence[str], template: Template | None):
        self._source = source
        self._custom = template
        self._style = next((style for style in ROW_STYLES if set(style.columns) <= set(columns)), None)
        if template is None and self._style is None:
            known = " or ".join(f"{style.name} ({', '.join(style.columns)})" for style in ROW_STYLES)
            raise InputError(
                f"{source}: columns {', '.join(columns)} are of no known style: {known}; give --template FILE for others"
            )
        self.style = self._style.name if self._style else "other"
        if template and self._style and self._style.made not in template.columns:
            self._style = None  # the template takes the columns as they are
        self.templates = (template,) if template else self._style.templates if self._style else ()
        for column in template.columns if template else ():
            if column not in columns:
                raise InputError(
                    f"template {self.templates[0].name}: {{{column}}} is no column of {source}; it has {', '.join(columns)}"
                )
        made = {column for t in self.templates for column in t.columns}
        if self.style == "llm-adapters" and "instruction" in made:
            made |= {"question", "choices"}
        ordered = dict.fromkeys((*BASE_SPANS, *(column for t in self.templates for column in t.columns)))
        self.span_names = tuple(name for name in ordered if name in made or name in ALWAYS_SPANS)
        self.has_question = "question" in (made if template is None else template.columns)
        if len(self.span_names) > MAX_SPANS:
            raise InputError(
                f"template {self.templates[0].name}: makes {len(self.span_names)} spans with {' and '.join(ALWAYS_SPANS)}; "
                f"a cache holds {MAX_SPANS}"
            )

    def __call__(self, row: Row, number: int) -> Prompt:
        """The prompt of row `number`; raises InputError, naming file and row, where the row does not fit."""
        where = f"{self._source}: row {number}"
        pieces = self._style.pieces(row, where) if self._style else {}
        template = self._custom or (self._style.choose(pieces) if self._style else self.templates[0])
        for column in template.columns:
            if column not in pieces:
                pieces[column] = Piece(_printable(row, column, where))
        prompt = template.fill(pieces)
        try:
            prompt.text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: holds half a surrogate pair ({error.object[error.start]!a}), which is not text"
            ) from error
        return prompt


def _printable(row: Row, column: str, where: str) -> str:
    """A value for a user's template: text as it is, numbers and booleans as Python writes them."""
    value = row.get(column)
    return str(value) if isinstance(value, int | float) else _text(row, column, where)


def read_template(path: Path) -> Template:
    """A user's template file; one line break at its end is an editor's habit and no part of it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"--template {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--template {path}: not UTF-8 text at byte {error.start}") from error
    return Template(path.name, text.removesuffix("\n"))
