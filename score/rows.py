"""Sums over pattern rows, which is where scoring spends its time: one look-up and one addition per value.

There are 15,361 half-precision numbers from 0 to 1. A table gives p and −p ln p of each, packed into one 64-bit integer, so
that one sum yields both a row's mass and its entropy. Integers add up to the same in whatever order.
"""

import itertools
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.words import add_up

Float = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

WINDOW_ITEMS = 1 << 16  # values that are looked up at once: few enough to stay in a core's cache, many for few calls

_ONE = 0x3C00  # the bits of 1.0; those of the numbers from 0 to 1 rise with them
_MASS_UNIT = 2.0**-24  # every half-precision number is a multiple of it
_ENTROPY_UNIT = 2.0**-34
_ENTROPY_BITS = 38  # room for 16 nats, more than the entropy of a row of 8 million tokens; the bits above are the mass's
_ENTROPY = (1 << _ENTROPY_BITS) - 1


class RowSums:
    """Sums over the pattern rows of some samples: the mass Σ_{j ∈ span} aⱼ, and −H = Σⱼ aⱼ ln aⱼ.

    member: bool [t], which tokens are in the span. offsets: int64 [n+1], where each sample's tokens start. heads: H. One object
    serves all layers.
    """

    def __init__(self, member: npt.NDArray[np.bool_], offsets: Integers, heads: int):
        # All heads' rows are one sequence. A piece of it lies in one sample, in one window, and in or out of the span.
        tokens, rows = len(member), np.arange(heads)[:, np.newaxis] * len(member)
        is_start = np.zeros((heads, tokens), bool)
        is_start[:, offsets[:-1]] = True
        is_start[:, 1:] |= member[1:] != member[:-1]
        windows = np.arange(0, is_start.size, WINDOW_ITEMS)
        is_start.ravel()[windows] = True
        starts = np.flatnonzero(is_start)
        of_window = [*np.searchsorted(starts, windows).tolist(), len(starts)]
        self._windows = [
            (slice(start, start + WINDOW_ITEMS), starts[first:end] - start, slice(first, end))
            for start, (first, end) in zip(windows.tolist(), itertools.pairwise(of_window), strict=True)
        ]
        self._samples = np.append(np.searchsorted(starts, rows + offsets[:-1]), len(starts))  # where theirs begin and end
        self._inside = member[starts % tokens]

    def mass_and_entropy(self, patterns: npt.NDArray[np.float16]) -> tuple[Float, Float]:
        """The mass, between 0 and 1, and −H in nats, between −ln T and 0 (0 ln 0 is 0): patterns [H,t] -> both [H,n].

        Shannon (1948). An empty span has mass 0, a row of one token −H = 0, a uniform row of T tokens −H = −ln T. The mass is
        exact, −H within T · 3e-11. Raises ValueError for values that are not between 0 and 1.
        """
        pieces = self._pieces(patterns.view(np.uint16))
        up_to = np.zeros(len(pieces) + 1, np.int64)  # this may wrap around, differences do not
        np.cumsum(np.where(self._inside, pieces, pieces & _ENTROPY), out=up_to[1:])
        sums = np.diff(up_to[self._samples]).reshape(len(patterns), -1)
        return (sums >> _ENTROPY_BITS) * _MASS_UNIT, (sums & _ENTROPY) * -_ENTROPY_UNIT

    def _pieces(self, bits: npt.NDArray[np.uint16]) -> Integers:
        """The packed sum of every piece: bits of pattern rows [H,t] -> [pieces]."""
        values, table = bits.reshape(-1), _packed_table()
        pieces = np.empty(len(self._inside), np.int64)
        for window, starts, own in self._windows:
            if not add_up(values[window], table, starts, pieces[own]):
                raise ValueError("values that are not between 0 and 1")
        return pieces


@cache
def _packed_table() -> Integers:
    """p and −p ln p of every half-precision number from 0 to 1, by its bits: in whole units, p in the upper bits."""
    p = np.arange(_ONE + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    entropy = -p * np.log(np.where(p > 0, p, 1))
    return (np.rint(p / _MASS_UNIT).astype(np.int64) << _ENTROPY_BITS) + np.rint(entropy / _ENTROPY_UNIT).astype(np.int64)
