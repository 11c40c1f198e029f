"""Sums of the measures over samples: made shard by shard, and merged into the means of a whole cache."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ..data.cache import Cache
from ..data.errors import InputError, RunError
from .derived import Derived, Kept
from .rows import Float
from .signals import MEASURES, Signal, SignalChoice, block_signals

logger = logging.getLogger("headscore")


@dataclass(frozen=True)
class SignalSums:
    """For some samples of a cache: their number, and the sum of each measure over them, float64 [L,H]; `a + b` is for both.

    unkept: why the measures could not be kept for another time; empty where they were, or were not meant to be.
    """

    samples: int
    layers: npt.NDArray[np.int32]
    sums: Mapping[str, Float]
    unkept: str = ""

    def __add__(self, other: Self) -> "SignalSums":
        sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        return SignalSums(self.samples + other.samples, self.layers, sums, self.unkept or other.unkept)

    def means(self) -> dict[str, Float]:
        """The mean of each measure [L,H]; there must be a sample."""
        return {name: total / self.samples for name, total in self.sums.items()}


Spread = Callable[[Callable[[Path], SignalSums], Iterable[Path]], Iterator[SignalSums]]  # map, or a parallel one


def cache_sums(cache: Cache, choice: SignalChoice, spread: Spread, derived: Derived | None = None) -> SignalSums:
    """The sums over all shards, merged in their order; only shards whose sums are not kept in `derived` are read.

    Raises InputError as `shard_sums`, and where there is no sample.
    """
    kept = {path: sums for path in cache.shards if (sums := _kept_sums(cache, choice, derived, path))}
    if derived and len(kept) < len(cache.shards):
        derived.clear()
    alone = replace(cache, shards=())  # a worker is sent one path at a time
    made = iter(spread(partial(shard_sums, alone, choice, derived), [path for path in cache.shards if path not in kept]))
    merged: SignalSums | None = None
    for path in cache.shards:
        sums = kept.get(path) or next(made)
        merged = merged + sums if merged else sums
    if merged is None or not merged.samples:
        raise InputError(f"{cache.path}: holds no samples")
    if merged.unkept:
        logger.info("signals are not kept for another time: %s", merged.unkept)
    return merged


def shard_sums(cache: Cache, choice: SignalChoice, derived: Derived | None, path: Path) -> SignalSums:
    """The sums of one shard, read block by block, so that memory is bounded; 0 for a shard without samples.

    What is not in `derived` yet is kept there. Raises InputError where the shard is damaged or not of this cache.
    """
    kept = _kept(choice, derived, path)
    missing = {name: measures for name, measures in choice.passes().items() if name not in kept}
    keys = {name: derived.key(path, name) for name in missing} if derived else {}
    wanted = [measure for measures in missing.values() for measure in measures]
    with cache.open_shard(path) as shard:
        totals = {measure: np.zeros((shard.layers, shard.heads)) for measure in wanted}
        values: dict[str, list[Signal]] = {measure: [] for measure in wanted}
        for block in shard.blocks():
            for measure, found in block_signals(shard, choice, block, wanted).items():
                totals[measure] += found.sum(axis=2, dtype=np.float64)
                if derived and derived.has_room_for(shard.samples, wanted):
                    values[measure].append(found)
        samples, layers = shard.samples, shard.read("layers/index")
    made = {name: Kept(samples, {measure: totals[measure] for measure in measures}) for name, measures in missing.items()}
    unkept = ""
    for name, key in keys.items():
        if derived and key and all(values[measure] for measure in missing[name]):
            try:
                derived.write(path, name, key, made[name], {measure: _joined(values[measure]) for measure in missing[name]})
            except RunError as error:  # a read-only or full disk
                unkept = str(error)
    return SignalSums(samples, layers, _by_measure(kept | made), unkept)


def _joined(blocks: list[Signal]) -> Signal:
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=2)


def _kept(choice: SignalChoice, derived: Derived | None, path: Path) -> dict[str, Kept]:
    """What is kept of a shard, by the pass that gave it."""
    found = {name: derived.read(path, name, measures) for name, measures in choice.passes().items()} if derived else {}
    return {name: kept for name, kept in found.items() if kept}


def _by_measure(passes: Mapping[str, Kept]) -> dict[str, Float]:
    sums = {measure: total for kept in passes.values() for measure, total in kept.sums.items()}
    return {measure: sums[measure] for measure in MEASURES}


def _kept_sums(cache: Cache, choice: SignalChoice, derived: Derived | None, path: Path) -> SignalSums | None:
    """The sums of a shard if all of them are kept."""
    kept = _kept(choice, derived, path)
    if len(kept) < len(choice.passes()):
        return None
    layers = np.array(cache.metadata["layers"], np.int32)
    return SignalSums(next(iter(kept.values())).samples, layers, _by_measure(kept))
