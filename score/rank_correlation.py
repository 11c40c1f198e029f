"""How far two orders of the same things agree."""

import math

import numpy as np
import numpy.typing as npt

from ..data.errors import InputError

Whole = npt.NDArray[np.int64]
_BLOCK = 256  # of things that are compared with all others at once


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float | None:
    """Spearman's ρ: the correlation of the ranks, ties averaged.

    Args:
        x: numbers [n]; infinite ones are first or last.
        y: the same.

    Returns a value from -1 to 1; None where all of x, or all of y, are equal.
    Raises InputError for NaN, or arrays of other shapes.
    """
    a, b = (_ranks(places) for places in _places(x, y))
    return _ratio(int(a @ b), int(a @ a), int(b @ b))


def kendall(x: npt.ArrayLike, y: npt.ArrayLike) -> float | None:
    """Kendall's τ-b: (pairs in the same order − pairs in the other) / √(pairs untied in x · untied in y); as `spearman`."""
    a, b = _places(x, y)
    agreeing = 0
    for start in range(0, len(a), _BLOCK):
        part = slice(start, start + _BLOCK)
        agreeing += int((np.sign(a[part, None] - a) * np.sign(b[part, None] - b)).sum())  # each pair from both of its ends
    return _ratio(agreeing, _untied(a), _untied(b))


def _places(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Whole, Whole]:
    """Places among the distinct values of each, from 0: whole numbers, so that nothing is rounded."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"correlation: arrays of the shapes {a.shape} and {b.shape}; give a value of each for every head")
    if np.isnan(a).any() or np.isnan(b).any():
        raise InputError("correlation: some value is NaN; leave such heads out")
    one, other = (np.unique(values, return_inverse=True)[1].astype(np.int64) for values in (a, b))
    return one, other


def _ranks(places: Whole) -> Whole:
    """Twice the ranks less their mean."""
    counts = np.bincount(places)
    return (2 * np.cumsum(counts) - counts - len(places))[places]


def _untied(places: Whole) -> int:
    """Pairs of other values, from both of their ends."""
    return len(places) ** 2 - int((np.bincount(places) ** 2).sum())


def _ratio(shared: int, one: int, other: int) -> float | None:
    return shared / math.sqrt(one * other) if one and other else None
