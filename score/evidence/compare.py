"""Compares rankings of the heads of models of the same shape: `headscore compare`."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from ... import __version__
from ...data.errors import InputError, printable
from ...data.files.whole_file import given_path
from ...data.options.evidence_settings import CompareSettings
from ...data.options.places import written_place
from ...data.options.settings import RECORD_KEY, ScoreSettings, pick
from ...data.options.signatures import library_call
from ..outputs import CONFIG_FILE, LOG_FILE, csv, options_config, results_folder
from ..scores import head_name, heads_or_groups
from .agreeing import LABELS, moved_signals, pair_tables, require_same_shape, wide_table
from .files import require_free, write_analysis
from .rankings import Ranking, read_ranking

RESULT_FILES: tuple[str, ...] = (
    "compare.txt",
    "compare.csv",
    "compare_layers.csv",
    "compare_heads.csv",
    "compare_heads.parquet",
    "compare_signals.csv",
)
_MOST_MOVED = 5
_SHOWN = 10
_KINDS = {"cache": "a cache", "results": "a folder of results", "validation": "a validation", "list": "a list"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """How rankings agree.

    Args:
        pairs: one line per pair of rankings: `a`, `b`, `heads` that both have, `k`, `shared` heads of the top k, their `share`,
            how many `chance` gives, `kendall`, `spearman`, `rbo`, `kendall_in_layers`, `spearman_in_layers`.
        layers: one line per pair and layer: `a`, `b`, `layer`, `heads`, `top_a`, `top_b`, `shared`, `kendall`, `spearman`.
        heads: one line per head: `layer`, `head` (or `kv_head`), `rank_A`, `score_A`, `rank_B`, …, and `moved`, the largest
            less the smallest rank.
        signals: how the means of signals differ where rankings are of the same rows, one line per pair, head and signal: `a`,
            `b`, `layer`, `head` (or `kv_head`), `signal`, `mean_a`, `mean_b`, `change`, `relative`; None where none are.
        rankings: what was compared, called A, B, … in the tables.
        lines: the same in plain sentences.
    """

    pairs: pl.DataFrame
    layers: pl.DataFrame
    heads: pl.DataFrame
    signals: pl.DataFrame | None
    rankings: Sequence[Ranking]
    lines: list[str]

    def __repr__(self) -> str:
        """The sentences, as a console shows this object."""
        return "\n".join(self.lines)

    def table(self) -> Iterator[str]:
        """The first heads of A and their rank in each ranking, as lines of plain text, titles first."""
        labels = LABELS[: len(self.rankings)]
        yield f"{'head':<7}" + "".join(f"  {f'rank {label}':>7}" for label in labels)
        for line in self.heads.drop_nulls("rank_A").sort("rank_A").head(_SHOWN).to_dicts():
            ranks = (line[f"rank_{label}"] for label in labels)
            yield f"{head_name(line, self.rankings[0].unit):<7}" + "".join(f"  {'-' if r is None else r:>7}" for r in ranks)


@library_call(ScoreSettings, CompareSettings)
def compare(
    rankings: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
    **options: Any,
) -> Comparison:
    """See how far rankings of heads agree; the library call of `headscore compare`.

    Args:
        rankings: two or more places: caches, which are scored by the options; folders of results, of `score` and others; of
            validations that took out single heads; and CSV, JSON or Parquet files with `layer`, `head` and perhaps a score,
            which need not list all heads. They are of models of the same shape.
        out: where the tables go; nothing is written if it is None.
        overwrite: replace another comparison in `out`.
        partial: also take caches of captures that are not finished.
        options: the fields of ScoreSettings and CompareSettings, by the names and with the defaults of the command line.

    Raises InputError for places or options that cannot be used, models of other shapes, and where `out` holds another run.
    """
    own = CompareSettings(**pick(CompareSettings, options))
    settings = ScoreSettings(**{name: value for name, value in options.items() if name not in pick(CompareSettings, options)})
    if isinstance(rankings, str | Path) or not 2 <= len(rankings) <= len(LABELS):
        raise InputError(f"rankings: expected a list of 2 to {len(LABELS)} places, got {rankings!s:.80}")
    places = [given_path("rankings", place) for place in rankings]
    if out is None:
        return compare_rankings(_read(places, settings, own, partial), settings.top_k)
    folder = given_path("--out", out)
    with results_folder(folder, (*RESULT_FILES, CONFIG_FILE, LOG_FILE)):
        named = dict(zip(LABELS, (written_place("results", place, folder) for place in places), strict=False))
        extra = {"partial": partial, **{field.name: getattr(own, field.name) for field in fields(own)}}
        record = {"headscore": __version__, "rankings": named}
        config = {**options_config(settings, extra, folder), RECORD_KEY: record}
        require_free(folder, RESULT_FILES, config, overwrite)
        found = compare_rankings(_read(places, settings, own, partial), settings.top_k)
        again = "headscore compare A B … --config config.yaml --out NEW_FOLDER"
        write_analysis(folder, _files(found), config, how_to_repeat=again, overwrite=overwrite)
    return found


def compare_rankings(rankings: Sequence[Ranking], top_k: int | None = None) -> Comparison:
    """How far rankings agree that were read already.

    Args:
        rankings: two or more.
        top_k: how many heads are the top; 20 if not given, or as many as the shorter list has.

    Raises InputError for models of other shapes, and a `top_k` beyond a list.
    """
    require_same_shape(rankings)
    heads = wide_table(rankings)
    pairs, layers = pair_tables(heads, rankings, top_k)
    signals = moved_signals(rankings)
    lines = [line for pair in pairs.to_dicts() for line in _told(pair, rankings, heads, signals)]
    return Comparison(pairs, layers, heads, signals, rankings, lines)


def _read(places: Sequence[Path], settings: ScoreSettings, own: CompareSettings, partial: bool) -> list[Ranking]:
    """The rankings in places; those of the same name go by their paths."""
    found = [read_ranking(each, settings, signal=own.compare_by, effect=own.effect, partial=partial) for each in places]
    names = [ranking.name for ranking in found]
    return [
        replace(ranking, name=str(place)) if names.count(ranking.name) > 1 else ranking
        for ranking, place in zip(found, places, strict=True)
    ]


def _told(pair: dict[str, Any], rankings: Sequence[Ranking], heads: pl.DataFrame, signals: pl.DataFrame | None) -> list[str]:
    a, b = pair["a"], pair["b"]
    one, other = (rankings[LABELS.index(label)] for label in (a, b))
    unit = heads_or_groups(one.unit)
    chance = "" if pair["chance"] is None else f"; chance would give {pair['chance']:.1f}"
    if not chance:
        chance = "; what chance would give is not known, as neither lists all heads"
    lines = [
        f"{a} ({_name(one)}) and {b} ({_name(other)}) share {pair['shared']} of their top {pair['k']} {unit}{chance}",
        f"over the {pair['heads']} {unit} that both have: Kendall's τ-b {_number(pair['kendall'])}, Spearman's ρ "
        f"{_number(pair['spearman'])}, within layers {_number(pair['kendall_in_layers'])} and "
        f"{_number(pair['spearman_in_layers'])} on average; rank-biased overlap {_number(pair['rbo'])}",
    ]
    if moved := most_moved(heads, a, b, one.unit)[:_MOST_MOVED]:
        lines.append(f"moved most from {a} to {b}: {', '.join(f'{name} from {was} to {now}' for name, was, now in moved)}")
    if signals is not None and len(own := signals.filter((pl.col("a") == a) & (pl.col("b") == b) & (pl.col("relative") != 0))):
        first = own.sort(pl.col("relative").abs(), descending=True, maintain_order=True).head(_MOST_MOVED).to_dicts()
        told = ", ".join(
            f"{line['signal']} of {head_name(line, one.unit)} from {line['mean_a']:.3g} to {line['mean_b']:.3g} "
            f"({line['relative']:+.1f} sd of its layer)"
            for line in first
        )
        lines.append(f"both are of the same rows; signals that moved most from {a} to {b}: {told}")
    return lines


def most_moved(heads: pl.DataFrame, a: str, b: str, unit: str) -> list[tuple[str, int, int]]:
    """The heads that both of two rankings have and do not put in the same place: name, rank in each; farthest first."""
    change = (pl.col(f"rank_{b}") - pl.col(f"rank_{a}")).abs()
    moved = heads.with_columns(_change=change).filter(pl.col("_change") > 0)
    ordered = moved.sort("_change", descending=True, maintain_order=True)
    return [(head_name(line, unit), line[f"rank_{a}"], line[f"rank_{b}"]) for line in ordered.to_dicts()]


def _name(ranking: Ranking) -> str:
    by = "" if ranking.ordered_by == "combined" else f" by {ranking.ordered_by}"
    return printable(f"{ranking.name}, {_KINDS[ranking.kind]}{by}")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _files(found: Comparison) -> dict[str, bytes | str | None]:
    table = io.BytesIO()
    found.heads.write_parquet(table)
    contents = (
        "".join(f"{line}\n" for line in found.lines),
        csv(found.pairs),
        csv(found.layers),
        csv(found.heads),
        table.getvalue(),
        None if found.signals is None else csv(found.signals),
    )
    return dict(zip(RESULT_FILES, contents, strict=True))
