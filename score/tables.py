"""A result as named columns of equal length, and its forms: polars frame, CSV and JSON."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import polars as pl

Table = dict[str, npt.NDArray[Any]]


def rows(table: Table) -> Iterator[tuple[Any, ...]]:
    """The lines of a table, as Python values."""
    return zip(*(np.asarray(column).tolist() for column in table.values()), strict=True)


def frame(table: Table) -> "pl.DataFrame":
    """The table as a polars frame."""
    import polars as pl  # here, as it takes longer to load than all of the scoring, and the command line needs no frame

    return pl.DataFrame(table)


def csv(table: Table) -> str:
    """A header and a line per row, numbers in full precision."""
    return "".join(",".join(map(str, line)) + "\n" for line in [tuple(table), *rows(table)])


def json_lines(table: Table) -> str:
    """A JSON array with one object a line."""
    return "[\n" + ",\n".join(json.dumps(dict(zip(table, line, strict=True))) for line in rows(table)) + "\n]\n"
