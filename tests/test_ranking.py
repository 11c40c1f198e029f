"""Normalising, ranking, fusing and ordering heads: against the plain definitions, and by laws that hold for any heads."""

import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st

import headscore
from headscore.data.errors import InputError
from headscore.data.options.settings import ScoreSettings
from headscore.score.ranking import FUSIONS, NORM_MODES, rank

SIGNALS = ("out", "ent", "task")
whole = st.integers(-3, 3).map(float)  # few values, so that many heads tie, and sums without rounding
weight = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0])
some_weights = st.fixed_dictionaries(dict.fromkeys(SIGNALS, weight)).filter(lambda weights: any(weights.values()))
how = st.fixed_dictionaries(
    {
        "fusion": st.sampled_from(sorted(FUSIONS)),
        "norm_mode": st.sampled_from(sorted(NORM_MODES)),
        "within": st.sampled_from(["layer", "model"]),
    }
)


@st.composite
def signals(draw: st.DrawFn, values: st.SearchStrategy[float] = whole) -> dict[str, np.ndarray]:
    """Each of the three, [L,H]."""
    layers, heads = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    one = st.lists(st.lists(values, min_size=heads, max_size=heads), min_size=layers, max_size=layers)
    return {name: np.array(draw(one)) for name in SIGNALS}


def framed(raw: dict[str, np.ndarray], **more: Any) -> pl.DataFrame:
    layers, heads = next(iter(raw.values())).shape
    places = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
    return pl.DataFrame({**places, **{name: values.reshape(-1) for name, values in raw.items()}}).with_columns(**more)


def divisible(raw: dict[str, np.ndarray], options: dict[str, Any]) -> bool:
    """Whether no mean is 0 that values are divided by."""
    groups = [group for values in raw.values() for group in ([values] if options["within"] == "model" else values)]
    return options["norm_mode"] != "ratio" or all(not group.any() or group.sum() != 0 for group in groups)


@given(signals(), some_weights, how)
def test_a_ranking_equals_its_definition(
    raw: dict[str, np.ndarray], weights: dict[str, float], options: dict[str, str]
) -> None:
    assume(divisible(raw, options))
    found = rank(framed(raw), weights, **options)
    expected = reference.ranking(raw, weights, **options)
    shape = expected["combined"].shape
    assert found.select("layer", "head").rows() == list(itertools.product(*map(range, shape)))
    for name in SIGNALS:
        np.testing.assert_allclose(found[f"{name}_norm"].to_numpy().reshape(shape), expected["norm"][name], atol=1e-12)
        assert np.array_equal(found[f"{name}_rank"].to_numpy().reshape(shape), expected["rank"][name])
    np.testing.assert_allclose(found["combined"].to_numpy().reshape(shape), expected["combined"], atol=1e-12)
    assert_ordered(found, weights)


def assert_ordered(found: pl.DataFrame, weights: dict[str, float], unit: str = "head") -> None:
    """By combined, then by the weighted sum of the normalised values, then by layer and head."""
    tiebreak: Any = 0.0
    for name, value in weights.items():
        tiebreak = tiebreak + value * found[f"{name}_norm"] if value else tiebreak
    keys = zip(found["combined"], tiebreak, found["layer"], found[unit], strict=True)
    order = sorted(range(len(found)), key=[(-c, -t, layer, head) for c, t, layer, head in keys].__getitem__)
    assert found["rank"].gather(order).to_list() == list(range(1, len(found) + 1))
    combined = [float(f"{value:.12g}") for value in found["combined"]]  # equal but for rounding
    assert found["tied_rank"].to_list() == [1 + sum(other > one for other in combined) for one in combined]
    for _, layer in found.group_by("layer"):
        assert layer["layer_rank"].to_list() == layer["rank"].rank("ordinal").to_list()


