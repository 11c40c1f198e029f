"""The null of a fusion: what combined scores there would be if the signals knew nothing of each other."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ...data.cache.metadata import has_shape
from ...data.options.settings import ScoreSettings
from ..means import Float
from ..ranking import RRF_CONSTANT

DRAWS = 2000
SEED = 42
ENDS = (0.05, 0.95)
MOST_DRAWN = 1 << 18  # places of permutations that are made of a layer; more are drawn from these
_SAME = 1e-9  # relative to the largest; sums of the same numbers in another order
_DEEP = 1 / 3  # of all heads: below it the k-th score falls rather than rises where signals agree


@dataclass(frozen=True)
class Level:
    """A combined score of the ranking beside those of random ranks.

    Args:
        observed: of the ranking.
        mean: over the draws.
        low: their 5 % quantile.
        high: their 95 % quantile.
        p: how likely random ranks give as much: (1 + draws that do) / (1 + draws).
    """

    observed: float
    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Null:
    """The first and the k-th combined score of a ranking beside those of random ranks.

    Args:
        best: the highest score.
        kth: the k-th.
        k: of the top k.
        draws: how often the ranks were drawn.
        units: how many heads, or groups of them, there are.
    """

    best: Level
    kth: Level
    k: int
    draws: int
    units: int

    @property
    def verdict(self) -> str:
        """Whether the signals agree `more` or `less` than chance would make them, by the k-th score; else `no more`."""
        level = self.kth if self.k <= self.units * _DEEP else self.best
        if any(math.isclose(level.observed, end, rel_tol=_SAME) for end in (level.low, level.high)):
            return "no more"
        return "more" if level.observed > level.high else "less" if level.observed < level.low else "no more"

    @property
    def line(self) -> str:
        """All of it, in plain words."""
        form = _form(max(abs(self.best.high), abs(self.best.observed)))
        random = f"a best score of {_told(self.best, form)}"
        own = form(self.best.observed)
        if 1 < self.k <= self.units * _DEEP:
            random += f" and a {ordinal(self.k)} of {_told(self.kth, form)}"
            own += f" and {form(self.kth.observed)}"
        verdict = "no more and no less" if self.verdict == "no more" else self.verdict
        return (
            f"random ranks of these signals would give {random}; this ranking has {own}: its signals agree {verdict} "
            "than chance would make them"
        )

    def record(self) -> dict[str, Any]:
        """All of it, as config.yaml holds it."""
        return dataclasses.asdict(self)


def null_of_record(record: Any) -> Null | None:
    """What `Null.record` told; None for what is none, as a record may be a stranger's."""
    level = dict.fromkeys((field.name for field in dataclasses.fields(Level)), float)
    if not has_shape(record, {"best": level, "kth": level, "k": int, "draws": int, "units": int}):
        return None
    best, kth = (Level(**{name: record[key][name] for name in level}) for key in ("best", "kth"))
    is_finite = all(math.isfinite(value) for each in (best, kth) for value in dataclasses.astuple(each))
    return Null(best, kth, record["k"], record["draws"], record["units"]) if is_finite else None


def null_of(heads: pl.DataFrame, settings: ScoreSettings, k: int) -> Null | None:
    """The null of a ranking: each weighted signal's ranks permuted among the heads that are ranked with each other.

    What is permuted is what the fusion adds up: ranks, for `rrf` places, for `sum` normalised values, ties as they are.

    Args:
        heads: `Scores.heads`.
        settings: how they are ranked.
        k: of the top k.

    Returns None where fewer than two signals are weighted, as then there is nothing to agree.
    """
    weights = {name: weight for name, weight in settings.weights.items() if weight}
    if len(weights) < 2:
        return None
    groups = 1 if settings.within == "model" else heads["layer"].n_unique()
    # sorted, so that the same ranks have the same null, whichever heads they are of
    terms = [np.sort(_terms(heads, name, weight, settings).reshape(groups, -1), axis=1) for name, weight in weights.items()]
    drawn = _drawn(terms)
    place = drawn.shape[1] - k
    drawn.partition(sorted({place, drawn.shape[1] - 1}), axis=1)
    observed = np.sort(heads["combined"].to_numpy())
    best, kth = (_level(float(observed[at]), drawn[:, at]) for at in (-1, place))
    return Null(best, kth, k, DRAWS, len(heads))


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _terms(heads: pl.DataFrame, name: str, weight: float, settings: ScoreSettings) -> Float:
    """What a signal adds to the combined score of each head."""
    if settings.fusion == "sum":
        return weight * heads[f"{name}_norm"].to_numpy()
    ranks = heads[f"{name}_rank"].to_numpy()
    if settings.fusion == "rank":
        return weight * ranks
    sizes = heads.select(pl.len().over("layer")).to_series().to_numpy() if settings.within == "layer" else len(heads)
    return np.asarray(weight / (RRF_CONSTANT + sizes + 1 - ranks))


def _drawn(terms: list[Float]) -> Float:
    """Combined scores under random ranks, [draws, heads]; the first signal stays, as only the orders relative to it count."""
    groups, size = terms[0].shape
    generator = np.random.default_rng(SEED)
    found = np.empty((DRAWS, groups, size))
    made = min(DRAWS * groups, max(DRAWS, MOST_DRAWN // size))
    orders = generator.permuted(np.broadcast_to(np.arange(size), (made, size)), axis=1)
    for group in range(groups):
        found[:, group] = terms[0][group]
        for values in terms[1:]:
            found[:, group] += values[group][orders[generator.integers(made, size=DRAWS)]]
    return found.reshape(DRAWS, -1)


def _level(observed: float, drawn: npt.NDArray[np.float64]) -> Level:
    low, high = (float(end) for end in np.quantile(drawn, ENDS))
    slack = _SAME * float(np.abs(drawn).max())
    p = (1 + int((drawn >= observed - slack).sum())) / (1 + len(drawn))
    return Level(observed, float(drawn.mean()), low, high, p)


def _told(level: Level, form: Callable[[float], str]) -> str:
    return f"{form(level.mean)} ({form(level.low)} to {form(level.high)})"


def _form(largest: float) -> Callable[[float], str]:
    """How scores are written: with three digits of the largest."""
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 1
    return lambda value: f"{value:.{decimals}f}"
