"""Sums over pattern rows, which is where scoring spends its time: one look-up and one addition per value.

There are 15,361 half-precision numbers from 0 to 1. A table gives p and −p ln p of each, packed into one 64-bit integer, so
that one sum yields both a row's mass and its entropy. Integers add up to the same in whatever order.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

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
    serves all layers, but only one thread.
    """

    def __init__(self, member: npt.NDArray[np.bool_], offsets: Integers, heads: int):
        self._tokens = len(member)
        self._window = max(1, WINDOW_ITEMS // heads)
        windows = np.arange(0, self._tokens, self._window)
        # A piece is a part of a row that lies in one sample, in one window, and in or out of the span.
        starts = np.zeros(self._tokens, bool)
        starts[offsets[:-1]] = starts[windows] = True
        starts[1:] |= member[1:] != member[:-1]
        self._starts = np.flatnonzero(starts)
        self._of_window = [*np.searchsorted(self._starts, windows).tolist(), len(self._starts)]
        self._samples = np.append(np.searchsorted(self._starts, offsets[:-1]), len(self._starts))  # where theirs begin and end
        self._inside = member[self._starts]
        self._packed = np.empty(heads * min(self._window, self._tokens), np.int64)

    def mass_and_entropy(self, patterns: npt.NDArray[np.float16]) -> tuple[Float, Float]:
        """The mass, between 0 and 1, and −H in nats, between −ln T and 0 (0 ln 0 is 0): patterns [H,t] -> both [H,n].

        Shannon (1948). An empty span has mass 0, a row of one token −H = 0, a uniform row of T tokens −H = −ln T. The mass is
        exact, −H within T · 3e-11. Raises ValueError for values that are not between 0 and 1.
        """
        pieces = self._pieces(patterns.view(np.uint16))
        up_to = np.zeros((len(pieces), pieces.shape[1] + 1), np.int64)  # this may wrap around, differences do not
        np.cumsum(np.where(self._inside, pieces, pieces & _ENTROPY), axis=1, out=up_to[:, 1:])
        sums = np.diff(up_to.take(self._samples, axis=1))
        return (sums >> _ENTROPY_BITS) * _MASS_UNIT, (sums & _ENTROPY) * -_ENTROPY_UNIT

    def _pieces(self, bits: npt.NDArray[np.uint16]) -> Integers:
        """The packed sum of every piece: bits of pattern rows [H,t] -> [H,pieces]."""
        if bits.max(initial=0) > _ONE:
            raise ValueError("values that are not between 0 and 1")
        heads = len(bits)
        pieces = np.empty((heads, len(self._starts)), np.int64)
        for window, start in enumerate(range(0, self._tokens, self._window)):
            part = bits[:, start : start + self._window]
            packed = self._packed[: part.size].reshape(part.shape)
            np.take(_packed_table(), part, out=packed, mode="clip")
            own = slice(self._of_window[window], self._of_window[window + 1])
            np.add.reduceat(packed, self._starts[own] - start, axis=1, out=pieces[:, own])
        return pieces


@cache
def _packed_table() -> Integers:
    """p and −p ln p of every half-precision number from 0 to 1, by its bits: in whole units, p in the upper bits."""
    p = np.arange(_ONE + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    entropy = -p * np.log(np.where(p > 0, p, 1))
    return (np.rint(p / _MASS_UNIT).astype(np.int64) << _ENTROPY_BITS) + np.rint(entropy / _ENTROPY_UNIT).astype(np.int64)
