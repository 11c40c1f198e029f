"""The compiled loops and those in numpy give the sums that Python's own integers give."""

import itertools
import shutil
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headscore.data import words as module

WAYS = {"numpy": (module.fletcher_sums_in_numpy, module.add_up_in_numpy), "in use": (module.fletcher_sums, module.add_up)}
ways = pytest.mark.parametrize("way", WAYS)
WORDS = hnp.arrays(np.uint16, st.integers(1, 5000), elements=st.integers(0, 65535), fill=st.just(65535))


def test_the_loops_are_compiled_where_there_is_a_compiler() -> None:
    if shutil.which("cc") is None or sys.byteorder != "little":
        pytest.skip("there is no C compiler")
    assert module.compiled and module._add_up is module.compiled.add_up


@ways
@given(words=WORDS)
def test_fletchers_sums(way: str, words: np.ndarray) -> None:
    values = words.tolist()
    expected = sum((len(values) - place) * value for place, value in enumerate(values)), sum(values)
    assert WAYS[way][0](words) == expected


@ways
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 2047, 2048, 2049, 1 << 19])
def test_fletchers_sums_of_the_largest_words(way: str, count: int) -> None:
    assert WAYS[way][0](np.full(count, 65535, np.uint16)) == (65535 * (count * (count + 1) // 2), 65535 * count)


@ways
@given(data=st.data())
def test_pieces_add_up(way: str, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 200))
    words = data.draw(hnp.arrays(np.uint16, (rows, columns), elements=st.integers(0, 65535), fill=st.just(65535)))
    bounds = np.array(sorted(data.draw(st.sets(st.integers(0, columns), min_size=2))))
    slots = data.draw(hnp.arrays(np.int64, len(bounds) - 1, elements=st.integers(0, 3)))
    table = np.random.default_rng(0).integers(-(2**40), 2**40, 65536)
    sums = np.full((rows + 1, 4), -7)
    assert WAYS[way][1](words, table, bounds, slots, sums[:-1])
    expected = np.full_like(sums, -7)
    for row, (piece, slot) in itertools.product(range(rows), enumerate(slots)):
        expected[row, slot] += table[words[row, bounds[piece] : bounds[piece + 1]]].sum()
    assert sums.tolist() == expected.tolist()
    largest = int(words[:, bounds[0] : bounds[-1]].max())
    assert WAYS[way][1](words, table[: largest + 1], bounds, slots, sums[:-1]), "others than these words do not matter"
    assert not WAYS[way][1](words, table[:largest], bounds, slots, sums[:-1]), "a word that the table does not have"


@ways
def test_rows_may_be_a_part_of_wider_ones(way: str) -> None:
    wide, sums = np.arange(40, dtype=np.uint16).reshape(4, 10), np.zeros((2, 1), np.int64)
    assert WAYS[way][1](wide[1::2, 3:6], np.arange(40), np.array([1, 3]), np.array([0]), sums)
    assert sums.tolist() == [[14 + 15], [34 + 35]]


@ways
def test_sums_wrap_around(way: str) -> None:
    sums = np.zeros((1, 1), np.int64)
    assert WAYS[way][1](np.zeros((1, 4), np.uint16), np.array([2**62]), np.array([0, 4]), np.array([0]), sums)
    assert sums.tolist() == [[0]]


@pytest.mark.skipif(module.compiled is None, reason="nothing was compiled")
def test_the_compiled_loops_stay_inside_their_arrays() -> None:
    words, table, sums = np.zeros((2, 4), np.uint16), np.zeros(1, np.int64), np.zeros((2, 3), np.int64)
    bounds, slots = np.array([0, 1, 4]), np.array([2, 0])
    assert module.compiled.add_up(words, table, bounds, slots, sums)
    for wrong in ([0, 1, 5], [-1, 1, 4], [0, 2, 1], [0, 4], [0, 1, 2, 4], []):
        with pytest.raises(ValueError, match="must fit"):
            module.compiled.add_up(words, table, np.array(wrong, np.int64), slots, sums)
    for wrong in ([3, 0], [-1, 0]):
        with pytest.raises(ValueError, match="must fit"):
            module.compiled.add_up(words, table, bounds, np.array(wrong), sums)
    for unfit in (words[0], words[:, ::2], words.T, words.astype(np.int32), words.astype(np.uint8), words[np.newaxis]):
        with pytest.raises(ValueError, match="must fit"):
            module.compiled.add_up(unfit, table, bounds, slots, sums)
    with pytest.raises(ValueError, match="must fit"):
        module.compiled.add_up(words, table, bounds, slots, np.zeros(5, np.int64))
    for unfit in (
        (words, table, bounds, slots, bytes(48)),
        (words, table, bounds, slots, sums.T),
        (3, table, bounds, slots, sums),
    ):
        with pytest.raises((ValueError, BufferError, TypeError)):
            module.compiled.add_up(*unfit)
    with pytest.raises(ValueError, match="whole words"):
        module.compiled.fletcher_sums(np.zeros((1 << 19) + 1, np.uint16))
    with pytest.raises(ValueError, match="whole words"):
        module.compiled.fletcher_sums(b"abc")
