"""Sets of heads to take out: their layer counts, their overlap, and that one seed gives the same."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscore.data.errors import InputError
from headscore.score.head_sets import HeadSet, counts_of, head_sets


@st.composite
def orders(draw: st.DrawFn) -> list[tuple[int, int]]:
    """All heads of a model, whose layers need not begin at 0 nor be as large as each other, in any order."""
    sizes = draw(st.dictionaries(st.integers(0, 40), st.integers(1, 8), min_size=1, max_size=5))
    heads = [(layer, head) for layer, size in sizes.items() for head in range(size)]
    return draw(st.permutations(heads if len(heads) > 1 else [*heads, (99, 0)]))


seeds = st.integers(0, 2**32 - 1)
how = {"order": orders(), "data": st.data(), "draws": st.integers(0, 4), "seed": seeds}


def counts(data: st.DataObject, order: list[tuple[int, int]]) -> list[int]:
    return sorted(data.draw(st.sets(st.integers(1, len(order) - 1), min_size=1, max_size=3)))


def layers(units: tuple[tuple[int, int], ...]) -> Counter[int]:
    return Counter(layer for layer, _ in units)


@given(**how)
def test_sets_are_what_they_are_called(order: list[tuple[int, int]], data: st.DataObject, draws: int, seed: int) -> None:
    ks = counts(data, order)
    made = head_sets(order, "out", ks, draws, seed)
    assert [(one.signal, one.k, one.set, one.draw) for one in made] == [
        ("out", k, kind, draw)
        for k in ks
        for kind, draw in [("top", None), ("bottom", None), *(("draw", draw) for draw in range(draws))]
    ]
    for one in made:
        assert list(one.units) == sorted(set(one.units)) and len(one.units) == one.k and set(one.units) <= set(order)
        if one.set == "top":
            assert set(one.units) == set(order[: one.k])
        if one.set == "bottom":
            assert set(one.units) == set(order[len(order) - one.k :])


@given(**how)
def test_draws_have_the_top_s_layer_counts_and_share_only_what_they_must(
    order: list[tuple[int, int]], data: st.DataObject, draws: int, seed: int
) -> None:
    sizes = layers(tuple(order))
    for k in counts(data, order):
        top, bottom, *drawn = head_sets(order, "out", [k], draws, seed)
        wanted = layers(top.units)
        too_few = sum(max(0, 2 * count - sizes[layer]) for layer, count in wanted.items())
        for one in drawn:
            assert layers(one.units) == wanted
            assert one.shared == len(set(one.units) & set(top.units)) == too_few
        assert bottom.shared == len(set(bottom.units) & set(top.units)) == max(0, 2 * k - len(order))


@given(**how)
def test_one_seed_gives_the_same_sets(order: list[tuple[int, int]], data: st.DataObject, draws: int, seed: int) -> None:
    ks = counts(data, order)
    made = head_sets(order, "out", ks, draws, seed)
    assert made == head_sets(order, "out", ks, draws, seed)
    numpy_order = [(np.int32(layer), np.int64(head)) for layer, head in order]
    assert made == head_sets(numpy_order, "out", ks, draws, seed)  # type: ignore[arg-type]
    assert made == [one for k in ks for one in head_sets(order, "out", [k], draws, seed)], "whatever other k are asked for"
    fewer = [one for one in head_sets(order, "out", ks, draws + 2, seed) if one.draw is None or one.draw < draws]
    assert made == fewer, "whatever other draws are"


@given(order=orders(), other=st.randoms(), data=st.data(), seed=seeds)
def test_equal_top_sets_have_equal_draws(order: list[tuple[int, int]], other: object, data: st.DataObject, seed: int) -> None:
    """So signals that agree on a set share its runs, however they order it and the rest."""
    (k,) = counts(data, order)[:1]
    mixed = [*data.draw(st.permutations(order[:k])), *data.draw(st.permutations(order[k:]))]
    one, two = (head_sets(each, "out", [k], 3, seed) for each in (order, mixed))
    assert [each.units for each in one if each.set != "bottom"] == [each.units for each in two if each.set != "bottom"]


def test_draws_of_several_k_are_nested_where_their_tops_are_not_in_the_way() -> None:
    order = [(layer, head) for head in range(10) for layer in range(4)]  # the first 8 are heads 0 and 1 of each layer
    made = {(one.k, one.draw): set(one.units) for one in head_sets(order, "out", [4, 8], 30, 1) if one.set == "draw"}
    nested = [made[4, draw] <= made[8, draw] for draw in range(30)]
    met = [any(head in order[:8] for head in made[4, draw]) for draw in range(30)]
    assert all(inside or hit for inside, hit in zip(nested, met, strict=True)) and sum(nested) > 10


def test_every_other_head_of_a_layer_is_as_likely() -> None:
    order = [(0, head) for head in range(6)]
    seen = Counter(head for one in head_sets(order, "out", [2], 2000, 5) if one.set == "draw" for head in one.units)
    assert set(seen) == set(order[2:])
    assert all(abs(count - 1000) < 120 for count in seen.values()), "5 standard deviations of 22"


def test_a_model_by_hand() -> None:
    """Layer 0 has three heads of which two are in the top: a draw has the third, and one of the top."""
    order = [(0, 2), (0, 0), (5, 1), (0, 1), (5, 0)]
    top, bottom, draw = head_sets(order, "ent", [3], 1, 0)
    assert top == HeadSet("ent", 3, "top", None, ((0, 0), (0, 2), (5, 1)))
    assert bottom == HeadSet("ent", 3, "bottom", None, ((0, 1), (5, 0), (5, 1)), 1)
    assert set(draw.units) - {(0, 0), (0, 2)} == {(0, 1), (5, 0)} and draw.shared == 1


@given(st.integers(1, 99), st.integers(2, 5000))
def test_a_share_is_rounded_half_up_and_at_least_one(share: int, units: int) -> None:
    wanted = max(1, int(Fraction(share * units, 100) + Fraction(1, 2)))
    if wanted < units:
        assert counts_of([f"{share}%"], units) == [wanted]


@pytest.mark.parametrize(
    ("texts", "counts"),
    [
        (["1%", "5%", "10%", "20%", "30%"], [3, 14, 27, 54, 81]),  # of 270: 2.7, 13.5, …
        (["27", "10%", "10 %", " 10.0% "], [27]),
        (["0.01%"], [1]),
        (["269", "1"], [1, 269]),
    ],
)
def test_counts(texts: list[str], counts: list[int]) -> None:
    assert counts_of(texts, 270) == counts


@pytest.mark.parametrize(
    "text", ["", "x", "0", "0%", "0.0%", "-1", "1.5", "nan", "inf%", "1e2", "٣", "5%%", "270", "100%", "9" * 5000]
)
def test_other_counts_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^k: .*(such as|at most 269)") as error:
        counts_of(["5%", text], 270)
    assert len(error.value.message) < 200 and "\n" not in error.value.message
