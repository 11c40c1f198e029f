"""The scoring from cache to ranking: measures → signals → means → normalised → fused → ordered."""

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
import polars as pl

from ..data.cache import Cache
from ..data.controls import WHAT_CONTROLS_ARE
from ..data.errors import InputError
from ..data.settings import ScoreSettings, Unit, WorkSettings
from .cache_means import CacheMeans, cache_means
from .kept import open_store
from .means import Float
from .ranking import rank
from .recipe import Recipe, choose_recipe, is_raw_norm
from .scores import Scores
from .workers import executor_of

logger = logging.getLogger("headscore")


def score_cache(
    cache: Cache,
    settings: ScoreSettings,
    work: WorkSettings | None = None,
    partial: bool = False,
    executor: Executor | None = None,
) -> Scores:
    """Rank the heads of an opened cache.

    Args:
        cache: an opened cache.
        settings: what the ranking is made of.
        work: how the work is spread; in this process if not given.
        partial: score what is there of a capture that is not finished.
        executor: does the work on shards, whatever `work` says.

    Raises InputError where the cache cannot give what is asked for, or is damaged.
    """
    recipe = choose_recipe(cache, settings, partial)
    if cache.missing:
        logger.warning(
            "%s: PARTIAL: %d of %d shards are missing (%s); these are the scores of what is there",
            cache.path,
            cache.missing,
            cache.planned,
            cache.missing_ranges(),
        )
    if kind := cache.metadata["settings"].get("control"):
        what = WHAT_CONTROLS_ARE.get(kind, "its prompts are others than the rows'")
        logger.warning("%s: CONTROL %s: %s; this is no ranking for the task", cache.path, kind, what)
    _warn_of_raw_norms(recipe, settings)
    work = work or WorkSettings()
    store = None if work.fresh else open_store(cache, recipe.mode)
    with executor_of(work, executor) as chosen:
        found = cache_means(cache, recipe, store, chosen)
    _warn_of_undefined(cache, recipe, settings, found)
    heads = heads_frame(recipe, found.means, settings)
    scores = Scores(heads, found.samples, found.undefined, cache.missing_ranges(), settings, cache.metadata)
    _ = scores.top_k, scores.top_k_per_layer  # refused before anything is written
    logger.info("%s: %d heads from %d samples", cache.path, len(heads), found.samples)
    return scores


def heads_frame(recipe: Recipe, means: Mapping[str, Float], settings: ScoreSettings) -> pl.DataFrame:
    """`Scores.heads`, from the mean of every signal, [L,H]."""
    frame = unit_frame(recipe, means, settings.by)
    places = frame.columns[: -len(means)]
    for name, weight in settings.weights.items():
        if weight and frame[name].has_nulls():
            layer, unit = frame.filter(pl.col(name).is_null()).select("layer", settings.by).row(0)
            where = f"layer {layer}, {settings.by} {unit}"
            raise InputError(f"--weight {name}: the signal is undefined for every sample in {where}; leave it out")
    options = {"fusion": settings.fusion, "norm_mode": settings.norm_mode, "within": settings.within}
    ranked = rank(frame, settings.weights, unit=settings.by, **options)  # type: ignore[arg-type]
    signals = [column for name in means for column in (name, f"{name}_norm", f"{name}_rank")]
    return ranked.select(*places, *signals, "combined", "rank", "tied_rank", "layer_rank")


def unit_frame(recipe: Recipe, means: Mapping[str, Float], by: Unit) -> pl.DataFrame:
    """One line per layer and head, or group of heads, with the mean of every signal.

    Args:
        recipe: what the signals are.
        means: [L,H] of every signal, or [B,L,H] of B replicates; NaN where one is undefined.
        by: `head`, or `kv_head` for the mean of the query heads that share a key-value head.

    Returns `layer`, `head` and `kv_head` (or `kv_head` alone), then the signals, null where undefined; of replicates one
    table below the other, with their number as `replicate` before all.
    """
    groups, units = recipe.kv_heads, recipe.heads
    values = dict(means)
    if by == "kv_head" and groups:
        values = {name: value.reshape(*value.shape[:-1], groups, -1).mean(axis=-1) for name, value in means.items()}
        units = groups
    shape = next(iter(values.values())).shape
    replicates, layers = (shape[0] if len(shape) == 3 else 1), len(recipe.layers)
    numbers = np.tile(np.arange(units, dtype=np.int32), replicates * layers)
    places: dict[str, Any] = {"layer": np.tile(np.repeat(np.array(recipe.layers, np.int32), units), replicates), by: numbers}
    if len(shape) == 3:
        places = {"replicate": np.repeat(np.arange(replicates, dtype=np.int32), layers * units), **places}
    if by == "head":
        shared = numbers * groups // units if groups else pl.repeat(None, len(numbers), dtype=pl.Int32, eager=True)
        places["kv_head"] = shared
    return pl.DataFrame({**places, **{name: value.reshape(-1) for name, value in values.items()}}, nan_to_null=True)


def _warn_of_raw_norms(recipe: Recipe, settings: ScoreSettings) -> None:
    across = settings.within == "model" or (settings.fusion == "sum" and settings.norm_mode == "none")
    names = [name for name, weight in settings.weights.items() if weight and across and is_raw_norm(recipe, name)]
    if names:
        logger.warning(
            "%s: is a raw norm, which grows from layer to layer in most models, so across layers it ranks late layers first; "
            "use --within layer with --fusion rank, or out_relative",
            ", ".join(names),
        )


def _warn_of_undefined(cache: Cache, recipe: Recipe, settings: ScoreSettings, found: CacheMeans) -> None:
    if found.without_task:
        logger.warning(
            "%s: %d of %d samples have no token in %s; their attention to it counts as 0",
            cache.path,
            found.without_task,
            found.samples,
            recipe.task,
        )
    for name, weight in settings.weights.items():
        if weight and found.undefined[name]:
            logger.warning(
                "%s: is undefined for up to %d of %d samples of a head, which its mean leaves out",
                name,
                found.undefined[name],
                found.samples,
            )
