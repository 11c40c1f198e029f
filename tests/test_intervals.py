"""Intervals hold the true mean as often as they say, and exact tests are exact."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscore.score.intervals import mean_intervals
from headscore.score.significance import at_least, holm, mcnemar, permutation_p

TRIALS = 500
probability = st.integers(1, 100).map(lambda n: n / 100)


@pytest.mark.parametrize("rows", [60, 200])
@pytest.mark.parametrize("shape", [0.5, 1.0, 4.0])
def test_95_percent_intervals_of_skewed_values_hold_the_mean_in_93_to_97_percent(shape: float, rows: int) -> None:
    """Each column is a trial. KL is skewed as gamma values are: of shape 0.5 they have a skewness of 2.8."""
    values = np.random.default_rng([7, rows]).gamma(shape, 1 / shape, (rows, TRIALS))
    low, high = mean_intervals(values, replicates=1000)
    assert 0.93 <= ((low <= 1) & (high >= 1)).mean() <= 0.97
    assert max((low > 1).mean(), (high < 1).mean()) <= 0.05, "they do not fail on one side alone"


@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.10), (0.10, 0.10), (0.0, 0.3)])
def test_95_percent_intervals_of_accuracy_hold_it_in_93_to_97_percent(gained: float, lost: float) -> None:
    chance = np.random.default_rng(5).random((200, TRIALS))
    values = (chance < gained) * 1.0 - (chance >= 1 - lost)
    low, high = mean_intervals(values, replicates=1000, studentised=False)
    assert 0.93 <= ((low <= gained - lost) & (high >= gained - lost)).mean() <= 0.97


@pytest.mark.parametrize("studentised", [True, False])
def test_intervals_equal_their_definition(studentised: bool) -> None:
    values = np.random.default_rng(3).gamma(1, 1, (9, 2))
    low, high = mean_intervals(values, replicates=199, level=0.9, seed=6, studentised=studentised)
    drawn = np.random.default_rng(6).multinomial(9, np.full(9, 1 / 9), 199)
    for column, sample in enumerate(values.T):
        replicates = [np.repeat(sample, counts) for counts in drawn]
        mean, spread = sample.mean(), sample.std()
        if studentised:
            ratios = sorted((one.mean() - mean) / one.std() for one in replicates)
            ends = mean - ratios[188] * spread, mean - ratios[10] * spread  # places 0.95 · 198 and 0.05 · 198, rounded
        else:
            means = sorted(one.mean() for one in replicates)
            ends = means[10], means[188]
        assert (low[column], high[column]) == pytest.approx(ends)


def test_columns_are_paired_and_do_not_depend_on_each_other() -> None:
    values = np.random.default_rng(0).gamma(1, 1, (30, 3))
    low, high = mean_intervals(values, replicates=300)
    shifted_low, shifted_high = mean_intervals(3 * values[:, [2, 0, 1]] + 10, replicates=300)
    assert shifted_low == pytest.approx(3 * low[[2, 0, 1]] + 10) and shifted_high == pytest.approx(3 * high[[2, 0, 1]] + 10)
    turned_low, turned_high = mean_intervals(-values, replicates=300)
    assert turned_low == pytest.approx(-high, rel=0.05) and turned_high == pytest.approx(-low, rel=0.05)


def test_many_rows_are_drawn_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).gamma(1, 1, (40, 2))
    whole = mean_intervals(values, replicates=101)
    monkeypatch.setattr("headscore.score.intervals._ITEMS", 300)
    assert np.allclose(mean_intervals(values, replicates=101), whole, rtol=1e-12)


@pytest.mark.parametrize("studentised", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e8])
def test_equal_rows_have_no_width(value: float, studentised: bool) -> None:
    low, high = mean_intervals(np.full((20, 2), value), replicates=50, studentised=studentised)
    assert low.tolist() == high.tolist() == pytest.approx([value, value])


def test_what_nothing_bounds_has_no_interval() -> None:
    assert np.isnan(mean_intervals(np.ones((1, 2)))).all()
    assert np.isnan(mean_intervals(np.array([[0.0], [1.0]]))).all(), "half of the replicates have no spread"
    one_of_many = np.eye(1, 200).T  # a third of the replicates have no spread, all on one side
    low, high = mean_intervals(one_of_many)
    assert np.isfinite(low[0]) and np.isnan(high[0])
    assert np.isfinite(mean_intervals(np.random.default_rng(0).random((5, 50)))).all()


def test_two_rows_by_hand() -> None:
    """The mean of two drawn rows is 0, ½ or 1 in ¼, ½ and ¼ of the cases."""
    values = np.array([[0.0], [1.0]])
    assert [end[0] for end in mean_intervals(values, level=0.95, studentised=False)] == [0, 1]
    assert [end[0] for end in mean_intervals(values, level=0.4, studentised=False)] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("top", "draws", "p"),
    [
        (5.0, [1, 2, 3, 4], Fraction(1, 5)),
        (3.0, [1, 2, 3, 4], Fraction(3, 5)),
        (0.0, [1, 2], Fraction(1)),
        (1.0, [], Fraction(1)),
    ],
)
def test_permutation_p_by_hand(top: float, draws: list[float], p: Fraction) -> None:
    assert permutation_p(top, np.array(draws)) == float(p)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5], [0.5]),
        ([0.05, 0.05], [0.1, 0.1]),
        ([0.9, 0.001, 0.6], [1.0, 0.003, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_holm_errs_in_some_of_several_true_hypotheses_at_most_at_its_level() -> None:
    chance = np.random.default_rng(2).random((2000, 5))
    assert np.mean([min(holm(line)) <= 0.05 for line in chance.tolist()]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 6, Fraction(2, 2**6)),  # the fewest that are significant at 5 %
        (0, 5, Fraction(2, 2**5)),
        (1, 8, Fraction(2 * (1 + 9), 2**9)),
        (3, 12, Fraction(2 * (1 + 15 + 105 + 455), 2**15)),
        (4, 4, Fraction(1)),
        (0, 0, Fraction(1)),
    ],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: Fraction) -> None:
    before = np.array([0.0] * gained + [1.0] * lost + [0.0, 1.0, 1.0])
    after = np.array([1.0] * gained + [0.0] * lost + [0.0, 1.0, 1.0])
    assert mcnemar(before, after) == mcnemar(after, before) == float(p)


def test_mcnemar_equals_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for gained, lost in itertools.product([0, 1, 3, 20, 400], [0, 2, 19, 700]):
        before, after = np.repeat([0.0, 1.0], [gained, lost]), np.repeat([1.0, 0.0], [gained, lost])
        wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar(before, after) == pytest.approx(wanted)


def test_at_least_by_hand() -> None:
    """One of three and one of two and one of four answers, all guessed."""
    chances = np.array([1 / 3, 1 / 2, 1 / 4])
    wanted = {3: Fraction(1, 24), 2: Fraction(7, 24), 1: 1 - Fraction(2 * 1 * 3, 24), 0: Fraction(1), 4: Fraction(0)}
    assert {count: at_least(count, chances) for count in wanted} == pytest.approx(
        {count: float(p) for count, p in wanted.items()}
    )


@given(st.lists(probability, max_size=6), st.integers(0, 6))
def test_at_least_counts_every_case(chances: list[float], count: int) -> None:
    cases = itertools.product((0, 1), repeat=len(chances))
    weights = {case: math.prod(c if hit else 1 - c for hit, c in zip(case, chances, strict=True)) for case in cases}
    wanted = sum(weight for case, weight in weights.items() if sum(case) >= count)
    assert at_least(count, np.array(chances)) == pytest.approx(wanted, abs=1e-12)


def test_at_least_equals_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count in (0, 40, 50, 61, 75, 200):
        assert at_least(count, np.full(200, 0.25)) == pytest.approx(stats.binom.sf(count - 1, 200, 0.25), rel=1e-9, abs=1e-15)
