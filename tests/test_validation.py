"""Validation statistics: by hand, by laws, and on outcomes whose truth is known."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_outcomes import INTACT, KEYS, outcomes, trials

from headscore.data.errors import InputError
from headscore.score.validation_table import validation_table
from headscore.score.verdicts import verdicts

TOP, BOTTOM = ("out", 3, "top", None), ("out", 3, "bottom", None)
DRAWS = [("out", 3, "draw", draw) for draw in range(3)]
CHANCE = "no better than chance"
BY_HAND = {
    INTACT: {"kl": 0, "nll": [1, 2, 3, np.nan], "acc": [1, 1, 0, np.nan], "choices": [4, 4, 2, np.nan]},
    TOP: {"kl": [1, 2, 3, 4], "nll": [2, 4, 6, np.nan], "acc": [0, 0, 1, np.nan]},
    BOTTOM: {"kl": [0, 0, 0, 1], "nll": [1, 2, 3, np.nan], "acc": [1, 1, 0, np.nan]},
    DRAWS[0]: {"kl": [1, 1, 1, 1], "nll": [1, 2, 6, np.nan], "acc": [0, 0, 0, np.nan]},
    DRAWS[1]: {"kl": [4, 3, 2, 1], "nll": [1, 2, 0, np.nan], "acc": [0, 0, 0, np.nan]},
    DRAWS[2]: {"kl": [9, 9, 9, 9], "nll": [1, 2, 3, np.nan], "acc": [1, 1, 1, np.nan]},
}


def line(table: pl.DataFrame, metric: str, signal: str = "out", k: int = 3) -> dict[str, Any]:
    return table.row(by_predicate=(pl.col("metric") == metric) & (pl.col("signal") == signal) & (pl.col("k") == k), named=True)


def changed(sets: dict[Any, Any], key: Any, metric: str, values: Any) -> dict[Any, Any]:
    return {**sets, key: {**sets[key], metric: values}}


def test_a_table_by_hand() -> None:
    table = validation_table(outcomes(BY_HAND), {"nll": 0.5})
    assert table["metric"].to_list() == ["kl", "nll", "acc"]
    kl, nll, acc = (line(table, metric) for metric in ("kl", "nll", "acc"))
    common = {
        "rows": 4,
        "intact": 0,
        "top": 10 / 4,
        "bottom": 1 / 4,
        "draws": (1 + 2.5 + 9) / 3,
        "draws_min": 1,
        "draws_max": 9,
    }
    tests = {"difference": 10 / 4 - 12.5 / 3, "draws_count": 3, "p": 3 / 4, "p_holm": 3 / 4, "is_noise": False}
    assert {name: kl[name] for name in common | tests} == pytest.approx(common | tests), "a draw as bad as the top counts"
    common = {"rows": 3, "intact": 2, "top": 2, "bottom": 0, "draws": 0, "draws_min": -1, "draws_max": 1, "difference": 2}
    assert {name: nll[name] for name in (*common, "p", "is_noise")} == pytest.approx(common | {"p": 1 / 4, "is_noise": False})
    common = {"rows": 3, "intact": 2 / 3, "top": -1 / 3, "bottom": 0, "draws": -1 / 3, "draws_min": -2 / 3, "draws_max": 1 / 3}
    tests = {"difference": 0, "p": 3 / 4, "mcnemar": 1, "chance": 1 / 3, "above_chance": False}
    assert {name: acc[name] for name in common | tests} == pytest.approx(common | tests), "lower accuracy is worse"
    assert acc["is_noise"], "no difference but for rounding"
    assert kl["mcnemar"] is kl["chance"] is kl["above_chance"] is nll["mcnemar"] is None


@pytest.mark.parametrize(("floor", "noise"), [(0, False), (1.5, False), (1.7, True), (2.6, True)])
def test_what_is_no_larger_than_the_floor_is_noise(floor: float, noise: bool) -> None:
    """By KL the top's change is 2.5 and the difference from the draws 1.67."""
    assert line(validation_table(outcomes(BY_HAND), {"kl": floor}), "kl")["is_noise"] is noise


def many(seed: int = 0) -> dict[Any, Any]:
    """Three signals by three k, of 20 rows; combined's top is worst, bias's is harmless."""
    chance = np.random.default_rng(seed)
    nll, acc = chance.gamma(2, 1, 20), (chance.random(20) < 0.9) * 1
    sets: dict[Any, Any] = {INTACT: {"kl": 0, "nll": nll, "acc": acc, "acc_norm": acc, "choices": 4}}
    for signal, worse in (("bias", 0.01), ("combined", 40), ("out", 1)):
        for k in (9, 1, 4):
            for kind, draw in [("top", None), ("bottom", None), *(("draw", draw) for draw in range(19))]:
                size = k * (worse if kind == "top" else chance.uniform(0.5, 2))
                kl, flips = chance.gamma(1, size, 20), chance.random(20) < size / 40
                sets[signal, k, kind, draw] = {
                    "kl": kl,
                    "nll": nll + kl / 2,
                    "acc": np.where(flips, 0, acc),
                    "acc_norm": np.where(flips, 0, acc),
                }
    return sets


