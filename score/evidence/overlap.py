"""How much the tops of rankings have in common: overlap@k, rank-biased overlap, and Nogueira's Φ of several."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...data.errors import InputError
from ..means import Float

RBO_P = 0.9
_BLOCK = 256  # of depths that are looked at together
_NEGLIGIBLE = 2.0**-60


def overlap(x: npt.ArrayLike, y: npt.ArrayLike, k: int) -> int:
    """How many things are among the first k of both rankings.

    Args:
        x: ranks from 1, [n]; NaN for what a ranking does not have.
        y: the same.
        k: how many are first.
    """
    return int(((np.asarray(x, np.float64) <= k) & (np.asarray(y, np.float64) <= k)).sum())


def chance_overlap(k: int, n: int) -> float:
    """How many of the first k of n things two random orders share on average: k²/n."""
    return k * k / n


def rbo(x: npt.ArrayLike, y: npt.ArrayLike, p: float = RBO_P, ties: Literal["a", "b"] = "b") -> float:
    """Rank-biased overlap, extrapolated: the agreement of two rankings at each depth d, weighted by p^(d−1)·(1−p).

    The agreement at d is the share of the first d that both have. Where scores tie, each of a tied group counts at depth d by
    the share of the group that has room there (Corsi & Urbano, SIGIR 2024): with `a` that is the mean over all orders of what
    is tied; with `b` it is divided by what each ranking agrees with itself, so that equal rankings have 1, as in Kendall's τ-b.
    Beyond the end of a ranking its agreement is taken to go on as at its end (Webber, Moffat & Zobel, 2010, equation 32).

    Args:
        x: scores of the same things in two rankings, [n], higher first; NaN for what a ranking does not have.
        y: the same.
        p: from 0 to 1: how far down one looks; 0.9 puts 86 % of the weight on the first 10.
        ties: as above.

    Returns a value from 0 to 1. Raises InputError for arrays of other shapes, an empty ranking, or p out of its range.
    """
    if not 0 < p < 1:
        raise InputError(f"rbo: p={p!r:.40} is not between 0 and 1")
    one, other = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise InputError(f"rbo: arrays of the shapes {one.shape} and {other.shape}; give a score of each for every head")
    short, long = sorted((_Groups.of(one), _Groups.of(other)), key=lambda groups: groups.count)
    if not short.count:
        raise InputError("rbo: a ranking is empty")
    depth = min(long.count, math.ceil(math.log(_NEGLIGIBLE) / math.log(p)))
    end = _agreements(short, long, np.array([short.count]), 0.0, ties)[0]  # beyond the shorter one's end
    total = 0.0
    for start in range(0, depth, _BLOCK):
        depths = np.arange(start + 1, min(start + _BLOCK, depth) + 1)
        total += float(_agreements(short, long, depths, end, ties) @ p**depths)
    whole = short.shares(np.array([long.count])) * long.shares(np.array([long.count]))
    last = (float(whole.sum()) + (long.count - short.count) * end) / long.count
    return min(1.0, (1 - p) / p * total + (last * p**depth if depth == long.count else 0.0))


@dataclass(frozen=True)
class _Groups:
    """A ranking with ties: for each thing the first and last place of those it ties with; infinite where it is not in it."""

    first: Float
    last: Float
    count: int

    @classmethod
    def of(cls, scores: Float) -> "_Groups":
        there = ~np.isnan(scores)
        _, group, sizes = np.unique(-scores[there], return_inverse=True, return_counts=True)
        first, last = np.full(len(scores), np.inf), np.full(len(scores), np.inf)
        ends = np.cumsum(sizes)
        first[there], last[there] = (ends - sizes + 1)[group], ends[group]
        return cls(first, last, int(there.sum()))

    def shares(self, depths: npt.NDArray[Any]) -> Float:
        """How much of each thing is among the first of each depth, from 0 to 1: [n, depths]."""
        there = np.isfinite(self.first)
        found = np.zeros((len(there), len(depths)))
        first, last = self.first[there, None], self.last[there, None]
        found[there] = np.clip((depths - first + 1) / (last - first + 1), 0.0, 1.0)
        return found


def _agreements(short: _Groups, long: _Groups, depths: npt.NDArray[Any], end: float, ties: str) -> Float:
    """The agreement at each depth; `end` is that at the end of the shorter ranking."""
    own, other = short.shares(depths), long.shares(depths)
    shared = (own * other).sum(axis=0)
    beyond = depths > short.count
    unseen = np.where(np.isinf(short.first)[:, None], other, 0.0)  # what the shorter one may have had further down
    seen_of_them = np.maximum((unseen > 0).sum(axis=0), 1)
    shared = shared + np.where(beyond, (depths - short.count) * end * unseen.sum(axis=0) / seen_of_them, 0.0)
    if ties == "a":
        return shared / depths
    norm = np.where(beyond, depths, (own**2).sum(axis=0)) * (other**2).sum(axis=0)
    return shared / np.sqrt(norm)


@dataclass(frozen=True)
class Stability:
    """Nogueira's Φ of some sets: 1 where all are the same, 0 on average for random ones.

    Args:
        value: Φ.
        variance: its estimated variance.
        low: the lower end of its interval.
        high: the upper end.
    """

    value: float
    variance: float
    low: float
    high: float


def nogueira(chosen: npt.ArrayLike, level: float = 0.95) -> Stability | None:
    """How stable a choice of things is over several draws: Φ of Nogueira, Sechidis & Brown (JMLR 2018), corrected for chance.

    Φ = 1 − mean over things of M/(M−1)·p(1−p), divided by k̄/d·(1 − k̄/d). The interval is normal, as they give it, and holds for
    many sets that are drawn independently.

    Args:
        chosen: whether each of M sets has each of d things, [M,d].
        level: of the interval.

    Returns None where every set is empty, or every set is everything: then nothing was chosen.
    Raises InputError for fewer than two sets.
    """
    sets = np.asarray(chosen, np.float64)
    if sets.ndim != 2 or len(sets) < 2:
        raise InputError(f"nogueira: an array of the shape {sets.shape}; give two or more sets of the same things")
    share, sizes = sets.mean(axis=0), sets.mean(axis=1)
    mean = float(sizes.mean())
    if mean in (0.0, 1.0):
        return None
    spread, m = mean * (1 - mean), len(sets)
    value = 1 - m / (m - 1) * float((share * (1 - share)).mean()) / spread
    each = ((sets * share).mean(axis=1) - sizes * mean + value / 2 * (2 * sizes * mean - sizes - mean + 1)) / spread
    variance = 4 / m**2 * float(((each - each.mean()) ** 2).sum())
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return Stability(value, variance, value - reach, value + reach)
