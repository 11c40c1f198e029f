"""Whether a model needs the heads that a ranking puts first: statistics of outcomes, without the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ..data.errors import OptionError
from .intervals import BOOTSTRAP, LEVEL, mean_intervals
from .means import Float
from .outcomes import ACCURACIES, METRICS, Group, outcomes_of
from .significance import at_least, holm, mcnemar, permutation_p

ALPHA = 0.05
ROUNDING = 1e-12  # changes of means no larger than it are none
_COMPARED = ("top", "bottom", "difference")
SCHEMA: dict[str, Any] = {
    "signal": pl.String,
    "k": pl.Int64,
    "metric": pl.String,
    "rows": pl.Int64,
    "intact": pl.Float64,
    **{f"{name}{end}": pl.Float64 for name in ("top", "bottom") for end in ("", "_low", "_high")},
    **dict.fromkeys(["draws", "draws_min", "draws_max", "difference", "difference_low", "difference_high"], pl.Float64),
    "draws_count": pl.Int64,
    **dict.fromkeys(["p", "p_holm", "mcnemar"], pl.Float64),
    "is_noise": pl.Boolean,
    "chance": pl.Float64,
    "above_chance": pl.Boolean,
}


def validation_table(
    outcomes: pl.DataFrame,
    floors: Mapping[str, float],
    *,
    bootstrap: int = BOOTSTRAP,
    level: float = LEVEL,
    seed: int = 42,
) -> pl.DataFrame:
    """What the model loses without the top k, the bottom k, and random heads of the same layers.

    Changes are from the intact model, per row, so that rows are compared with themselves. Intervals are over rows
    (see `mean_intervals`: studentised for kl and nll, percentile for accuracies), with these draws as they are: how much draws
    differ is what p is about.

    Args:
        outcomes: one line per set and row: `signal`, `k`, `set` (`top`, `bottom`, `draw`), `draw`, `row`, and some of `kl`,
            `nll` (nats), `acc` and `acc_norm` (0 or 1). Those of the intact model have no signal, and the set `intact`. Null is
            no value, and then it is so in all sets of the row. `choices`, if there, is how many answers a row can be given.
        floors: for a metric, how far two runs of the intact model differ; 0 where none is given.
        bootstrap: replicates.
        level: of the intervals.
        seed: of the replicates.

    Returns one line per signal (`combined` first), k and metric:
        signal, k, metric
        rows: how many have a value
        intact: the mean over rows of the intact model
        top, top_low, top_high: mean change with the top k taken out, and its interval; bottom… in the same way
        draws, draws_min, draws_max: of the mean changes of the draws
        difference, difference_low, difference_high: the top's change less the mean of the draws' in the same row
        draws_count: R
        p: one-sided, (1 + draws whose mean change is at least as bad as the top's) / (R + 1)
        p_holm: p for all k of this signal and metric together
        mcnemar: accuracies only: exact two-sided p-value of the top against intact
        is_noise: whether the top's change, or its difference from the draws, is no larger than the floor
        chance, above_chance: accuracies only: the mean of 1 / choices, and whether the intact model has more right than
            guessing (exact Poisson-binomial test, one-sided, at 5 %)
    Values are null where there are no draws, no bottom, or too few rows.

    Raises InputError where outcomes are not whole, are no numbers, or were not made in the same rows.
    """
    _require_options(bootstrap, level, seed)
    found = outcomes_of(outcomes)
    lines: list[dict[str, Any]] = []
    for metric, values in found.metrics.items():
        there = ~np.isnan(values[found.intact])
        intact, choices = values[found.intact, there], found.choices[there]
        one = _Metric(metric, intact, values[:, there] - intact, floors.get(metric, 0.0))
        chance = _chance(intact, choices) if metric in ACCURACIES else {}
        own = one.lines(found.groups, {"replicates": bootstrap, "level": level, "seed": seed})
        lines += [{**line, **chance} for line in own]
    place = pl.col("metric").replace_strict({metric: place for place, metric in enumerate(METRICS)})
    return pl.DataFrame(lines, schema=SCHEMA).sort(pl.col("signal") != "combined", "signal", "k", place)


def _require_options(bootstrap: int, level: float, seed: int) -> None:
    if bootstrap < 1:
        raise OptionError(f"--bootstrap: {bootstrap} is not a number of at least 1")
    if not 0 < level < 1:
        raise OptionError(f"--level: {level} is not between 0 and 1")
    if seed < 0:
        raise OptionError(f"--seed: {seed} is not a number of at least 0")


@dataclass(frozen=True, eq=False)
class _Metric:
    """One metric: of the intact model [n], and how each set's differs from it [sets, n]."""

    name: str
    intact: Float
    changes: Float
    floor: float

    def lines(self, groups: Sequence[Group], how: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        means = self.changes.mean(axis=1)
        compared = {(place, name): values for place, group in enumerate(groups) for name, values in self._compared(group)}
        low, high = mean_intervals(np.stack(list(compared.values()), axis=1), studentised=self.name not in ACCURACIES, **how)
        ends = {key: tuple(map(_number, pair)) for key, pair in zip(compared, zip(low, high, strict=True), strict=True)}
        corrected = self._p_values(groups, means)
        for place, group in enumerate(groups):
            found: dict[str, Any] = {"signal": group.signal, "k": group.k, "metric": self.name, "rows": len(self.intact)}
            found |= {"intact": float(self.intact.mean()), "draws_count": len(group.draws)}
            for name in [name for name in _COMPARED if (place, name) in compared]:
                found[name] = float(compared[place, name].mean())
                found[f"{name}_low"], found[f"{name}_high"] = ends[place, name]
            if group.draws:
                drawn = means[group.draws]
                found |= {"draws": float(drawn.mean()), "draws_min": float(drawn.min()), "draws_max": float(drawn.max())}
                found["p"], found["p_holm"] = corrected[group.signal, group.k]
            if self.name in ACCURACIES:
                found["mcnemar"] = mcnemar(self.intact, self.intact + self.changes[group.top])
            found["is_noise"] = any(
                abs(found[name]) <= max(self.floor, ROUNDING) for name in ("top", "difference") if name in found
            )
            yield found

    def _compared(self, group: Group) -> Iterator[tuple[str, Float]]:
        """What has an interval, each [n]."""
        yield "top", self.changes[group.top]
        if group.bottom is not None:
            yield "bottom", self.changes[group.bottom]
        if group.draws:
            yield "difference", self.changes[group.top] - self.changes[group.draws].mean(axis=0)

    def _p_values(self, groups: Sequence[Group], means: Float) -> dict[tuple[str, int], tuple[float, float]]:
        """p, and that for all k of the signal, by signal and k."""
        bad = means * METRICS[self.name]
        signals: dict[str, dict[int, float]] = {}
        for group in groups:
            if group.draws:
                signals.setdefault(group.signal, {})[group.k] = permutation_p(bad[group.top], bad[group.draws])
        return {
            (signal, k): (p, p_all)
            for signal, found in signals.items()
            for (k, p), p_all in zip(found.items(), holm(list(found.values())), strict=True)
        }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _chance(right: Float, choices: Float) -> dict[str, Any]:
    """What guessing would give, and whether the intact model has more right; nothing where some row's choices are unknown."""
    if np.isnan(choices).any() or (choices < 1).any():
        return {}
    return {"chance": float((1 / choices).mean()), "above_chance": at_least(int(right.sum()), 1 / choices) <= ALPHA}