def test_a_seed_gives_the_same_table_whatever_the_order_of_lines() -> None:
    frame = outcomes(many())
    table = validation_table(frame, {}, bootstrap=200)
    for seed in range(3):
        shuffled = frame.sample(fraction=1, shuffle=True, seed=seed).select(sorted(frame.columns, reverse=True))
        assert validation_table(shuffled, {}, bootstrap=200).equals(table)
    other = validation_table(frame, {}, bootstrap=200, seed=43)
    intervals = [name for name in table.columns if name.endswith(("_low", "_high"))]
    assert other.drop(intervals).equals(table.drop(intervals)) and not other.equals(table)
    wider = validation_table(frame, {}, bootstrap=200, level=0.99)
    assert (wider["top_low"] <= table["top_low"]).all() and (wider["top_high"] >= table["top_high"]).all()


def test_lines_are_ordered_and_p_is_corrected_over_the_k_of_a_signal() -> None:
    table = validation_table(outcomes(many()), {}, bootstrap=50)
    assert table.select("signal", "k", "metric").rows() == [
        (signal, k, metric)
        for signal in ("combined", "bias", "out")
        for k in (1, 4, 9)
        for metric in ("kl", "nll", "acc", "acc_norm")
    ]
    combined = table.filter(pl.col("signal") == "combined", pl.col("metric") == "kl")
    assert combined["p"].to_list() == [1 / 20] * 3 and combined["p_holm"].to_list() == pytest.approx([3 / 20] * 3)
    assert (table["top_low"] <= table["top"] + 1e-12).all() and (table["top_high"] >= table["top"] - 1e-12).all()
    inside = (table["difference_low"] <= table["difference"]) & (table["difference"] <= table["difference_high"])
    assert inside.filter(table["metric"].is_in(["kl", "nll"])).all()


def test_rows_may_be_numbered_in_any_way() -> None:
    frame = outcomes(many())
    other = validation_table(frame.with_columns(row=7 * pl.col("row") + 3), {}, bootstrap=50)
    assert other.equals(validation_table(frame, {}, bootstrap=50))


def test_one_row_has_no_interval() -> None:
    sets = {INTACT: {"kl": 0.0}, TOP: {"kl": 2.0}, DRAWS[0]: {"kl": 1.0}}
    found = line(validation_table(outcomes(sets), {}), "kl")
    assert (found["rows"], found["top"], found["difference"], found["p"]) == (1, 2.0, 1.0, 0.5)
    assert found["top_low"] is found["top_high"] is found["difference_low"] is found["bottom"] is None


def test_equal_values_have_an_interval_without_width_and_are_noise_where_nothing_changes() -> None:
    sets = {INTACT: {"kl": [0.0] * 9, "nll": 0.1}, TOP: {"kl": 0.3, "nll": 0.1}, DRAWS[0]: {"kl": 0.3, "nll": 0.1}}
    table = validation_table(outcomes(sets), {})
    kl, nll = line(table, "kl"), line(table, "nll")
    assert kl["top"] == pytest.approx(0.3) == kl["top_low"] == kl["top_high"]
    assert kl["p"] == nll["p"] == 1 and kl["is_noise"] and nll["is_noise"] and nll["top"] == 0


def test_a_difference_of_rounding_is_noise() -> None:
    draws = {draw: {"kl": value} for draw, value in zip(DRAWS, (0.1, 0.2, 0.3), strict=True)}
    found = line(validation_table(outcomes({INTACT: {"kl": [0] * 9}, TOP: {"kl": 0.2}, **draws}), {}), "kl")
    assert 0 < abs(found["difference"]) < 1e-15 and found["is_noise"]


def test_few_changes_of_accuracy_have_an_interval() -> None:
    """Of 40 rows one becomes wrong: a third of the replicates have no change."""
    acc = np.ones(40)
    sets = {INTACT: {"kl": 0, "acc": acc}, TOP: {"kl": 1, "acc": np.arange(40) > 0}}
    found = line(validation_table(outcomes(sets), {}), "acc")
    assert found["top"] == -1 / 40 and -4 / 40 <= found["top_low"] < found["top"] and found["top_high"] == 0


