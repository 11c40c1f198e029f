"""docs/use-your-ranking.md: its five recipes run, one after the other, and every format is in its table."""

import inspect
import json
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from exported import loaded, logits, step

import headscore
from headscore.data.options.export_settings import ExportFormat, ImportFormat
from headscore.score import verdicts

PAGE = (Path(__file__).parent.parent / "docs" / "use-your-ranking.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


class RestatedPress:
    """What DuoAttentionPress of kvpress 0.5.2 does with a pattern, where kvpress is not installed."""

    def __init__(self, head_compression_ratio: float):
        self.head_compression_ratio = head_compression_ratio

    def post_init_from_model(self, model: Any) -> None:
        self.sink_size, self.recent_size, scores = self.load_attention_pattern(model)  # type: ignore[attr-defined]
        streaming = np.argsort(scores, axis=None)[: round(scores.size * self.head_compression_ratio)]
        self.streaming_mask = torch.zeros(scores.shape, dtype=torch.bool)
        self.streaming_mask[np.unravel_index(streaming, scores.shape)] = True


@pytest.fixture
def folder(ranked: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `results`, in which the recipes run."""
    shutil.copytree(ranked[1], tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(number: int, model: Path) -> dict[str, Any]:
    """The names that a recipe leaves."""
    names: dict[str, Any] = {"model": loaded(model), "train": step, "headscore": headscore}
    exec(BLOCKS[number - 1], names)
    return names


def test_there_are_five() -> None:
    assert re.findall(r"^## (\d)\. ", PAGE, re.MULTILINE) == list("12345") and len(BLOCKS) == 5
    assert PAGE.count("**What it is worth.**") == 5


def test_every_format_is_in_the_table() -> None:
    for name in get_args(ExportFormat):
        assert re.search(rf"^\| .*`{name}`.* \| ", PAGE, re.MULTILINE), name
    for name in get_args(ImportFormat):
        assert f"`{name}`" in PAGE.split("## Lists that others have published")[1]


def test_the_words_of_validate_are_its_own() -> None:
    source = " ".join(inspect.getsource(verdicts).split())
    for words in ("the model needs these heads more than others of their layers", "no better than chance"):
        assert words in source and words in " ".join(PAGE.split())


@pytest.mark.parametrize(("number", "saved"), [(1, "lora-of-heads"), (2, "shira-of-heads")])
def test_adapters_are_saved_that_load(ranked: tuple[Path, Path], folder: Path, number: int, saved: str) -> None:
    peft = pytest.importorskip("peft")
    trained = run(number, ranked[0])["adapted"]
    again = peft.PeftModel.from_pretrained(loaded(ranked[0]), folder / saved)
    assert torch.equal(logits(again), logits(trained)) and not torch.equal(logits(again), logits(loaded(ranked[0])))


def test_a_press_takes_the_pattern(ranked: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By kvpress where it is installed, else by its lines restated."""
    try:
        import kvpress  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType("kvpress")
        stand_in.DuoAttentionPress = RestatedPress  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "kvpress", stand_in)
    names = run(3, ranked[0])
    press = names["press"]
    press.post_init_from_model(names["model"])
    groups = headscore.export("results", "groups.csv", format="csv", by="kv_head").heads
    assert (press.sink_size, press.recent_size) == (128, 256)
    assert {tuple(pair) for pair in torch.nonzero(press.streaming_mask).tolist()} == set(groups[len(groups) // 2 :])


def test_kvpress_own_loader_takes_the_pattern(ranked: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the download replaced. That it runs, too, needs transformers of another time: 0.5.2 asks for what 5.23 lacks."""
    module = pytest.importorskip("kvpress.presses.duo_attention_press", reason="kvpress is not installed")
    headscore.export("results", "duo", format="duo", sink_size=2, recent_size=4)
    model = loaded(ranked[0])
    config = json.loads((folder / "duo" / "config.json").read_text())
    text = (folder / "duo" / "full_attention_heads.tsv").read_text()
    answer = types.SimpleNamespace(text=text, json=lambda: config)
    monkeypatch.setattr(module, "requests", types.SimpleNamespace(get=lambda url: answer))
    monkeypatch.setitem(module.PATTERNS_DICT, model.config.name_or_path, "own")
    press = module.DuoAttentionPress(head_compression_ratio=0.5)
    press.post_init_from_model(model)
    groups = headscore.export("results", "groups.csv", format="csv", by="kv_head").heads
    assert (press.sink_size, press.recent_size) == (2, 4)
    assert {tuple(pair) for pair in torch.nonzero(press.streaming_mask).tolist()} == set(groups[len(groups) // 2 :])


def test_a_pruned_checkpoint_is_the_ablated_model(ranked: tuple[Path, Path], folder: Path) -> None:
    names = run(4, ranked[0])
    with headscore.ablated(names["model"], headscore.export("results", "x.csv", format="csv", top_k=3).heads):
        assert torch.equal(logits(names["pruned"].eval()), logits(names["model"]))


def test_a_list_and_its_card(ranked: tuple[Path, Path], folder: Path) -> None:
    run(5, ranked[0])
    assert (folder / "heads.csv.headscore.json").is_file() and (folder / "results" / "README.md").read_text().startswith(
        "---\n"
    )
