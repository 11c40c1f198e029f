"""How stable a ranking is: `score --bootstrap`."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from made_caches import clean, made_cache
from polars.testing import assert_frame_equal

import headscore
from headscore import cli
from headscore.data.cache.folder import open_cache
from headscore.data.errors import InputError
from headscore.data.options.settings import BootstrapSettings, ScoreSettings
from headscore.score.evidence.bootstrap import sample_weights
from headscore.score.recipe import choose_recipe

COLUMNS = ["low", "high", "rank_low", "rank_high", "p_top"]
ENDS = [f"{name}_rank_{end}" for name in ("out", "ent", "task") for end in ("low", "high")]


def noisy(count: int = 40) -> dict[str, np.ndarray]:
    heads = clean(count=count)
    noise = np.random.default_rng(9).normal(size=heads["out"].shape)
    return {**heads, "out": 30 + heads["out"] + 4 * noise}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subjects = ["a", "b", "b", "c"] * 10
    keep = {
        "subject": subjects,
        "passage": [f"{subject}{row // 8}" for row, subject in enumerate(subjects)],
        "gap": [None, 1] * 20,
    }
    return made_cache(tmp_path_factory.mktemp("made"), **noisy(), keep=keep, kv_heads=4)


@pytest.mark.parametrize("fusion", ["rank", "rrf", "sum"])
@pytest.mark.parametrize(("by", "within"), [("head", "layer"), ("kv_head", "layer"), ("head", "model")])
def test_what_becomes_of_each_head(made: Path, fusion: Any, by: Any, within: Any) -> None:
    options = {"fusion": fusion, "by": by, "within": within, "top_k": 5}
    scores = headscore.score(made, bootstrap=150, **options)
    heads, plain = scores.heads, headscore.score(made, **options).heads
    assert heads.columns == [*plain.columns, *COLUMNS, *ENDS] and heads.select(plain.columns).equals(plain)
    assert heads["p_top"].sum() == pytest.approx(5) and heads["p_top"].is_between(0, 1).all()
    assert (heads["low"] <= heads["high"]).all() and (heads["rank_low"] <= heads["rank_high"]).all()
    assert heads["rank_low"].min() == 1 and heads["rank_high"].max() == len(heads)
    for name in ("out", "ent", "task"):
        assert (heads[f"{name}_rank_low"] <= heads[f"{name}_rank"]).all()
        assert (heads[f"{name}_rank"] <= heads[f"{name}_rank_high"]).all()
    assert scores.signals == headscore.score(made, **options).signals
    assert headscore.score(made, bootstrap=150, **options).heads.equals(heads), "the same seed, the same values"


def test_what_is_certain_is_certain_and_a_coin_toss_one(tmp_path: Path) -> None:
    """Two heads of a layer whose strength is drawn from the same values are in the top one half of the time each."""
    heads = clean(layers=1)
    order = heads["task"].mean(axis=-1)[0].argsort()
    random = np.random.default_rng(0)
    heads["out"][0] = 1.0
    heads["out"][0, order[-2:]] = 50 + random.normal(size=(2, 60))
    heads["out"][0, order[-1]] += heads["out"][0, order[-2]].mean() - heads["out"][0, order[-1]].mean()
    cache = made_cache(tmp_path, **heads)
    options = {"lambda_ent": 0, "lambda_task": 0, "fusion": "sum", "bootstrap": 2000}
    found = headscore.score(cache, top_k=2, **options)
    assert found.heads["p_top"].to_numpy()[order].tolist() == [0.0] * 6 + [1.0] * 2
    assert "another 60 samples would keep 2.0 of the top 2 heads" in found.told[0] and "coin toss" not in found.told[0]
    found = headscore.score(cache, top_k=1, **options)
    assert found.heads["p_top"].to_numpy()[order[-2:]] == pytest.approx([0.5, 0.5], abs=0.05)
    assert found.told[-1].startswith("stability: another 60 samples would keep 0.5 of the top 1 heads; for 2 it is a coin toss")
    assert any(re.match(r"60 samples are few: another 60 would keep (4|5)\d% of the top 1", line) for line in found.told)


def test_how_samples_lie_in_shards_changes_nothing(tmp_path: Path) -> None:
    subjects = np.random.default_rng(3).integers(0, 3, 40).tolist()
    splits: list[list[list[int]] | None] = [None, [list(range(9)), list(range(9, 40))], [[*range(20, 40)], [*range(20)]]]
    caches = [
        made_cache(tmp_path / str(number), **noisy(), shards=split, keep={"subject": subjects})
        for number, split in enumerate(splits)
    ]
    for options in ({}, {"strata": "subject"}, {"cluster": "subject"}):
        one, *others = [headscore.score(cache, bootstrap=100, **options).heads for cache in caches]
        for other in others:
            assert_frame_equal(one, other, rel_tol=1e-9)
    assert not headscore.score(caches[0], bootstrap=100, strata="subject").heads.equals(one)


def test_rows_that_are_alike_within_clusters_are_worth_fewer(tmp_path: Path) -> None:
    """The same row eight times over is one row."""
    few = noisy(12)
    many = {name: np.repeat(values, 8, axis=-1) for name, values in few.items()}
    cache = made_cache(tmp_path / "many", **many, keep={"passage": np.repeat(np.arange(12), 8).tolist()})
    once = headscore.score(made_cache(tmp_path / "few", **few), bootstrap=400).heads
    together = headscore.score(cache, bootstrap=400, cluster="passage").heads
    apart = headscore.score(cache, bootstrap=400).heads
    np.testing.assert_allclose(together["p_top"], once["p_top"], atol=1e-9)
    np.testing.assert_allclose(together.select(ENDS), once.select(ENDS))
    width = [(heads["rank_high"] - heads["rank_low"]).mean() for heads in (apart, together)]
    assert width[0] < width[1]  # type: ignore[operator]


@pytest.mark.parametrize(("errors", "apart"), [(0.85, False), (1.15, True)])
def test_two_heads_are_told_apart_where_a_paired_t_test_does(tmp_path: Path, errors: float, apart: bool) -> None:
    """Alone in their layer, at 95 %, by the error of the samples that there are."""
    heads = {name: values[:, :2] for name, values in clean(layers=1).items() if name != "lengths"}
    noise = np.random.default_rng(5).normal(size=60)
    least = 2.001 * noise.std(ddof=1) / np.sqrt(60)  # Student's 97.5 % quantile of 59 degrees of freedom
    heads["out"] = np.stack([np.full(60, 50.0), 50 + noise - noise.mean() + errors * least])[None]
    cache = made_cache(tmp_path, **heads, lengths=clean(layers=1)["lengths"])
    found = headscore.score(cache, bootstrap=2000, lambda_ent=0, lambda_task=0, top_k=1).heads
    ends = found.select("out_rank_low", "out_rank_high").rows()
    assert ends == ([(1, 1), (2, 2)] if apart else [(1, 2), (1, 2)])


@pytest.mark.parametrize("strata", [None, "subject"])
@pytest.mark.parametrize("cluster", [None, "passage"])
def test_degrees_of_freedom_are_the_directions_in_which_draws_differ(made: Path, strata: Any, cluster: Any) -> None:
    cache = open_cache(made)
    recipe = choose_recipe(cache, ScoreSettings(), partial=False)
    drawn = sample_weights(cache, recipe, None, BootstrapSettings(bootstrap=200, strata=strata, cluster=cluster))
    assert drawn.degrees == np.linalg.matrix_rank(drawn.weights - 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strata": "topic"},
            "strata topic: .* keeps no such column \\(it keeps gap, passage, subject\\); capture it with keep",
        ),
        ({"cluster": "gap"}, "cluster gap: is null for row 0"),
        ({"strata": "passage", "cluster": "subject"}, "cluster: 'a' has samples in more than one of strata"),
        ({"bootstrap": 20}, "bootstrap: 20 is not between 100 and 1000000"),
        ({"bootstrap": 900_000}, "bootstrap: 900000 replicates of 3 signals do not fit in memory; at most 699050 do"),
        ({"bootstrap": None, "strata": "subject"}, "strata and cluster: belong to the bootstrap; give bootstrap, too"),
    ],
)
def test_what_cannot_be_drawn_is_refused(made: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        headscore.score(made, **{"bootstrap": 100, **options})
    headscore.score(made, bootstrap=100, strata="subject", cluster="passage")


def test_intervals_that_would_take_too_long_are_left_out(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscore.score.evidence.rank_intervals.MAX_WORK", 4 * 28 * 100)
    assert headscore.score(made, bootstrap=100).heads.select(ENDS).null_count().sum_horizontal().item() == 0
    heads = headscore.score(made, bootstrap=101).heads
    assert heads.select(ENDS).null_count().sum_horizontal().item() == 6 * 32 and heads["p_top"].null_count() == 0


def test_results_hold_it_and_a_config_repeats_it(made: Path, tmp_path: Path) -> None:
    options = {"bootstrap": 120, "strata": "subject", "cluster": "passage"}
    scores = headscore.score(made, tmp_path / "one", **options)
    headscore.score(made, tmp_path / "plain")
    config = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    record = config.pop("record")
    assert {name: config[name] for name in options} == options
    assert scores.null and record["null"] == scores.null.record() and record["null"]["best"]["p"] <= 1
    assert record.get("checks", {}) == {check.name: check.line for check in scores.checks}
    headscore.score(config.pop("cache"), tmp_path / "two", **config)
    for path in (tmp_path / "one").iterdir():
        same = path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        assert same or path.name == "run.log", path.name
        as_plain = path.read_bytes() == (tmp_path / "plain" / path.name).read_bytes()
        assert as_plain == (path.name not in ("heads.csv", "heads.parquet", "config.yaml", "run.log")), path.name
    assert scores.signals == headscore.score(made).signals
    assert pl.read_csv(tmp_path / "one" / "heads.csv", schema=scores.heads.schema).equals(scores.heads)


def test_the_terminal_tells_it_unless_it_is_to_be_quiet(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = {}
    for quiet, bootstrap in itertools.product((False, True), repeat=2):
        words = ["headscore", "score", str(made), "--top-k", "5", *["--quiet"] * quiet, *["--bootstrap", "100"] * bootstrap]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0
        printed[quiet, bootstrap] = capsys.readouterr().out.splitlines()
    scores = headscore.score(made, top_k=5, bootstrap=100)
    table, told = printed[False, True][:6], printed[False, True][7:-2]
    assert told == scores.told and told[-1].startswith("random ranks of these signals would give a best score of ")
    assert printed[True, True] == [*table, "", printed[False, True][-1]]
    assert printed[True, False][0].split() == ["rank", "head", "combined", "out", "ent", "task"]
    assert table[0].split() == ["rank", "head", "combined", "ranks", "p_top", "out", "ent", "task"]
    for line, head in zip(table[1:], scores.top().to_dicts(), strict=True):
        tossed = "?" if 0.25 <= head["p_top"] <= 0.75 else ""
        assert line.split()[3:5] == [f"{head['rank_low']}-{head['rank_high']}", f"{head['p_top']:.2f}{tossed}"]
    assert len(printed[False, False]) == len(headscore.score(made, top_k=5).told) + 6 + 3


def test_a_users_signal_cannot_be_called_like_a_column_of_it(made: Path) -> None:
    for name in (*COLUMNS, "task_length_r", "out_rank_low", "sink_rank_high"):
        with pytest.raises(InputError, match=r"results have another column|there is a"):
            headscore.score(made, signal={name: "sink"})