def test_without_draws_there_is_no_comparison() -> None:
    found = line(validation_table(outcomes({INTACT: {"kl": [0] * 5}, TOP: {"kl": [1, 2, 3, 4, 5]}}), {}), "kl")
    assert found["draws_count"] == 0 and found["top"] == 3 and found["top_low"] < 3 < found["top_high"]
    assert found["draws"] is found["difference"] is found["difference_low"] is found["p"] is found["p_holm"] is None


def test_accuracy_by_unknown_choices_has_no_chance() -> None:
    found = line(validation_table(outcomes(BY_HAND).drop("choices"), {}), "acc")
    assert found["chance"] is found["above_chance"] is None


@pytest.mark.parametrize(("right", "above"), [(50, False), (60, False), (61, True)])
def test_accuracy_above_chance(right: int, above: bool) -> None:
    """Of 200 rows with four choices, 60 or more are right in 6.3 % of guesses, 61 or more in 4.5 %."""
    acc = np.arange(200) < right
    sets = {INTACT: {"kl": 0, "acc": acc, "choices": 4}, TOP: {"kl": 1, "acc": acc}}
    assert line(validation_table(outcomes(sets), {}, bootstrap=10), "acc")["above_chance"] is above


def test_intervals_through_the_table_hold_the_truth() -> None:
    """500 trials; KL of the top is 1 in the mean, of two draws ½, all with a skewness of 3 and of the same rows."""
    chance = np.random.default_rng(11)
    rows = chance.gamma(1, 1, (500, 1, 200))  # hard rows are so for every set
    kl = rows * chance.gamma(4, 1 / 4, (500, 3, 200)) * np.array([1, 0.5, 0.5])[:, None]
    table = validation_table(trials(kl, [("top", None), ("draw", 0), ("draw", 1)]), {}, bootstrap=600)
    assert len(table) == 500
    for name, truth in (("top", 1.0), ("difference", 0.5)):
        held = (table[f"{name}_low"] <= truth) & (truth <= table[f"{name}_high"])
        assert 0.93 <= held.mean() <= 0.97  # type: ignore[operator]


def test_a_top_like_any_draw_is_found_bad_as_often_as_the_level_says() -> None:
    """Sets differ in truth, as heads do, but the top is one more draw."""
    chance = np.random.default_rng(13)
    kl = chance.gamma(1, 1, (500, 20, 30)) * chance.gamma(2, 1, (500, 20, 1))
    p = validation_table(trials(kl, [("top", None), *(("draw", draw) for draw in range(19))]), {}, bootstrap=20)["p"]
    for level in (0.05, 0.1, 0.5):
        assert (p <= level).mean() <= level + 2 * math.sqrt(level * (1 - level) / 500)  # type: ignore[operator]
    assert abs(p.mean() - 21 / 40) < 3 * 0.29 / math.sqrt(500)  # type: ignore[operator]


def test_a_top_that_is_worse_is_found() -> None:
    chance = np.random.default_rng(17)
    kl = chance.gamma(1, 1, (50, 20, 30))
    kl[:, 0] *= 4
    p = validation_table(trials(kl, [("top", None), *(("draw", draw) for draw in range(19))]), {}, bootstrap=20)["p"]
    assert (p == 1 / 20).all()


