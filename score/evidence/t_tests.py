"""Tests of means, head by head: Student's and Welch's t, and which of many are found at a false discovery rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ..means import Float

_TOLERANCE = 1e-15
_MOST_STEPS = 100_000  # the fraction below takes about √df of them
_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])


@dataclass(frozen=True)
class Difference:
    """A difference of means, for many heads at once; all arrays are of one shape, and NaN where nothing can be said.

    Args:
        value: the mean, or a mean less another.
        error: its standard error.
        freedom: degrees of freedom of that.
    """

    value: Float
    error: Float
    freedom: Float

    @classmethod
    def of_all(cls, parts: Sequence[Self]) -> Self:
        """The differences of some heads behind those of others, along the first axis."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "error", "freedom")))

    def p(self, two_sided: bool = False) -> Float:
        """The p-value: how likely a difference at least this large is where there is none; 1 where all values are the same.

        two_sided: large in either direction.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            t = self.value / self.error
        tails = 2 * student_sf(np.abs(t), self.freedom) if two_sided else student_sf(t, self.freedom)
        return np.where((self.value == 0) & (self.error == 0), 1.0, tails)


def paired(differences: Float) -> Difference:
    """Student's t of differences of pairs, float64 [..., n]; NaN is no pair. NaN where there are fewer than two."""
    value, variance, counts = _moments(differences)
    return Difference(value, np.sqrt(variance / counts), counts - 1)


def unpaired(one: Float, other: Float) -> Difference:
    """Welch's t of a mean less another, of float64 [..., n] and [..., m]; NaN is no value. NaN where there are fewer than two.

    The degrees of freedom are Satterthwaite's.
    """
    (mean, variance, count), (other_mean, other_variance, other_count) = _moments(one), _moments(other)
    own, others = variance / count, other_variance / other_count
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = (own + others) ** 2 / (own**2 / (count - 1) + others**2 / (other_count - 1))
    return Difference(mean - other_mean, np.sqrt(own + others), np.where(own + others == 0, count + other_count - 2, freedom))


def _moments(values: Float) -> tuple[Float, Float, Float]:
    """Mean, variance (ddof 1) and number of the values of the last axis that are not NaN; the number is NaN below two."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=-1).astype(np.float64)
    counts = np.where(counts > 1, counts, np.nan)
    mean = np.where(defined, values, 0).sum(axis=-1) / counts
    rest = np.where(defined, values - mean[..., None], 0)
    same = np.where(defined, values, -np.inf).max(axis=-1, initial=-np.inf) == np.where(defined, values, np.inf).min(
        axis=-1, initial=np.inf
    )
    return mean, np.where(same, 0.0, (rest**2).sum(axis=-1) / (counts - 1)), counts


def student_sf(t: Float, freedom: Float) -> Float:
    """The probability that Student's t of so many degrees of freedom exceeds t; NaN where either is.

    Half the regularized incomplete beta function I_x(ν/2, 1/2) at x = ν/(ν + t²), by its continued fraction (Abramowitz &
    Stegun, 26.7.1 and 26.5.8).
    """
    t, freedom = np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(freedom, np.float64))
    flat, found = t.reshape(-1), np.full(t.size, np.nan)
    known = ~np.isnan(flat) & ~np.isnan(freedom.reshape(-1))
    infinite = known & np.isinf(flat)
    found[infinite] = np.where(flat[infinite] > 0, 0.0, 1.0)
    known &= ~infinite
    half = _half_beta(np.abs(flat[known]), freedom.reshape(-1)[known])
    found[known] = np.where(flat[known] > 0, half, 1 - half)
    return found.reshape(t.shape)


def _half_beta(t: Float, freedom: Float) -> Float:
    """The upper tail for t ≥ 0, [n]."""
    a, ratio = freedom / 2, t**2 / freedom
    x, y = 1 / (1 + ratio), ratio / (1 + ratio)
    different, places = np.unique(a, return_inverse=True)
    constant = (_lgamma(different + 0.5) - _lgamma(different) - math.lgamma(0.5))[places] if len(a) else a
    with np.errstate(divide="ignore"):
        front = np.exp(constant - a * np.log1p(ratio) + np.log(y) / 2)
    far = x < (a + 1) / (a + 2.5)  # where the fraction converges fast; elsewhere that of the other tail does
    half = np.full(a.shape, 0.5)
    near = ~far & (t > 0)
    half[far] = front[far] * _fraction(a[far], np.full(far.sum(), 0.5), x[far]) / a[far] / 2
    half[near] = 0.5 - front[near] * _fraction(np.full(near.sum(), 0.5), a[near], y[near])
    return half


def _fraction(a: Float, b: Float, x: Float) -> Float:
    """The continued fraction of the incomplete beta function by Lentz's method, [n]."""
    tiny = 1e-300
    d = 1 - (a + b) * x / (a + 1)
    d = 1 / np.where(np.abs(d) < tiny, tiny, d)
    c, found = np.ones_like(x), d.copy()
    for m in range(1, _MOST_STEPS):
        change = np.ones_like(x)
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 + step * d, 1 + step / c
            d, c = 1 / np.where(np.abs(d) < tiny, tiny, d), np.where(np.abs(c) < tiny, tiny, c)
            change = c * d
            found *= change
        if (np.abs(change - 1) < _TOLERANCE * 4).all():
            break
    return found


def benjamini_hochberg(p_values: npt.ArrayLike) -> Float:
    """The least false discovery rate at which each of many tests is found (Benjamini & Hochberg, 1995).

    p_values: of any shape; NaN is no test. Returns q of the same shape; those with q ≤ α are found at the rate α.
    """
    p = np.asarray(p_values, np.float64)
    found = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    order = np.argsort(p[tested])
    scaled = p[tested][order] * len(order) / np.arange(1, len(order) + 1)
    q = np.empty(len(order))
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    found[tested] = np.minimum(q, 1)
    return found
