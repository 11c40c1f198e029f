"""How often samples count in the replicates of a bootstrap."""

import numpy as np
import pytest

from headscore.data.errors import InputError
from headscore.score.evidence.resampling import draws


def test_a_replicate_has_as_many_samples_as_there_are() -> None:
    for n in (1, 2, 7, 300):
        for fresh in (True, False):
            found = draws(n, 50, fresh=fresh)
            assert found.shape == (50, n) and found.dtype == np.uint16 and (found.sum(axis=1) == n).all()


def test_the_same_seed_gives_the_same_numbers_and_another_others() -> None:
    assert (draws(40, 20, 3) == draws(40, 20, 3)).all() and (draws(40, 20, 3) != draws(40, 20, 4)).any()


@pytest.mark.parametrize(("fresh", "times"), [(True, 2), (False, 1)])
def test_means_spread_as_the_difference_of_two_samples_does_or_as_one(fresh: bool, times: int) -> None:
    values = np.random.default_rng(0).gamma(2, size=200)
    means = draws(200, 20_000, fresh=fresh) @ values / 200
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.var() == pytest.approx(times * values.var() / 200, rel=0.04)


def test_strata_keep_their_sizes() -> None:
    strata = np.array(["a", None, "b", "a", "b", None, "b", "c"], object)
    found = draws(8, 200, strata=strata.tolist())
    for value in ("a", None, "b", "c"):
        inside = np.array([each is value or each == value for each in strata])
        assert (found[:, inside].sum(axis=1) == inside.sum()).all()
        assert (found[:, inside].std(axis=0) > 0).all() == (inside.sum() > 1)


def test_clusters_are_drawn_together() -> None:
    clusters = [7, 7, 1, 7, 2, 2, 3]
    found = draws(7, 200, clusters=clusters)
    for number in set(clusters):
        inside = np.array(clusters) == number
        assert (found[:, inside] == found[:, inside][:, :1]).all()
    assert (found[:, [0, 2, 4, 6]].sum(axis=1) == 4).all(), "as many clusters as there are"
    both = draws(7, 200, strata=[0, 0, 1, 0, 0, 0, 1], clusters=clusters)
    assert (both[:, [0, 4]].sum(axis=1) == 2).all() and (both[:, [2, 6]].sum(axis=1) == 2).all()


def test_clusters_of_one_are_samples() -> None:
    assert (draws(30, 10, clusters=range(30)) == draws(30, 10)).all()
    assert (draws(30, 10, strata=["x"] * 30) == draws(30, 10)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strata": [0, 0, 1], "clusters": ["a", "b", "b"]}, "cluster: 'b' has samples in more than one of strata"),
        ({"strata": [0, 1, 2]}, "nothing is left to draw"),
        ({"clusters": [5, 5, 5]}, "nothing is left to draw"),
        ({"strata": [0, 0, 1], "clusters": [0, 0, 1]}, "nothing is left to draw"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, list[object]], message: str) -> None:
    with pytest.raises(InputError) as error:
        draws(3, 10, **options)
    assert message in str(error.value)
    with pytest.raises(InputError, match="10 replicates of 0 samples"):
        draws(0, 10)