@given(signals(), some_weights, how)
def test_a_ranking_without_ties_equals_the_order_of_the_definition(
    raw: dict[str, np.ndarray], weights: dict[str, float], options: dict[str, str]
) -> None:
    random = np.random.default_rng(int(abs(sum(values.sum() for values in raw.values()))))
    raw = {name: values + random.random(values.shape) for name, values in raw.items()}
    found = rank(framed(raw), weights, **options)
    expected = reference.ranking(raw, weights, **options)
    keys = np.sort(expected["combined"].reshape(-1))
    if options["fusion"] == "sum":
        assume(len(keys) < 2 or np.diff(keys).min() > 1e-9)
    assert found.sort("rank").select("layer", "head").rows() == expected["order"] or options["fusion"] != "sum"
    if len(set(np.round(keys, 9))) == len(keys):
        assert found.sort("rank").select("layer", "head").rows() == expected["order"]


@given(st.lists(signals(), min_size=1, max_size=4), some_weights, how)
def test_groups_are_ranked_as_if_each_were_alone(
    groups: list[dict[str, np.ndarray]], weights: dict[str, float], options: dict[str, str]
) -> None:
    assume(all(divisible(raw, options) for raw in groups))
    frames = [framed(raw, replicate=pl.lit(number % 2), cache=pl.lit(f"c{number // 2}")) for number, raw in enumerate(groups)]
    together = rank(pl.concat(frames).sample(fraction=1, shuffle=True, seed=1), weights, by=["cache", "replicate"], **options)
    alone = pl.concat([rank(frame, weights, **options) for frame in frames]).sort("cache", "replicate", "layer", "head")
    assert together.equals(alone.select(together.columns)), "to the last bit"


@given(signals(), some_weights, how, st.randoms())
def test_lines_may_come_in_any_order(
    raw: dict[str, np.ndarray], weights: dict[str, float], options: dict[str, str], random: Any
) -> None:
    assume(divisible(raw, options))
    frame = framed(raw)
    order = list(range(len(frame)))
    random.shuffle(order)
    assert rank(frame[order], weights, **options).equals(rank(frame, weights, **options))


@given(signals(), some_weights, how, st.randoms())
def test_permuting_heads_permutes_their_ranks(
    raw: dict[str, np.ndarray], weights: dict[str, float], options: dict[str, str], random: Any
) -> None:
    assume(divisible(raw, options))
    order = list(range(raw["out"].shape[1]))
    random.shuffle(order)
    before = rank(framed(raw), weights, **options)
    after = rank(framed({name: values[:, order] for name, values in raw.items()}), weights, **options)
    for name in (*(f"{name}_rank" for name in SIGNALS), *(f"{name}_norm" for name in SIGNALS), "combined"):
        old, new = (frame[name].to_numpy().reshape(raw["out"].shape) for frame in (before, after))
        np.testing.assert_allclose(new, old[:, order], atol=1e-12)
    if before["combined"].round(9).n_unique() == len(before):
        old, new = (frame["rank"].to_numpy().reshape(raw["out"].shape) for frame in (before, after))
        assert np.array_equal(new, old[:, order])


@given(signals(), some_weights, how)
def test_a_signal_without_weight_changes_nothing(
    raw: dict[str, np.ndarray], weights: dict[str, float], options: dict[str, str]
) -> None:
    """Not even one that is undefined, infinite, or has no mean."""
    assume(divisible(raw, options))
    plain = rank(framed(raw), weights, **options)
    extra = pl.Series("extra", [[None, math.nan, math.inf, -1.0, 1.0][i % 5] for i in range(len(plain))], pl.Float64)
    for given_weights in (weights, {"extra": 0.0, **weights}):
        found = rank(framed(raw).with_columns(extra), given_weights, **options)
        assert found.select(plain.columns).equals(plain)
        assert {"extra_norm", "extra_rank"} <= set(found.columns)


@given(signals(), some_weights, how, st.sampled_from([0.25, 2.0, 1024.0]))
def test_scaling_all_weights_keeps_the_order(
    raw: dict[str, np.ndarray], weights: dict[str, float], options: dict[str, str], factor: float
) -> None:
    assume(divisible(raw, options))
    one = rank(framed(raw), weights, **options)
    other = rank(framed(raw), {name: value * factor for name, value in weights.items()}, **options)
    assert one.drop("combined").equals(other.drop("combined"))
    assert (one["combined"] * factor).equals(other["combined"])


