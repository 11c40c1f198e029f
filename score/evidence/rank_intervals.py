"""Intervals of the ranks of means that hold for all of them at once (Mogstad, Romano, Shaikh & Wilhelm, 2024)."""

import numpy as np
import numpy.typing as npt

from ..means import Float

Whole = npt.NDArray[np.int64]
MAX_WORK = 1 << 31  # differences that are worked on: pairs times draws
_ITEMS = 1 << 17  # differences that are held at once: few enough to stay in a core's cache
_ROUNDING = 1e-12  # of what it is taken of, what rounding leaves


def rank_intervals(values: Float, draws: Float, level: float = 0.95, degrees: float | None = None) -> tuple[Whole, Whole]:
    """The lower and upper end of each value's true rank, 1 = lowest, so that all hold at once with probability `level`.

    Two values of a group are told apart where their difference is more than c standard errors. c is the quantile of the largest
    such ratio over all pairs of all groups in the draws; it is found anew for the pairs that are left until no more are told
    apart (step-down). A value's rank then is above that of every value that is told to be lower, and below that of those that
    are told to be higher. Values that are truly equal have the lowest rank that any of them could have.

    Args:
        values: the estimates, float64 [G,H]: G groups that are ranked on their own.
        draws: estimates of as many replicates less the estimates, [B,G,H]: their joint distribution is that of the sampling
            error.
        level: how likely all intervals hold together.
        degrees: of freedom that the standard errors have, one fewer than there are samples: c then is widened as a quantile of
            the normal distribution is to one of Student's. None where they are known.

    Returns int64 [G,H] each, from 1 to H. A difference without any error is told apart where it is not 0.
    """
    groups, heads = values.shape
    in_one = np.stack(np.triu_indices(heads, 1), axis=1)
    pairs = (np.arange(groups)[:, None, None] * heads + in_one).reshape(-1, 2)
    flat, errors = values.reshape(-1), np.ascontiguousarray(draws.reshape(len(draws), -1).T, dtype=np.float32)
    differences = flat[pairs[:, 0]] - flat[pairs[:, 1]]
    deviations = _deviations(errors, pairs)
    size = np.maximum(np.abs(flat[pairs[:, 0]]), np.abs(flat[pairs[:, 1]]))
    certain = deviations <= _ROUNDING * size
    apart = certain & (np.abs(differences) > _ROUNDING * size)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(certain, 0.0, np.abs(differences) / deviations)
    left = ~certain
    while left.any():
        critical = float(np.quantile(_largest(errors, pairs[left], deviations[left]), level, method="higher"))
        critical = _student(critical, degrees) if degrees else critical
        new = left & (ratios > critical)
        if not new.any():
            break
        apart, left = apart | new, left & ~new
    higher = np.where((differences > 0)[:, None], pairs, pairs[:, ::-1])[apart]  # the higher of a pair, then the lower
    below = np.bincount(higher[:, 0], minlength=len(flat)).reshape(groups, heads)
    above = np.bincount(higher[:, 1], minlength=len(flat)).reshape(groups, heads)
    return 1 + below, heads - above


def work(groups: int, heads: int, replicates: int) -> int:
    """How many differences `rank_intervals` works on."""
    return groups * heads * (heads - 1) // 2 * replicates


def _student(z: float, degrees: float) -> float:
    """The quantile of Student's distribution where z is that of the normal one (Cornish & Fisher, to the second order)."""
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _deviations(errors: npt.NDArray[np.float32], pairs: Whole) -> Float:
    """The root mean square of each pair's difference."""
    found = np.empty(len(pairs))
    for part in _parts(len(pairs), errors.shape[1]):
        difference = errors[pairs[part, 0]] - errors[pairs[part, 1]]
        found[part] = np.sqrt(np.einsum("ij,ij->i", difference, difference, dtype=np.float64) / errors.shape[1])
    return found


def _largest(errors: npt.NDArray[np.float32], pairs: Whole, deviations: Float) -> Float:
    """The largest size of a difference by its deviation, in each draw."""
    found = np.zeros(errors.shape[1], np.float32)
    scales = (1 / deviations).astype(np.float32)[:, None]
    for part in _parts(len(pairs), errors.shape[1]):
        difference = errors[pairs[part, 0]] - errors[pairs[part, 1]]
        difference *= scales[part]
        np.abs(difference, out=difference)
        np.maximum(found, difference.max(axis=0), out=found)
    return found.astype(np.float64)


def _parts(count: int, draws: int) -> list[slice]:
    step = max(1, _ITEMS // draws)
    return [slice(start, start + step) for start in range(0, count, step)]
