"""Templates and what they make: a text whose parts are known as character spans.

A template is a text with placeholders: `{column}`, a path into one as in `{question.stem}`, or either with the name of its
span as in `{question=goal}`. Filling one keeps account of where each value went, so that a span is known exactly when the text
is made and never searched for afterwards.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import InputError, OptionError
from ..options.settings import BUILT_IN_TEMPLATES

ASKED_SPANS = ("question", "choices")  # give their names to the spans of paths that they stand in
ALWAYS_SPANS = ("template", "special")  # whatever the template
BASE_SPANS = (*ASKED_SPANS, *ALWAYS_SPANS)
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
class Placeholder:
    """What a template leaves open: the path of a value in a row, and the name of the span that it becomes."""

    span: str
    path: str


@dataclass(frozen=True)
class Template:
    """A named prompt text with placeholders (see above); `{{` and `}}` are literal braces.

    A span without a name of its own has that of the last `question` or `choices` in its path, else of the path's first part.
    Raises InputError when made from a text whose braces do not form such placeholders.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_TEMPLATE_CHARS:
            raise InputError(f"template {self.name}: longer than {MAX_TEMPLATE_CHARS} characters")
        for placeholder in self.placeholders:
            if placeholder.span in ALWAYS_SPANS:
                raise InputError(
                    f"template {self.name}: {{{placeholder.span}}} is the name of a built-in span; "
                    f"give it another, as in {{name={placeholder.path}}}"
                )
        if not self.placeholders:
            raise InputError(f"template {self.name}: has no {{column}} placeholder")

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        """The distinct placeholders in order of first appearance."""
        return tuple(dict.fromkeys(placeholder for _, placeholder in self._pieces if placeholder))

    @cached_property
    def _pieces(self) -> tuple[tuple[str, Placeholder | None], ...]:
        """The text in pieces: each a literal text and the placeholder after it, if there is one."""
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise InputError(f"template {self.name}: {error}; write {{{{ and }}}} for literal braces") from error
        return tuple(
            (literal, self._placeholder(field, spec, conversion) if field is not None else None)
            for literal, field, spec, conversion in parsed
        )

    def _placeholder(self, field: str, spec: str | None, conversion: str | None) -> Placeholder:
        match = _PLACEHOLDER.fullmatch(field)
        if not match or spec or conversion:
            raise InputError(
                f"template {self.name}: {{{field}}} is not a column name, nor a path such as question.stem or choices.0; "
                f"write {{{{ for a literal brace"
            )
        return Placeholder(match["span"] or _span_name(match["path"]), match["path"])

    def fill(self, pieces: Mapping[str, Piece]) -> Prompt:
        """The prompt made from one piece per path.

        Every placeholder becomes a span of its name, the parts of a piece become spans too, and `template` is all that
        is left: the text of the template itself, and of pieces with parts what lies outside these parts. A piece that is given
        the name of another span is that span as a whole.
        """
        text, spans = "", []
        for literal, placeholder in self._pieces:
            spans.append(Span("template", len(text), len(text) + len(literal)))
            text += literal
            if placeholder:
                piece = pieces[placeholder.path]
                if placeholder.span != placeholder.path:
                    piece = Piece(piece.text)
                spans.append(Span(placeholder.span, len(text), len(text) + len(piece.text)))
                spans.extend(Span(part.name, len(text) + part.start, len(text) + part.end) for part in piece.parts)
                spans.extend(Span("template", len(text) + start, len(text) + end) for start, end in _outside(piece))
                text += piece.text
        return Prompt(text, tuple(spans))


_NAME = r"[^\W\d][\w -]*"  # of a column, or a span
_PLACEHOLDER = re.compile(rf"(?:(?P<span>{_NAME}?) *= *)?(?P<path>{_NAME}(?:\.[\w -]+)*)")


def _span_name(path: str) -> str:
    names = path.split(".")
    return next((name for name in reversed(names) if name in ASKED_SPANS), names[0])


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
        raise OptionError(f"--template {path}: cannot be read: {error.strerror}; built in are {built_in}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"--template {path}: not UTF-8 text at byte {error.start}") from error
    return Template(path.name, text.removesuffix("\n"))
