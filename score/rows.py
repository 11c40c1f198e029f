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

_INSIDE, _FIRST, _KINDS = 1, 2, 4  # tokens are in the span or not, and the first of their sample or not

_ONE = 0x3C00  # the bits of 1.0; those of the numbers from 0 to 1 rise with them
_MASS_UNIT = 2.0**-24  # every half-precision number is a multiple of it
_ENTROPY_UNIT = 2.0**-34
_ENTROPY_BITS = 38  # room for 16 nats, more than the entropy of a row of 8 million tokens; the bits above are the mass's
_ENTROPY = (1 << _ENTROPY_BITS) - 1
_LOOK_UPS = 1 << 16  # at once: few enough to stay in a core's cache, many for few calls


class RowSums:
    """Sums over the pattern rows of some samples: mass Σ_{j ∈ span} aⱼ, −H = Σⱼ aⱼ ln aⱼ, and mass a₀ on the first token.

    member: bool [t], which tokens are in the span. offsets: int64 [n+1], where each sample's tokens start. `add` every part of
    every layer once, in whatever order.
    """

    def __init__(self, member: npt.NDArray[np.bool_], offsets: Integers, layers: int, heads: int):
        kind = member.astype(np.uint8) * np.uint8(_INSIDE)  # small, as there is one for each token
        kind[offsets[:-1]] |= _FIRST
        begins = np.empty(len(member), bool)
        begins[1:] = kind[1:] != kind[:-1]
        begins[offsets[:-1]] = True
        # A piece is tokens of one sample and one kind next to each other.
        self._starts = np.flatnonzero(begins)
        sample = np.searchsorted(offsets, self._starts, side="right") - 1
        self._slots = kind[self._starts] * np.int64(len(offsets) - 1) + sample
        self._sums = np.zeros((layers, heads, _KINDS, len(offsets) - 1), np.int64)
        self._pieces: dict[tuple[int, int], tuple[Integers, Integers]] = {}  # parts of all layers are cut alike

    def add(self, layer: int, tokens: slice, patterns: npt.NDArray[np.float16]) -> None:
        """Add the values [H,w] of w tokens of a layer; ValueError for values that are not between 0 and 1."""
        part = tokens.start, tokens.stop
        if part not in self._pieces:
            self._pieces[part] = self._pieces_of(*part)
        sums = self._sums[layer].reshape(len(patterns), -1)
        _add_up(patterns.view(np.uint16), *self._pieces[part], sums)

    def mass(self) -> Float:
        """The mass in the span, [L,H,n], exactly; of an empty span 0."""
        return self._mass(self._sums[:, :, _INSIDE] + self._sums[:, :, _INSIDE | _FIRST])

    def first_mass(self) -> Float:
        """The mass on the first token, [L,H,n], exactly."""
        return self._mass(self._sums[:, :, _FIRST] + self._sums[:, :, _INSIDE | _FIRST])

    def negative_entropy(self) -> Float:
        """−H in nats, [L,H,n], between −ln T and 0, within T · 3e-11 (0 ln 0 is 0). Shannon (1948).

        A row of one token has 0, a uniform row of T tokens −ln T.
        """
        return (self._sums.sum(axis=2) & _ENTROPY) * -_ENTROPY_UNIT

    def _mass(self, sums: Integers) -> Float:
        return (sums >> _ENTROPY_BITS) * _MASS_UNIT

    def _pieces_of(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """The pieces of some tokens: their bounds [k+1] there, and the slots [k] that they are added to."""
        first, end = int(np.searchsorted(self._starts, start, side="right")) - 1, np.searchsorted(self._starts, stop)
        return np.concatenate([[start], self._starts[first + 1 : end], [stop]]) - start, self._slots[first:end]


def _add_up(words: npt.NDArray[np.uint16], bounds: Integers, slots: Integers, sums: Integers) -> None:
    """Add up what the table has for words [r,w], piece by piece, to `sums` [r,s]; ValueError where it has nothing for one."""
    table, used, starts = _packed_table(), words[:, bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]
    if used.max(initial=0) >= len(table):
        raise ValueError("values that are not between 0 and 1")
    step = max(1, _LOOK_UPS // used.shape[1])
    every_row: Any = slice(None)
    for row in range(0, len(used), step):
        pieces = np.add.reduceat(table.take(used[row : row + step], mode="clip"), starts, axis=1)
        np.add.at(sums[row : row + step], (every_row, slots), pieces)


@cache
def _packed_table() -> Integers:
    """p and −p ln p of every half-precision number from 0 to 1, by its bits: in whole units, p in the upper bits."""
    p = np.arange(_ONE + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    entropy = -p * np.log(np.where(p > 0, p, 1))
    return (np.rint(p / _MASS_UNIT).astype(np.int64) << _ENTROPY_BITS) + np.rint(entropy / _ENTROPY_UNIT).astype(np.int64)
