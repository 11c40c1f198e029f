"""What a validation has run, and what statistics make of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from ..data.errors import OptionError
from ..data.options.settings import ScoreSettings, ValidateSettings
from ..data.voice import option_flag
from .agreement import agreement
from .effects import effects_of
from .head_sets import HeadSet
from .results import COMBINED
from .validation_table import validation_table
from .verdicts import verdicts
from .weight_fit import WeightFit, fit_weights

logger = logging.getLogger("headscore")

_OF_STATISTICS = ("bootstrap", "level", "seed", "fit_weights")
_RANKING_OPTIONS = ("fusion", "norm_mode", "within", "by", "lambda_ent", "lambda_task", "weight")

Records = Mapping[str, Mapping[str, Sequence[float | None]]]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was run.

    Args:
        outcomes: one line per set and row, see `validation_table`.
        sets: one line per set and head of it: `signal`, `k`, `set`, `draw`, `shared`, `layer`, `head` (or `kv_head`).
        ranking: `Scores.heads` of the ranking.
        single: `layer`, `head` (or `kv_head`), `row`, `kl`, `nll` of each head taken out alone; None where that was not run.
        gradient: `layer`, `head` (or `kv_head`), `row`, `gradient` of a gate; None likewise.
        facts: everything else that is known, as validation.json holds it.
    """

    outcomes: pl.DataFrame
    sets: pl.DataFrame
    ranking: pl.DataFrame
    single: pl.DataFrame | None
    gradient: pl.DataFrame | None
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Validation:
    """What a validation found.

    Args:
        table: one line per signal, k and metric, see `validation_table`.
        verdicts: the same in plain lines.
        effects: of each head alone, see `effects_of`; None where neither was run.
        agreement: of every signal with those effects, see `agreement`; None likewise.
        fit: the weights that agree best; None where they were not asked for.
        measured: what it was made of.
    """

    table: pl.DataFrame
    verdicts: list[str]
    effects: pl.DataFrame | None
    agreement: pl.DataFrame | None
    fit: WeightFit | None
    measured: Measured

    def __repr__(self) -> str:
        """The verdicts, as a console shows this object."""
        return "\n".join(self.verdicts)


def validation_of(measured: Measured, settings: ValidateSettings) -> Validation:
    """The statistics of what was run. Needs no model.

    Args:
        measured: what was run.
        settings: of the intervals, and whether weights are to be fitted.

    Raises InputError where weights are to be fitted and single heads were not run.
    """
    how: dict[str, Any] = {"bootstrap": settings.bootstrap, "level": settings.level, "seed": settings.seed}
    table = validation_table(measured.outcomes, measured.facts["noise_floor"], **how)
    told = [*_cautions(measured.facts), *verdicts(table, measured.facts["units"])]
    intact = measured.outcomes.filter(set="intact")
    if settings.fit_weights and measured.single is None:
        raise OptionError("--fit-weights: this validation did not run single heads; give the ranking's results, with --single")
    if measured.single is None and measured.gradient is None:
        return Validation(table, told, None, None, None, measured)
    effects = effects_of(measured.single, measured.gradient, intact, **how)
    names = measured.facts["signals"]
    agreed = agreement(effects, measured.ranking, [COMBINED, *names])
    fit = None
    if settings.fit_weights and measured.single is not None:
        ranking = ScoreSettings(**measured.facts["ranking"])
        fit = fit_weights(measured.single, intact, measured.ranking, names, settings=ranking, seed=settings.seed)
        told = [*told, _fit_told(fit)]
    return Validation(table, told, effects, agreed, fit, measured)


def _cautions(facts: Mapping[str, Any]) -> list[str]:
    """What must be known before any number is believed."""
    lines = []
    if not facts["unseen"]:
        lines.append("CAUTION: these are rows that the ranking was made of; it may look better than it is on others")
    if isinstance(imported := facts.get("imported"), dict):
        lines.append(
            f"CAUTION: the list was imported from {imported.get('file')}; whether it is of this model, and of other rows than "
            "these, is not known"
        )
        if not imported.get("whole"):
            lines.append("CAUTION: the list does not have all heads; the bottom are random ones of those that it does not list")
    if facts["other_model"]:
        lines.append("CAUTION: the ranking was captured from a model other than the one that was run")
    if shared := facts["overlapping_draws"]:
        lines.append(f"CAUTION: draws that share heads with the top, as a layer has too few others: {shared}; see sets.parquet")
    return lines


def _fit_told(fit: WeightFit) -> str:
    weights = " ".join(f"{name}={weight:g}" for name, weight in fit.weights.items())
    shown = ["none" if value is None else f"{value:.2f}" for value in (fit.held_out, fit.default_held_out, fit.between_halves)]
    return (
        f"weights that agree best with {fit.effect} of single heads, picked on {fit.rows[0]} rows: {weights}; "
        f"Spearman on the other {fit.rows[1]} rows {shown[0]}, the ranking's own weights {shown[1]}, one half of the rows with "
        f"the other {shown[2]}"
    )


def outcome_frame(
    sets: Sequence[tuple[HeadSet, str]], records: Records, rows: Sequence[int], choices: Sequence[int | None], intact: str
) -> pl.DataFrame:
    """One line per set and row.

    Args:
        sets: each with the name of its record.
        records: by name the values of each metric, [rows].
        rows: of the data file.
        choices: how many answers each row can be given.
        intact: the name of the record of the intact model.
    """
    keys = [(None, 0, "intact", None, intact), *((each.signal, each.k, each.set, each.draw, key) for each, key in sets)]
    schema = {"signal": pl.String, "k": pl.Int64, "set": pl.String, "draw": pl.Int64}
    frames = []
    for *what, key in keys:
        own = {"row": rows, "choices": choices, **records[key]}
        frame = pl.DataFrame(own, schema={"row": pl.Int64, "choices": pl.Int64, **dict.fromkeys(records[key], pl.Float64)})
        frames.append(
            frame.select(*(pl.lit(x, kind).alias(n) for x, (n, kind) in zip(what, schema.items(), strict=True)), pl.all())
        )
    return pl.concat(frames)


def set_frame(sets: Sequence[HeadSet], unit: str) -> pl.DataFrame:
    """One line per set and head, or group of heads, in it."""
    lines = [(each.signal, each.k, each.set, each.draw, each.shared, *pair) for each in sets for pair in each.units]
    schema = {"signal": pl.String, "k": pl.Int64, "set": pl.String, "draw": pl.Int64, "shared": pl.Int64}
    return pl.DataFrame(lines, schema={**schema, "layer": pl.Int64, unit: pl.Int64}, orient="row")


def ranking_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a run that say how heads are ranked, and by which weights."""
    return {name: options[name] for name in _RANKING_OPTIONS if options.get(name) is not None}


def require_statistics_alone(place: Path, measured: Measured, settings: ValidateSettings) -> None:
    """Raises InputError where options ask for more than statistics of what a validation in `place` has run."""
    there = {"single": measured.single is not None, "gate_gradient": measured.gradient is not None}
    for field in fields(settings):
        asked = getattr(settings, field.name) != field.default
        if asked and field.name not in _OF_STATISTICS and not there.get(field.name):
            raise OptionError(
                f"{option_flag(field.name)}: needs the model, and {place} is a validation; give the results of headscore "
                "score instead, or only --bootstrap, --level and --seed, for new statistics"
            )
