"""Tables of outcomes as arrays: one line per set of heads, or head, and one column per row of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ..data.errors import InputError
from .means import Float


@dataclass(frozen=True, eq=False)
class Grid:
    """A table's values as arrays, one line per thing that was run and one column per row of the data.

    Args:
        keys: one line for each of what was run, sorted.
        rows: the numbers of the data rows, ascending, [n].
        values: of each column, float64 [len(keys), n], NaN where there is none.
    """

    keys: pl.DataFrame
    rows: npt.NDArray[np.int64]
    values: Mapping[str, Float]


def grid_of(name: str, frame: Any, keys: Sequence[str], columns: Sequence[str]) -> Grid:
    """A table as a grid, the same whatever the order of its lines.

    Args:
        name: of the table, for messages.
        frame: one line for each combination of `keys` that was run and each `row`.
        keys: the columns that say what was run.
        columns: those of numbers; null is no value.

    Raises InputError where a column is missing or of another type, a value is NaN or infinite, or a row is missing or twice.
    """
    if not isinstance(frame, pl.DataFrame):
        raise InputError(f"{name}: is a {type(frame).__name__}, not a polars DataFrame")
    if missing := [column for column in (*keys, "row", *columns) if column not in frame.columns]:
        raise InputError(f"{name}: has no column {', '.join(missing)}; it has {', '.join(frame.columns)}")
    _require_numbers(name, frame, keys, columns)
    ordered = frame.sort(*keys, "row")
    rows = ordered["row"].unique().sort()
    lines = ordered.select(keys).unique(maintain_order=True)
    if len(lines) * len(rows) != len(frame) or not (ordered["row"].to_numpy().reshape(-1, len(rows)) == rows.to_numpy()).all():
        _raise_uneven(name, frame, keys, len(rows))
    values = {column: _numbers(ordered[column]).reshape(len(lines), len(rows)) for column in columns}
    return Grid(lines, rows.to_numpy().astype(np.int64), values)


def _numbers(series: pl.Series) -> Float:
    return series.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _require_numbers(name: str, frame: pl.DataFrame, keys: Sequence[str], columns: Sequence[str]) -> None:
    if not len(frame):
        raise InputError(f"{name}: has no lines")
    if frame["row"].has_nulls() or not frame["row"].dtype.is_integer():
        raise InputError(f"{name}: some lines have no whole number as their row")
    for column in columns:
        if not (frame[column].dtype.is_numeric() or frame[column].dtype in (pl.Null, pl.Boolean)):
            raise InputError(f"{name}: '{column}' is of {frame[column].dtype}, not of numbers")
        for line in frame.filter(~pl.col(column).cast(pl.Float64).is_finite()).head(1).iter_rows(named=True):
            where = told({key: line[key] for key in (*keys, "row")})
            raise InputError(f"{name}: '{column}' is {line[column]} in {where}")


def _raise_uneven(name: str, frame: pl.DataFrame, keys: Sequence[str], rows: int) -> None:
    counts = frame.group_by(keys).agg(lines=pl.len(), rows=pl.col("row").n_unique()).sort(keys)
    line = counts.filter((pl.col("lines") != pl.col("rows")) | (pl.col("rows") != rows)).row(0, named=True)
    what = told({key: line[key] for key in keys})
    if line["lines"] != line["rows"]:
        raise InputError(f"{name}: {what} has a row twice; there must be one line for each row")
    raise InputError(f"{name}: {what} has {line['rows']} of the {rows} rows; let the run come to its end")


def told(keys: Mapping[str, Any]) -> str:
    """What a line is of, for messages."""
    return ", ".join(f"{key} {value}" for key, value in keys.items() if value is not None)
