"""What values of a shard's arrays can be: the one rule for whoever reads them, to score, to verify or to merge."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DamagedShardError
from .shard import Array

ROW_SUM_TOLERANCE = 0.01  # what rounding many small weights to half precision can add up to

_ITEMS = 1 << 22  # values that are added up at once
_ONE = 0x3C00  # the bits of 1.0 in half precision; those of the numbers from 0 to 1 rise with them


def require_values(path: Path, name: str, values: Array, spans: int) -> None:
    """Raises DamagedShardError where some values of an array cannot be, each by itself.

    Args:
        path: of the shard, for the message.
        name: of ARRAYS.
        values: of the whole array, or of a part of it.
        spans: how many spans have a name.
    """
    if fault := _fault(name, values, spans):
        raise DamagedShardError(f"{path}: '{name}' holds {fault}: the shard is damaged")


def _fault(name: str, values: Array, spans: int) -> str:
    if name == "samples/row" and ((np.diff(values) <= 0).any() or values.min(initial=0) < 0):
        return "numbers that do not rise from 0 or more"
    if name == "tokens/id" and values.min(initial=0) < 0:
        return "negative ids"
    if name == "tokens/span" and int(values.max(initial=0)) >> spans:
        return "marks of spans that have no name"
    if values.dtype == np.float16 and values.view(np.uint16).max(initial=0) > _ONE:  # -0.0, too
        return "weights that are not between 0 and 1"
    if values.dtype == np.float32 and not (np.isfinite(values).all() and values.min(initial=0) >= 0):
        return "values that are negative or not finite"
    return ""


def require_row_sums(path: Path, name: str, rows: Array, offsets: npt.NDArray[np.int64], full_rows: bool) -> None:
    """As `require_sums`, of pattern rows [..., t] of samples whose tokens start at `offsets` [b+1]."""
    rows = rows.reshape(-1, rows.shape[-1])
    step = max(1, _ITEMS // rows.shape[-1])  # NumPy makes all that it adds up float64 first
    for start in range(0, len(rows), step):
        sums = np.add.reduceat(rows[start : start + step], offsets[:-1], axis=1, dtype=np.float64)
        require_sums(path, name, sums, full_rows)


def require_sums(path: Path, name: str, sums: npt.NDArray[np.float64], full_rows: bool) -> None:
    """Raises DamagedShardError where pattern rows do not sum to 1, or without `full_rows` to more.

    sums: of the rows of the array `name`, exact: weights are multiples of 2⁻²⁴, so float64 rounds nothing.
    """
    least = 1 - ROW_SUM_TOLERANCE if full_rows else 0
    if sums.size and (sums.max() > 1 + ROW_SUM_TOLERANCE or sums.min() < least):
        wanted = "1" if full_rows else "at most 1"
        raise DamagedShardError(f"{path}: '{name}' holds rows that do not sum to {wanted}: the shard is damaged")
