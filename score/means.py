"""Means over samples, with the same bits however the samples are split: sums carry what plain addition would round away."""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
PARTS = 3


@dataclass(frozen=True)
class Sums:
    """Sums over the defined values of some samples; `a + b` is over those of both.

    Args:
        parts: float64 [3, …]: the sums, rounded; what rounding took off them; and what it took off that. Together they are
            exact unless the values' bits span more than three float64 can hold, which is 48 decimal digits.
        counts: how many values were defined, int64.
    """

    parts: Float
    counts: npt.NDArray[np.int64]

    def __add__(self, other: Self) -> "Sums":
        high, error = _two_sum(self.parts[0], other.parts[0])
        low, rest = _two_sum(self.parts[1], other.parts[1])
        low, more = _two_sum(low, error)
        return Sums(np.stack([high, low, self.parts[2] + other.parts[2] + rest + more]), self.counts + other.counts)

    def means(self) -> Float:
        """The mean of the defined values; NaN where there is none."""
        totals = np.array([math.fsum(parts) for parts in self.parts.reshape(PARTS, -1).T.tolist()])
        with np.errstate(invalid="ignore"):
            return totals.reshape(self.counts.shape) / np.where(self.counts > 0, self.counts, np.nan)


def sums(values: npt.NDArray[Any]) -> Sums:
    """The sums over the last axis, which are the samples, of any other shape; NaN stands for a value that is not defined."""
    defined = ~np.isnan(values)
    high, errors = _added(np.where(defined, values, 0.0).astype(np.float64, copy=False))
    low, rest = _added(errors)
    return Sums(np.stack([high, low, rest.sum(axis=-1)]), defined.sum(axis=-1))


def _added(values: Float) -> tuple[Float, Float]:
    """The rounded sum over the last axis, and what each addition of pairs, of pairs of pairs and so on took off it."""
    errors = [values[..., :0]]
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        pairs, error = _two_sum(values[..., :half], values[..., half : 2 * half])
        values = np.concatenate([pairs, values[..., 2 * half :]], axis=-1)
        errors.append(error)
    return values.sum(axis=-1), np.concatenate(errors, axis=-1)


def _two_sum(one: Any, other: Any) -> tuple[Any, Any]:
    """The rounded sum, and what rounding took off it: Knuth, TAOCP vol. 2, 4.2.2."""
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)
