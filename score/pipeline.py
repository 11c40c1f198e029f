"""The scoring from cache to ranking: signals → means → normalised → fused → ranked."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data.cache import Cache, open_cache
from ..data.errors import InputError
from ..data.metadata import Metadata
from ..data.settings import ScoreSettings, WorkSettings, pick
from ..data.signatures import library_call
from .derived import open_derived
from .fuse import combined_ranks, fused, order_of_heads
from .heads import heads_table
from .normalize import NORM_MODES
from .outputs import results_folder, write_results
from .signals import SIGNALS, SINK, choose_signals
from .sums import SignalSums, cache_sums
from .tables import Table, frame
from .workers import workers

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger("headscore")

DEFAULT_TOP_K = 20
DEFAULT_TOP_K_PER_LAYER = 3


@dataclass(frozen=True)
class Scores:
    """The result of scoring a cache; every frame has one line per head, with `layer` and `head`.

    raw: out_raw, ent_raw, task_raw (means over samples). norm: out_z, ent_z, task_z (normalised within the layer, by z-score or
    percentile). combined: the fused score. All three are sorted by layer and head. topk_global and topk_per_layer: layer, head,
    combined, rank (1 = most driven; within the layer for the latter). missing_shards: the numbers of those that an unfinished
    capture has not made, as in '0-2, 7'; empty where the cache is complete. tables: the same as the frames, as columns by name.
    """

    tables: Mapping[str, Table]
    samples: int
    missing_shards: str
    settings: ScoreSettings
    metadata: Metadata

    @cached_property
    def raw(self) -> "pl.DataFrame":
        """The mean signals."""
        return frame(self.tables["raw"])

    @cached_property
    def norm(self) -> "pl.DataFrame":
        """The normalised signals."""
        return frame(self.tables["norm"])

    @cached_property
    def combined(self) -> "pl.DataFrame":
        """The fused score."""
        return frame(self.tables["combined"])

    @cached_property
    def heads(self) -> "pl.DataFrame":
        """What charts show: raw, norm and combined, rank_out, rank_ent, rank_task, and sink, the mass on the first token."""
        return frame(heads_table(self))

    @cached_property
    def topk_global(self) -> "pl.DataFrame":
        """The first heads of all."""
        return frame(self.tables["topk_global"])

    def __repr__(self) -> str:
        """The top heads, as a console shows this object."""
        return f"{len(self.tables['combined']['head'])} heads, {self.samples} samples\n{self.topk_global}"

    def _repr_html_(self) -> str:
        """The top heads as a table, which is how a notebook shows this object."""
        from .report.notebook import top_table

        return top_table(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The same table, and for notebooks that draw Vega-Lite themselves the live map, where Altair is installed."""
        from .report.notebook import bundle

        return bundle(self)

    @cached_property
    def topk_per_layer(self) -> "pl.DataFrame":
        """The first heads of each layer."""
        return frame(self.tables["topk_per_layer"])


@library_call(ScoreSettings, WorkSettings)
def score(
    cache: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
    report: bool = False,
    **options: Any,
) -> Scores:
    """Rank the heads of a captured model; the library call of `headscore score`.

    cache: a cache folder or a single shard file. out: where the seven result files go; nothing is written if it is None.
    overwrite: replace the results of another run in `out`. partial: score what is there of a capture that is not finished, and
    say so in the results. report: also write report.html and charts/ to `out`, as `report` does. options: the fields of
    ScoreSettings and WorkSettings, by the names and with the defaults of the command line. Needs neither torch nor the model.

    Raises InputError for options or a cache that cannot be used, and where `out` holds another run.
    """
    if report:
        from .report.vega import require_packages  # here, as scoring alone needs none of it

        require_packages("a report")
        if out is None:
            raise InputError("--report: needs a folder for it; give --out")
    work = WorkSettings(**pick(WorkSettings, options))
    settings = ScoreSettings(**{name: value for name, value in options.items() if name not in pick(WorkSettings, options)})
    opened = open_cache(Path(cache).absolute() if work.dask else Path(cache))
    if out is None:
        return compute_scores(opened, settings, work, partial)
    with results_folder(Path(out)):
        scores = compute_scores(opened, settings, work, partial)
        write_results(Path(out), scores, {"cache": str(cache), **({"partial": True} if partial else {})}, overwrite)
        if report:
            write_report(Path(out), opened, scores)
    return scores


