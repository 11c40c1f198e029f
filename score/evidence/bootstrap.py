"""How stable a ranking is: its heads under other samples of as many rows, drawn from those that there are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ...data.cache.folder import Cache
from ...data.errors import OptionError
from ...data.options.settings import BootstrapSettings, ScoreSettings
from ..frames import by_unit
from ..kept import Store
from ..linear_measures import DATA
from ..means import Float
from ..recipe import Recipe
from ..shard_source import known_of_samples
from . import rank_intervals
from .resampling import draws
from .weighted_means import ranked_replicates, weighted_means

LOW, HIGH = 0.05, 0.95
LEVEL = 0.95  # of the intervals of raw signals' ranks, which hold together
MAX_VALUES = 1 << 26  # of means that are held at once
_LINES = 1 << 19  # of replicates that are ranked at once


def with_stability(
    heads: pl.DataFrame,
    cache: Cache,
    recipe: Recipe,
    store: Store | None,
    settings: ScoreSettings,
    bootstrap: BootstrapSettings,
    k: int,
) -> pl.DataFrame:
    """`Scores.heads` with what becomes of each head in the replicates of a bootstrap.

    Each replicate stands for another sample of as many rows (`resampling.draws`), of which signals are averaged, normalised,
    ranked and fused anew.

    Args:
        heads: `Scores.heads`.
        cache: an opened cache.
        recipe: what its signals are.
        store: where measures are kept; None to keep nothing, and to use nothing kept.
        settings: how heads are ranked.
        bootstrap: how often samples are drawn, and how.
        k: of the top k.

    Returns the frame with `low` and `high`, the 5 % and 95 % quantile of the combined score, `rank_low` and `rank_high` of the
    rank, `p_top`, the share of replicates in which the head is among the top k, and for each weighted signal
    `<signal>_rank_low` and `<signal>_rank_high`, between which all true ranks of the signal lie at once with a probability of
    95 % (`rank_intervals`); null where finding them would take too long.
    Raises InputError where the cache keeps no such columns, a cluster spans strata, or there are too many replicates to hold.
    """
    count = bootstrap.bootstrap or 0
    names = [name for name, weight in settings.weights.items() if weight]
    most = MAX_VALUES // (len(recipe.layers) * recipe.heads * len(names))
    if count > most:
        raise OptionError(f"--bootstrap: {count} replicates of {len(names)} signals do not fit in memory; at most {most} do")
    drawn = sample_weights(cache, recipe, store, bootstrap)
    means = weighted_means(cache, recipe, store, names, drawn.weights)
    for name, values in means.items():
        if np.isnan(values).any():
            raise OptionError(f"--bootstrap: {name} is undefined for all samples of a head in some replicate; leave it out")
    combined, ranks = _ranked(recipe, means, settings, len(heads))
    low, high = (np.quantile(combined, end, axis=0, method="nearest") for end in (LOW, HIGH))
    rank_low, rank_high = (np.quantile(ranks, end, axis=0, method="nearest") for end in (LOW, HIGH))
    found: dict[str, Any] = {"low": low, "high": high, "rank_low": rank_low, "rank_high": rank_high}
    found["p_top"] = (ranks <= k).mean(axis=0)
    for name, values in means.items():
        replicates = by_unit(recipe, values, settings.by)
        ends = _signal_ranks(heads[name].to_numpy(), replicates, drawn.degrees, settings.within == "model")
        found |= {f"{name}_rank_{end}": numbers for end, numbers in zip(("low", "high"), ends, strict=True)}
    return heads.with_columns(**found)


@dataclass(frozen=True)
class Drawn:
    """The draws of a bootstrap.

    Args:
        weights: how often each sample counts in each replicate, [B,n], in the order of the cache.
        degrees: of freedom of a standard error: how many samples or clusters are drawn, less the strata.
    """

    weights: npt.NDArray[np.uint16]
    degrees: int


def sample_weights(cache: Cache, recipe: Recipe, store: Store | None, bootstrap: BootstrapSettings) -> Drawn:
    """The draws that are asked for of a cache's samples.

    They go by the rows' numbers in the data file, so another order of the samples changes nothing. Raises InputError where the
    cache keeps no such columns.
    """
    columns = {"--strata": bootstrap.strata, "--cluster": bootstrap.cluster}
    for option, column in columns.items():
        if column is not None and f"{DATA}{column}" not in recipe.data:
            there = ", ".join(name.removeprefix(DATA) for name in recipe.data) or "none"
            raise OptionError(
                f"{option} {column}: {cache.path} keeps no such column (it keeps {there}); capture it with --keep"
            )
    names = {option: f"{DATA}{column}" for option, column in columns.items() if column is not None}
    table = known_of_samples(cache, recipe, store, ["row", *dict.fromkeys(names.values())])
    order = np.argsort(table["row"], kind="stable")
    strata, clusters = (table[names[option]][order].tolist() if option in names else None for option in columns)
    if clusters is not None and None in clusters:
        row = table["row"][order][clusters.index(None)]
        raise OptionError(f"--cluster {bootstrap.cluster}: is null for row {row}, so it is not known what it is drawn with")
    count = bootstrap.bootstrap or 0
    weights = np.empty((count, len(order)), np.uint16)
    weights[:, order] = draws(len(order), count, strata=strata, clusters=clusters)
    return Drawn(weights, len(order if clusters is None else set(clusters)) - (1 if strata is None else len(set(strata))))


def _ranked(
    recipe: Recipe, means: Mapping[str, Float], settings: ScoreSettings, units: int
) -> tuple[Float, npt.NDArray[np.int64]]:
    """The combined score and the rank of every head in every replicate, [B,units] each; some replicates at a time."""
    parts = [ranked_replicates(recipe, some, settings).select("combined", "rank") for some in _cut(means, units)]
    frame = pl.concat(parts)
    return frame["combined"].to_numpy().reshape(-1, units), frame["rank"].to_numpy().reshape(-1, units)


def _cut(means: Mapping[str, Float], units: int) -> Iterator[dict[str, Float]]:
    count, step = len(next(iter(means.values()))), max(1, _LINES // units)
    for start in range(0, count, step):
        yield {name: values[start : start + step] for name, values in means.items()}


def _signal_ranks(values: Float, replicates: Float, degrees: int, within_model: bool) -> tuple[Any, Any]:
    """The ends of the intervals of a signal's ranks, 1 = lowest, [units] each; None where that would take too long.

    Args:
        values: the signal, [units].
        replicates: of each replicate, [B,L,units of a layer].
        degrees: of freedom of a standard error.
        within_model: whether heads are ranked among all of the model.
    """
    groups = 1 if within_model else replicates.shape[1]
    shape = (groups, len(values) // groups)
    if rank_intervals.work(*shape, len(replicates)) > rank_intervals.MAX_WORK:
        return pl.lit(None, pl.Int64), pl.lit(None, pl.Int64)
    estimates = values.reshape(shape)
    # a replicate differs from the estimates as two samples do, so by √2 times the error of one
    errors = (replicates.reshape(-1, *shape) - estimates) / np.sqrt(2)
    ends = rank_intervals.rank_intervals(estimates, errors, LEVEL, degrees)
    return ends[0].reshape(-1), ends[1].reshape(-1)
