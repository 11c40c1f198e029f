"""Sums over 16-bit words, where reading and scoring a cache spend their time: compiled, or else in numpy.

The compiled loops (_words.c) are built when headscore is installed where a C compiler is, and give the same integers.
"""

import sys
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from . import _words as compiled
except ImportError:  # there was no compiler
    compiled = None  # type: ignore[assignment]

Words = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int64]

_COLUMNS = 1024  # of the grid that words are summed in: few enough for 32-bit sums of half a MiB of words
_LOOK_UPS = 1 << 16  # at once: few enough to stay in a core's cache, many for few calls


def fletcher_sums_in_numpy(words: Words) -> tuple[int, int]:
    """`fletcher_sums` without a compiler."""
    whole = len(words) - len(words) % _COLUMNS
    grid, rest = words[:whole].reshape(-1, _COLUMNS), words[whole:].astype(np.int64)
    by_row, by_column = (np.add.reduce(grid, axis=axis, dtype=np.uint32).astype(np.int64) for axis in (1, 0))
    row, column = _numbers()
    total = int(by_row.sum() + rest.sum())
    places = int(by_row @ row[: len(by_row)]) + int(by_column @ column) + int(rest @ (column[: len(rest)] + whole))
    return len(words) * total - places, total


def add_up_in_numpy(words: Words, table: Integers, bounds: Integers, slots: Integers, sums: Integers) -> bool:
    """`add_up` without a compiler."""
    used, starts = words[:, bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]
    if used.max(initial=0) >= len(table):
        return False
    step = max(1, _LOOK_UPS // used.shape[1])
    every_row: Any = slice(None)
    for row in range(0, len(used), step):
        pieces = np.add.reduceat(table.take(used[row : row + step], mode="clip"), starts, axis=1)
        np.add.at(sums[row : row + step], (every_row, slots), pieces)
    return True


def fletcher_sums(words: Words) -> tuple[int, int]:
    """Σ (n−i) wᵢ and Σ wᵢ of at most 2¹⁹ words w₀ … wₙ₋₁; of none, 0 and 0."""
    return _fletcher_sums(words)


def add_up(words: Words, table: Integers, bounds: Integers, slots: Integers, sums: Integers) -> bool:
    """Add up what the table has for the words, piece by piece, to `sums`; False where it has nothing for a word.

    words [r,w]: rows, of which w are adjacent in memory. table: the value of each word from 0. bounds [k+1], rising: piece i is
    the columns from bounds[i] to before bounds[i+1], at least one, of each row. slots [k]: where in a row of sums [r,s] it is
    added. Integers that leave 64 bits wrap around. Where it is False, the sums of some rows may have been added already.
    """
    return _add_up(words, table, bounds, slots, sums)


@cache
def _numbers() -> tuple[Integers, Integers]:
    """The place of each row's first word, and of each column in a row."""
    return np.arange(0, 1 << 19, _COLUMNS), np.arange(_COLUMNS)


_usable: Any = compiled if sys.byteorder == "little" else None
_fletcher_sums = _usable.fletcher_sums if _usable else fletcher_sums_in_numpy
_add_up = _usable.add_up if _usable else add_up_in_numpy
