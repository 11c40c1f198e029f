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
    """The sums over the last axis, which are the samples, of any other shape; NaN stands for a value that is not defined.

    Values are cut into upper parts, short enough to add up exactly, and rests, which are cut again (Rump, Ogita & Oishi, 2008).
    """
    defined = ~np.isnan(values)
    rest = np.where(defined, values, 0.0).astype(np.float64, copy=False)
    parts = np.zeros((PARTS, *rest.shape[:-1]))
    for place in range(PARTS):
        if not rest.any():
            break
        upper = _upper(rest) if place < PARTS - 1 else rest
        parts[place] = upper.sum(axis=-1)
        rest = rest - upper
    return Sums(parts, defined.sum(axis=-1))


def _upper(values: Float) -> Float:
    """The multiples next to the values of a unit so large that the values of each sum add up without rounding."""
    _, exponent = np.frexp(np.abs(values).max(axis=-1, keepdims=True))
    border = np.ldexp(1.5, exponent + values.shape[-1].bit_length() + 1)  # numbers near it are multiples of the unit
    return (values + border) - border


def _two_sum(one: Any, other: Any) -> tuple[Any, Any]:
    """The rounded sum, and what rounding took off it: Knuth, TAOCP vol. 2, 4.2.2."""
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)