@given(signals(), some_weights, how)
def test_turning_signals_around_turns_the_ranking_around(
    raw: dict[str, np.ndarray], weights: dict[str, float], options: dict[str, str]
) -> None:
    assume(divisible(raw, options) and options["fusion"] == "sum" and options["norm_mode"] != "percentile")
    one = rank(framed({name: -values for name, values in raw.items()}), weights, **options)
    other = rank(framed(raw), {name: -value for name, value in weights.items()}, **options)
    np.testing.assert_allclose(one["combined"], other["combined"], atol=1e-12)


@given(
    st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=2, max_size=9),
    st.floats(1e-3, 1e3),
    st.floats(-1e3, 1e3),
)
def test_what_normalising_leaves_out(values: list[float], scale: float, shift: float) -> None:
    """A z-score knows neither scale nor shift, a ratio no scale; percentiles only the order."""

    def norm(values: Any, mode: str) -> np.ndarray:
        return rank(framed({"out": np.array([values])}), {"out": 1.0}, norm_mode=mode)["out_norm"].to_numpy()

    array = np.array(values)
    if np.ptp(array) > 1e-3:
        np.testing.assert_allclose(norm(array * scale + shift, "zscore"), norm(array, "zscore"), atol=1e-4)
        assert abs(norm(array, "zscore").mean()) < 1e-9 and norm(array, "zscore").std() == pytest.approx(1)
    if abs(array.mean()) > 1e-3:
        np.testing.assert_allclose(norm(array * scale, "ratio"), norm(array, "ratio"), rtol=1e-6, atol=1e-9)
        assert np.array_equal(np.argsort(norm(array, "ratio"), kind="stable"), np.argsort(array, kind="stable"))
    assert norm(array, "percentile").min() >= 0 and norm(array, "percentile").max() <= 1
    assert np.array_equal(norm(array, "none"), array)


@pytest.mark.parametrize("value", [0.1, -7e-9, 1e300, 0.0, 1 / 3])
@pytest.mark.parametrize("heads", [1, 3, 7, 32])
def test_a_constant_layer_says_nothing(heads: int, value: float) -> None:
    """The rounded mean of equal values may differ from them."""
    raw = {"out": np.full((2, heads), value)}
    for mode, expected in (("zscore", 0.0), ("percentile", 0.5), ("ratio", np.sign(value)), ("none", value)):
        found = rank(framed(raw), {"out": 1.0}, norm_mode=mode)  # type: ignore[arg-type]
        np.testing.assert_allclose(found["out_norm"], expected, rtol=1e-12)
        assert set(found["out_rank"]) == {(heads + 1) / 2} and set(found["tied_rank"]) == {1}
        assert found["rank"].to_list() == list(range(1, 2 * heads + 1)), "by layer and head, never by chance"


@pytest.mark.parametrize("values", [[0.0, 1e-200], [1e-300, 2e-300, 0.0], [1.0, 1.0 + 2**-52], [-1e200, 1e200], [1e-307, 0.0]])
@pytest.mark.parametrize("mode", ["zscore", "percentile", "none"])
def test_values_at_the_ends_of_floats_are_ranked(values: list[float], mode: Any) -> None:
    """The square of a difference may be too small or too large for a float."""
    found = rank(framed({"out": np.array([values])}), {"out": 1.0}, norm_mode=mode, fusion="sum")
    assert found["out_norm"].is_finite().all()
    assert found["out_rank"].to_list() == reference.average_ranks(np.array(values)).tolist()
    assert found.sort("rank")["out"].to_list() == sorted(values, reverse=True)


