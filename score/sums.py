"""Sums of the signals over samples: made shard by shard, and merged into the means of a whole cache."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..data.cache import Cache
from ..data.errors import InputError
from .rows import Float
from .signals import SIGNALS, SignalChoice, block_signals


@dataclass(frozen=True)
class SignalSums:
    """For some samples of a cache: their number, and the sum of each signal over them, float64 [L,H]; `a + b` is for both."""

    samples: int
    layers: npt.NDArray[np.int32]
    sums: dict[str, Float]

    def __add__(self, other: Self) -> "SignalSums":
        return SignalSums(
            self.samples + other.samples, self.layers, {name: self.sums[name] + other.sums[name] for name in self.sums}
        )

    def means(self) -> dict[str, Float]:
        """The mean of each signal [L,H]; there must be a sample."""
        return {name: total / self.samples for name, total in self.sums.items()}


Spread = Callable[[Callable[[Path], SignalSums], Iterable[Path]], Iterator[SignalSums]]  # map, or a parallel one


def cache_sums(cache: Cache, choice: SignalChoice, spread: Spread) -> SignalSums:
    """The sums over all shards, merged in their order. Raises InputError as `shard_sums`, and where there is no sample."""
    merged: SignalSums | None = None
    alone = replace(cache, shards=())  # a worker is sent one path at a time
    for sums in spread(partial(shard_sums, alone, choice), cache.shards):
        merged = merged + sums if merged else sums
    if merged is None or not merged.samples:
        raise InputError(f"{cache.path}: holds no samples")
    return merged


def shard_sums(cache: Cache, choice: SignalChoice, path: Path) -> SignalSums:
    """The sums of one shard, read block by block, so that memory is bounded; 0 for a shard without samples.

    Raises InputError where the shard is damaged or not of this cache.
    """
    with cache.open_shard(path) as shard:
        totals: dict[str, Any] = {name: np.zeros((shard.layers, shard.heads)) for name in SIGNALS}
        for block in shard.blocks():
            for name, values in block_signals(shard, choice, block).items():
                totals[name] += values.sum(axis=2, dtype=np.float64)
        return SignalSums(shard.samples, shard.read("layers/index"), totals)
