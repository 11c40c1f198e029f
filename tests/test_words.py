"""The compiled loops and those in numpy give the sums that Python's own integers give."""

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
@given(words=WORDS, data=st.data())
def test_pieces_add_up(way: str, words: np.ndarray, data: st.DataObject) -> None:
    table = np.random.default_rng(0).integers(-(2**40), 2**40, 65536)
    inner = data.draw(st.lists(st.integers(1, len(words)), unique=True).map(sorted))
    starts = np.array([0, *(start for start in inner if start < len(words))])
    sums = np.full(len(starts) + 1, -7)
    assert WAYS[way][1](words, table, starts, sums[:-1])
    ends = [*starts[1:].tolist(), len(words)]
    assert sums.tolist() == [table[words[a:b]].sum() for a, b in zip(starts, ends, strict=True)] + [-7]
    largest = int(words.max())
    assert WAYS[way][1](words, table[: largest + 1], starts, sums[:-1])
    assert not WAYS[way][1](words, table[:largest], starts, sums[:-1]), "a word that the table does not have"


@ways
def test_sums_wrap_around(way: str) -> None:
    sums = np.empty(1, np.int64)
    assert WAYS[way][1](np.zeros(4, np.uint16), np.array([2**62]), np.array([0]), sums) and sums.tolist() == [0]


@pytest.mark.skipif(module.compiled is None, reason="nothing was compiled")
def test_the_compiled_loops_stay_inside_their_arrays() -> None:
    words, table, sums = np.zeros(4, np.uint16), np.zeros(1, np.int64), np.zeros(2, np.int64)
    for starts in ([0, 5], [-1, 2], [3, 1], [0]):
        with pytest.raises(ValueError, match="must fit"):
            module.compiled.add_up(words, table, np.array(starts), sums)
    with pytest.raises(ValueError, match="whole words"):
        module.compiled.fletcher_sums(np.zeros((1 << 19) + 1, np.uint16))
    with pytest.raises(ValueError, match="whole words"):
        module.compiled.fletcher_sums(b"abc")
    for unfit in ((words[::2], table, np.array([0, 1]), sums), (words, table, np.array([0, 1]), bytes(16))):
        with pytest.raises((ValueError, BufferError, TypeError)):
            module.compiled.add_up(*unfit)
