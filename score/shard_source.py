"""The measures and signals of a shard: as they are kept, or else made of its arrays and kept."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..data.cache.folder import Cache
from ..data.cache.reader import Block, Shard, sample_blocks
from .kept import Kept, Store
from .linear_measures import sample_columns
from .means import Sums, sums
from .measures import Measure, block_measures
from .recipe import Recipe
from .table import MeasureTable

LINES = 1 << 17  # of a table that is worked on at once, unless a layer has more


class ShardSource:
    """A shard whose measures are asked for block by block. Use it as a context manager; the file is opened when it must be.

    Args:
        cache: which the shard belongs to.
        recipe: what its measures are.
        store: where they are kept; None to keep nothing.
        path: of the shard.
    """

    def __init__(self, cache: Cache, recipe: Recipe, store: Store | None, path: Path):
        self._cache, self.recipe, self._store, self._path = cache, recipe, store, path
        self._key = store.key(path) if store else None
        self._kept = store.read(path) if store else None
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def knows_samples(self) -> bool:
        """Whether what is kept says all that must be known of each sample."""
        return self._kept is not None and set(self._sample_names) <= set(self._kept.samples)

    @property
    def _sample_names(self) -> list[str]:
        spans = self.recipe.linear.spans()
        return ["row", "tokens", *(f"{kind}_{name}" for name in spans for kind in ("tokens", "starts")), *self.recipe.data]

    @cached_property
    def samples(self) -> dict[str, npt.NDArray[Any]]:
        """What is known of each sample, as `sample_columns` has it, and the columns of the data file."""
        if self._kept and self.knows_samples:
            there = self._kept.samples
            return {name: np.array(there[name], object if name in self.recipe.data else None) for name in self._sample_names}
        return sample_columns(self.recipe.linear, self._shard)

    @cached_property
    def kept_sums(self) -> dict[str, Sums]:
        """The sums of the recipe's signals that are kept, by the signals' names."""
        keys = {name: self.recipe.signal_key(name) for name in self.recipe.signals}
        there = self._kept.sums if self._kept else {}
        return {name: there[key] for name, key in keys.items() if key in there}

    def tables(self, columns: Sequence[str], layers: Sequence[int], first: int = 0) -> Iterator[MeasureTable]:
        """Tables from which `columns` can be asked: block by block of samples, and in each block some layers at a time.

        Args:
            columns: of the recipe's schema.
            layers: places in the list of layers.
            first: the number in the cache of the shard's first sample.
        """
        names = self.recipe.measures_for(columns)
        # they are kept for all layers, so few layers are sooner read from rows
        there = self._read_kept(names) if len(layers) == len(self.recipe.layers) else {}
        for block, measures in self._blocks(names, layers, there):
            yield from self._cut(measures, block, layers, first)

    def add_up(self, names: Sequence[str]) -> tuple[dict[str, Sums], str]:
        """The sums of signals over the shard's samples, [L,H] each, which are kept with all measures.

        Returns the sums by name, and why nothing could be kept; empty where it was, or was not meant to be.
        """
        asked: Sequence[str] = self.recipe.measures_for(self.recipe.needs(names))
        there = self._read_kept(asked)
        new = len(there) < len(asked)
        if new:  # then all of them, so that they are kept, and no array is damaged unnoticed
            asked = self.recipe.measures
            there = self._read_kept(asked)
        samples = len(self.samples["row"])
        keeps = bool(self._store and self._store.has_room_for_samples(samples * len(self.samples)))
        room = keeps and bool(self._store and self._store.has_room_for(samples, len(asked)))
        layers = range(len(self.recipe.layers))
        whole: list[Mapping[str, Measure]] = []
        found: dict[str, Sums] = {}
        for block, measures in self._blocks(asked, layers, there):
            whole += [measures] if new and room else []
            parts = [_sums(table, names, self.recipe.heads) for table in self._cut(measures, block, layers, 0)]
            added = _stacked(parts, names)
            found = {name: found[name] + added[name] for name in names} if found else added
        return found, self._keep(found, whole) if found and keeps else ""

    def _keep(self, found: Mapping[str, Sums], whole: Sequence[Mapping[str, Measure]]) -> str:
        old = self._kept or Kept({})
        keys = {name: self.recipe.measure_key(name) for name in self.recipe.measures}
        measures = (
            {name: np.concatenate([part[name] for part in whole], axis=2) for name in keys if keys[name]} if whole else None
        )
        samples = {name: values.tolist() for name, values in self.samples.items()}
        keyed = {self.recipe.signal_key(name): total for name, total in found.items()}
        new = Kept(
            old.samples | samples,
            {name: key for name, key in keys.items() if key} if whole else old.measures,
            old.parquet,
            old.sums | {key: total for key, total in keyed.items() if key},
        )
        return self._store.write(self._path, self._key, new, measures) if self._store and self._key else ""

    def _cut(self, measures: Mapping[str, Measure], block: Block, layers: Sequence[int], first: int) -> Iterator[MeasureTable]:
        samples = {name: values[block.samples] for name, values in self.samples.items()}
        step = max(1, LINES // max(1, self.recipe.heads * len(samples["row"])))
        for start in range(0, len(layers), step):
            some = {name: values[start : start + step] for name, values in measures.items()}
            yield MeasureTable(self.recipe, samples, layers[start : start + step], some, first + block.samples.start)

    def _blocks(
        self, names: Sequence[str], layers: Sequence[int], there: Mapping[str, Measure]
    ) -> Iterator[tuple[Block, Mapping[str, Measure]]]:
        """Measures [len(layers),H,b] block by block; those that are not `there` are read from the shard."""
        missing = [name for name in names if name not in there]
        offsets = np.concatenate([[0], np.cumsum(self.samples["tokens"])])
        for block in sample_blocks(offsets, len(self.recipe.layers), self.recipe.heads):
            measures = {name: values[:, :, block.samples] for name, values in there.items()}
            if missing:
                measures |= block_measures(self._shard, self.recipe.mode, self.recipe.linear, missing, layers, block)
            yield block, measures

    def _read_kept(self, names: Sequence[str]) -> dict[str, Measure]:
        """Those of the named measures that are kept, [L,H,n]; none where their file is damaged."""
        keys = self._kept.measures if self._kept and self._kept.parquet else {}
        there = [name for name in names if name in keys and keys[name] == self.recipe.measure_key(name)]
        found = self._store.read_measures(self._path, self._kept, there) if there and self._store and self._kept else None
        return found or {}

    @cached_property
    def _shard(self) -> Shard:
        return self._files.enter_context(self._cache.open_shard(self._path))


def known_of_samples(cache: Cache, recipe: Recipe, store: Store | None, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """What is known of every sample of a cache, arrays [n] by the names of `ShardSource.samples`, in the cache's order."""
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for path in cache.shards:
        with ShardSource(cache, recipe, store, path) as source:
            for name, parts in found.items():
                parts.append(source.samples[name])
    return {name: np.concatenate([np.empty(0, parts[0].dtype if parts else np.int64), *parts]) for name, parts in found.items()}


def _sums(table: MeasureTable, names: Sequence[str], heads: int) -> Sums:
    """The sums of signals over the samples of a table, [signals,l,H]; one signal at a time stays in a core's cache."""
    values = table.signals(names)
    found = [sums(values[name].to_numpy().reshape(-1, heads, table.count)) for name in names]
    return Sums(np.stack([one.parts for one in found], axis=1), np.stack([one.counts for one in found]))


def _stacked(parts: Sequence[Sums], names: Sequence[str]) -> dict[str, Sums]:
    """The sums of each signal, [L,H], from those of some layers each."""
    totals, counts = (
        np.concatenate([part.parts for part in parts], axis=2),
        np.concatenate([part.counts for part in parts], axis=1),
    )
    return {name: Sums(totals[:, place], counts[place]) for place, name in enumerate(names)}