@library_call(ScoreSettings, WorkSettings)
def report(cache: str | Path, out: str | Path, *, overwrite: bool = False, partial: bool = False, **options: Any) -> Scores:
    """Rank the heads of a captured model and show them in one offline page; the library call of `headscore report`.

    cache, out, options: as in `score`, whose result files are written too. `out` gets report.html, and its charts as PNG and
    SVG in charts/. Needs `headscore[report]`. Raises InputError as `score`, and where a package is missing.
    """
    return score(cache, out, overwrite=overwrite, partial=partial, report=True, **options)


def write_report(folder: Path, cache: Cache, scores: Scores) -> None:
    """Write the report of scores; `report.page.write_report`, loaded when it is needed, as scoring alone needs no charts."""
    from .report.vega import vega_bundle

    with vega_bundle() as bundle:  # begun before Altair is loaded, which takes half a second
        from .report.page import write_report as write

        write(folder, cache, scores, bundle)


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
    work = work or WorkSettings()
    derived = None if work.fresh else open_derived(cache)
    with workers(work) as spread:
        sums = cache_sums(cache, choice, spread, derived)
    tables = _tables(sums, settings)
    logger.info("%s: %d heads from %d samples", cache.path, len(tables["combined"]["head"]), sums.samples)
    return Scores(tables, sums.samples, cache.missing_ranges(), settings, cache.metadata)


def _tables(sums: SignalSums, settings: ScoreSettings) -> dict[str, Table]:
    """The results from the sums: means, normalised, fused, and the first heads."""
    raw = sums.means()
    norm = {name: NORM_MODES[settings.norm_mode](raw[name]) for name in SIGNALS}
    combined = combined_ranks(raw, settings.lambda_ent, settings.lambda_task)
    order = order_of_heads(combined, fused(norm, settings.lambda_ent, settings.lambda_task))
    layers, heads = combined.shape
    by_layer = order[np.argsort(order // heads, kind="stable")].reshape(layers, heads)
    top_k = _top_k("--top-k", settings.top_k, DEFAULT_TOP_K, layers * heads)
    top_k_per_layer = _top_k("--top-k-per-layer", settings.top_k_per_layer, DEFAULT_TOP_K_PER_LAYER, heads)
    head = np.tile(np.arange(heads, dtype=np.int32), layers)
    place: Table = {"layer": np.repeat(sums.layers, heads), "head": head}
    scored: Table = {**place, "combined": combined.ravel()}

    def first(places: npt.NDArray[np.intp], ranks: npt.NDArray[np.int64]) -> Table:
        return {**{name: column[places] for name, column in scored.items()}, "rank": ranks}

    return {
        "raw": {**place, **{f"{name}_raw": raw[name].ravel() for name in SIGNALS}},
        "norm": {**place, **{f"{name}_z": norm[name].ravel() for name in SIGNALS}},
        SINK: {**place, SINK: raw[SINK].ravel()},
        "combined": scored,
        "topk_global": first(order[:top_k], np.arange(1, top_k + 1)),
        "topk_per_layer": first(by_layer[:, :top_k_per_layer].ravel(), np.tile(np.arange(1, top_k_per_layer + 1), layers)),
    }


def _top_k(flag: str, asked: int | None, default: int, heads: int) -> int:
    if asked is None:
        return min(default, heads)
    if asked > heads:
        raise InputError(f"{flag}: {asked} is more than the {heads} heads there are")
    return asked
