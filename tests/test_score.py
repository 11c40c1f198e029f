import copy
import itertools
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import reference
import yaml
from eager import SIGNALS, EagerModel, eager_means
from made_caches import BY_HAND, write_cache

import headscore
from headscore.data.cache import folder as cache_format
from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard
from headscore.data.cache.shard import write_shard
from headscore.data.errors import InputError

# ------------------------------------------------------------------------------------------------------- hand-made caches


def test_scores_equal_fractions_worked_by_hand(tmp_path: Path) -> None:
    scores = headscore.score(write_cache(tmp_path, **BY_HAND))
    ln2 = math.log(2)
    # head 0: rows (1/2 1/4 1/4 0) and (1 0); head 1: uniform over 4 and over 2
    assert scores.raw["out_raw"].to_list() == [2.0, 3.0]
    assert scores.raw["ent_raw"].to_list() == pytest.approx([-1.5 * ln2 / 2, -(2 * ln2 + ln2) / 2], abs=1e-6)
    assert scores.raw["task_raw"].to_list() == [(0.5 + 1) / 2, (0.5 + 0.5) / 2]
    assert scores.norm["out_z"].to_list() == [-1, 1] and scores.norm["task_z"].to_list() == [1, -1]
    assert scores.combined["combined"].to_list() == [1 + 0.5 * 2 + 1 * 2, 2 + 0.5 * 1 + 1 * 1]
    assert scores.topk_global.to_dicts() == [
        {"layer": 0, "head": 0, "combined": 4.0, "rank": 1},
        {"layer": 0, "head": 1, "combined": 3.5, "rank": 2},
    ]
    assert scores.samples == 2


