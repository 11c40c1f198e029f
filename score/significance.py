"""Exact p-values and their correction, of plain counts."""

import math
from collections.abc import Sequence

import numpy as np

from .means import Float


def permutation_p(top: float, draws: Float) -> float:
    """(1 + how many draws are at least as high as the top) / (R + 1), one-sided.

    If the top is just one more draw, p ≤ α happens with a probability of at most α. The least p is 1 / (R + 1).

    Args:
        top: of what is tested.
        draws: the same of each draw, [R].
    """
    return (1 + int((draws >= top).sum())) / (len(draws) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, each for all of them together, in the order given (Holm, 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, which in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[which]))
        adjusted[which] = largest
    return adjusted


def mcnemar(before: Float, after: Float) -> float:
    """The exact two-sided p-value that as many rows become right as wrong: twice the smaller tail of a fair coin, at most 1.

    Args:
        before: 0 or 1 for each row, [n].
        after: the same.
    """
    gained, lost = int((after > before).sum()), int((after < before).sum())
    tail = sum(math.comb(gained + lost, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (gained + lost))


def at_least(count: int, chances: Float) -> float:
    """How likely at least so many successes are (Poisson-binomial).

    Args:
        count: of successes.
        chances: of each trial, [n], which may differ.
    """
    likely = np.ones(1)
    for chance in chances:
        likely = np.convolve(likely, [1 - chance, chance])
    return float(min(1.0, likely[max(0, count) :].sum()))
