"""Rankings to compare: of a cache, a folder of results, a validation, or a list that somebody else has made."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from ...data.cache.folder import open_cache
from ...data.errors import InputError, OptionError, did_you_mean
from ...data.files.plain import kind_of
from ...data.options.evidence_settings import Effect
from ...data.options.settings import METADATA_FILE, ScoreSettings, Unit
from ..agreement import costs_of
from ..effects import unit_of
from ..ranking import rank
from ..results import COMBINED, read_results
from ..scoring import score_cache
from ..validation_files import is_validation, read_effects
from .head_lists import KINDS, read_head_list

Kind = Literal["cache", "results", "validation", "list"]

_DEFINING = ("score_query_mode", "head_output", "task_span", "measure", "signal", "signals")  # what signals' values depend on


@dataclass(frozen=True, eq=False)
class Ranking:
    """Heads in an order.

    Args:
        name: what it is called for people.
        kind: what it was read from.
        ordered_by: `combined`, a signal, or the cost of a single head.
        unit: what is ranked: `head` or `kv_head`.
        heads: `layer`, `head` (or `kv_head`), `score`, `rank` from 1, sorted by rank; where scores tie, the ranking's own rules
            decide on the rank.
        whole: whether all heads of the model are there.
        means: `layer`, `head` (or `kv_head`) and the mean of every signal; None where they are not known.
        source: what the means depend on besides the model: rows, templates and definitions; None where it is not known.
    """

    name: str
    kind: Kind
    ordered_by: str
    unit: Unit
    heads: pl.DataFrame
    whole: bool
    means: pl.DataFrame | None = None
    source: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.heads)


def read_ranking(
    place: Path,
    settings: ScoreSettings,
    *,
    signal: str = COMBINED,
    effect: Effect | None = None,
    partial: bool = False,
) -> Ranking:
    """The ranking that a place holds.

    Args:
        place: a cache, which is scored; a folder of results; one of a validation with the effects of single heads; or a list of
            heads as CSV, JSON or Parquet, which need not have all of them.
        settings: how a cache is scored, and by which signals.
        signal: what a cache, results, or a list with such a column are ordered by; `-` before a signal turns it around.
        effect: which cost of single heads orders a validation; the first that it has if not given.
        partial: also take a cache of an unfinished capture.

    Raises InputError where there is none, it cannot be read, or does not have the signal or the effect.
    """
    kind = kind_of(place, follow_links=True)
    if kind == stat.S_IFREG and place.suffix.lower() != ".h5":
        return _of_list(place, signal)
    if kind == stat.S_IFREG or kind_of(place / METADATA_FILE):
        return _of_cache(place, settings, signal, partial)
    if kind != stat.S_IFDIR:
        raise InputError(
            f"{place}: not found; give a cache, a folder of results or of a validation, or a {', '.join(KINDS)} file"
        )
    return _of_validation(place, effect) if is_validation(place) else _of_results(place, signal)


def _of_cache(place: Path, settings: ScoreSettings, signal: str, partial: bool) -> Ranking:
    scores = score_cache(open_cache(place), settings, partial=partial)
    heads, options = scores.heads, {name: getattr(settings, name) for name in ("fusion", "norm_mode", "within")}
    if signal != COMBINED:
        name = _known(place, signal, scores.signals)
        weight = -1.0 if signal.startswith("-") else 1.0
        heads = rank(heads.select("layer", settings.by, name), {name: weight}, unit=settings.by, **options)
    means = scores.heads.select("layer", settings.by, *scores.signals)
    source = _source(scores.metadata, {name: getattr(settings, name) for name in _DEFINING}, scores.samples)
    return Ranking(place.name or str(place), "cache", signal, settings.by, _ordered(heads, settings.by), True, means, source)


def _of_results(place: Path, signal: str) -> Ranking:
    results = read_results(place)
    heads, unit = results.heads, results.unit
    if signal != COMBINED:
        name = _known(place, signal, results.signals)
        heads = results.ranked({name: -1.0 if signal.startswith("-") else 1.0})
    means = results.heads.select("layer", unit, *results.signals)
    options = {name: results.options.get(name) for name in _DEFINING}
    source = _source(results.record, options, results.record.get("samples"))
    if results.imported is not None:
        return Ranking(place.name or str(place), "list", signal, unit, _ordered(heads, unit), results.whole)
    return Ranking(place.name or str(place), "results", signal, unit, _ordered(heads, unit), True, means, source)


def _of_validation(place: Path, asked: Effect | None) -> Ranking:
    costs = costs_of(read_effects(place))
    there = [name for name in get_args(Effect) if name in costs.columns]
    if not there or asked not in (None, *there):
        if asked is None:
            raise InputError(f"{place}: has no effect of single heads to rank by; run headscore validate --single again")
        raise OptionError(f"--effect {asked}: {place} does not have it; it has {', '.join(there) or 'none'}")
    effect = asked or there[0]
    unit: Unit = "kv_head" if unit_of("effects", costs) == "kv_head" else "head"
    found = costs.select("layer", unit, score=effect).drop_nulls()
    ordered = found.sort(["score", "layer", unit], descending=[True, False, False])
    return Ranking(place.name or str(place), "validation", effect, unit, _numbered(ordered, unit), len(found) == len(costs))


def _of_list(place: Path, signal: str) -> Ranking:
    """A list is taken for whole where it has as many heads in every layer, and leaves no number out."""
    found = read_head_list(place, None if signal == COMBINED else signal.removeprefix("-"))
    unit: Unit = "head" if "head" in found.columns else "kv_head"
    if signal.startswith("-"):
        found = found.with_columns(-pl.col("score")).sort("score", descending=True, maintain_order=True)
    layers, heads = int(found["layer"].max() or 0) + 1, int(found[unit].max() or 0) + 1  # type: ignore[arg-type]
    whole = layers > 1 and heads > 1 and len(found) == layers * heads
    return Ranking(place.name, "list", signal, unit, _numbered(found, unit), whole)


def _known(place: Path, signal: str, signals: list[str]) -> str:
    name = signal.removeprefix("-")
    if name not in signals:
        meant = did_you_mean(name, signals)
        has = ", ".join(("combined", *signals))
        raise OptionError(f"--compare-by {signal}: {place} has no such signal; {meant}it has {has}")
    return name


def _ordered(heads: pl.DataFrame, unit: Unit) -> pl.DataFrame:
    return heads.select("layer", unit, pl.col("combined").alias("score"), "rank").sort("rank")


def _numbered(heads: pl.DataFrame, unit: Unit) -> pl.DataFrame:
    return heads.select("layer", unit, "score", rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)).cast(
        {"layer": pl.Int32, unit: pl.Int32}
    )


def _source(metadata: Mapping[str, Any], definitions: Mapping[str, Any], samples: Any) -> Mapping[str, Any] | None:
    """What two captures of the same rows have in common; None where a cache does not say what file its rows are of."""
    data, settings = metadata.get("data") or {}, metadata.get("settings") or {}
    if not data.get("sha256"):
        return None
    rows = {name: settings.get(name) for name in ("max_samples", "max_length", "seed", "chat")}
    told = {
        name: list(value) if isinstance(value, tuple) else str(value) if name in ("measure", "signal", "signals") else value
        for name, value in definitions.items()
    }
    return {"data": data["sha256"], "templates": metadata.get("templates"), "samples": samples, **rows, **told}
