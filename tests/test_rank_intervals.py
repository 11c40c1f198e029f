"""Simultaneous intervals of ranks, held against the check values of Mogstad, Romano, Shaikh and Wilhelm's procedure."""

import numpy as np
import pytest

from headscore.score.evidence.rank_intervals import rank_intervals


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_the_check_values_of_ten_means_a_standard_error_apart() -> None:
    """Given with 1 = highest: L = 6 5 4 3 2 1 1 1 1 1, U = 10 10 10 10 10 9 8 7 6 5."""
    low, high = rank_intervals(np.arange(1.0, 11)[None], normal(5000, 1, 10))
    assert (11 - high).tolist() == [[6, 5, 4, 3, 2, 1, 1, 1, 1, 1]]
    assert (11 - low).tolist() == [[10, 10, 10, 10, 10, 9, 8, 7, 6, 5]]


def test_separated_means_have_one_rank_each_and_equal_ones_all() -> None:
    draws = normal(1000, 3, 7)
    far = np.array([[30.0, 10, 20, 0, 60, 50, 40]] * 3)
    low, high = rank_intervals(far, draws)
    assert (low == high).all() and low[0].tolist() == [4, 2, 3, 1, 7, 6, 5]
    low, high = rank_intervals(np.zeros((3, 7)), draws)
    assert (low == 1).all() and (high == 7).all()


def test_shift_and_scale_change_nothing_and_turning_around_turns_ranks_around() -> None:
    values, draws = normal(4, 6, seed=1) * 4, normal(500, 4, 6)
    low, high = rank_intervals(values, draws)
    other = rank_intervals(values * 2 + 64, draws * 2)
    assert (low == other[0]).all() and (high == other[1]).all()
    turned = rank_intervals(-values, -draws)
    assert (low == 7 - turned[1]).all() and (high == 7 - turned[0]).all()
    ranks = 1 + values.argsort(axis=1).argsort(axis=1)
    assert (low <= ranks).all() and (ranks <= high).all(), "the estimated rank lies in its interval"


def test_more_groups_make_wider_intervals_as_all_hold_at_once() -> None:
    values, draws = np.tile(np.arange(8.0) * 1.7, (40, 1)), normal(1000, 40, 8)
    one, all_ = rank_intervals(values[:1], draws[:, :1]), rank_intervals(values, draws)
    assert (all_[1] - all_[0]).mean() > (one[1] - one[0]).mean()


def test_step_down_tells_more_apart() -> None:
    """Pairs that are far apart need no share of the error, so the pairs that are left are told apart by a lower bar."""
    draws = normal(4000, 1, 12)
    tight = np.append(np.zeros(1), 3.0 * np.sqrt(2))
    alone = rank_intervals(tight[None], draws[:, :, :2])
    among = rank_intervals(np.append(tight, 1000 * np.arange(1, 11.0))[None], draws)
    assert alone[1][0, 0] == 1 and among[1][0, 0] == 1, "all other pairs are certain"
    crowd = rank_intervals(np.append(tight, np.zeros(10))[None], draws)
    assert crowd[1][0, 0] > 1


@pytest.mark.parametrize(("values", "ends"), [([2.0, 2, 2], ([1, 1, 1], [3, 3, 3])), ([2.0, 3, 2], ([1, 3, 1], [2, 3, 2]))])
def test_values_without_error_are_told_apart_where_they_differ(values: list[float], ends: tuple[list[int], list[int]]) -> None:
    low, high = rank_intervals(np.array([values]), np.zeros((100, 1, 3)))
    assert (low[0].tolist(), high[0].tolist()) == ends


def test_a_single_head_has_the_first_rank() -> None:
    low, high = rank_intervals(np.ones((4, 1)), normal(100, 4, 1))
    assert (low == 1).all() and (high == 1).all()
