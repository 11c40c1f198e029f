"""What a ranking should be read with: faults of its heads or signals that can be told from the cache, in plain lines."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl

from ...data.options.settings import ScoreSettings
from ...data.text import verb
from ..means import Float
from ..recipe import Recipe

CHECK_NAMES = ("disagreement", "below_uniform", "length", "ties", "first_token", "samples")
DISAGREEING = -0.1  # Spearman, below which signals that disagree beyond chance are reported
UNLIKELY = 3.5  # standard errors: independent signals are reported as disagreeing in one of 4,000 cases
FOLLOWING = 0.3  # correlation with the length of the span, a medium one by Cohen (1988), where it is beyond chance
PARKED = 0.5  # of the attention, on the first token
COIN_TOSS = (0.25, 0.75)  # p_top of a head that may as well be among the top as not
STABLE = 0.9  # of the top k, that another sample should keep
_NAMED = 3  # pairs of signals in one line


@dataclass(frozen=True)
class Check:
    """Something that a ranking should be read with.

    Args:
        name: one of CHECK_NAMES, as docs/evidence.md explains them.
        line: what was found, in plain words.
        number: the number in it: the lowest Spearman correlation, how many heads, or which share of the top another sample
            would keep.
    """

    name: str
    line: str
    number: float


def checks_of(heads: pl.DataFrame, settings: ScoreSettings, recipe: Recipe, samples: int, k: int) -> tuple[Check, ...]:
    """The checks that apply to a ranking, at most six.

    Args:
        heads: `Scores.heads`.
        settings: how they are ranked.
        recipe: what their signals are.
        samples: how many the means are over.
        k: of the top k.
    """
    top = heads.filter(pl.col("rank") <= k)
    span = " or ".join(settings.task_span)
    found: list[Check | None] = [_disagreement(heads, settings)]
    if _is_of_task(recipe, settings):
        found += [_below_uniform(top, span), _follows_length(top, span, samples)]
    found += [_ties(heads, k), _parked(top)]
    if "p_top" in heads.columns:
        found.append(_too_few_samples(top, samples))
    return tuple(check for check in found if check)


def stability_line(heads: pl.DataFrame, unit: str, samples: int, k: int) -> str:
    """What the bootstrap says of the top k as a whole; empty where there was none."""
    if "p_top" not in heads.columns:
        return ""
    kept = heads.filter(pl.col("rank") <= k)["p_top"].sum()
    tossed = heads.filter(pl.col("p_top").is_between(*COIN_TOSS)).height
    whose = f"; for {tossed} it is a coin toss (p_top {COIN_TOSS[0]} to {COIN_TOSS[1]}, marked ?)" if tossed else ""
    return f"stability: another {samples} samples would keep {kept:.1f} of the top {k} {_plural(unit)}{whose}"


def _plural(unit: str) -> str:
    return "heads" if unit == "head" else "groups of heads"


def _disagreement(heads: pl.DataFrame, settings: ScoreSettings) -> Check | None:
    """Pairs of weighted signals whose ranks run against each other, as they are weighted."""
    weights = {name: weight for name, weight in settings.weights.items() if weight}
    groups = 1 if settings.within == "model" else heads["layer"].n_unique()
    ranks = {name: np.sign(weight) * heads[f"{name}_rank"].to_numpy().reshape(groups, -1) for name, weight in weights.items()}
    found = []
    for one, other in combinations(ranks, 2):
        rho = spearman_within(ranks[one], ranks[other])
        rho = rho[~np.isnan(rho)]
        if not len(rho):
            continue
        mean, error = float(rho.mean()), 1 / math.sqrt(len(rho) * (ranks[one].shape[1] - 1))
        if mean < DISAGREEING and mean < -UNLIKELY * error:
            found.append((mean, f"{_signed(one, weights)} and {_signed(other, weights)} {mean:.2f}"))
    if not found:
        return None
    found.sort()
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    what = "in the model" if settings.within == "model" else "within layers"
    shown = ", ".join(text for _, text in found[:_NAMED]) + more
    return Check("disagreement", f"weighted signals disagree: Spearman {what} {shown} (1 same order, -1 opposite)", found[0][0])


def spearman_within(one: Float, other: Float) -> Float:
    """The correlation of ranks in each group, [G]; NaN where all of one are equal.

    Args:
        one: ranks, [G,H].
        other: the same.
    """
    a, b = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, other))
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.where(size > 0, size, np.nan))


def _signed(name: str, weights: dict[str, float]) -> str:
    return name if weights[name] > 0 else f"minus {name}"


def _is_of_task(recipe: Recipe, settings: ScoreSettings) -> bool:
    """Whether attention to the task's tokens counts for the ranking."""
    weighted = [name for name, weight in settings.weights.items() if weight]
    return not {"task_mass", "task_rest", f"mass_{recipe.task}"}.isdisjoint(recipe.needs(weighted))


def _below_uniform(top: pl.DataFrame, span: str) -> Check | None:
    count = top.filter(pl.col("excess") < 0).height
    line = f"{_of(count, top)} {verb('give', count)} the {span} less attention than uniform attention would"
    return Check("below_uniform", line, count) if count else None


def _follows_length(top: pl.DataFrame, span: str, samples: int) -> Check | None:
    border = max(FOLLOWING, UNLIKELY / math.sqrt(samples))
    following = top.filter(pl.col("task_length_r") > border)
    if not len(following):
        return None
    largest = following["task_length_r"].to_numpy().max()
    line = (
        f"{_of(len(following), top)} {verb('attend', len(following))} more to the {span} the longer it is: "
        f"correlation over samples up to {largest:.2f}"
    )
    return Check("length", line, len(following))


def _ties(heads: pl.DataFrame, k: int) -> Check | None:
    """Heads of equal combined score of which some are in the top k."""
    last = heads.filter(pl.col("rank") == k)["tied_rank"].item()
    tied = heads.filter(pl.col("tied_rank") == last)
    inside = tied.filter(pl.col("rank") <= k).height
    if inside == len(tied):
        return None
    outside = len(tied) - inside
    line = f"{len(tied)} tie at the cut: {inside} of them {verb('are', inside)} in the top {k}, "
    line += f"{outside} {verb('are', outside)} not"
    return Check("ties", line, len(tied))


def _parked(top: pl.DataFrame) -> Check | None:
    count = top.filter(pl.col("sink") > PARKED).height
    line = f"{_of(count, top)} {verb('rest', count)} on the first token, with more than half of the attention"
    return Check("first_token", line, count) if count else None


def _too_few_samples(top: pl.DataFrame, samples: int) -> Check | None:
    kept = float(top["p_top"].mean() or 0)  # type: ignore[arg-type]
    line = f"{samples} samples are few: another {samples} would keep {kept:.0%} of the top {len(top)}"
    return Check("samples", line, kept) if kept < STABLE else None


def _of(count: int, top: pl.DataFrame) -> str:
    return f"{count} of the top {len(top)}"
