"""What random ranks would give, held against all orders there are."""

import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest

from headscore.data.options.settings import ScoreSettings
from headscore.score.evidence.null import Null, null_of, ordinal
from headscore.score.ranking import rank


def ranked(signals: dict[str, np.ndarray], k: int, **options: Any) -> Null | None:
    layers, heads = next(iter(signals.values())).shape
    places = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
    settings = ScoreSettings(**options)
    how = {"fusion": settings.fusion, "within": settings.within, "norm_mode": settings.norm_mode}
    frame = pl.DataFrame(places | {name: values.reshape(-1) for name, values in signals.items()})
    return null_of(rank(frame, {name: weight for name, weight in settings.weights.items() if weight}, **how), settings, k)


def random(layers: int, heads: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=(layers, heads)) for name in ("out", "ent", "task")}


@pytest.mark.parametrize("fusion", ["rank", "rrf", "sum"])
@pytest.mark.parametrize("ties", [False, True])
def test_the_distribution_is_that_of_all_orders(fusion: str, ties: bool) -> None:
    """Of one layer of four heads and two signals: 24 orders of the one beside the other."""
    one, other = np.array([0.1, 2.0, 0.7, 5.0]), np.array([1.0, 1.0 if ties else 4.0, 3.0, 9.0])
    null = ranked({"out": one[None], "task": other[None]}, 2, lambda_ent=0, lambda_task=0.7, fusion=fusion)
    assert null

    def combined(order: tuple[int, ...]) -> list[float]:
        frame = pl.DataFrame({"layer": [0] * 4, "head": range(4), "out": one, "task": other[list(order)]})
        return sorted(rank(frame, {"out": 1, "task": 0.7}, fusion=fusion)["combined"].to_list(), reverse=True)  # type: ignore[arg-type]

    exact = np.array([combined(order) for order in itertools.permutations(range(4))])
    error = 4 * exact.std(axis=0) / np.sqrt(null.draws)
    assert abs(null.best.mean - exact[:, 0].mean()) < error[0] and abs(null.kth.mean - exact[:, 1].mean()) < error[1]
    own = combined((0, 1, 2, 3))
    assert null.best.observed == pytest.approx(own[0]) and null.kth.observed == pytest.approx(own[1])
    assert abs(null.best.p - (exact[:, 0] >= own[0] - 1e-9).mean()) < 0.04


def test_it_is_that_of_layers_drawn_whole() -> None:
    """As many layers as need more permutations than are made at once, beside a plain way to draw them."""
    null = ranked(random(40, 16), 20)
    assert null
    generator, ranks = np.random.default_rng(5), np.tile(np.arange(1.0, 17), (40 * 400, 1))
    total = sum(weight * generator.permuted(ranks, axis=1) for weight in (1, 0.5, 1))
    plain = np.sort(total.reshape(400, -1), axis=1)
    for level, values in ((null.best, plain[:, -1]), (null.kth, plain[:, -20])):
        assert abs(level.mean - values.mean()) < 5 * values.std() / 20
        assert abs(level.low - np.quantile(values, 0.05)) <= 0.5 and abs(level.high - np.quantile(values, 0.95)) <= 0.5


@pytest.mark.parametrize("within", ["layer", "model"])
@pytest.mark.parametrize("fusion", ["rank", "rrf", "sum"])
def test_it_says_whether_signals_agree(fusion: str, within: str) -> None:
    found = random(12, 8)
    same = ranked({**found, "ent": found["out"], "task": found["out"]}, 10, fusion=fusion, within=within)
    against = ranked({**found, "ent": -found["out"], "task": -found["out"]}, 10, fusion=fusion, within=within)
    assert same and against
    assert (same.verdict, against.verdict) == ("more", "less")
    assert same.kth.p < 0.05 and against.kth.p > 0.95
    assert "its signals agree more than chance would make them" in same.line and "agree less than" in against.line
    assert " and a 10th of " in same.line


def test_unrelated_signals_agree_no_more_and_no_less() -> None:
    found = [ranked(random(10, 8, seed), 10) for seed in range(60)]
    verdicts = [null.verdict for null in found if null]
    assert verdicts.count("no more") >= 48, "nine in ten"


def test_the_sign_of_a_weight_counts_and_the_same_ranking_has_the_same_null() -> None:
    found = random(12, 8)
    turned = ranked({**found, "ent": -found["out"]}, 10, lambda_task=0, lambda_ent=-1)
    assert (
        turned
        and turned.verdict == "more"
        and turned == ranked({**found, "ent": -found["out"]}, 10, lambda_task=0, lambda_ent=-1)
    )


def test_it_is_the_same_whichever_heads_the_ranks_are_of() -> None:
    one, other = ranked(random(12, 8, 0), 10), ranked(random(12, 8, 1), 10)
    assert one and other
    for a, b in ((one.best, other.best), (one.kth, other.kth)):
        assert (a.mean, a.low, a.high) == (b.mean, b.low, b.high)


def test_one_signal_has_no_null_and_all_heads_no_kth() -> None:
    assert ranked(random(3, 4), 5, lambda_ent=0, lambda_task=0) is None
    null = ranked(random(3, 4), 12)
    assert null and "12th" not in null.line and "a best score of" in null.line
    single = ranked(random(3, 1), 2)
    assert single and single.verdict == "no more" and single.best.p == 1


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 20, 21, 102, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "20th", "21st", "102nd", "111th",
    ]  # fmt: skip
