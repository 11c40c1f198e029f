"""How far a ranking depends on its weights: `headscore sweep`."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from ... import __version__
from ...data.cache.folder import Cache, open_cache
from ...data.errors import OptionError, printable
from ...data.files.whole_file import given_path
from ...data.options.evidence_settings import SweepSettings
from ...data.options.places import written_place
from ...data.options.settings import RECORD_KEY, ScoreSettings, WorkSettings, pick
from ...data.options.signatures import library_call
from ..outputs import CONFIG_FILE, LOG_FILE, csv, options_config, results_folder
from ..ranking import rank
from ..scores import Scores, head_name, heads_or_groups
from ..scoring import score_cache
from .files import require_free, write_analysis
from .rankings import Ranking, read_ranking
from .settings_grid import CHOICES, SettingsGrid, read_grid

RESULT_FILES: tuple[str, ...] = ("sweep.txt", "sweep.csv", "sweep_heads.csv", "sweep.parquet")
RESULTS = ("shared", "spearman")
_WEIGHT = "weight_"  # how the columns of weights begin
_LINES = 1 << 20  # heads times settings that are ranked at once
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Sweep:
    """How a ranking changes with its settings.

    Args:
        settings: one line per setting: `weight_<signal>` of every signal that is weighted in some setting, `fusion`,
            `norm_mode`, `within`; `shared`, how many heads of its top k the reference has in its own; and `spearman` of the
            combined score and the reference's score over the heads that both have, null where either is constant.
        heads: one line per head: `layer`, `head` (or `kv_head`), `rank` by the given settings, `times`, in the top k of how
            many settings it is, and their `share`.
        k: how many heads are the top.
        reference: what the settings are compared with.
        best: the line of `settings` that agrees best with the reference, by `spearman` and then `shared`.
        lines: the same in plain sentences.
    """

    settings: pl.DataFrame
    heads: pl.DataFrame
    k: int
    reference: str
    best: Mapping[str, object]
    lines: list[str]

    def __repr__(self) -> str:
        """The sentences, as a console shows this object."""
        return "\n".join(self.lines)

    def table(self) -> Iterator[str]:
        """The heads that are most often in the top k, as lines of plain text, titles first."""
        unit = self.heads.columns[1]
        yield f"{'head':<7}  {'rank':>5}  settings with it in the top {self.k}"
        for line in self.heads.sort(["times", "rank"], descending=[True, False]).head(_SHOWN).to_dicts():
            yield f"{head_name(line, unit):<7}  {line['rank']:>5}  {line['times']} of {len(self.settings)}"


@library_call(ScoreSettings, WorkSettings, SweepSettings)
def sweep(
    cache: str | Path, out: str | Path | None = None, *, overwrite: bool = False, partial: bool = False, **options: Any
) -> Sweep:
    """See how far a ranking depends on its weights; the library call of `headscore sweep`.

    Args:
        cache: a cache folder or a single shard file.
        out: where the files go; nothing is written if it is None.
        overwrite: replace what another run left in `out`.
        partial: take what is there of a capture that is not finished.
        options: the fields of ScoreSettings, WorkSettings and SweepSettings, by the names and with the defaults of the command
            line.

    Raises InputError for options or a cache that cannot be used, and where `out` holds another run.
    """
    own = SweepSettings(**pick(SweepSettings, options))
    work = WorkSettings(**pick(WorkSettings, options))
    settings = ScoreSettings(**pick(ScoreSettings, options))
    path = given_path("cache", cache)
    if out is None:
        return sweep_of(open_cache(path), settings, own, work, partial)
    folder = given_path("--out", out)
    with results_folder(folder, (*RESULT_FILES, CONFIG_FILE, LOG_FILE)):
        chosen = {field.name: getattr(own, field.name) for field in fields(own)}
        against = None if own.against is None else written_place("against", own.against, folder)
        extra = {"cache": written_place("cache", path, folder), **chosen, "grid": list(own.grid), "against": against}
        config = {**options_config(settings, extra, folder), RECORD_KEY: {"headscore": __version__}}
        require_free(folder, RESULT_FILES, config, overwrite)
        found = sweep_of(open_cache(path), settings, own, work, partial)
        table = io.BytesIO()
        found.settings.write_parquet(table)
        contents: tuple[str | bytes, ...] = (
            "".join(f"{line}\n" for line in found.lines),
            csv(found.settings),
            csv(found.heads),
            table.getvalue(),
        )
        again = "headscore sweep --config config.yaml --out NEW_FOLDER"
        write_analysis(folder, dict(zip(RESULT_FILES, contents, strict=True)), config, how_to_repeat=again, overwrite=overwrite)
    return found


def sweep_of(
    cache: Cache, settings: ScoreSettings, own: SweepSettings, work: WorkSettings | None = None, partial: bool = False
) -> Sweep:
    """The rankings of an opened cache over a grid of settings. Raises InputError as `sweep`."""
    scores = score_cache(cache, settings, work, partial)
    grid = read_grid(own.grid, scores.signals, {name: getattr(settings, name) for name in CHOICES})
    reference = _given(scores)
    if own.against is not None:
        reference = read_ranking(own.against, settings, effect=own.effect, partial=partial)
        _require_same_heads(scores, reference)
    k = scores.top_k
    if k > len(reference):
        raise OptionError(f"--top-k: {k} is more than the {len(reference)} heads that {reference.name} lists")
    lines, counts = _swept(scores, grid, reference, k)
    keys = ["layer", scores.unit]
    heads = scores.heads.select(*keys, "rank").join(counts, on=keys, how="left", maintain_order="left")
    heads = heads.with_columns(pl.col("times").fill_null(0)).with_columns(share=pl.col("times") / len(lines))
    best = lines.sort(list(reversed(RESULTS)), descending=True, nulls_last=True, maintain_order=True).row(0, named=True)
    told = _told(lines, heads, k, reference, best, own.against is not None)
    return Sweep(lines, heads, k, reference.name, best, told)


def _given(scores: Scores) -> Ranking:
    heads = scores.heads.select("layer", scores.unit, pl.col("combined").alias("score"), "rank").sort("rank")
    return Ranking("the given weights", "cache", "combined", scores.unit, heads, True)


def _require_same_heads(scores: Scores, reference: Ranking) -> None:
    if reference.unit != scores.unit:
        raise OptionError(f"--against {reference.name}: ranks by {reference.unit}, and this sweep by {scores.unit}; see --by")
    keys = ["layer", scores.unit]
    if len(reference.heads.join(scores.heads, on=keys, how="anti")):
        raise OptionError(f"--against {reference.name}: has heads that this cache does not have; it is of another model")


def _swept(scores: Scores, grid: SettingsGrid, reference: Ranking, k: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A line per setting, and how often each head is in the top k; settings in which every weight is 0 are left out."""
    keys = ["layer", scores.unit]
    fixed = {name: (weight,) for name, weight in scores.weights.items()}
    axes = SettingsGrid({**fixed, **grid.weights}, grid.choices)
    names = list(axes.weights)
    columns = {name: f"{_WEIGHT}{name}" for name in names}
    weights = pl.DataFrame(axes.combinations(), schema=dict.fromkeys(columns.values(), pl.Float64), orient="row")
    weights = weights.filter(pl.any_horizontal(pl.all() != 0))
    if weights.is_empty():
        raise OptionError("--grid: every weight is 0 in every setting, so there is nothing to rank by")
    _require_defined(scores, [name for name in names if (weights[columns[name]] != 0).any()])
    own = reference.heads.select(*keys, reference="score", in_reference=pl.col("rank") <= k)
    heads = scores.heads.select(*keys, *names).join(own, on=keys, how="left")
    lines: list[pl.DataFrame] = []
    counts: list[pl.DataFrame] = []
    step = max(1, _LINES // len(heads))
    for way in axes.ways():
        for start in range(0, len(weights), step):
            some = weights[start : start + step].with_row_index("setting")
            ranked = rank(
                some.join(heads.drop("reference", "in_reference"), how="cross"),
                columns,
                by="setting",
                unit=scores.unit,
                **way,  # type: ignore[arg-type]
            ).join(heads.select(*keys, "reference", "in_reference"), on=keys, how="left", maintain_order="left")
            lines.append(_agreement(ranked, k).join(some, on="setting", maintain_order="left").with_columns(**_literals(way)))
            counts.append(ranked.filter(pl.col("rank") <= k).group_by(keys).len("times"))
    table = pl.concat(lines).select(*columns.values(), *CHOICES, *RESULTS)
    return table, pl.concat(counts).group_by(keys).agg(pl.col("times").sum().cast(pl.Int64))


def _require_defined(scores: Scores, names: list[str]) -> None:
    for name in names:
        if scores.heads[name].has_nulls():
            raise OptionError(f"--grid {name}: the signal is undefined for every sample of some head; leave it out")


def _agreement(ranked: pl.DataFrame, k: int) -> pl.DataFrame:
    """Of each setting, how many of its top k the reference has, and ρ with it over the heads that it has."""
    both = pl.col("reference").is_not_null()
    rho = pl.corr(pl.col("combined").filter(both), pl.col("reference").filter(both), method="spearman")
    shared = ((pl.col("rank") <= k) & pl.col("in_reference")).sum().cast(pl.Int64)
    found = ranked.group_by("setting", maintain_order=True).agg(shared=shared, spearman=rho)
    return found.with_columns(pl.col("spearman").fill_nan(None))


def _literals(way: Mapping[str, str]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in way.items()}


def _told(
    lines: pl.DataFrame, heads: pl.DataFrame, k: int, reference: Ranking, best: Mapping[str, Any], is_other: bool
) -> list[str]:
    always, ever = (int((heads["times"] >= least).sum()) for least in (len(lines), 1))
    told = [
        f"{len(lines)} settings: {always} of {len(heads)} {heads_or_groups(reference.unit)} are in the top {k} of all "
        f"settings, {ever} in that of some",
    ]
    least = lines.sort("shared", maintain_order=True).row(0, named=True)
    name = printable(reference.name)
    if is_other:
        rho = "none" if best["spearman"] is None else f"{best['spearman']:+.2f}"
        told.append(f"most like {name}: {_setting(best)}: Spearman {rho}, {best['shared']} of its top {k}")
    told.append(f"least like {name}: {_setting(least)}: {least['shared']} of its top {k} heads")
    return told


def _setting(line: Mapping[str, Any]) -> str:
    weights = [f"{name.removeprefix(_WEIGHT)}={value:g}" for name, value in line.items() if name.startswith(_WEIGHT)]
    ways = [f"{name}={line[name]}" for name in CHOICES]
    return " ".join([*weights, *ways])