def test_fusions_equal_fractions_worked_by_hand() -> None:
    raw = {"out": np.array([[1.0, 2.0, 4.0]]), "ent": np.array([[5.0, 5.0, 1.0]])}
    weights = {"out": 1.0, "ent": -0.5}
    found = {name: rank(framed(raw), weights, fusion=name)["combined"].to_list() for name in FUSIONS}  # type: ignore[arg-type]
    assert found["rank"] == [1 - 2.5 / 2, 2 - 2.5 / 2, 3 - 1 / 2]
    assert found["rrf"] == pytest.approx([1 / 63 - 0.5 / 61.5, 1 / 62 - 0.5 / 61.5, 1 / 61 - 0.5 / 63], rel=1e-15)
    ratio = rank(framed(raw), weights, fusion="sum", norm_mode="ratio")["combined"].to_list()
    assert ratio == pytest.approx([3 / 7 - 7.5 / 11, 6 / 7 - 7.5 / 11, 12 / 7 - 1.5 / 11], rel=1e-15)
    negative = rank(framed({"out": np.array([[-3.0, -1.0]])}), {"out": 1.0}, norm_mode="ratio")
    assert negative["out_norm"].to_list() == [-1.5, -0.5] and negative["rank"].to_list() == [2, 1], "higher stays higher"


