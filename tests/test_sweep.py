"""A sweep: each of its settings ranks as `score` does, and what cannot be swept is told in one line."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import headscore
from headscore.score.evidence.settings_grid import read_grid
from headscore.score.rank_correlation import spearman

GIVEN = {"fusion": "rank", "norm_mode": "zscore", "within": "layer"}


@pytest.mark.parametrize("options", [{}, {"by": "kv_head", "top_k": 2}, {"within": "model", "norm_mode": "ratio"}])
def test_every_setting_ranks_as_score_does(cache: Path, options: dict[str, Any]) -> None:
    grid = ["ent=-1,0,0.5", "task=0:2:3", "fusion=rank,sum", "sink=0,0.3"]
    found = headscore.sweep(cache, grid=grid, **options)
    given = headscore.score(cache, **options)
    unit, k = given.unit, given.top_k
    assert len(found.settings) == 3 * 3 * 2 * 2 and found.k == k
    times: dict[Any, int] = {}
    for line in found.settings.to_dicts():
        weights = {name.removeprefix("weight_"): value for name, value in line.items() if name.startswith("weight_")}
        ways = {name: line[name] for name in GIVEN}
        own = headscore.score(cache, **{**options, **ways, "weight": weights})
        top = set(own.top(k).select("layer", unit).rows())
        assert line["shared"] == len(top & set(given.top(k).select("layer", unit).rows()))
        assert line["spearman"] == pytest.approx(spearman(own.heads["combined"], given.heads["combined"]))
        for head in top:
            times[head] = times.get(head, 0) + 1
    counted = found.heads.select("layer", unit, "times").rows()
    assert {(layer, head): count for layer, head, count in counted if count} == times
    assert found.heads["rank"].equals(given.heads["rank"])


def test_cutting_a_sweep_into_parts_changes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = headscore.sweep(cache, grid=["ent=-1:1:5", "task=0:1:3"])
    monkeypatch.setattr("headscore.score.evidence.sweep._LINES", 40)
    parts = headscore.sweep(cache, grid=["ent=-1:1:5", "task=0:1:3"])
    assert parts.settings.equals(whole.settings) and parts.heads.equals(whole.heads) and parts.lines == whole.lines


def test_the_best_setting_is_that_of_the_reference(cache: Path, tmp_path: Path) -> None:
    headscore.score(cache, out=tmp_path / "reference", lambda_ent=-1.0, lambda_task=0.5)
    found = headscore.sweep(cache, grid=["ent=-1:1:5", "task=0,0.5,2"], against=tmp_path / "reference", out=tmp_path / "swept")
    assert found.best["weight_ent"] == -1.0 and found.best["weight_task"] == 0.5
    assert found.best["spearman"] == pytest.approx(1) and found.best["shared"] == found.k
    assert any(line.startswith("most like reference: out=1 ent=-1 task=0.5") for line in found.lines)
    written = tmp_path / "swept"
    assert pl.read_parquet(written / "sweep.parquet").equals(found.settings)
    assert (written / "sweep.txt").read_text().splitlines() == found.lines
    assert len((written / "sweep_heads.csv").read_text().splitlines()) == 13
    again = headscore.sweep(cache, grid=["ent=-1:1:5", "task=0,0.5,2"], against=tmp_path / "reference", out=written)
    assert again.settings.equals(found.settings)
    with pytest.raises(headscore.InputError, match="another run"):
        headscore.sweep(cache, grid=["ent=0,1"], out=written)


def test_settings_in_which_nothing_weighs_are_left_out(cache: Path) -> None:
    found = headscore.sweep(cache, grid=["out=0,1", "ent=0", "task=0"])
    assert found.settings["weight_out"].to_list() == [1.0]
    with pytest.raises(headscore.InputError, match="every weight is 0 in every setting"):
        headscore.sweep(cache, grid=["out=0", "ent=0", "task=0"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ent", "expected NAME=FROM:TO:COUNT"),
        ("ent=", "expected NAME=FROM:TO:COUNT"),
        ("ents=0,1", "ents is neither a signal"),
        ("ent=0:1", "expected numbers"),
        ("ent=a,b", "expected numbers"),
        ("ent=0:1:0", "how many weights"),
        ("ent=0:1:999999999", "how many weights"),
        ("ent=nan", "not a finite number"),
        ("ent=1e300", "the weight"),
        ("fusion=mean", "'mean' is not one of rank, rrf, sum"),
        ("fusion=rank,", "'' is not one of"),
    ],
)
def test_grids_that_cannot_be_are_told(text: str, told: str) -> None:
    with pytest.raises(headscore.InputError, match=told) as error:
        read_grid([text], ["out", "ent", "task"], GIVEN)
    assert "\n" not in str(error.value) and text in str(error.value)


def test_a_name_has_one_axis_and_the_grid_an_end() -> None:
    with pytest.raises(headscore.InputError, match="has an axis already"):
        read_grid(["ent=0,1", "ent=2"], ["ent"], GIVEN)
    with pytest.raises(headscore.InputError, match="more than 100000"):
        read_grid(["ent=0:1:1000", "task=0:1:1000"], ["ent", "task"], GIVEN)


def test_weights_of_a_grid_are_those_that_were_meant() -> None:
    grid = read_grid(["ent=0:2:21", "task=1,-1,1", "norm-mode=ratio,none"], ["ent", "task"], GIVEN)
    assert grid.weights["ent"][:4] == (0.0, 0.1, 0.2, 0.3) and len(grid.weights["ent"]) == 21
    assert grid.weights["task"] == (-1.0, 1.0) and grid.choices["norm_mode"] == ("ratio", "none")
    assert len(grid.combinations()) == 42 and len(grid.ways()) == 2


def test_the_map_has_the_best_of_each_two_weights(cache: Path) -> None:
    pytest.importorskip("altair")
    found = headscore.sweep(cache, grid=["ent=-1:1:3", "task=0:1:2", "fusion=rank,sum"])
    spec = headscore.sweep_map(found.settings).to_dict()
    expected = found.settings.group_by("weight_ent", "weight_task").agg(pl.col("spearman").max())
    shown = {(line["weight_ent"], line["weight_task"]): line["spearman"] for line in spec["datasets"][spec["data"]["name"]]}
    assert shown == {(ent, task): value for ent, task, value in expected.rows()}
    with pytest.raises(headscore.InputError, match="needs the weights of two signals; those with several are ent"):
        headscore.sweep_map(headscore.sweep(cache, grid=["ent=0,1"]).settings)
    with pytest.raises(headscore.InputError, match="not of a sweep"):
        headscore.sweep_map(headscore.score(cache).heads)
