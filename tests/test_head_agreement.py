"""Effects of single heads, how far signals agree with them, and weights that were planted and are found again."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from headscore.data.errors import InputError
from headscore.data.options.settings import ScoreSettings
from headscore.score.agreement import agreement, costs_of
from headscore.score.effects import effects_of
from headscore.score.rank_correlation import kendall, spearman
from headscore.score.ranking import rank
from headscore.score.weight_fit import fit_weights

number = st.integers(-3, 3) | st.sampled_from([0.1, 1e300, -1e300, math.inf, -math.inf, 5e-324])
pairs = st.lists(st.tuples(number, number), min_size=0, max_size=12)


def test_correlations_by_hand() -> None:
    """Of six pairs five are in the same order; with x = 1 1 2 3, five of six are untied in x, and four of them agree."""
    assert kendall([1, 2, 3, 4], [1, 3, 2, 4]) == float(Fraction(4, 6))
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == float(1 - Fraction(6 * 2, 4 * 15))
    assert kendall([1, 1, 2, 3], [1, 3, 2, 4]) == pytest.approx((4 - 1) / math.sqrt(5 * 6))
    assert spearman([1, 1, 2, 3], [1, 2, 2, 3]) == pytest.approx(3.75 / 4.5)  # ranks 1½ 1½ 3 4 and 1 2½ 2½ 4
    assert spearman([5, 7, 6], [1, 3, 2]) == kendall([5, 7, 6], [1, 3, 2]) == 1
    assert spearman([5, 7, 6], [3, 1, 2]) == kendall([5, 7, 6], [3, 1, 2]) == -1
    for nothing in ([2, 2, 2], [1, 2, 3]), ([], []), ([1], [1]):
        assert spearman(*nothing) is kendall(*nothing) is None


@given(pairs)
def test_correlations_equal_their_definitions(points: list[tuple[float, float]]) -> None:
    x, y = (np.array([point[axis] for point in points], float) for axis in (0, 1))
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert spearman(x, y) is kendall(x, y) is None
        return
    ranks = reference.average_ranks(x), reference.average_ranks(y)
    assert spearman(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    signs = [((a > c) - (a < c), (b > d) - (b < d)) for (a, b), (c, d) in itertools.combinations(points, 2)]
    agreeing, untied = sum(a * b for a, b in signs), [sum(a != 0 for a in one) for one in zip(*signs, strict=True)]
    assert kendall(x, y) == pytest.approx(agreeing / math.sqrt(untied[0] * untied[1]))


@given(pairs)
def test_correlations_keep_to_their_laws(points: list[tuple[float, float]]) -> None:
    x, y = (np.array([point[axis] for point in points], float) for axis in (0, 1))
    for correlation in (spearman, kendall):
        found = correlation(x, y)
        assert found == correlation(y, x) == correlation(x[::-1], y[::-1])
        assert found == (None if (turned := correlation(-x, y)) is None else -turned)
        assert found is None or -1 <= found <= 1
        assert correlation(x, x) == (1 if len(set(x)) > 1 else None)


def test_correlations_equal_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    chance = np.random.default_rng(0)
    for ties in (3, 40, 10**9):
        x, y = chance.integers(0, ties, 700), chance.integers(0, ties, 700)
        assert spearman(x, x + y) == pytest.approx(stats.spearmanr(x, x + y).statistic, rel=1e-12)
        assert kendall(x, x + y) == pytest.approx(stats.kendalltau(x, x + y).statistic, rel=1e-12)


@pytest.mark.parametrize(("x", "y"), [([1.0, math.nan], [1, 2]), ([1, 2], [math.nan, 1]), ([1, 2], [1, 2, 3]), ([[1]], [[1]])])
def test_nan_and_other_shapes_are_refused_in_one_line(x: Any, y: Any) -> None:
    for correlation in (spearman, kendall):
        with pytest.raises(InputError, match=r"^correlation: .*(NaN|shapes)"):
            correlation(x, y)


def single(nll: Any, kl: Any = None, heads: int = 2, unit: str = "head", name: str = "nll") -> pl.DataFrame:
    """nll [heads, rows] of the model without each head, numbered through layers of `heads`."""
    values = np.array(nll, float)
    count, rows = values.shape
    columns = {
        "layer": np.repeat(np.arange(count) // heads, rows),
        unit: np.repeat(np.arange(count) % heads, rows),
        "row": np.tile(np.arange(rows), count),
        name: values.reshape(-1),
    }
    return pl.DataFrame(columns | ({} if kl is None else {"kl": np.array(kl, float).reshape(-1)}), nan_to_null=True)


def intact(nll: Any) -> pl.DataFrame:
    return pl.DataFrame({"row": np.arange(len(nll)), "nll": np.array(nll, float)}, nan_to_null=True)


def test_effects_by_hand() -> None:
    nan = math.nan
    heads = single([[2, 3, nan], [1, 1, nan], [0, 2, nan], [1, 2, nan]], kl=[[1, 2, 6], [0, 0, 0], [1, 0, 0], [0, 0, 3]])
    gradients = single([[-1, -1], [1, -1], [2, 4], [0, 0]], name="gradient")
    table = effects_of(heads, gradients, intact([1, 2, nan]))
    assert table.columns == ["layer", "head", "effect", "mean", "low", "high", "abs_mean"]
    assert table.select("layer", "head", "effect").rows() == [
        (layer, head, effect) for layer in (0, 1) for head in (0, 1) for effect in ("kl", "nll", "gate_gradient")
    ]
    means = {"kl": [3, 0, 1 / 3, 1], "nll": [1, -0.5, -0.5, 0], "gate_gradient": [-1, 0, 3, 0]}
    sizes = means | {"nll": [1, 0.5, 0.5, 0], "gate_gradient": [1, 1, 3, 0]}
    for effect, of_one in table.group_by("effect"):
        assert of_one["mean"].to_list() == pytest.approx(means[effect[0]])  # type: ignore[index]
        assert of_one["abs_mean"].to_list() == pytest.approx(sizes[effect[0]])  # type: ignore[index]
    alike = table.filter(pl.col("head") == 0, pl.col("layer") == 0, pl.col("effect") == "nll")
    assert alike.select("low", "high").row(0) == (1, 1), "1 in both rows"
    assert table.filter(pl.col("effect") == "kl")["high"][0] is None, "three rows bound nothing"


def random_effects(rows: int = 40, layers: int = 3) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    """Four heads in each layer with a true cost each."""
    chance = np.random.default_rng(0)
    truth = chance.permutation(4 * layers) / 4
    base = chance.gamma(2, 1, rows)
    nll = base + chance.normal(truth[:, None], 0.5, (4 * layers, rows))
    return single(nll, kl=(nll - base) ** 2, heads=4), intact(base), truth


def test_effects_do_not_depend_on_the_order_of_lines() -> None:
    heads, whole, truth = random_effects()
    table = effects_of(heads, None, whole, bootstrap=200)
    shuffled = effects_of(heads.sample(fraction=1, shuffle=True, seed=1), None, whole.reverse(), bootstrap=200)
    assert shuffled.equals(table)
    loss = table.filter(pl.col("effect") == "nll")
    assert ((loss["low"] < loss["mean"]) & (loss["mean"] < loss["high"])).all()
    assert ((loss["low"] <= pl.Series(truth)) & (pl.Series(truth) <= loss["high"])).sum() >= 10
    of_outcomes = whole.with_columns(set=pl.lit("intact"), signal=pl.lit(None, pl.String))
    assert effects_of(heads, None, pl.concat([of_outcomes, of_outcomes.with_columns(set=pl.lit("top"))]), bootstrap=200).equals(
        table
    )


def test_agreement_is_positive_where_a_signal_is_higher_in_heads_that_are_needed() -> None:
    cost = np.array([3.0, 1, 2, 5, 4, 0])
    gradients = single(np.outer(-cost, [1, 1, 1, 1]), heads=3, unit="kv_head", name="gradient")
    effects = effects_of(single(np.outer(cost, [1, 2, 3, 4]), heads=3, unit="kv_head"), gradients, intact([0, 0, 0, 0]))
    places = effects.select("layer", "kv_head").unique().sort("layer", "kv_head")
    heads = places.with_columns(
        same=pl.Series(cost**3), turned=pl.Series(-cost), flat=1.0, some=pl.Series([3.0, 1, None, 5, None, None])
    )
    table = agreement(effects, heads.reverse(), ["same", "turned", "flat", "some"])
    assert table.rows() == [
        (effect, *line)
        for effect in ("nll", "gate_gradient", "abs_gate_gradient")
        for line in (("same", 1, 1), ("turned", -1, -1), ("flat", None, None), ("some", 1, 1))
    ]
    among = agreement(effects, costs_of(effects), ["nll", "gate_gradient"])
    assert among["spearman"].to_list() == [1.0] * 6


def heads_of(truth: np.ndarray) -> pl.DataFrame:
    """Four signals of the heads: two that have nothing to say, and two that only together say the truth."""
    chance, count = np.random.default_rng(5), len(truth)
    hidden = chance.permutation(count)
    places = {"layer": np.arange(count) // 4, "head": np.arange(count) % 4}
    signals = {"out": chance.permutation(count), "ent": hidden + truth * 4, "task": chance.permutation(count), "hidden": hidden}
    return pl.DataFrame(places | {name: values.astype(float) for name, values in signals.items()})


def test_planted_weights_are_found_sign_included() -> None:
    single_heads, whole, truth = random_effects(rows=201, layers=15)
    settings = ScoreSettings(fusion="sum", norm_mode="none", within="model")
    heads = heads_of(truth).with_columns(odd=pl.Series([None, *[1.0] * 59]))
    names = ["out", "hidden", "ent", "odd"]
    fit = fit_weights(single_heads, whole, heads, names, settings=settings)
    assert fit.effect == "nll" and fit.rows == (101, 100) and fit.default == {"out": 1.0, "ent": 0.5, "task": 1.0}
    assert fit.weights == {"ent": 1.0, "hidden": -1.0}
    assert fit.held_out is not None and fit.held_out > 0.95 and fit.between_halves is not None and fit.between_halves > 0.95
    combined = rank(heads_of(truth), fit.default, fusion="sum", norm_mode="none", within="model")["combined"]
    change = (single_heads["nll"].to_numpy().reshape(60, 201) - whole["nll"].to_numpy()).T
    order = np.random.default_rng(42).permutation(201)
    assert fit.default_picked == spearman(combined, change[order[:101]].mean(axis=0))
    assert fit.default_held_out == spearman(combined, change[order[101:]].mean(axis=0))
    assert fit == fit_weights(single_heads.reverse(), whole, heads.reverse(), names, settings=settings)


@pytest.mark.parametrize("fusion", ["rank", "rrf", "sum"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_signal_that_is_the_truth_is_picked_first(fusion: Any, sign: int) -> None:
    single_heads, whole, truth = random_effects(rows=400)
    within_layer = np.concatenate([truth[n : n + 4].argsort().argsort() for n in (0, 4, 8)])  # what ranks in a layer can say
    change = within_layer[:, None] + 0.1 * single_heads["nll"].to_numpy().reshape(12, 400)
    heads = heads_of(truth).with_columns(planted=pl.Series(sign * within_layer.astype(float)))
    fit = fit_weights(single(change, heads=4), whole, heads, ["out", "task", "planted"], settings=ScoreSettings(fusion=fusion))
    assert next(iter(fit.weights.items())) == ("planted", float(sign))
    assert fit.held_out is not None and fit.default_held_out is not None and fit.held_out > max(0.9, fit.default_held_out)


def test_what_is_fitted_to_noise_does_not_hold() -> None:
    held, picked = [], []
    for seed in range(20):
        chance = np.random.default_rng(seed)
        _, whole, truth = random_effects(rows=40)
        fit = fit_weights(
            single(chance.normal(size=(12, 40)), heads=4),
            whole,
            heads_of(truth),
            ["out", "ent", "task", "hidden"],
            settings=ScoreSettings(),
            seed=seed,
        )
        picked.append(fit.picked)
        held.append(fit.held_out)
    assert np.mean(picked) > 0.4 and abs(np.mean(held)) < 0.2


def test_kl_is_what_weights_are_fitted_to_where_there_are_no_answers() -> None:
    single_heads, whole, truth = random_effects()
    fit = fit_weights(single_heads.drop("nll"), whole.drop("nll"), heads_of(truth), ["out", "ent"], settings=ScoreSettings())
    assert fit.effect == "kl" and fit.rows == (20, 20)


HEADS = pl.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "out": [1.0, 2, 3, 4]})
GOOD = single([[1, 2], [2, 3], [3, 5], [4, 4]])
ONES = intact([1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effects_of(None, None, ONES), "effects: there are no values"),
        (lambda: effects_of(GOOD, None, intact([1])), "single: its 2 rows are not the 1 of the intact"),
        (lambda: effects_of(single([[1, 2], [1, math.nan]]), None, ONES), "'nll' of some row is there for some heads"),
        (lambda: effects_of(single([[1, 2], [1, math.inf]]), None, ONES), "'nll' is inf in layer 0, head 1, row 1"),
        (lambda: effects_of(GOOD.head(7), None, ONES), "layer 1, head 1 has 1 of the 2 rows"),
        (lambda: effects_of(GOOD.drop("head"), None, ONES), "single: is not a table with a column head"),
        (lambda: agreement(effects_of(GOOD, None, ONES), HEADS, ["x"]), "heads: has no column x"),
        (lambda: agreement(effects_of(GOOD, None, ONES), HEADS.head(3), ["out"]), "heads: its 3 heads are not the 4"),
    ],
)
def test_tables_that_do_not_fit_are_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("nll", "message"),
    [
        ([[1], [2], [3], [4]], "1 row has a value"),
        ([[1, 2]] * 4, "all heads have the same effect"),
        ([[math.nan] * 2] * 4, "no row"),
    ],
)
def test_weights_that_cannot_be_fitted_are_refused_in_one_line(nll: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"fit.weights: {message}"):
        settings = ScoreSettings(weight={"out": 1, "ent": 0, "task": 0})
        fit_weights(single(nll), intact([1.0] * len(nll[0])), HEADS, ["out"], settings=settings)
