"""The scoring from cache to ranking: measures → signals → means → normalised → fused → ordered."""

import dataclasses
import logging
from concurrent.futures import Executor

import polars as pl

from ..data.cache.folder import Cache
from ..data.options.settings import BootstrapSettings, ScoreSettings, WorkSettings
from ..data.prompts.controls import WHAT_CONTROLS_ARE
from .cache_means import CacheMeans, cache_means
from .evidence.bootstrap import with_stability
from .evidence.checks import checks_of
from .evidence.null import null_of
from .evidence.task_length import length_correlations, uniform_levels, with_length_sums, without_length_sums
from .frames import by_unit, heads_frame
from .kept import open_store
from .recipe import Recipe, choose_recipe, is_raw_norm
from .scores import Scores, heads_or_groups
from .workers import executor_of

logger = logging.getLogger("headscore")


def score_cache(
    cache: Cache,
    settings: ScoreSettings,
    work: WorkSettings | None = None,
    partial: bool = False,
    executor: Executor | None = None,
    bootstrap: BootstrapSettings | None = None,
) -> Scores:
    """Rank the heads of an opened cache.

    Args:
        cache: an opened cache.
        settings: what the ranking is made of.
        work: how the work is spread; in this process if not given.
        partial: score what is there of a capture that is not finished.
        executor: does the work on shards, whatever `work` says.
        bootstrap: how the stability of the ranking is found; it is not if not given.

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
        found = cache_means(cache, with_length_sums(recipe), store, chosen)
    _warn_of_undefined(cache, recipe, settings, found)
    heads = heads_frame(recipe, without_length_sums(found.means), settings)
    lengths = by_unit(recipe, length_correlations(found.means, found.task), settings.by)
    heads = heads.with_columns(pl.Series("task_length_r", lengths.reshape(-1), nan_to_null=True))
    undefined = without_length_sums(found.undefined)
    scores = Scores(heads, found.samples, undefined, cache.missing_ranges(), settings, cache.metadata)
    k, _ = scores.top_k, scores.top_k_per_layer  # refused before anything is written
    if bootstrap and bootstrap.bootstrap:
        heads = with_stability(heads, cache, recipe, store, settings, bootstrap, k)
    checks = checks_of(heads, settings, recipe, found.samples, k)
    logger.info("%s: %d %s from %d samples", cache.path, len(heads), heads_or_groups(settings.by), found.samples)
    levels = uniform_levels(heads, found.task, recipe.mode)
    return dataclasses.replace(scores, heads=heads, null=null_of(heads, settings, k), checks=checks, uniform=levels)


def _warn_of_raw_norms(recipe: Recipe, settings: ScoreSettings) -> None:
    across = settings.within == "model" or (settings.fusion == "sum" and settings.norm_mode == "none")
    names = [name for name, weight in settings.weights.items() if weight and across and is_raw_norm(recipe, name)]
    if names:
        logger.warning(
            "%s: raw norms grow from layer to layer in most models, so across layers they rank late layers first; "
            "use --within layer with --fusion rank, or out_relative",
            ", ".join(names),
        )


def _warn_of_undefined(cache: Cache, recipe: Recipe, settings: ScoreSettings, found: CacheMeans) -> None:
    if found.task.without:
        logger.warning(
            "%s: %d of %d samples have no token in %s; their attention to it counts as 0",
            cache.path,
            found.task.without,
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
