"""Which weights of the signals rank heads most like the cost of taking each out alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..data.errors import OptionError
from ..data.options.settings import ScoreSettings
from .agreement import aligned
from .effects import single_changes
from .means import Float
from .rank_correlation import spearman
from .ranking import FUSIONS, rank

SIZES = (0.25, 0.5, 1.0, 2.0)  # of a weight, beside the first signal's 1
LEAST_GAIN = 0.005  # of Spearman's ρ, for one signal more

Weights = dict[str, float]


@dataclass(frozen=True)
class WeightFit:
    """Weights that were picked on one half of the rows, and how well they do on the other.

    Args:
        effect: what is agreed with: `nll`, or `kl` where no row has an answer.
        rows: how many rows weights were picked on, and how many were held out.
        weights: the weights that were picked, in that order; those that are negative turn a signal around.
        default: the weights of the settings.
        picked: Spearman's ρ of the picked weights' combined score and the mean effects, on the half that they were picked on.
        held_out: the same on the other half, which is what counts.
        default_picked: ρ of the settings' weights on the first half.
        default_held_out: the same on the other half.
        between_halves: ρ of the effects of one half and those of the other: rankings that agree better than this agree as well
            as the rows can show.
    """

    effect: str
    rows: tuple[int, int]
    weights: Mapping[str, float]
    default: Mapping[str, float]
    picked: float | None
    held_out: float | None
    default_picked: float | None
    default_held_out: float | None
    between_halves: float | None


def fit_weights(
    single: pl.DataFrame,
    intact: pl.DataFrame,
    heads: pl.DataFrame,
    signals: Sequence[str],
    *,
    settings: ScoreSettings,
    seed: int = 42,
) -> WeightFit:
    """Pick weights, sign included, on one half of the rows, and see how they do on the other.

    Forward selection: the signal and sign that agree best, then as long as ρ gains by LEAST_GAIN one signal more, with the best
    of a few weights. Both halves are of the same heads: the second shows what was fitted to rows, not what was to this model.

    Args:
        single: as in `effects_of`.
        intact: as in `effects_of`.
        heads: one line per `layer` and `head` (or `kv_head`) with every signal, as `Scores.heads`.
        signals: columns of `heads`; those that are undefined for some head are passed over.
        settings: how heads are ranked, and the weights to compare with.
        seed: of the halves.

    Raises InputError where tables do not fit, there are fewer than two rows, or all heads have the same effect.
    """
    grid, changes = single_changes(single, intact)
    if not changes:
        raise OptionError("--fit-weights: no row has a value of nll or kl")
    effect = "nll" if "nll" in changes else "kl"
    halves = _halves(changes[effect], seed)
    default = {name: weight for name, weight in settings.weights.items() if weight}
    ranked = _ranked(aligned(heads, grid.keys, list(dict.fromkeys([*signals, *default]))), default, settings)
    usable = [name for name in signals if ranked[f"{name}_norm"].is_finite().fill_null(False).all()]
    costs = [half.mean(axis=1) for half in halves]
    weights = _selected(ranked, usable, costs[0], settings)
    picked, default_picked = _agreements(ranked, [weights, default], costs[0], settings)
    held_out, default_held_out = _agreements(ranked, [weights, default], costs[1], settings)
    between = spearman(*costs)
    counts = (halves[0].shape[1], halves[1].shape[1])
    return WeightFit(effect, counts, weights, default, picked, held_out, default_picked, default_held_out, between)


def _halves(values: Float, seed: int) -> tuple[Float, Float]:
    rows = values.shape[1]
    if rows < 2:
        raise OptionError(f"--fit-weights: {rows} row has a value; weights are picked on one half of the rows, so give more")
    order = np.random.default_rng(seed).permutation(rows)
    first, second = np.sort(order[: (rows + 1) // 2]), np.sort(order[(rows + 1) // 2 :])
    return values[:, first], values[:, second]


def _ranked(heads: pl.DataFrame, weights: Weights, settings: ScoreSettings) -> pl.DataFrame:
    """The heads with the norm and the rank of every signal, by layer and head."""
    how = {"fusion": settings.fusion, "norm_mode": settings.norm_mode, "within": settings.within}
    return rank(heads, weights, unit=heads.columns[1], **how)  # type: ignore[arg-type]


def _selected(ranked: pl.DataFrame, signals: Sequence[str], costs: Float, settings: ScoreSettings) -> Weights:
    chosen: Weights = {}
    best = -1.0
    while candidates := list(_one_more(chosen, signals)):
        found = [-1.0 if value is None else value for value in _agreements(ranked, candidates, costs, settings)]
        place = int(np.argmax(found))  # the first of those that are equal
        if chosen and found[place] < best + LEAST_GAIN:
            break
        chosen, best = candidates[place], found[place]
    if best == -1.0:
        raise OptionError("--fit-weights: all heads have the same effect, or no signal is defined for all, so nothing agrees")
    return chosen


def _one_more(chosen: Weights, signals: Sequence[str]) -> Iterator[Weights]:
    for name in signals:
        if name not in chosen:
            yield from ({**chosen, name: sign * size} for size in (SIZES if chosen else (1.0,)) for sign in (1, -1))


def _agreements(
    ranked: pl.DataFrame, candidates: Sequence[Weights], costs: Float, settings: ScoreSettings
) -> list[float | None]:
    """Spearman's ρ of each candidate's combined score, as `rank` makes it, and the costs."""
    group = ["layer"] if settings.within == "layer" else []
    combined = ranked.select(FUSIONS[settings.fusion](weights, group).alias(str(n)) for n, weights in enumerate(candidates))
    return [spearman(combined[str(n)], costs) for n in range(len(candidates))]
