"""The scoring from cache to ranking: signals → means → normalised → fused → ranked."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ..data.cache import Cache, Metadata, open_cache
from ..data.errors import InputError
from ..data.settings import ScoreSettings
from .frame import choose_signals, mean_signals
from .fuse import ranked
from .normalize import NORM_MODES
from .outputs import results_folder, write_results

logger = logging.getLogger("headscore")

DEFAULT_TOP_K = 20
DEFAULT_TOP_K_PER_LAYER = 3


@dataclass(frozen=True)
class Scores:
    """The result of scoring a cache; every frame has one line per head, with `layer` and `head`.

    raw: out_raw, ent_raw, task_raw (means over samples). norm: out_z, ent_z, task_z (normalised within the layer, by z-score or
    percentile). combined: the fused score. All three are sorted by layer and head. topk_global and topk_per_layer: layer, head,
    combined, rank (1 = most driven; within the layer for the latter).
    """

    raw: pl.DataFrame
    norm: pl.DataFrame
    combined: pl.DataFrame
    topk_global: pl.DataFrame
    topk_per_layer: pl.DataFrame
    samples: int
    settings: ScoreSettings
    metadata: Metadata


def score(cache: str | Path, out: str | Path | None = None, *, overwrite: bool = False, **options: Any) -> Scores:
    """Rank the heads of a captured model; the library call of `headscore score`.

    cache: a cache folder or a single shard file. out: where the seven result files go; nothing is written if it is None.
    overwrite: replace the results of another run in `out`. options: the fields of ScoreSettings, by the names and with the
    defaults of the command line. Needs neither torch nor the model.

    Raises InputError for options or a cache that cannot be used, and where `out` holds another run.
    """
    settings = ScoreSettings(**options)
    opened = open_cache(Path(cache))
    if out is None:
        return compute_scores(opened, settings)
    with results_folder(Path(out)):
        scores = compute_scores(opened, settings)
        write_results(Path(out), scores, {"cache": str(cache)}, overwrite)
    return scores


def compute_scores(cache: Cache, settings: ScoreSettings) -> Scores:
    """Score an opened cache."""
    raw, samples = mean_signals(cache, choose_signals(cache, settings))
    normalise = NORM_MODES[settings.norm_mode]
    everything = raw.with_columns(normalise(f"{name}_raw").alias(f"{name}_z") for name in ("out", "ent", "task"))
    order = ranked(everything, settings.lambda_ent, settings.lambda_task)
    heads = len(raw) // raw["layer"].n_unique()
    top_k = _top_k("--top-k", settings.top_k, DEFAULT_TOP_K, len(raw))
    top_k_per_layer = _top_k("--top-k-per-layer", settings.top_k_per_layer, DEFAULT_TOP_K_PER_LAYER, heads)
    columns = ["layer", "head", "combined", "rank"]
    within_layer = order.with_columns(rank=pl.col("rank").rank("ordinal").over("layer").cast(pl.Int64))
    logger.info("%s: %d heads from %d samples", cache.path, len(raw), samples)
    return Scores(
        raw=raw,
        norm=everything.select("layer", "head", "out_z", "ent_z", "task_z"),
        combined=order.select("layer", "head", "combined").sort("layer", "head"),
        topk_global=order.select(columns).head(top_k),
        topk_per_layer=within_layer.filter(pl.col("rank") <= top_k_per_layer).select(columns).sort("layer", "rank"),
        samples=samples,
        settings=settings,
        metadata=cache.metadata,
    )


def _top_k(flag: str, asked: int | None, default: int, heads: int) -> int:
    if asked is None:
        return min(default, heads)
    if asked > heads:
        raise InputError(f"{flag}: {asked} is more than the {heads} heads there are")
    return asked
