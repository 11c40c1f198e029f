"""Columns of the data file that a cache keeps for each sample, so that samples can be grouped without the file."""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import DamagedShardError, InputError, OptionError
from ..files.bounded_json import MAX_ELEMENTS
from ..prompts.paths import is_known, known_paths, some, value_at
from ..prompts.rows import Row
from ..prompts.values import kind

Value = str | int | float | bool | None
Kept = dict[str, dict[int, Value]]  # by column, then by row

MAX_KEPT_BYTES = 8 << 20  # of a shard, as JSON; all of its metadata may be twice as large
MAX_KEPT_VALUES = MAX_ELEMENTS // 2
MAX_PATHS = 30  # that a message names

_TOLD_AS_TEXT = (Decimal, date, time, timedelta)  # what Parquet has besides JSON's kinds


def kept_values(columns: Iterable[str], rows: Sequence[Row], numbers: Sequence[int], source: Path) -> Kept:
    """The values that columns have in some rows; null where a row has no such column.

    Text, whole numbers of 64 bits, other numbers, true, false and null stay what they are. A list or object becomes its JSON
    text; a larger whole number, a decimal, a date or a time becomes the text of it.

    Args:
        columns: paths as in a template, such as `question.type`. Order and repetition do not matter.
        rows: all rows of the file.
        numbers: of the rows whose values are wanted.
        source: the file, for messages.

    Raises:
        InputError: for a column that no row has, naming those that there are; and, naming the row, for NaN, an infinite number,
            binary data and half a surrogate pair.
    """
    columns = sorted(set(columns))
    for column in columns:
        if not is_known(column, rows):
            what = "path" if "." in column else "column"
            raise OptionError(f"--keep {column}: is not a {what} of {source}; it has {some(known_paths(rows), MAX_PATHS)}")
    drawn = [(number, f"{source}: row {number}", rows[number]) for number in numbers]
    return {column: {number: _value(row, column, where) for number, where, row in drawn} for column in columns}


def of_rows(kept: Kept, rows: Iterable[int]) -> Kept:
    """The kept values of some rows alone, in their order."""
    rows = list(rows)
    return {column: {row: values[row] for row in rows} for column, values in kept.items()}


def as_stored(kept: Kept) -> dict[str, list[Value]]:
    """Kept values as a shard holds them under `kept`: by column a list with one of each sample."""
    return {column: list(values.values()) for column, values in kept.items()}


def stored_bytes(kept: Kept) -> int:
    """How much of a shard kept values take."""
    return len(json.dumps(as_stored(kept), ensure_ascii=False).encode())


def require_small(kept: Kept, rows: Sequence[int]) -> None:
    """Raises InputError, naming the largest column, where a shard of these rows cannot hold the values that are kept of it."""
    size = stored_bytes(kept)
    values = sum(map(len, kept.values()))
    if size > MAX_KEPT_BYTES or values > MAX_KEPT_VALUES:
        largest = max(kept, key=lambda column: stored_bytes({column: kept[column]}))
        raise OptionError(
            f"--keep {largest}: {size / 1e6:.1f} MB would be kept of rows {rows[0]} to {rows[-1]}, most of it this column; "
            f"a shard holds {MAX_KEPT_BYTES / 1e6:.1f} MB and {MAX_KEPT_VALUES} values: leave the column out, or give a "
            "smaller --shard-size"
        )


def checked_kept(kept: Any, names: Sequence[str], samples: int, where: str) -> dict[str, list[Value]]:
    """What a shard says under `kept`, as untrusted input: by column one value of each sample.

    Args:
        kept: what it says; None where it has no such key.
        names: the columns that its settings name.
        samples: how many it has.
        where: its file, for the message.

    Raises:
        DamagedShardError: where that does not have exactly these columns, or one value of a kind that is kept for each sample.
    """
    kept = {} if kept is None else kept
    if not isinstance(kept, dict) or sorted(kept) != sorted(names):
        raise DamagedShardError(f"{where}: 'kept' does not have the columns that its settings name")
    for column, values in kept.items():
        if not isinstance(values, list) or len(values) != samples or not all(map(_is_value, values)):
            raise DamagedShardError(
                f"{where}: 'kept' does not have one plain value of '{column}' for each of {samples} samples"
            )
    return kept


def _value(row: Row, column: str, where: str) -> Value:
    try:
        value = value_at(row, column, where)
    except LookupError:
        return None
    if isinstance(value, _TOLD_AS_TEXT) or (isinstance(value, int) and not _is_value(value)):
        value = str(value)
    elif isinstance(value, list | dict):
        value = _json_text(value, column, where)
    if not _is_value(value):
        raise InputError(f"{where}: '{column}' is {kind(value)}, which cannot be kept; make it null or text")
    if isinstance(value, str):
        _require_text(value, column, where)
    return value


def _json_text(value: Any, column: str, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: '{column}' cannot be kept as JSON text: {error}") from error


def _text(value: Any) -> str:
    if isinstance(value, _TOLD_AS_TEXT):
        return str(value)
    raise TypeError(f"it holds {kind(value)}")


def _require_text(text: str, column: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{error.object[error.start]!a}"
        raise InputError(f"{where}: '{column}' holds half a surrogate pair ({half}), which is not text") from error


def _is_value(value: Any) -> bool:
    """Whether a value is of a kind that a shard keeps: whole numbers of at most 64 bits, other numbers finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return -(1 << 63) <= value < 1 << 63
    return value is None or isinstance(value, str | bool)
