"""Means of signals under many weightings of the samples at once: replicates of a bootstrap, halves, any subsets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from ...data.cache.folder import Cache
from ...data.options.settings import ScoreSettings
from ..frames import unit_frame
from ..kept import Store
from ..means import Float
from ..ranking import rank
from ..recipe import Recipe
from ..shard_source import ShardSource

REPLICATE = "replicate"


@dataclass(frozen=True)
class SampleValues:
    """Signals of some layers and some samples of a cache.

    Args:
        layers: places in the list of layers.
        samples: which samples of the cache, by their number.
        values: of each signal, float64 [l,H,b]; NaN where it is undefined.
    """

    layers: slice
    samples: slice
    values: Mapping[str, Float]


def sample_values(cache: Cache, recipe: Recipe, store: Store | None, names: Sequence[str]) -> Iterator[SampleValues]:
    """The named signals, shard by shard, in blocks of samples, and in each some layers at a time, so that memory is bounded.

    Raises InputError where a shard is damaged or a signal is NaN or infinite.
    """
    first, every = 0, range(len(recipe.layers))
    for path in cache.shards:
        with ShardSource(cache, recipe, store, path) as source:
            place = 0
            for table in source.tables(recipe.needs(names) or ["tokens"], every, first):
                found = table.signals(names)
                shape = (-1, recipe.heads, table.count)
                values = {name: found[name].fill_null(np.nan).to_numpy().reshape(shape) for name in names}
                layers = len(next(iter(values.values())))
                yield SampleValues(slice(place, place + layers), slice(table.first, table.first + table.count), values)
                place = (place + layers) % len(every)
            first += len(source.samples["row"])


def weighted_means(
    cache: Cache, recipe: Recipe, store: Store | None, names: Sequence[str], weights: npt.NDArray[np.unsignedinteger]
) -> dict[str, Float]:
    """The mean of each signal over the samples where it is defined, under each weighting.

    Args:
        cache: an opened cache.
        recipe: what its signals are.
        store: where measures are kept; None to keep nothing, and to use nothing kept.
        names: of signals.
        weights: how often each sample counts, [B,n], in the order of the cache.

    Returns float64 [B,L,H] by name; NaN where no sample that counts has a value. Unlike `cache_means` its last bits depend on
    how the cache is split.
    """
    shape = (len(weights), len(recipe.layers), recipe.heads)
    totals = {name: np.zeros(shape) for name in names}
    counts = {name: np.zeros(shape) for name in names}
    for some in sample_values(cache, recipe, store, names):
        part = weights[:, some.samples].astype(np.float64)
        for name, values in some.values.items():
            flat = values.reshape(-1, values.shape[-1])
            defined = ~np.isnan(flat)
            total = part @ np.where(defined, flat, 0.0).T
            count = part.sum(axis=1, keepdims=True) if defined.all() else part @ defined.T.astype(np.float64)
            totals[name][:, some.layers] += total.reshape(len(part), -1, recipe.heads)
            counts[name][:, some.layers] += count.reshape(len(part), -1, 1 if defined.all() else recipe.heads)
    with np.errstate(invalid="ignore"):
        return {name: totals[name] / np.where(counts[name] > 0, counts[name], np.nan) for name in names}


def ranked_replicates(recipe: Recipe, means: Mapping[str, Float], settings: ScoreSettings) -> pl.DataFrame:
    """The ranking of each replicate, as `rank` makes it by `replicate`.

    Args:
        recipe: what the signals are.
        means: [B,L,H] of every weighted signal.
        settings: how heads are ranked.

    Raises InputError where a weighted signal is undefined for every sample of a head in some replicate.
    """
    frame = unit_frame(recipe, means, settings.by)
    options = {"fusion": settings.fusion, "norm_mode": settings.norm_mode, "within": settings.within}
    weights = {name: weight for name, weight in settings.weights.items() if weight}
    return rank(frame, weights, by=REPLICATE, unit=settings.by, **options)  # type: ignore[arg-type]
