"""Means over samples, with the same bits however the samples are split: sums carry what plain addition would round away."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Sums over the defined values of some samples; `a + b` is over those of both.

    Args:
        high: the sums, rounded; any shape.
        low: what rounding took off them.
        counts: how many values were defined.
    """

    high: Float
    low: Float
    counts: npt.NDArray[np.int64]

    def __add__(self, other: Self) -> "Sums":
        high, error = _two_sum(self.high, other.high)
        return Sums(high, self.low + other.low + error, self.counts + other.counts)

    def means(self) -> Float:
        """The mean of the defined values; NaN where there is none."""
        with np.errstate(invalid="ignore"):
            return (self.high + self.low) / np.where(self.counts > 0, self.counts, np.nan)


def sums(values: npt.NDArray[Any]) -> Sums:
    """The sums over the last axis, which are the samples, of any other shape; NaN stands for a value that is not defined.

    Pairs are added, then pairs of pairs, and the rounding error of each addition is kept: Knuth's two-sum, TAOCP vol. 2, 4.2.2.
    """
    defined = ~np.isnan(values)
    high = np.where(defined, values, 0.0).astype(np.float64, copy=False)
    low = np.zeros(high.shape[:-1])
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        pairs, errors = _two_sum(high[..., :half], high[..., half : 2 * half])
        low = low + errors.sum(axis=-1)
        high = np.concatenate([pairs, high[..., 2 * half :]], axis=-1)
    total = high[..., 0] if high.shape[-1] else np.zeros(high.shape[:-1])
    return Sums(total, low, defined.sum(axis=-1))


def _two_sum(one: Any, other: Any) -> tuple[Any, Any]:
    """The rounded sum, and what rounding took off it."""
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)