def test_key_value_heads_are_ranked_by_the_mean_of_their_heads(cache: Any) -> None:
    heads = headscore.score(cache)
    groups = headscore.score(cache, by="kv_head").heads.drop("task_length_r")
    names = heads.signals
    means = heads.heads.group_by("layer", "kv_head").agg(pl.col(names).mean()).sort("layer", "kv_head")
    np.testing.assert_allclose(groups.select(names).to_numpy(), means.select(names).to_numpy(), rtol=1e-14)
    expected = rank(groups.select("layer", "kv_head", *names), ScoreSettings().weights, unit="kv_head")
    assert groups.equals(expected.select(groups.columns)) and "head" not in groups.columns
    assert heads.heads["kv_head"].to_list() == [head // 2 for head in heads.heads["head"]]
    assert_ordered(groups, ScoreSettings().weights, "kv_head")


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_a_ranking_has_the_same_bits_every_time(fusion: Any) -> None:
    """Threads that add up a column in other parts would change them."""
    random = np.random.default_rng(0)
    frame = pl.concat(
        [framed({name: random.random((40, 40)) for name in SIGNALS}, group=pl.lit(number)) for number in range(8)]
    )
    weights = {"out": 1.0, "ent": 0.3, "task": -0.7}
    for within, by in itertools.product(("layer", "model"), ((), ("group",))):
        some = frame if by else frame.filter(group=0)
        found = [rank(some, weights, by=by, fusion=fusion, within=within) for _ in range(13)]  # type: ignore[arg-type]
        assert all(one.equals(found[0]) for one in found)


def test_other_columns_stay(cache: Any) -> None:
    frame = framed({"out": np.arange(6.0).reshape(2, 3)}, name=pl.lit("x"), count=pl.lit(3))
    found = rank(frame, {"out": 1.0})
    assert found.select("name", "count").equals(frame.select("name", "count")) and "count_norm" not in found.columns


def test_whole_numbers_are_values_too() -> None:
    frame = framed({"out": np.array([[3, 1, 2]])})
    assert rank(frame, {"out": 1.0})["rank"].to_list() == [1, 3, 2]


@pytest.mark.parametrize(
    ("change", "weights", "options", "said"),
    [
        ({}, {"loss": 1.0}, {}, r"the frame has no loss; it has layer, head, out, ent, task"),
        ({}, {"out": 1.0}, {"by": ["replicate"]}, r"the frame has no replicate"),
        ({}, {"out": 1.0}, {"unit": "kv_head"}, r"the frame has no kv_head"),
        ({"head": pl.lit(0)}, {"out": 1.0}, {}, r"some lines have the same layer, head; there must be one line per head"),
        ({"out": pl.lit(math.nan)}, {"out": 1.0}, {}, r"the signal 'out' is undefined or not finite for some heads"),
        ({"out": pl.lit(-math.inf)}, {"out": 1.0}, {}, r"the signal 'out' is undefined or not finite for some heads"),
        ({"ent": pl.lit(None, pl.Float64)}, {"out": 1.0, "ent": -1.0}, {}, r"the signal 'ent' is undefined or not finite"),
        ({"out": pl.lit("x")}, {"out": 1.0}, {}, r"the signal 'out' is of String, not of numbers"),
        ({"out": pl.lit("x")}, {"out": 0.0, "ent": 1.0}, {}, r"the signal 'out' is of String, not of numbers"),
        ({}, {"out": 0.0}, {}, r"every weight is 0, so there is nothing to rank by"),
        ({}, {}, {}, r"every weight is 0, so there is nothing to rank by"),
        ({}, {"out": math.nan}, {}, r"weight of 'out'"),
        ({}, {"out": math.inf}, {}, r"weight of 'out'"),
        ({"out": pl.col("out") - 1}, {"out": 1.0}, {"norm_mode": "ratio"}, r"ratio: the mean of 'out' is 0 in some layer"),
        ({"out": pl.col("out") - 1}, {"out": 1.0}, {"norm_mode": "ratio", "within": "model"}, r"'out' is 0 in the model, so"),
        *(({name: pl.lit(1.0)}, {"out": 1.0}, {}, f"has a column '{name}' already, which would be overwritten")
          for name in ("rank", "combined", "tied_rank", "layer_rank", "out_norm", "out_rank", "ent_norm", "task_rank")),
        ({"out_norm": pl.lit(1.0)}, {"out_norm": 1.0}, {}, r"has a column 'out_norm' already"),
        ({"out_rank": pl.lit(1)}, {"ent": 1.0}, {"by": "out_rank"}, r"has a column 'out_rank' already"),
        ({"tied": pl.lit(1.0)}, {"out": 1.0}, {}, r"two results would be called 'tied_rank'; rename the signal 'tied'"),
        ({}, {"layer": 1.0}, {}, r"'layer' says which head a line is of"),
        *(({}, {"out": value}, {}, r"the weight of 'out', .*, is not a finite number")
          for value in ("1", None, [1.0], True, np.bool_(True), 10**400, 1j, np.array([1.0]), np.float32("nan"))),
        *(({}, value, {}, r"is not a number for each signal") for value in ([1.0], "out", None, 1.0)),
        ({}, {"out": 1.0}, {"by": "replicate"}, r"the frame has no replicate;"),
        *(({}, {"out": 1.0}, {"by": name}, "every ranking has the column already") for name in ("layer", ["head"])),
        ({"x": pl.lit(1)}, {"out": 1.0}, {"by": ["x", "x"]}, "each once"),
        *(({}, {"out": 1.0}, {"by": value}, "is not the name of a column") for value in (3, None, [3])),
        *(({name: pl.lit(None, pl.Int64)}, {"out": 1.0}, {}, f"some lines have no {name}; leave them out")
          for name in ("layer", "head")),
        ({"layer": pl.lit(math.nan)}, {"out": 1.0}, {}, "some lines have no layer"),
        ({}, {"out": 1.0}, {"fusion": "borda"}, r"fusion='borda' is not one of rank, rrf, sum"),
        ({}, {"out": 1.0}, {"norm_mode": "minmax"}, r"norm_mode='minmax' is not one of zscore, percentile, ratio, none"),
        ({}, {"out": 1.0}, {"within": "block"}, r"within='block' is not one of layer, model"),
        ({}, {"out": 1.0}, {"unit": "layer"}, r"unit='layer' is not one of head, kv_head"),
    ],
)  # fmt: skip
def test_what_cannot_be_ranked_is_told_in_one_line(
    change: dict[str, Any], weights: dict[str, float], options: dict[str, Any], said: str
) -> None:
    frame = framed({name: np.arange(3.0)[None] for name in SIGNALS}, **change)
    with pytest.raises(InputError, match=said) as error:
        rank(frame, weights, **options)
    assert "\n" not in str(error.value)


def test_an_empty_frame_has_an_empty_ranking() -> None:
    frame = framed({"out": np.empty((0, 3))})
    assert rank(frame, {"out": 1.0}).columns[-4:] == ["combined", "rank", "tied_rank", "layer_rank"]


def test_heads_that_are_equal_but_for_rounding_tie() -> None:
    """0.1 · 1 + 0.3 · 3 and 0.1 · 4 + 0.3 · 2 are the same number in two ways."""
    frame = pl.DataFrame({"layer": 0, "head": range(4), "out": [1.0, 4.0, 2.0, 3.0], "ent": [3.0, 2.0, 1.0, 4.0]})
    found = rank(frame, {"out": 0.1, "ent": 0.3})
    assert found["combined"][0] != found["combined"][1], "so the definition of the order tells them apart"
    assert found["tied_rank"].to_list() == [2, 2, 4, 1]


@pytest.mark.parametrize("frame", [framed({"out": np.arange(3.0)[None]}).lazy(), {"layer": [0]}, None])
def test_what_is_no_frame_is_told(frame: Any) -> None:
    with pytest.raises(
        InputError, match=r"^rank: the frame is a \w+, not a polars DataFrame(; collect\(\) it first)?$"
    ) as error:
        rank(frame, {"out": 1.0})
    assert ("collect()" in str(error.value)) == isinstance(frame, pl.LazyFrame)


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.longdouble, np.int8, np.uint64, np.array, int])
def test_weights_may_be_numbers_of_any_kind(number: Any) -> None:
    frame = framed({name: np.arange(3.0)[None] for name in SIGNALS})
    assert rank(frame, {"out": number(2), "ent": number(1)}).equals(rank(frame, {"out": 2.0, "ent": 1.0}))


