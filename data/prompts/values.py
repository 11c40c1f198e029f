"""Values of rows as text: numbers and booleans, columns that must be text, and lists of choices in the shapes they come in."""

import json
import math
import re
import string
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ..errors import InputError
from ..files.strict_json import parse_strictly
from ..text import shown

KEEP_LISTS = "save the rows as JSON or Parquet, which keep lists"

_LABEL = re.compile(r"[A-Za-z]|\d{1,3}")  # a name that labels a choice, in an object of choices


def scalar_text(value: Any, name: str, where: str) -> str:
    """Text as it is, a boolean as `true` or `false`, a number as its digits; InputError, saying where, for anything else.

    Args:
        value: what stands in the row.
        name: its column or path, for the message.
        where: its file and row, for the message. NaN and infinite numbers are told there, too.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float | Decimal) and math.isfinite(value)):
        return str(value)
    if value is None:
        raise InputError(f"{where}: has no '{name}': it is null")
    raise InputError(f"{where}: '{name}' must be text, a number or a boolean, got {kind(value)}")


def column_text(row: dict[str, Any], column: str, where: str) -> str:
    """The text in a row's column; InputError, saying where, if there is none or it is something else."""
    value = row.get(column)
    if value is None:
        raise InputError(f"{where}: has no '{column}'" + (": it is null" if column in row else ""))
    if not isinstance(value, str):
        raise InputError(f"{where}: '{column}' must be text, got {kind(value)}")
    return value


def kind(value: Any) -> str:
    """What a value is, for a message: its type and its beginning; NaN and infinite numbers by their names in JSON."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return f"{type(value).__name__} {shown(value)}"[:80]


def from_json(text: str, name: str, where: str) -> Any:
    """What a text holds as JSON, as a CSV file cannot nest; InputError, saying where, for a list that Python or NumPy wrote."""
    try:
        return parse_strictly(text)
    except ValueError as error:
        raise InputError(f"{where}: '{name}' is not a JSON list or object, got {text!r:.40}; {KEEP_LISTS}") from error


def choice_lines(choices: Sequence[tuple[str, str]]) -> str:
    """One line `A. text` for each (label, text)."""
    return "\n".join(f"{label}. {text}" for label, text in choices)


def labelled_choices(value: Any, name: str, where: str) -> list[tuple[str, str]]:
    """The (label, text) of each choice, in order. Raises InputError, saying where, for what is no list of choices.

    Args:
        value: a list of texts, which get the labels A, B, … (1, 2, … beyond 26); a list of objects with `text` and `label`;
            an object with the lists `text` and `label`; an object such as {"A": text, "B": text}, where what is null is no
            choice; or the JSON text of one of these.
        name: its column or path, for the message.
        where: its file and row, for the message.
    """
    if isinstance(value, str):
        value = from_json(value, name, where)
    labels, texts = _labels_and_texts(value, name, where)
    if len(texts) != len(labels):
        raise InputError(f"{where}: {len(texts)} choices but {len(labels)} labels in '{name}'")
    return [
        (scalar_text(label, f"{name}[{index}]", where), scalar_text(text, f"{name}[{index}]", where))
        for index, (label, text) in enumerate(zip(labels, texts, strict=True))
    ]


def _labels_and_texts(value: Any, name: str, where: str) -> tuple[Sequence[Any], Sequence[Any]]:
    if isinstance(value, list):
        if value and all(_is_choice(each) for each in value):
            return [each["label"] for each in value], [each["text"] for each in value]
        return _letters(len(value)), value
    if _is_choice(value):
        for part in ("text", "label"):
            if not isinstance(value[part], list):
                raise InputError(f"{where}: '{name}.{part}' must be a list, got {kind(value[part])}")
        return value["label"], value["text"]
    if isinstance(value, dict) and value and all(_LABEL.fullmatch(key) for key in value):
        given = {label: text for label, text in value.items() if text is not None}  # so Parquet keeps what a row lacks
        return list(given), list(given.values())
    raise InputError(f"{where}: '{name}' must hold the lists 'text' and 'label', or be a list of choices, got {kind(value)}")


def _is_choice(value: Any) -> bool:
    return isinstance(value, dict) and {"text", "label"} <= value.keys()


def _letters(count: int) -> Sequence[str]:
    letters = string.ascii_uppercase
    return letters[:count] if count <= len(letters) else [str(number) for number in range(1, count + 1)]
