"""The mean of every signal over the samples of a cache, made shard by shard by whoever is free."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

from ..data.cache.folder import Cache
from ..data.errors import InputError, OptionError, one_line
from .evidence.task_length import TaskTokens
from .forks import require_own_threads
from .kept import Store
from .means import Float, Sums, sums
from .recipe import Recipe
from .shard_source import ShardSource

logger = logging.getLogger("headscore")


@dataclass(frozen=True)
class ShardSums:
    """What a shard's samples add up to; `a + b` is for both.

    Args:
        task: the samples, and how many tokens the task has in them.
        sums: of each signal, [L,H].
        unkept: why nothing could be kept for another time; empty where it was, or was not meant to be.
    """

    task: TaskTokens
    sums: Mapping[str, Sums]
    unkept: str = ""

    def __add__(self, other: "ShardSums") -> "ShardSums":
        both = {name: self.sums[name] + other.sums[name] for name in self.sums}
        return ShardSums(self.task + other.task, both, self.unkept or other.unkept)


@dataclass(frozen=True)
class CacheMeans:
    """The signals of a cache's heads.

    Args:
        task: the samples, and how many tokens the task has in them.
        means: of each signal over the samples where it is defined, [L,H]; NaN where there is none.
        undefined: for each signal, for how many samples it is undefined in the head that has most of them.
    """

    task: TaskTokens
    means: Mapping[str, Float]
    undefined: Mapping[str, int]

    @property
    def samples(self) -> int:
        """How many there are."""
        return self.task.samples


def cache_means(cache: Cache, recipe: Recipe, store: Store | None, executor: Executor | None) -> CacheMeans:
    """The means over all shards, merged in their order; a shard whose sums are kept is not opened.

    Args:
        cache: an opened cache.
        recipe: what its signals are.
        store: where sums are kept; None to keep nothing, and to use nothing kept.
        executor: does the work on shards; None to do it here.

    Raises InputError where a shard is damaged or there is no sample.
    """
    total: ShardSums | None = None
    for part in _parts(cache, recipe, store, executor):
        total = total + part if total else part
    if total is None or not total.task.samples:
        raise InputError(f"{cache.path}: holds no samples")
    if total.unkept:
        logger.info("measures are not kept for another time: %s", total.unkept)
    undefined = {name: int(total.task.samples - added.counts.min()) for name, added in total.sums.items()}
    return CacheMeans(total.task, {name: added.means() for name, added in total.sums.items()}, undefined)


def _parts(cache: Cache, recipe: Recipe, store: Store | None, executor: Executor | None) -> Iterator[ShardSums]:
    alone = replace(cache, shards=())  # a worker is sent one path at a time
    kept = {path: part for path in cache.shards if store and (part := _kept(alone, recipe, store, path))}
    if store and len(kept) < len(cache.shards):
        store.clear()
    work = partial(shard_sums, alone, recipe, store)
    paths = [path for path in cache.shards if path not in kept]
    made = _spread(executor, work, paths) if executor else map(work, paths)
    for path in cache.shards:
        yield kept.get(path) or next(made)


def _spread(executor: Executor, work: Callable[[Path], ShardSums], paths: Sequence[Path]) -> Iterator[ShardSums]:
    """What an executor makes of each path. Raises InputError where it takes no work, or the work cannot be sent to it."""
    try:
        found = executor.map(work, paths)
    except BrokenExecutor:
        raise
    except RuntimeError as error:
        raise InputError(f"executor: takes no work: {one_line(error)[:160]}") from error
    try:
        yield from found
    except (RuntimeError, TypeError, AttributeError) as error:
        if isinstance(error, BrokenExecutor) or _can_be_sent(work):
            raise
        raise OptionError(
            f"--workers: a function in a signal or measure cannot be sent to another process ({one_line(error)[:160]}); "
            "leave out --workers"
        ) from error


def _can_be_sent(work: Callable[[Path], ShardSums]) -> bool:
    try:
        ForkingPickler.dumps(work)  # as a pool of processes does
    except (RuntimeError, TypeError, AttributeError):
        return False
    return True


def shard_sums(cache: Cache, recipe: Recipe, store: Store | None, path: Path) -> ShardSums:
    """What one shard's samples add up to, read block by block, so that memory is bounded. Raises as `cache_means`."""
    require_own_threads("scoring", "polars")
    with ShardSource(cache, recipe, store, path) as source:
        missing = [name for name in recipe.signals if name not in source.kept_sums]
        found, unkept = source.add_up(missing) if missing else ({}, "")
        added = source.kept_sums | found or {name: _nothing(recipe) for name in recipe.signals}
        return ShardSums(_task_tokens(source), {name: added[name] for name in recipe.signals}, unkept)


def _kept(cache: Cache, recipe: Recipe, store: Store, path: Path) -> ShardSums | None:
    source = ShardSource(cache, recipe, store, path)
    if len(source.kept_sums) < len(recipe.signals) or not source.knows_samples:
        return None
    return ShardSums(_task_tokens(source), source.kept_sums)


def _task_tokens(source: ShardSource) -> TaskTokens:
    recipe = source.recipe
    return TaskTokens.of(source.samples[f"tokens_{recipe.task}"], source.samples["tokens"], recipe.mode)


def _nothing(recipe: Recipe) -> Sums:
    """The sums of a shard without samples."""
    return sums(np.empty((len(recipe.layers), recipe.heads, 0)))
