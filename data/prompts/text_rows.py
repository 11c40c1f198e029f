"""Rows that bring their own text and its spans: `text`, and `spans` with objects `name`, `start` and `end`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import shown
from .rows import Row
from .templates import ALWAYS_SPANS, Prompt, Span
from .values import column_text, from_json

TEXT_STYLE = "text"
TEXT_COLUMNS = ("text", "spans")
MAX_NAME = 64  # characters

_KEYS = {"name": str, "start": int, "end": int}


def text_prompt(row: Row, where: str) -> Prompt:
    """The row's text as it is, with its spans; what none of them covers is `template`.

    The edges are half-open and count code points. Spans may overlap and share a name. Raises InputError, saying where, for
    what is not a list of such objects (in CSV, the JSON of one), for edges outside the text, and for names that cannot be used.
    """
    text = column_text(row, "text", where)
    spans = tuple(_span(value, len(text), f"{where}: spans[{index}]") for index, value in enumerate(_listed(row, where)))
    return Prompt(text, (*spans, *_uncovered(spans, len(text))))


def text_span_names(rows: Sequence[Row], source: Path) -> list[str]:
    """The names of all spans in a file, in order of first appearance; InputError as `text_prompt`, for any of its rows."""
    prompts = (text_prompt(row, f"{source}: row {number}") for number, row in enumerate(rows))
    return list(dict.fromkeys(span.name for prompt in prompts for span in prompt.spans if span.name not in ALWAYS_SPANS))


def _listed(row: Row, where: str) -> list[Any]:
    value = row.get("spans")
    if isinstance(value, str):  # a CSV file cannot nest
        value = from_json(value, "spans", where)
    if not isinstance(value, list):
        raise InputError(f"{where}: 'spans' must be a list of objects with name, start and end, got {type(value).__name__}")
    return value


def _span(value: Any, length: int, where: str) -> Span:
    if not isinstance(value, dict) or value.keys() != _KEYS.keys():
        raise InputError(f"{where}: must be an object with name, start and end, got {shown(value):.80}")
    for key, kind in _KEYS.items():
        if type(value[key]) is not kind:  # True is no integer here
            raise InputError(f"{where}: '{key}' must be {'text' if kind is str else 'an integer'}, got {shown(value[key]):.40}")
    span = Span(**value)
    if span.name in ALWAYS_SPANS:
        raise InputError(f"{where}: '{span.name}' is the name of a built-in span; choose another")
    if not span.name.strip() or not span.name.isprintable() or len(span.name) > MAX_NAME:
        raise InputError(f"{where}: {span.name!a:.80} is not a name of 1 to {MAX_NAME} printable characters")
    if not 0 <= span.start <= span.end <= length:
        raise InputError(f"{where}: {span.start} to {span.end} is not a range of the text, which has {length} characters")
    return span


def _uncovered(spans: Sequence[Span], length: int) -> Iterator[Span]:
    done = 0
    for span in (*sorted(spans, key=lambda span: span.start), Span("", length, length)):
        if span.start > done:
            yield Span("template", done, span.start)
        done = max(done, span.end)
