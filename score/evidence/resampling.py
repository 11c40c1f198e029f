"""How often each sample counts in the replicates of a bootstrap."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...data.errors import InputError, OptionError

SEED = 42
_ITEMS = 1 << 22  # draws that are held at once


def draws(
    n: int,
    replicates: int,
    seed: int = SEED,
    strata: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
    *,
    fresh: bool = True,
) -> npt.NDArray[np.uint16]:
    """How often each of n samples counts in each replicate, [replicates,n].

    A replicate draws as many samples as there are, with replacement. With `fresh` it does so twice: it draws a population, and
    from that a sample. One draw differs from what was drawn from by the sampling error of one sample; the difference between
    two samples, which is what another sample of as many rows would show, has the error of both.

    Args:
        n: how many samples there are.
        replicates: how often they are drawn.
        seed: of the draws; the same seed gives the same numbers.
        strata: what each sample is of: as many are drawn of each value as there are.
        clusters: what each sample belongs to: all samples of one value are drawn together, or none.
        fresh: else the samples are drawn once, which is the plain bootstrap.

    Raises InputError where there are no samples, a cluster spans strata, or a cluster is all there is of every stratum, so that
    nothing is left to draw.
    """
    if n < 1 or replicates < 1:
        raise InputError(f"bootstrap: {replicates} replicates of {n} samples: give at least one of both")
    cluster_of = np.arange(n) if clusters is None else _codes(clusters)
    stratum_of = np.zeros(n, np.int64) if strata is None else _codes(strata)
    count = int(cluster_of.max()) + 1
    first = np.zeros(count, np.int64)
    first[cluster_of[::-1]] = np.arange(n)[::-1]
    stratum = stratum_of[first]  # of each cluster
    if (stratum[cluster_of] != stratum_of).any():
        place = int((stratum[cluster_of] != stratum_of).argmax())
        raise OptionError(
            f"--cluster: {str(clusters[place]) if clusters is not None else place!r:.80} has samples in more than one of "
            "--strata; give a --cluster column of which each value lies in one stratum"
        )
    sizes = np.bincount(stratum)
    if n > 1 and sizes.max() == 1:
        raise OptionError(
            "--strata and --cluster: nothing is left to draw, as every stratum is drawn whole; give other columns"
        )
    order = np.argsort(stratum, kind="stable")
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    lengths = np.repeat(sizes, sizes)
    generator = np.random.default_rng(seed)
    found = np.empty((replicates, n), np.uint16)
    step = max(1, _ITEMS // count)
    for start in range(0, replicates, step):
        shape = (min(step, replicates - start), count)
        drawn = starts + generator.integers(0, lengths, shape)
        if fresh:
            drawn = np.take_along_axis(drawn, starts + generator.integers(0, lengths, shape), axis=1)
        flat = (drawn + np.arange(shape[0])[:, None] * count).reshape(-1)
        times = np.empty(shape, np.uint16)
        times[:, order] = np.bincount(flat, minlength=shape[0] * count).reshape(shape)
        found[start : start + shape[0]] = times[:, cluster_of]
    return found


def _codes(values: Sequence[object]) -> npt.NDArray[np.int64]:
    """A number for each distinct value, in the order in which they come; null is a value, too."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
