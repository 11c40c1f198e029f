"""Sums of samples have the same bits in whatever order, grouping, shards or blocks they are added."""

import math
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headscore.score.means import Sums, sums

tiny_to_huge = st.floats(1e-8, 1e8) | st.floats(-1e8, -1e-8) | st.sampled_from([0.0, 1e8, -1e8, 1e-8, -1e-8, 0.1, 1 / 3])
maybe_undefined = tiny_to_huge | st.just(math.nan)


def bits(found: Sums) -> tuple[bytes, bytes]:
    return np.asarray(found.means()).tobytes(), np.asarray(found.counts).tobytes()


def in_parts(values: np.ndarray, cuts: set[int]) -> list[np.ndarray]:
    return np.split(values, sorted(cuts), axis=-1)


@given(st.lists(maybe_undefined, max_size=40), st.data())
@example([1e8, 1e-8, -1e8, 3e-8, 7e-8, 1.1e-8], None)
def test_any_order_and_grouping_gives_the_same_bits(values: list[float], data: st.DataObject | None) -> None:
    right = bits(sums(np.array(values)))
    for _ in range(1 if data else 50):
        order = data.draw(st.permutations(values)) if data else np.random.default_rng().permutation(values).tolist()
        cuts = data.draw(st.sets(st.integers(0, len(values)), max_size=6)) if data else {2, 3}
        parts = [sums(part) for part in in_parts(np.array(order), cuts)]
        tree = data.draw(st.permutations(parts)) if data else parts
        assert bits(reduce(add, tree)) == right
        while len(tree) > 1:
            tree = [tree[0] + tree[1], *tree[2:]] if data and data.draw(st.booleans()) else [*tree[:-2], tree[-2] + tree[-1]]
        assert bits(tree[0]) == right


@given(st.lists(st.floats(1e-8, 1e-7), min_size=3, max_size=20), st.lists(st.floats(1, 1e8), max_size=9), st.randoms())
def test_what_cancels_out_leaves_the_same_bits(small: list[float], large: list[float], random: Any) -> None:
    """Here plain sums, and sums with one correction, differ by the order."""
    values = [*small, *large, *(-value for value in large)]
    right = bits(sums(np.array(values)))
    assert sums(np.array(values)).means() * len(values) == pytest.approx(math.fsum(small), rel=1e-15)
    for _ in range(5):
        random.shuffle(values)
        cut = random.randrange(len(values))
        assert bits(sums(np.array(values[:cut])) + sums(np.array(values[cut:]))) == right


@given(st.lists(maybe_undefined, max_size=40))
def test_a_mean_is_that_of_exact_fractions_but_for_its_own_rounding(values: list[float]) -> None:
    found = sums(np.array(values))
    defined = [Fraction(value) for value in values if not math.isnan(value)]
    assert found.counts == len(defined)
    mean = float(found.means())
    if not defined:
        assert math.isnan(mean)
    else:
        exact = sum(defined) / len(defined)
        assert abs(Fraction(mean) - exact) <= abs(exact) * Fraction(1, 2**52)


@given(st.integers(0, 999), st.integers(0, 4), st.sets(st.integers(0, 300), max_size=9))
def test_heads_do_not_meet(seed: int, places: int, cuts: set[int]) -> None:
    """Each head's sums are those it has alone, in arrays of any shape."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(2, places, 300)) * 10.0 ** random.integers(-8, 9, (2, places, 300))
    values[random.random(values.shape) < 0.1] = np.nan
    whole = sums(values)
    merged = reduce(add, map(sums, in_parts(values, cuts)))
    assert whole.means().shape == (2, places)
    assert bits(whole) == bits(merged)
    for place in np.ndindex(2, places):
        assert np.array_equal(whole.means()[place], sums(values[place]).means(), equal_nan=True)


@pytest.mark.parametrize("count", [1, 2, 1000, 100_003])
def test_many_samples_add_up_exactly(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count) * 10.0 ** np.random.default_rng(1).integers(-8, 9, count)
    assert sums(values).means() == pytest.approx(math.fsum(values) / count, rel=1e-15)
    assert bits(sums(values)) == bits(sums(values[::-1]))
    assert bits(sums(np.sort(values))) == bits(sums(values[: count // 3]) + sums(values[count // 3 :]))


def test_what_is_never_defined_has_no_mean() -> None:
    found = sums(np.array([[np.nan, np.nan], [np.nan, 2.0]]))
    assert np.isnan(found.means()[0]) and found.means()[1] == 2 and found.counts.tolist() == [0, 1]
    assert np.isnan(sums(np.empty((3, 0))).means()).all()
    merged = sums(np.empty(0)) + sums(np.array([5.0])) + sums(np.array([np.nan]))
    assert merged.means() == 5 and merged.counts == 1
