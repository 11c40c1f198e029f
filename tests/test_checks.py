"""What a ranking is to be read with: each line appears where its fault was planted, and none on a clean cache."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_caches import clean, made_cache

import headscore
from headscore.data.options.settings import ScoreSettings
from headscore.score.evidence.checks import checks_of
from headscore.score.ranking import rank
from headscore.score.report.texts import opening

Heads = dict[str, np.ndarray]
BEST = 7  # the level of a layer's first head: four heads, one a layer, are the top
OPTIONS: dict[str, Any] = {"top_k": 4, "bootstrap": 200}


def disagreeing(heads: Heads) -> Heads:
    return {**heads, "out": heads["out"].max() + 5 - heads["out"]}


def below_uniform(heads: Heads) -> Heads:
    return {**heads, "task": heads["task"] / 10}


def following_length(heads: Heads) -> Heads:
    return {**heads, "task": heads["task"] * heads["lengths"] / 12}


def parked(heads: Heads) -> Heads:
    return {
        **heads,
        "sink": np.where(heads["focus"].mean(axis=-1, keepdims=True) > 0.75, 0.55, heads["sink"]),
        "task": heads["task"] * 0.75,
    }


def unstable(heads: Heads) -> Heads:
    noise = np.random.default_rng(1).normal(size=heads["out"].shape)
    return {**heads, "out": 60 + heads["out"] + 8 * noise}


PLANTED: list[tuple[str, Callable[[Heads], Heads], dict[str, Any], str, float]] = [
    ("disagreement", disagreeing, {}, "weighted signals disagree: Spearman within layers out and ", -1.0),
    ("below_uniform", below_uniform, {}, "4 of the top 4 give the question less attention than uniform", 4),
    (
        "length",
        following_length,
        {},
        "4 of the top 4 attend more to the question the longer it is: correlation over samples",
        4,
    ),
    ("ties", lambda heads: heads, {"top_k": 5}, "4 tie at the cut: 1 of them is in the top 5, 3 are not", 4),
    ("first_token", parked, {}, "4 of the top 4 rest on the first token, with more than half of the attention", 4),
    ("samples", unstable, {"lambda_ent": 0, "lambda_task": 0}, "60 samples are few: another 60 would keep ", 0.5),
]


def test_one_head_is_told_of_as_one(tmp_path: Path) -> None:
    scores = headscore.score(made_cache(tmp_path, **parked(clean())), **OPTIONS | {"top_k": 1})
    assert "1 of the top 1 rests on the first token, with more than half of the attention" in scores.told
    alone = dataclasses.replace(scores, checks=[check for check in scores.checks if check.name == "first_token"])
    assert "1 rests on the first token" in opening(alone)


@pytest.mark.parametrize(("name", "plant", "options", "line", "number"), PLANTED, ids=[each[0] for each in PLANTED])
def test_each_line_appears_where_its_fault_is(
    tmp_path: Path, name: str, plant: Callable[[Heads], Heads], options: dict[str, Any], line: str, number: float
) -> None:
    scores = headscore.score(made_cache(tmp_path, **plant(clean())), **{**OPTIONS, **options})
    found = {check.name: check for check in scores.checks}
    if name == "ties":  # which of equal heads are in is decided by chance, too
        found.pop("samples", None)
    assert list(found) == [name]
    assert found[name].line.startswith(line) and found[name].line in scores.told
    assert found[name].number == pytest.approx(number, abs=0.35 if name == "samples" else 0.01)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", [{}, {"fusion": "rrf"}, {"within": "model"}])
def test_none_appears_where_there_is_no_fault(tmp_path: Path, seed: int, options: dict[str, Any]) -> None:
    scores = headscore.score(made_cache(tmp_path, **clean(seed=seed)), **OPTIONS, **options)
    assert [check.name for check in scores.checks if check.name != "ties" or not options] == []
    assert scores.null and scores.null.verdict == "more"


def test_faults_of_what_is_not_ranked_by_are_not_told(tmp_path: Path) -> None:
    heads = below_uniform(following_length(disagreeing(clean())))
    cache = made_cache(tmp_path, **heads)
    assert headscore.score(cache, top_k=4, lambda_task=0, lambda_ent=0).checks == ()
    assert [check.name for check in headscore.score(cache, top_k=4, weight={"out": 0.0}, lambda_ent=0).checks] == [
        "below_uniform",
        "length",
    ]
    turned = headscore.score(cache, top_k=4, weight={"out": -1.0})
    assert "disagreement" not in [check.name for check in turned.checks], "the sign of a weight counts"


class _NoTask:
    """A recipe whose signals are not of the task."""

    task = "question"

    def needs(self, names: list[str]) -> list[str]:
        return []


@pytest.mark.parametrize(("layers", "heads"), [(12, 8), (1, 3), (30, 2), (1, 1)])
def test_signals_that_are_unrelated_do_not_disagree(layers: int, heads: int) -> None:
    for seed in range(150):
        random = np.random.default_rng(seed)
        places = {"layer": np.repeat(np.arange(layers), heads), "head": np.tile(np.arange(heads), layers)}
        signals = {name: random.normal(size=layers * heads) for name in ("out", "ent", "task", "sink")}
        ranked = rank(pl.DataFrame(places | signals), ScoreSettings().weights)
        found = checks_of(ranked.with_columns(sink=pl.lit(0.0)), ScoreSettings(), _NoTask(), 100, 1)  # type: ignore[arg-type]
        assert "disagreement" not in [check.name for check in found], seed


@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
@pytest.mark.parametrize("span", ["question", "choices"])
def test_the_correlation_with_length_is_that_over_all_samples(cache: Path, mode: str, span: str) -> None:
    lines = headscore.scan_cache(cache, task_span=[span], score_query_mode=mode)  # type: ignore[arg-type]
    wanted = lines.group_by("layer", "head").agg(pl.corr("task_mass", "task_tokens")).sort("layer", "head").collect()
    scores = headscore.score(cache, task_span=[span], score_query_mode=mode)
    np.testing.assert_allclose(scores.heads["task_length_r"], wanted["task_mass"], atol=1e-9)
    groups = headscore.score(cache, task_span=[span], score_query_mode=mode, by="kv_head")
    means = wanted["task_mass"].to_numpy().reshape(-1, 2).mean(axis=1)
    np.testing.assert_allclose(groups.heads["task_length_r"], means, atol=1e-9)


def test_without_lengths_that_differ_there_is_no_correlation(tmp_path: Path) -> None:
    scores = headscore.score(made_cache(tmp_path, **{**clean(), "lengths": np.full(60, 8)}))
    assert scores.heads["task_length_r"].null_count() == 32 and "length" not in [check.name for check in scores.checks]


def test_a_signal_that_is_called_like_a_finding_tells_runs_apart(cache: Path, tmp_path: Path) -> None:
    """What was found is left out where runs are compared, in the record alone."""
    options = {"signal": {"checks": "entropy"}, "out": tmp_path / "results"}
    headscore.score(cache, weight={"checks": 1.0}, **options)
    headscore.score(cache, weight={"checks": 1.0}, **options)
    with pytest.raises(headscore.InputError, match="holds another run \\(weight"):
        headscore.score(cache, weight={"checks": 2.0}, **options)