def test_choices_and_groups_have_more_than_one_spelling() -> None:
    frame = framed({"out": np.arange(6.0).reshape(2, 3)}, replicate=pl.col("head") % 2).with_columns(kv_head="head")
    assert rank(frame, {"out": 1.0}, by="replicate").equals(rank(frame, {"out": 1.0}, by=["replicate"]))
    assert rank(frame, {"out": 1.0}, unit="kv-head").equals(rank(frame, {"out": 1.0}, unit="kv_head"))  # type: ignore[arg-type]


@pytest.mark.parametrize("within", ["layer", "model"])
def test_what_cannot_be_divided_by_its_mean_is_null(within: Any) -> None:
    frame = framed({"out": np.array([[1.0, 2.0]]), "none": np.array([[-1.0, 1.0]])})
    assert rank(frame, {"out": 1.0}, norm_mode="ratio", within=within)["none_norm"].to_list() == [None, None]


@pytest.mark.parametrize("fusion", ["rank", "rrf", "sum"])
def test_weights_of_a_column_are_those_of_each_ranking(fusion: Any) -> None:
    chance = np.random.default_rng(3)
    heads = pl.DataFrame({"layer": [0, 0, 0, 1, 1, 1], "head": [0, 1, 2] * 2, "a": chance.random(6), "b": chance.random(6)})
    settings = pl.DataFrame({"setting": [0, 1, 2], "of_b": [0.0, -0.5, 2.0]})
    found = rank(settings.join(heads, how="cross"), {"a": 1, "b": "of_b"}, by="setting", fusion=fusion)
    for setting, weight in settings.rows():
        own = found.filter(setting=setting).drop("setting", "of_b")
        assert own.equals(rank(heads, {"a": 1, "b": weight}, fusion=fusion).select(own.columns))


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ([0.5, 0.5, 1.0], "several weights"),
        ([0.5, None, 0.5], "not a column of weights"),
        ([1, 1, 1], "not a column of weights"),
    ],
)
def test_a_column_of_weights_has_one_for_each_ranking(column: list[Any], told: str) -> None:
    heads = pl.DataFrame({"layer": [0, 0, 0], "head": [0, 1, 2], "a": [1.0, 2.0, 3.0], "w": column}, strict=False)
    with pytest.raises(headscore.InputError, match=told):
        rank(heads, {"a": "w"})
