"""Measures: numbers per layer, head and sample, made of a shard's arrays in one pass over its pattern rows.

Shapes: L layers, H heads, n samples of a shard, b of a block, t tokens of all of them, K linear measures.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.cache.reader import Block, Shard
from ..data.cache.value_checks import require_sums
from ..data.options.settings import QueryMode
from .linear_measures import LinearMeasures

Measure = npt.NDArray[np.float32]

NORMS = {  # by the array that holds them
    "output_norm": "last_token/output_norm",
    "result_norm": "last_token/result_norm",
    "all_output_norm": "all_tokens/output_norm",
    "all_result_norm": "all_tokens/result_norm",
}
MEAN_ENTROPY = "all_tokens/entropy"  # the mean of all rows' entropies, which is not that of the mean row
OF_ROWS = ("entropy", "entropy_free", "largest")  # that are not linear in a row

ROWS = (
    64  # of a sample that are worked on at once, from as many layers as have so many heads; fewer, larger products are faster
)
ITEMS = 1 << 16  # values of rows that are worked on at once: few enough to stay in a core's cache
MAX_ITEMS = 1 << 22  # the same where one sample has more, unless one row of it has: few enough for any memory

_ONE = 0x3C00  # the bits of 1.0 in half precision; those of the numbers from 0 to 1 rise with them
_ENTROPY_UNIT = 2.0**-34


def measure_names(result_norms: bool, linear: LinearMeasures) -> list[str]:
    """The measures of a cache with or without result norms.

    `output_norm`, `result_norm` (of the last token) and `all_output_norm`, `all_result_norm` (means over all positions);
    `entropy` in nats; `entropy_free`, that of the row without its first token, renormalised, NaN where nothing is left;
    `largest`, the largest weight; and whatever `linear` has.
    """
    norms = [name for name in NORMS if result_norms or not name.endswith("result_norm")]
    return [*norms, *OF_ROWS, *linear.expressions()]


def block_measures(
    shard: Shard, mode: QueryMode, linear: LinearMeasures, names: Sequence[str], layers: Sequence[int], block: Block
) -> dict[str, Measure]:
    """The named measures of some layers and a block of a shard, float32 [len(layers),H,b]; only what they need is read.

    Args:
        shard: an open shard.
        mode: whose pattern rows are meant: the last token's, or the mean over all query positions.
        linear: the linear measures that may be asked for.
        names: of `measure_names`.
        layers: places in the shard's list of layers.
        block: of the shard's samples.

    Raises DamagedShardError where an array is damaged or holds values that cannot be, InputError as `LinearMeasures.weights`.
    """
    samples = len(block.offsets) - 1
    found = {name: np.empty((len(layers), shard.heads, samples), np.float32) for name in names}
    stored = {name: NORMS[name] for name in names if name in NORMS}
    if mode == "all_tokens" and "entropy" in names:
        stored["entropy"] = MEAN_ENTROPY
    of_rows = [name for name in names if name not in stored]
    summed = [name for name in of_rows if name not in OF_ROWS]
    summed += [name for name in ("sink", "rest") if name not in summed]  # what a row sums to is checked
    weights = linear.weights(shard, block, summed) if of_rows else None
    for name, array in stored.items():
        if len(layers) == shard.layers:  # in one go, as a layer has few values
            found[name][:] = shard.read(array, None, block)
        else:
            for place, layer in enumerate(layers):
                found[name][place] = shard.read(array, layer, block)
    if weights is None:
        return found
    attention, full_rows = f"{mode}/attention", shard.metadata["attention"]["full_rows"]
    step = max(1, ROWS // shard.heads)
    by_row = {name: found[name].reshape(-1, samples) for name in of_rows}  # a view: layers and heads as one axis
    for start in range(0, len(layers), step):
        bits = _bits(shard, attention, layers[start : start + step], block)
        for some, tokens in _pieces(block.offsets, ITEMS // len(bits)):
            offsets = block.offsets[some.start : some.stop + 1] - tokens.start
            most_rows = max(1, MAX_ITEMS // (tokens.stop - tokens.start))
            for first in range(0, len(bits), most_rows):
                part = bits[first : first + most_rows, tokens]
                rows = RowSums(part, offsets, weights[tokens], summed)
                require_sums(shard.path, attention, rows.measure("sink") + rows.measure("rest"), full_rows)
                place = start * shard.heads + first
                for name, values in by_row.items():
                    values[place : place + len(part), some] = rows.measure(name)
    return found


def _pieces(offsets: npt.NDArray[np.int64], most: int) -> Iterator[tuple[slice, slice]]:
    """Samples, and their tokens, a few at a time: of at most so many tokens, or one sample of more."""
    start = 0
    while start < len(offsets) - 1:
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + most, side="right")) - 1)
        yield slice(start, stop), slice(int(offsets[start]), int(offsets[stop]))
        start = stop


def _bits(shard: Shard, array: str, layers: Sequence[int], block: Block) -> npt.NDArray[np.uint16]:
    """The pattern rows of some layers one after the other [len(layers)·H,t], read at once where the layers are neighbours."""
    if layers[-1] - layers[0] + 1 == len(layers):
        values = shard.read(array, slice(layers[0], layers[-1] + 1), block)
    else:
        values = np.concatenate([shard.read(array, layer, block) for layer in layers])
    return values.view(np.uint16).reshape(-1, values.shape[-1])


class RowSums:
    """What is summed over the pattern rows of some samples in one or more layers.

    Sums are the same in whatever order they are added. Half-precision weights are multiples of 2⁻²⁴, so masses and other sums
    with whole-numbered w are exact in float64; −p ln p is rounded to multiples of 2⁻³⁴, so entropies add up exactly, too, and
    are right within T · 3e-11.

    Args:
        bits: the rows as half-precision bits, uint16 [R,t], none beyond those of 1; R rows for each sample.
        offsets: where each sample's tokens start, int64 [b+1].
        weights: w of each linear measure, float64 [t,K].
        linear: the names of the K linear measures.
    """

    def __init__(
        self, bits: npt.NDArray[np.uint16], offsets: npt.NDArray[np.int64], weights: npt.NDArray[Any], linear: Sequence[str]
    ):
        self._bits, self._offsets, self._linear = bits, offsets, list(linear)
        self._places = _scratch("places", bits.shape, np.intp)
        np.copyto(self._places, bits)
        rows = np.take(_tables()[0], self._places, out=_scratch("values", bits.shape, np.float64), mode="clip")
        self._sums = np.empty((len(offsets) - 1, len(bits), len(self._linear)))
        for sample, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            np.matmul(rows[:, start:stop], weights[start:stop], out=self._sums[sample])

    def measure(self, name: str) -> npt.NDArray[Any]:
        """A measure [R,b] of each row."""
        if name == "largest":
            values, _ = _tables()
            return values[np.maximum.reduceat(self._bits, self._offsets[:-1], axis=1)]
        if name == "entropy":
            return self._entropies[0]
        if name == "entropy_free":
            rest = self.measure("rest")
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(rest > 0, np.maximum(self._entropies[1] / rest + np.log(rest), 0), np.nan)
        return self._sums[:, :, self._linear.index(name)].T

    @cached_property
    def _entropies(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """−Σⱼ aⱼ ln aⱼ in nats (0 ln 0 = 0) over a row, and over the row without its first token: each [R,b]."""
        starts = self._offsets[:-1]
        _, entropies = _tables()
        parts = np.take(entropies, self._places, out=_scratch("values", self._places.shape, np.float64), mode="clip")
        first = parts[:, starts]
        parts[:, starts] = 0
        rest = np.add.reduceat(parts, starts, axis=1)
        return first + rest, rest


def _scratch(name: str, shape: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
    """Memory that is used again and again: having the system hand out fresh pages takes longer than filling them."""
    items = math.prod(shape)
    there = getattr(_local, name, None)
    if there is None or len(there) < items:
        there = np.empty(items, dtype)
        setattr(_local, name, there)
    return there[:items].reshape(shape)


_local = threading.local()


@cache
def _tables() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """p and −p ln p of the 15,361 half-precision numbers from 0 to 1, by their bits."""
    p = np.arange(_ONE + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    return p, np.rint(-p * np.log(np.where(p > 0, p, 1)) / _ENTROPY_UNIT) * _ENTROPY_UNIT
