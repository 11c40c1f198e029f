"""Overlaps of rankings: published worked examples, scipy, and the laws that they follow."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscore.data.errors import InputError
from headscore.score.evidence.overlap import chance_overlap, nogueira, overlap, rbo
from headscore.score.rank_correlation import kendall, spearman

# From the data of Corsi & Urbano (SIGIR 2024), rbo/test.csv of their repository: x, y, p, RBO^a and RBO^b, extrapolated.
PUBLISHED = [
    (
        "(i5 i9 i13 i15 i16 i19 i20) (i3 i8)",
        "i6 (i4 i18) i2 i7 i8 i17 i14 (i11 i12) i1",
        0.958074765324023,
        0.0808189832771587,
        0.0813693619867344,
    ),
    ("i13 (i1 i4 i5 i6)", "i3 i14 i11 (i10 i15) i12 (i6 i9) i4 i2", 0.92238320668128, 0.114619469221414, 0.11474835409049),
    (
        "i11 (i8 i21) (i2 i18) (i6 i16 i20) (i4 i10)",
        "i8 (i9 i20 i21) (i2 i3) i13 i1 i11 i14 i19",
        0.93912403977192,
        0.46852753894333,
        0.486650566878314,
    ),
]


def scores(*rankings: Sequence[Any]) -> list[np.ndarray]:
    """Scores of all things in rankings that are given best first, a set for what is tied; NaN for what one does not have."""
    groups = [[set(each) if isinstance(each, set) else {each} for each in ranking] for ranking in rankings]
    things = sorted({str(thing) for ranking in groups for group in ranking for thing in group})
    made = []
    for ranking in groups:
        place = {str(thing): -number for number, group in enumerate(ranking) for thing in group}
        made.append(np.array([place.get(thing, np.nan) for thing in things]))
    return made


def parsed(text: str) -> list[set[str]]:
    return [set(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\S+", text)]


@pytest.mark.parametrize(("x", "y", "p", "a", "b"), PUBLISHED)
def test_rank_biased_overlap_equals_published_values(x: str, y: str, p: float, a: float, b: float) -> None:
    one, other = scores(parsed(x), parsed(y))
    assert rbo(one, other, p, "a") == pytest.approx(a, abs=1e-12)
    assert rbo(one, other, p, "b") == rbo(other, one, p, "b") == pytest.approx(b, abs=1e-12)


def test_the_worked_example_of_lists_of_eight() -> None:
    """Agreements 1, 1/2, 1, 1, 1, 5/6, 1 and 7/8; that of ranked-overlap, which takes lists for as long as the longer one."""
    one, other = scores([1, 2, 3, 4, 5, 6, 7, "none"], [1, 3, 2, 4, 5, 7, 6, 8])
    assert rbo(one, other) == pytest.approx(0.8853713875, abs=1e-10)


def test_average_overlap_of_a_worked_example() -> None:
    """Webber, Moffat & Zobel (2010), figure 4."""
    one, other = scores("abcdefg", "zcavwxy")
    assert np.mean([overlap(1 - one, 1 - other, d) / d for d in range(1, 8)]) == pytest.approx(0.312, abs=5e-4)


def test_how_far_down_rank_biased_overlap_looks() -> None:
    """With p = 0.9, 86 % of the weight is on the first ten: lists that agree there, and share nothing after, have so much."""
    first = list(range(10))
    one, other = scores([*first, *range(10, 400)], [*first, *range(400, 790)])
    tail = sum((1 - 0.9) * 0.9 ** (d - 1) * 10 / d for d in range(11, 401))
    assert rbo(one, other) - tail == pytest.approx(1 - 0.9**10, abs=1e-9)
    weight = 1 - 0.9**9 + 10 * (0.1 / 0.9) * (np.log(10) - sum(0.9**d / d for d in range(1, 10)))  # their equation 21
    assert weight == pytest.approx(0.8555854467473518, abs=1e-12)


RANKINGS = st.lists(st.sampled_from([np.nan, 0.0, 1.0, 2.0, 3.0, -np.inf]), min_size=6, max_size=6).filter(
    lambda values: not all(map(np.isnan, values))
)


@given(RANKINGS, RANKINGS, st.sampled_from([0.5, 0.9, 0.99]), st.permutations(range(6)))
def test_rank_biased_overlap_is_symmetric_and_knows_no_names(
    x: list[float], y: list[float], p: float, order: list[int]
) -> None:
    found = rbo(x, y, p)
    assert 0 <= found <= 1 and rbo(y, x, p) == pytest.approx(found, abs=1e-12)
    assert rbo(np.array(x)[order], np.array(y)[order], p) == pytest.approx(found, abs=1e-12)
    assert rbo(x, x, p) == pytest.approx(1), "also with ties"


@settings(max_examples=20)
@given(st.permutations(range(12)))
def test_ties_of_kind_a_are_the_mean_over_their_orders(y: list[int]) -> None:
    tied = np.array([9.0, 8, 8, 8, 7, 6, 6, 5, 4, 3, 2, 1])
    orders = [[9.0, *middle, 7, *two, 5, 4, 3, 2, 1] for middle in _orders([8.3, 8.2, 8.1]) for two in _orders([6.2, 6.1])]
    assert rbo(tied, y, ties="a") == pytest.approx(np.mean([rbo(order, y) for order in orders]), abs=1e-12)


def _orders(values: list[float]) -> list[list[float]]:
    return [[x, *rest] for x in values for rest in _orders([v for v in values if v != x])] if values else [[]]


def test_a_long_ranking_is_cut_where_nothing_counts_any_more() -> None:
    random = np.random.default_rng(0)
    x, y = random.permutation(1500), random.permutation(1500)
    exact = sum((1 - 0.9) * 0.9 ** (d - 1) * overlap(1500 - x, 1500 - y, d) / d for d in range(1, 1501)) + 0.9**1500
    assert rbo(x, y) == pytest.approx(exact, abs=1e-12)


def test_chance_is_what_random_rankings_share() -> None:
    random = np.random.default_rng(0)
    ranks = [random.permutation(50) + 1 for _ in range(2000)]
    found = [overlap(x, y, 10) for x, y in zip(ranks[::2], ranks[1::2], strict=True)]
    assert chance_overlap(10, 50) == 2
    assert np.mean(found) == pytest.approx(2, abs=5 * np.std(found) / 1000**0.5)
    assert overlap(ranks[0], ranks[0], 10) == 10
    assert overlap([1, np.nan, 2], [1, 2, np.nan], 2) == 1


def test_stability_of_sets_equals_values_of_the_authors_code() -> None:
    """From `getVarianceofStability` and `confidenceIntervals` of the repository nogueirs/JMLR2018."""
    sets = ["01110000", "00010101", "00101100", "01000001", "10010001"]
    found = nogueira([list(map(int, each)) for each in sets])
    assert found is not None
    assert found.value == pytest.approx(-0.04395604395604402) and found.variance == pytest.approx(0.009179315464721888)
    assert (found.low, found.high) == pytest.approx((-0.23173773198735842, 0.14382564407527038))


def test_stability_is_0_by_chance_and_1_for_equal_sets() -> None:
    random = np.random.default_rng(0)
    equal = nogueira(np.tile(random.random(30) < 0.3, (5, 1)))
    assert equal is not None and (equal.value, equal.variance) == pytest.approx((1, 0))
    by_chance = [nogueira([random.permutation(40) < 8 for _ in range(5)]) for _ in range(300)]
    assert np.mean([found.value for found in by_chance if found]) == pytest.approx(0, abs=0.01)
    assert nogueira([[0, 0], [0, 0]]) is None and nogueira([[1, 1], [1, 1]]) is None
    with pytest.raises(InputError, match="two or more sets"):
        nogueira([[1, 0]])


def test_stability_of_two_sets_is_their_overlap_corrected_for_chance() -> None:
    one, other = np.arange(30) < 6, np.abs(np.arange(30) - 5) < 3  # 5 and 6 of 30
    found = nogueira([one, np.roll(one, 2)])
    assert found is not None and other.sum() == 5
    assert found.value == pytest.approx((4 / 6 - 6 / 30) / (1 - 6 / 30))


def test_correlations_equal_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    for levels in (3, 10, 1000):
        x, y = random.integers(0, levels, 60), random.integers(0, levels, 60)
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1], 0.9), "arrays of the shapes"),
        (([1, 2], [2, 1], 1.0), "p=1.0 is not between 0 and 1"),
        (([1, 2], [np.nan, np.nan], 0.9), "a ranking is empty"),
    ],
)
def test_what_is_no_ranking_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rbo(*arguments)