BAD = [
    (lambda f: f.drop("draw"), "has no column draw"),
    (lambda f: f.drop("kl", "nll", "acc", "choices"), "no row has a value"),
    (lambda f: f.with_columns(kl=pl.lit(None, pl.Float64)).drop("nll", "acc"), "no row has a value"),
    (lambda f: f.with_columns(kl=pl.lit("x")), "'kl' is of String"),
    (lambda f: f.lazy(), "is a LazyFrame"),
    (lambda f: f.clear(), "has no lines"),
    (lambda f: f.filter(pl.col("set") != "intact"), "0 runs of the intact model"),
    (lambda f: f.filter(pl.col("set") == "intact"), "no set of heads"),
    (lambda f: f.filter(pl.col("set") != "top"), "signal out, k 3 has 0 sets 'top'"),
    (lambda f: f.with_columns(set=pl.col("set").replace("bottom", "other")), "a set 'other' of signal out"),
    (lambda f: f.with_columns(row=pl.lit(None, pl.Int64)), "no whole number as their row"),
    (lambda f: pl.concat([f, f.head(1)]), "set intact has a row twice"),
    (
        lambda f: f.filter((pl.col("draw") != 1) | (pl.col("row") < 2) | pl.col("draw").is_null()),
        "set draw, draw 1 has 2 of the 4 rows",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_outcomes_that_are_not_whole_are_refused_in_one_line(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        validation_table(change(outcomes(BY_HAND)), {})
    assert error.value.message.startswith("outcomes: ") and "\n" not in error.value.message


@pytest.mark.parametrize(
    ("key", "metric", "values", "message"),
    [
        (TOP, "nll", [1, 2, np.nan, np.nan], "'nll' has no value in signal out, k 3, set top, row 2"),
        (DRAWS[1], "nll", [1, 2, 3, 4], "'nll' has a value, but the intact model has none, in .*draw 1, row 3"),
        (TOP, "acc", [0.5, 0, 1, np.nan], "'acc' has values other than 0 and 1"),
        (BOTTOM, "kl", [0, 0, np.inf, 0], "'kl' is inf in signal out, k 3, set bottom, row 2"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(key: Any, metric: str, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^outcomes: {message}$"):
        validation_table(outcomes(changed(BY_HAND, key, metric, values)), {})


def test_nan_is_refused_in_one_line() -> None:
    frame = outcomes(BY_HAND).with_columns(kl=pl.when(pl.struct(KEYS).eq(pl.struct(KEYS).first())).then(np.nan).otherwise("kl"))
    with pytest.raises(InputError, match=r"^outcomes: 'kl' is nan in k 0, set intact, row 0$"):
        validation_table(frame, {})


@pytest.mark.parametrize("options", [{"bootstrap": 0}, {"level": 1.0}, {"level": math.nan}, {"seed": -1}])
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^(--)?{next(iter(options))}: "):
        validation_table(outcomes(BY_HAND), {}, **options)


def test_verdicts_say_what_was_found() -> None:
    lines = verdicts(validation_table(outcomes(many()), {}, bootstrap=50), 20)
    assert len(lines) == 10 and [line.split(":")[0] for line in lines[::3]][:3] == [
        "combined, top 1 (5 %)",
        "bias, top 1 (5 %)",
        "out, top 1 (5 %)",
    ]
    for line in lines[:3]:
        assert "p 0.05, 0.15 over all k: more than chance at this k alone" in line and "NLL +" in line and "accuracy -" in line
    assert all("the model needs these heads less than any of the 19 draws" in line for line in lines[3:6])
    assert all("no better than chance" in line for line in lines[6:9])
    assert lines[9] == ("19 draws give no p below 0.05, which is 0.15 over 3 k: take 59 or more to show what holds over all k")


def test_a_verdict_by_hand() -> None:
    table = validation_table(outcomes(BY_HAND), {"nll": 3}, level=0.5)
    sentence, accuracy = verdicts(table.with_columns(top_low=pl.lit(1.93), top_high=pl.lit(3.049)), 30)
    assert sentence == (
        "out, top 3 (10 %): KL 2.50 [1.93, 3.05]; random heads of the same layers 4.17 (1.00 to 9.00); p 0.75: "
        "no better than chance. NLL +2.00 [+1.93, +3.05]; random heads +0.00 (-1.00 to +1.00); p 0.25: "
        "nothing beyond the noise floor"
    )
    assert accuracy == "accuracy of the intact model, 0.67, is not above chance, 0.33: not used"


@pytest.mark.parametrize(("wrong", "said"), [(2, "the model needs these heads less than any of the 3 draws"), (3, CHANCE)])
def test_a_verdict_on_accuracy_knows_its_direction(wrong: int, said: str) -> None:
    """Of 40 right rows the draws make 3, 4 and 5 wrong."""
    acc = lambda wrong: {"kl": 0, "acc": np.arange(40) >= wrong}  # noqa: E731
    sets = {INTACT: {**acc(0), "choices": 4}, TOP: acc(wrong), **{draw: acc(3 + place) for place, draw in enumerate(DRAWS)}}
    (sentence,) = verdicts(validation_table(outcomes(sets), {}), 30)
    assert sentence.endswith(f"random heads -0.10 (-0.12 to -0.07); p 1: {said}")


def test_verdicts_without_draws_and_of_small_numbers() -> None:
    sets = {INTACT: {"kl": [0] * 2, "acc": [1, 0]}, TOP: {"kl": 0.00123, "acc": [1, 0]}}
    assert verdicts(validation_table(outcomes(sets), {}), 300) == [
        "out, top 3 (1 %): KL 0.0012 [0.0012, 0.0012]; no random heads to compare with",
        "accuracy of the intact model, 0.50: not used, as chance is not known",
    ]


def test_with_enough_draws_a_verdict_holds_over_all_k() -> None:
    chance = np.random.default_rng(1)
    sets: dict[Any, Any] = {INTACT: {"kl": np.zeros(8)}}
    for k in (1, 2):
        sets["out", k, "top", None] = {"kl": chance.gamma(9, 1, 8)}
        sets |= {("out", k, "draw", draw): {"kl": chance.gamma(1, 1, 8)} for draw in range(39)}
    lines = verdicts(validation_table(outcomes(sets), {}), 30)
    assert len(lines) == 2
    assert all(
        "p 0.025, 0.05 over all k: the model needs these heads more than others of their layers" in line for line in lines
    )