def test_spans_head_output_and_query_mode_choose_their_arrays(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    task = headscore.score(cache, task_span="choices").raw["task_raw"].to_list()
    assert task == [(0 + 1) / 2, (0.25 + 0.5) / 2]
    union = headscore.score(cache, task_span=["choices", "question"]).raw["task_raw"].to_list()
    assert union == [(0.5 + 1) / 2, (0.75 + 0.5) / 2], "a token in both spans counts once"
    assert headscore.score(cache, task_span=["template"]).raw["task_raw"].to_list() == [0, 0], "an empty span has mass 0"
    assert headscore.score(cache, head_output="result").raw["out_raw"].to_list() == [20, 30]
    mean = headscore.score(cache, score_query_mode="all_tokens").raw
    assert mean["out_raw"].to_list() == [3, 4]
    assert mean["ent_raw"].to_list() == [-5, -6]
    assert mean["task_raw"].to_list() == [0.5, 0.75]
    both = headscore.score(cache, score_query_mode="all_tokens", head_output="result").raw
    assert both["out_raw"].to_list() == [4, 5]


def test_equal_heads_tie_and_are_ordered_by_layer_and_head(tmp_path: Path) -> None:
    rows = np.full((3, 4, 6), [1 / 4] * 4 + [1 / 2] * 2)
    scores = headscore.score(write_cache(tmp_path, rows, np.full((3, 4, 2), 0.1), [1] * 6, [4, 2]), top_k_per_layer=2)
    assert set(scores.combined["combined"]) == {2.5 * 2.5}
    assert not scores.norm.select("out_z", "ent_z", "task_z").to_numpy().any(), "a constant layer has z-score 0"
    order = [(row["layer"], row["head"], row["rank"]) for row in scores.topk_global.to_dicts()]
    assert order == [(layer, head, 4 * layer + head + 1) for layer in range(3) for head in range(4)]
    assert scores.topk_per_layer.rows() == [(layer, head, 6.25, head + 1) for layer in range(3) for head in range(2)]


# ------------------------------------------------------------------------------------------------- against eager attention


@pytest.mark.parametrize(
    ("query_mode", "head_output", "spans", "norm_mode", "lambdas"),
    [
        ("last_token", "z", ["question"], "zscore", (0.5, 1.0)),
        ("last_token", "result", ["question", "choices"], "percentile", (0.0, 2.5)),
        ("all_tokens", "z", ["choices"], "zscore", (1.0, 0.3)),
        ("all_tokens", "result", ["template"], "percentile", (0.5, 1.0)),
    ],
)
def test_every_result_file_equals_a_numpy_computation_from_eager_tensors(
    cache: Path,
    llama_eager: EagerModel,
    tmp_path: Path,
    query_mode: str,
    head_output: str,
    spans: list[str],
    norm_mode: str,
    lambdas: tuple[float, float],
) -> None:
    options = {"score_query_mode": query_mode, "head_output": head_output, "task_span": spans, "norm_mode": norm_mode}
    headscore.score(cache, tmp_path, lambda_ent=lambdas[0], lambda_task=lambdas[1], top_k=5, top_k_per_layer=2, **options)
    raw = eager_means(cache, llama_eager, query_mode, head_output, spans)
    expected = reference.ranking(raw, {"out": 1.0, "ent": lambdas[0], "task": lambdas[1]}, norm_mode)

    def column(file: str, name: str) -> np.ndarray:
        frame = pl.read_csv(tmp_path / file)
        assert frame.select("layer", "head").rows() == list(itertools.product(range(3), range(4)))
        return frame[name].to_numpy().reshape(3, 4)

    for name in SIGNALS:
        np.testing.assert_allclose(column("scores_raw.csv", f"{name}_raw"), raw[name], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(column("scores_norm.csv", f"{name}_z"), expected["norm"][name], atol=2e-2)
    np.testing.assert_allclose(column("scores_combined.csv", "combined"), expected["combined"])
    top = json.loads((tmp_path / "topk_global.json").read_text())
    assert [(head["layer"], head["head"]) for head in top] == expected["order"][:5]
    assert [head["rank"] for head in top] == [1, 2, 3, 4, 5]
    assert [head["combined"] for head in top] == pytest.approx([expected["combined"][lh] for lh in expected["order"][:5]])
    per_layer = json.loads((tmp_path / "topk_per_layer.json").read_text())
    wanted = [lh for layer in range(3) for lh in [lh for lh in expected["order"] if lh[0] == layer][:2]]
    assert [(head["layer"], head["head"]) for head in per_layer] == wanted
    assert [head["rank"] for head in per_layer] == [1, 2] * 3


# ---------------------------------------------------------------------------------------------------------------- outputs


def test_nothing_is_written_unless_told_where(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = ("cache.json", "skipped.jsonl", "shards")
    before = {path: path.stat().st_mtime_ns for part in parts for path in [cache / part, *(cache / part).rglob("*")]}
    headscore.score(cache)
    assert not list(tmp_path.iterdir())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in cache.iterdir()} <= {*parts, "derived"}


def test_the_result_files_and_a_config_that_repeats_the_run(cache: Path, tmp_path: Path) -> None:
    headscore.score(cache, tmp_path / "one", lambda_ent=0.1, task_span=["choices", "question"], norm_mode="percentile")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "config.yaml",
        "heads.csv",
        "heads.parquet",
        "run.log",
        "scores_combined.csv",
        "scores_norm.csv",
        "scores_raw.csv",
        "topk_global.json",
        "topk_per_layer.json",
    ]
    config = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    record = config.pop("record")
    assert record["model"]["fingerprint"] and record["data"]["sha256"] and record["settings"]["seed"] == 7
    again = config.pop("cache")
    headscore.score(again, tmp_path / "two", **config)
    for name in set(names) - {"run.log"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert "12 heads from 24 samples" in (tmp_path / "one" / "run.log").read_text()


@pytest.mark.parametrize("options", [{}, {"by": "kv_head", "signal": {"gone": "NULLIF(entropy, entropy)"}}])
def test_files_keep_full_precision(cache: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    scores = headscore.score(cache, tmp_path / "r", **options)
    assert pl.read_csv(tmp_path / "r" / "scores_raw.csv", schema=scores.raw.schema).equals(scores.raw)
    assert pl.read_csv(tmp_path / "r" / "heads.csv", schema=scores.heads.schema).equals(scores.heads)
    assert pl.read_parquet(tmp_path / "r" / "heads.parquet").equals(scores.heads)


def test_the_seeds_files_are_as_they_were(cache: Path, tmp_path: Path) -> None:
    headscore.score(cache, tmp_path / "r", weight={"lift": 2}, fusion="rrf", within="model")
    columns = {name: pl.read_csv(tmp_path / "r" / f"scores_{name}.csv").columns for name in ("raw", "norm", "combined")}
    assert columns == {
        "raw": ["layer", "head", "out_raw", "ent_raw", "task_raw"],
        "norm": ["layer", "head", "out_z", "ent_z", "task_z"],
        "combined": ["layer", "head", "combined"],
    }
    for name in ("topk_global", "topk_per_layer"):
        heads = json.loads((tmp_path / "r" / f"{name}.json").read_text())
        assert all(list(head) == ["layer", "head", "combined", "rank"] for head in heads)


# ------------------------------------------------------------------------------------------------------------- the object


def test_scores_are_equal_where_heads_and_settings_are(cache: Path, last_token_cache: Path) -> None:
    one, same = headscore.score(cache), headscore.score(cache, workers=2)
    assert one == same
    others = [
        headscore.score(cache, lambda_task=2),
        headscore.score(cache, top_k=3),
        headscore.score(cache, signal={"mine": "sink"}),
        headscore.score(cache, signal={"mine": pl.col("rest")}),
        headscore.score(cache, fusion="sum"),
        headscore.score(last_token_cache),
        headscore.score(open_cache(cache).shards[0]),
    ]
    for other in (*others, None, 3, "x", one.heads.to_dicts()):
        assert one != other
    assert one in [*others, same] and one not in others
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


@pytest.mark.parametrize("signal", [{}, {"mine": "sink"}, {"mine": pl.col("sink") * 2}])
def test_scores_can_be_sent_elsewhere(cache: Path, signal: dict[str, Any]) -> None:
    scores = headscore.score(cache, signal=signal, by="kv_head")
    again = pickle.loads(pickle.dumps(scores))
    assert again == scores and copy.deepcopy(scores) == scores
    assert again.topk_global.equals(scores.topk_global)


def test_scores_show_their_top(cache: Path) -> None:
    scores = headscore.score(cache, weight={"lift": 0.5})
    assert repr(scores).startswith("12 heads, 24 samples\nshape: (12, 4)")
    shown = scores._repr_html_()
    first = scores.top(1).to_dicts()[0]
    assert f"<td>L{first['layer']}H{first['head']}</td><td>{first['combined']:.2f}</td>" in shown
    assert shown.count("<tr>") == 11 and "<th>lift</th>" in shown and "<th>sink</th>" not in shown
    groups = headscore.score(cache, by="kv_head")
    assert groups.topk_global.columns == ["layer", "kv_head", "combined", "rank"]
    assert "<td>L0G1</td>" in groups._repr_html_() and "6 groups of heads, 24 samples" in groups._repr_html_()
    assert repr(groups).startswith("6 groups of heads, 24 samples")


def test_what_a_cache_calls_its_model_is_not_run_in_a_notebook(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    made = json.loads((cache / "cache.json").read_text())
    shard = cache_format.shard_path(cache, 0)
    with Shard(shard) as opened:
        arrays = {name: opened.read(name) for name in opened.names}
    made["model"]["name"] = "<script>alert(1)</script>&"
    cache_format.write_metadata(cache, made, keep_existing=False)
    write_shard(shard, 0, arrays, made, [])
    shown = headscore.score(cache)._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown


def test_the_top_of_all_and_of_each_layer(cache: Path) -> None:
    scores = headscore.score(cache, top_k=5, top_k_per_layer=2)
    for n in range(1, 13):
        assert scores.top(n).equals(scores.heads.sort("rank").head(n))
    for n in range(1, 5):
        wanted = [scores.heads.filter(layer=layer).sort("rank").head(n) for layer in range(3)]
        assert scores.top(n, per="layer").equals(pl.concat(wanted))
    assert scores.top().height == 5 and scores.top(per="layer").height == 6
    assert scores.topk_global.equals(scores.top().select("layer", "head", "combined", "rank"))
    for wrong in ({"n": 0}, {"n": 13}, {"n": -1}, {"n": 5, "per": "layer"}):
        with pytest.raises(InputError, match=r"top: n=-?\d+ is not between 1 and the (12|4) heads there are"):
            scores.top(**wrong)
    with pytest.raises(InputError, match="top: per='head' is not 'layer' or None"):
        scores.top(per="head")


def test_ties_share_a_rank(tmp_path: Path) -> None:
    rows = np.full((2, 4, 6), [1 / 4] * 4 + [1 / 2] * 2)
    out = np.array([[[1.0, 1], [2, 2], [2, 2], [3, 3]]] * 2)
    scores = headscore.score(write_cache(tmp_path, rows, out, [1] * 6, [4, 2]))
    assert scores.heads["combined"].to_list() == [4.75, 6.25, 6.25, 7.75] * 2
    assert scores.heads["tied_rank"].to_list() == [7, 3, 3, 1] * 2
    assert scores.heads["rank"].to_list() == [7, 3, 4, 1, 8, 5, 6, 2]
    assert scores.heads["layer_rank"].to_list() == [4, 2, 3, 1] * 2
    assert "<td>3=</td><td>L0H1</td>" in scores._repr_html_()


def test_another_run_is_not_overwritten_unless_told(cache: Path, tmp_path: Path) -> None:
    headscore.score(cache, tmp_path, lambda_ent=0.1)
    headscore.score(cache, tmp_path, lambda_ent=0.1)  # the same run again
    before = (tmp_path / "scores_combined.csv").read_bytes()
    with pytest.raises(InputError, match=r"holds another run \(lambda_ent differ\)"):
        headscore.score(cache, tmp_path, lambda_ent=2.0)
    assert (tmp_path / "scores_combined.csv").read_bytes() == before
    headscore.score(cache, tmp_path, lambda_ent=2.0, overwrite=True)
    assert (tmp_path / "scores_combined.csv").read_bytes() != before


def test_what_a_cache_cannot_give_is_refused(cache: Path, last_token_cache: Path) -> None:
    with pytest.raises(InputError, match="has no span 'context'; it has question, choices, template, special"):
        headscore.score(cache, task_span=["context"])
    with pytest.raises(InputError, match="was captured with queries='last_token'"):
        headscore.score(last_token_cache, score_query_mode="all_tokens")
    with pytest.raises(InputError, match="top_k: 13 is more than the 12 heads"):
        headscore.score(cache, top_k=13)
    with pytest.raises(InputError, match="top_k_per_layer: 5 is more than the 4 heads"):
        headscore.score(cache, top_k_per_layer=5)


def test_an_incomplete_cache_says_what_is_missing(cache: Path, tmp_path: Path) -> None:
    made = json.loads((cache / "cache.json").read_text())
    cache_format.write_metadata(tmp_path, made, keep_existing=False)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00001.h5").write_bytes(open_cache(cache).shards[1].read_bytes())
    with pytest.raises(InputError, match="2 of 3 shards are missing; run the same `headscore capture` command again"):
        headscore.score(tmp_path)
    assert headscore.inspect(tmp_path)["shards"] == {"there": 1, "planned": 3, "missing": "0, 2"}


def test_scoring_runs_where_torch_is_not_installed(cache: Path, tmp_path: Path) -> None:
    """A Python that cannot import torch or transformers scores, scans and inspects all the same."""
    program = (
        "import sys\n"
        "sys.modules.update(torch=None, transformers=None, accelerate=None, tokenizers=None)\n"
        "import headscore\n"
        "from headscore.cli import main\n"
        "headscore.scan_cache(sys.argv[1]).select('out').collect()\n"
        "headscore.inspect(sys.argv[1], verify=True)\n"
        "sys.argv = ['headscore', 'score', sys.argv[1], '--out', sys.argv[2], '--lambda_ent', '0.25']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(cache), str(tmp_path / "r")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "topk_global.json").exists()
