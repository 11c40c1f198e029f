"""Bootstrap intervals of means over rows, for many columns of paired values at once."""

import numpy as np

from .means import Float

BOOTSTRAP, LEVEL = 2000, 0.95
_ITEMS = 1 << 21  # weights of rows that are made at once


def mean_intervals(
    values: Float, *, replicates: int = BOOTSTRAP, level: float = LEVEL, seed: int = 42, studentised: bool = True
) -> tuple[Float, Float]:
    """The interval of the mean of each column, by drawing the rows anew; all columns have the same rows in a replicate.

    Studentised (bootstrap-t) is for values of any size, as KL and loss are: skewed, with a few large rows. Each replicate has
    its own spread, which lengthens the side of the long tail. Coverage at 95 %, 6,000 trials of gamma values of shape
    0.25, 0.5 and 1:

    | rows | studentised | percentile | BCa |
    |---|---|---|---|
    | 200 | 95.1, 94.3, 94.2 % | 93.7, 93.8, 93.8 % | 94.3, 93.8, 94.1 % |
    | 60 | 94.7, 94.7, 94.3 % | 90.9, 92.0, 92.6 % | 92.2, 92.7, 92.9 % |

    The more skewed, the less: at a skewness of 5, products of two gamma values, 93.5 % with 200 rows and 91 % with 60.

    Percentile is for changes of accuracy, of which most are 0: there a replicate often has no spread to be divided by, and the
    percentile interval covers 95.9 % where 5 % of 200 rows change.

    Args:
        values: float64 [n, columns], finite.
        replicates: how often rows are drawn.
        level: the share of cases in which the interval should hold the true mean.
        seed: of the draws.
        studentised: else percentile.

    Returns the lower and the upper ends, each [columns]. Both are the mean where all rows are equal, and NaN where nothing
    bounds it: with one row, and studentised where too many replicates have no spread, as with two or three rows.
    """
    rows, columns = values.shape
    if rows < 2:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    means = values.mean(axis=0)
    centred = values - means
    found = np.empty((replicates, columns))
    generator = np.random.default_rng(seed)
    size = max(1, _ITEMS // rows)
    for start in range(0, replicates, size):
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), min(size, replicates - start)).astype(np.float64)
        found[start : start + size] = _ratios(counts / rows, centred) if studentised else counts @ values / rows
    lower, upper = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0, method="nearest")
    if studentised:
        spread = np.sqrt((centred**2).mean(axis=0))
        lower, upper = means - upper * spread, means - lower * spread
    equal = values.max(axis=0) == values.min(axis=0)  # the rounded mean may differ from equal values
    low, high = (np.where(equal, means, np.where(np.isfinite(end), end, np.nan)) for end in (lower, upper))
    return low, high


def _ratios(weights: Float, centred: Float) -> Float:
    """The mean of each replicate by its own spread; infinite where it has none."""
    means, squares = weights @ centred, weights @ centred**2
    variance = squares - means**2
    alike = variance <= 1e-12 * squares  # what rounding leaves of no spread
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(alike, np.sign(means) * np.inf, means / np.sqrt(variance))
