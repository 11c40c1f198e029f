"""Templates and what they make: a text whose parts are known as character spans.

A template is a text with `{column}` placeholders. Filling one keeps account of where each value went, so that a span is
known exactly when the text is made and never searched for afterwards.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

BASE_SPANS = ("question", "choices", "template", "special")
BUILT_IN_TEMPLATES = ("arc", "alpaca", "plain")
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


def read_template(path: Path) -> Template:
    """A user's template file; one line break at its end is an editor's habit and no part of it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        built_in = ", ".join(BUILT_IN_TEMPLATES)
        raise InputError(f"--template {path}: cannot be read: {error.strerror}; built in are {built_in}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--template {path}: not UTF-8 text at byte {error.start}") from error
    return Template(path.name, text.removesuffix("\n"))
