"""docs/analyses.md: every block runs, in order, and gives what its text says."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny

import headscore

PAGE = (Path(__file__).parent.parent / "docs" / "analyses.md").read_text()


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's blocks leave, run on two caches of a tiny model."""
    folder = tmp_path_factory.mktemp("analyses")
    shutil.copy(tiny.ARC, folder / "arc.jsonl")
    options: dict[str, Any] = {"model": str(llama), "max_samples": 24, "shard_size": 10}
    headscore.capture(folder / "arc-cache", data=str(folder / "arc.jsonl"), keep=["answerKey"], **options)
    headscore.capture(folder / "other-cache", data=str(tiny.LLM_ADAPTERS), **options)
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block.replace("k = 20", "k = 5"), names)
        names["all"] = names["lines"].collect()
    return names


def test_there_are_seven() -> None:
    assert re.findall(r"^## (\d)\. ", PAGE, re.MULTILINE) == list("1234567")


def test_entropy_without_the_sink(made: dict[str, Any]) -> None:
    lines, found = made["all"].filter(layer=1, head=2), made["focused"].filter(layer=1, head=2)
    assert found["ent_free"][0] == pytest.approx(lines["ent_free"].mean())
    assert made["focused"]["rank"].is_sorted() and len(made["focused"]) == 12


def test_by_type(made: dict[str, Any]) -> None:
    """The kept column and the joined file say the same."""
    rows = pl.read_ndjson(tiny.ARC).with_row_index("row").select(pl.col("row").cast(pl.Int64), "answerKey", "question")
    joined = made["all"].join(rows, on="row")
    assert joined["data_answerKey"].to_list() == joined["answerKey"].to_list()
    for answer in joined["answerKey"].unique():
        mean = joined.filter(layer=2, head=0, answerKey=answer)["task"].mean()
        assert made["by_answer"].filter(layer=2, head=0, data_answerKey=answer)["task"][0] == pytest.approx(mean)
    of_kind = joined.filter(pl.col("question").str.starts_with("Wh"), layer=2, head=0)["task"].mean()
    found = made["by_kind"].filter(layer=2, head=0, kind="which, what, why")["task"].to_list()
    assert found == ([] if of_kind is None else [pytest.approx(of_kind)])


def test_overlap(made: dict[str, Any]) -> None:
    assert 0 <= made["shared"] <= 1 and made["by_chance"] == 5 / 12
    assert len(made["one"]) == len(made["other"]) == 5


def test_groups(made: dict[str, Any]) -> None:
    means = made["all"].group_by("layer", "kv_head").agg(pl.col("out").mean())
    for group in made["groups"].to_dicts():
        of_heads = means.filter(layer=group["layer"], kv_head=group["kv_head"])["out"][0]
        assert group["out"] == pytest.approx(of_heads)
    assert made["spread"]["range"].is_sorted(descending=True)


def test_mass_by_length(made: dict[str, Any]) -> None:
    assert made["length"]["correlation"].is_between(-1.001, 1.001).all() and (made["length"]["lift"] >= 0).all()


def test_ones_own_signal(made: dict[str, Any]) -> None:
    own = made["own"].heads.filter(layer=0, head=3)["back"][0]
    by_hand = []
    for sample in headscore_rows(made, 0, 3):
        recent = sample.weights[-10:].sum()
        by_hand.append(sample.weights[sample.spans["question"]].sum() - recent)
    assert own == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert set(made["per_answer"].group_by("data_answerKey").len()["len"]) == {12}
    assert made["always"]["len"].max() <= made["per_answer"]["data_answerKey"].n_unique()


def headscore_rows(made: dict[str, Any], layer: int, head: int) -> Any:
    folder = Path(made["own"].metadata["data"]["path"]).parent
    return headscore.rows(folder / "arc-cache", layer=layer, head=head)


def test_raw_rows(made: dict[str, Any]) -> None:
    samples = made["samples"]
    assert len(samples) == len(made["attended"]) == len(made["half"]) == 24
    lines = made["all"].filter(layer=made["layer"], head=made["number"]).sort("sample")
    assert [sample.row for sample in samples] == lines["row"].to_list()
    assert [float(sample.weights.max()) for sample in samples] == pytest.approx(lines["largest"].to_list())
    assert all(1 <= count <= len(sample.ids) for count, sample in zip(made["half"], samples, strict=True))
