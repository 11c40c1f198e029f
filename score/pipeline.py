"""The scoring from cache to ranking: signals → means → normalised → fused → ranked."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ..data.cache import Cache, open_cache
from ..data.errors import InputError
from ..data.metadata import Metadata
from ..data.settings import ScoreSettings, WorkSettings, pick
from .frame import choose_signals
from .fuse import ranked
from .normalize import NORM_MODES
from .outputs import results_folder, write_results
from .signals import SIGNALS
from .sums import SignalSums, cache_sums
from .workers import workers

logger = logging.getLogger("headscore")

DEFAULT_TOP_K = 20
DEFAULT_TOP_K_PER_LAYER = 3


@dataclass(frozen=True)
class Scores:
    """The result of scoring a cache; every frame has one line per head, with `layer` and `head`.

    raw: out_raw, ent_raw, task_raw (means over samples). norm: out_z, ent_z, task_z (normalised within the layer, by z-score or
    percentile). combined: the fused score. All three are sorted by layer and head. topk_global and topk_per_layer: layer, head,
    combined, rank (1 = most driven; within the layer for the latter). missing_shards: the numbers of those that an unfinished
    capture has not made, as in '0-2, 7'; empty where the cache is complete.
    """

    raw: pl.DataFrame
    norm: pl.DataFrame
    combined: pl.DataFrame
    topk_global: pl.DataFrame
    topk_per_layer: pl.DataFrame
    samples: int
    missing_shards: str
    settings: ScoreSettings
    metadata: Metadata


def score(
    cache: str | Path, out: str | Path | None = None, *, overwrite: bool = False, partial: bool = False, **options: Any
) -> Scores:
    """Rank the heads of a captured model; the library call of `headscore score`.

    cache: a cache folder or a single shard file. out: where the seven result files go; nothing is written if it is None.
    overwrite: replace the results of another run in `out`. partial: score what is there of a capture that is not finished, and
    say so in the results. options: the fields of ScoreSettings and WorkSettings, by the names and with the defaults of the
    command line. Needs neither torch nor the model.

    Raises InputError for options or a cache that cannot be used, and where `out` holds another run.
    """
    work = WorkSettings(**pick(WorkSettings, options))
    settings = ScoreSettings(**{name: value for name, value in options.items() if name not in pick(WorkSettings, options)})
    opened = open_cache(Path(cache).absolute() if work.dask else Path(cache))
    if out is None:
        return compute_scores(opened, settings, work, partial)
    with results_folder(Path(out)):
        scores = compute_scores(opened, settings, work, partial)
        write_results(Path(out), scores, {"cache": str(cache), **({"partial": True} if partial else {})}, overwrite)
    return scores


def compute_scores(cache: Cache, settings: ScoreSettings, work: WorkSettings | None = None, partial: bool = False) -> Scores:
    """Score an opened cache."""
    choice = choose_signals(cache, settings, partial)
    if cache.missing:
        logger.warning(
            "%s: PARTIAL: %d of %d shards are missing (%s); these are the scores of what is there",
            cache.path,
            cache.missing,
            cache.planned,
            cache.missing_ranges(),
        )
    with workers(work or WorkSettings()) as spread:
        sums = cache_sums(cache, choice, spread)
    raw = _means(sums)
    normalise = NORM_MODES[settings.norm_mode]
    everything = raw.with_columns(normalise(f"{name}_raw").alias(f"{name}_z") for name in ("out", "ent", "task"))
    order = ranked(everything, settings.lambda_ent, settings.lambda_task)
    heads = len(raw) // raw["layer"].n_unique()
    top_k = _top_k("--top-k", settings.top_k, DEFAULT_TOP_K, len(raw))
    top_k_per_layer = _top_k("--top-k-per-layer", settings.top_k_per_layer, DEFAULT_TOP_K_PER_LAYER, heads)
    columns = ["layer", "head", "combined", "rank"]
    within_layer = order.with_columns(rank=pl.col("rank").rank("ordinal").over("layer").cast(pl.Int64))
    logger.info("%s: %d heads from %d samples", cache.path, len(raw), sums.samples)
    return Scores(
        raw=raw,
        norm=everything.select("layer", "head", "out_z", "ent_z", "task_z"),
        combined=order.select("layer", "head", "combined").sort("layer", "head"),
        topk_global=order.select(columns).head(top_k),
        topk_per_layer=within_layer.filter(pl.col("rank") <= top_k_per_layer).select(columns).sort("layer", "rank"),
        samples=sums.samples,
        missing_shards=cache.missing_ranges(),
        settings=settings,
        metadata=cache.metadata,
    )


def _means(sums: SignalSums) -> pl.DataFrame:
    """The mean of each signal as a frame: columns layer, head, out_raw, ent_raw, task_raw, sorted by layer and head."""
    layers, heads = sums.sums["out"].shape
    columns: dict[str, Any] = {
        "layer": np.repeat(sums.layers, heads),
        "head": np.tile(np.arange(heads, dtype=np.int32), layers),
    }
    columns |= {f"{name}_raw": sums.means()[name].ravel() for name in SIGNALS}
    return pl.DataFrame(columns).sort("layer", "head")


def _top_k(flag: str, asked: int | None, default: int, heads: int) -> int:
    if asked is None:
        return min(default, heads)
    if asked > heads:
        raise InputError(f"{flag}: {asked} is more than the {heads} heads there are")
    return asked
