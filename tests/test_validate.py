"""`headscore validate` from a ranking to a verdict, on tiny models."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from eager import output_projections

import headscore
from headscore.capture.set_runs import set_key
from headscore.score.results import read_results

FEW: dict[str, Any] = {"k": ["2", "25%"], "draws": 4, "max_samples": 10, "bootstrap": 200}
ONE_BY_ONE: dict[str, Any] = {**FEW, "batch_tokens": 100}  # so few that no two sets are run together


@pytest.fixture(scope="module")
def decisive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which layer 1's head 2 writes far more than all others, saved as a user would have it."""
    model = tiny.build(tiny.CONFIGS["llama"]())
    with torch.no_grad():
        for layer, projection in enumerate(output_projections(model)):
            projection.weight *= 0.05
            if layer == 1:
                projection.weight[:, 16:24] *= 400
    return tiny.save(model, tmp_path_factory.mktemp("decisive"))


@pytest.fixture(scope="module")
def results(decisive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranking by 24 of the 120 shipped questions."""
    folder = tmp_path_factory.mktemp("validate")
    headscore.capture(folder / "c", model=str(decisive), max_samples=24, queries="all_tokens")
    headscore.score(folder / "c", folder / "r", head_output="result")
    return folder / "r"


@pytest.fixture(scope="module")
def validated(results: Path) -> tuple[Path, headscore.Validation]:
    out = results.parent / "v"
    options = {**FEW, "signal": ["out"], "single": True, "gate_gradient": True, "fit_weights": True}
    return out, headscore.validate(results, out, **options)


def test_the_files_are_those_that_the_result_holds(validated: tuple[Path, headscore.Validation]) -> None:
    out, found = validated
    assert pl.read_parquet(out / "outcomes.parquet").equals(found.measured.outcomes)
    assert pl.read_parquet(out / "effects.parquet").equals(found.effects)
    assert (out / "verdicts.txt").read_text().splitlines() == found.verdicts
    assert pl.read_csv(out / "validation.csv")["top"].to_list() == found.table["top"].to_list()
    facts = json.loads((out / "validation.json").read_text())
    assert facts["unseen"] and facts["rows"] == 10 and facts["k"] == [2, 3] and facts["units"] == 12
    assert not facts["other_model"] and 0 <= facts["noise_floor"]["kl"] < 1e-5
    assert json.loads((out / "weights.json").read_text())["rows"] == [5, 5]


def test_rows_are_those_that_the_ranking_has_not_seen(results: Path, validated: tuple[Path, headscore.Validation]) -> None:
    rows = set(validated[1].measured.outcomes["row"])
    seen = set(headscore.scan_cache(results.parent / "c").select("row").collect()["row"])
    assert len(rows) == 10 and len(seen) == 24 and not rows & seen and rows < set(range(120))


def test_sets_are_of_the_ranking_and_of_its_layers(results: Path, validated: tuple[Path, headscore.Validation]) -> None:
    sets = validated[1].measured.sets
    heads = pl.read_parquet(results / "heads.parquet").sort("rank")
    for k in (2, 3):
        own = sets.filter(signal="combined", k=k)
        of = lambda frame: sorted(frame.select("layer", "head").iter_rows())  # noqa: E731
        assert of(own.filter(set="top")) == of(heads.head(k)) and of(own.filter(set="bottom")) == of(heads.tail(k))
        counts = own.filter(set="top").group_by("layer").len().sort("layer")
        for draw in range(4):
            drawn = own.filter(set="draw", draw=draw)
            assert drawn.group_by("layer").len().sort("layer").equals(counts)
            assert not set(of(drawn)) & set(of(own.filter(set="top")))
    by_out = pl.read_parquet(results / "heads.parquet").sort("out_rank", "out_norm", descending=True)
    assert of(sets.filter(signal="out", k=2, set="top")) == of(by_out.head(2))


def test_a_signal_that_is_turned_around_is_ordered_from_its_other_end(results: Path) -> None:
    ranking = read_results(results)
    least = sorted(
        pl.read_parquet(results / "heads.parquet").group_by("layer").agg(pl.col("head").sort_by("ent").first()).iter_rows()
    )
    assert sorted(ranking.order("-ent")[:3]) == least
    assert ranking.order("-ent") == ranking.order("ent")[::-1], "where no two heads tie"


def test_outcomes_are_what_ablated_models_give(
    decisive: Path, validated: tuple[Path, headscore.Validation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the public call, on the prompt of one row."""
    from transformers import AutoModelForCausalLM

    found = validated[1].measured
    model = AutoModelForCausalLM.from_pretrained(decisive, dtype=torch.float32).eval()
    row = found.outcomes["row"][0]
    choices = tiny.arc_rows()[row]["choices"]
    lines = "\n".join(f"{label}. {text}" for label, text in zip(choices["label"], choices["text"], strict=True))
    text = f"Question: {tiny.arc_rows()[row]['question']}\nChoices:\n{lines}\nAnswer:"
    ids = torch.tensor([tiny.tokenizer()(text)["input_ids"]])
    (answer,) = tiny.tokenizer()(f" {tiny.arc_rows()[row]['answerKey']}", add_special_tokens=False)["input_ids"]
    top = found.sets.filter(signal="combined", k=3, set="top").select("layer", "head")
    with torch.inference_mode():
        before = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        with headscore.ablated(model, top):
            after = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    line = found.outcomes.filter(signal="combined", k=3, set="top", row=row).row(0, named=True)
    assert line["kl"] == pytest.approx(float((before.exp() * (before - after)).sum()), rel=1e-3, abs=1e-6)
    assert line["nll"] == pytest.approx(-float(after[answer]), rel=1e-4)
    intact = found.outcomes.filter(set="intact", row=row).row(0, named=True)
    assert intact["nll"] == pytest.approx(-float(before[answer]), rel=1e-4) and intact["kl"] == 0


def test_a_decisive_head_is_first_alone_and_in_the_verdict(validated: tuple[Path, headscore.Validation]) -> None:
    found = validated[1]
    assert found.effects is not None and found.agreement is not None and found.fit is not None
    alone = found.effects.filter(effect="kl").sort("mean", descending=True)
    assert alone.row(0)[:2] == (1, 2) and alone["mean"][0] > 10 * alone["mean"][1]
    assert len(found.effects) == 3 * 12 and set(found.effects["effect"]) == {"kl", "nll", "gate_gradient"}
    assert {"combined", "out", "ent", "task"} <= set(found.agreement["signal"])
    line = found.table.filter(signal="out", k=2, metric="kl").row(0, named=True)
    assert line["top"] > line["draws_max"] and line["p"] == pytest.approx(1 / 5)
    assert any(verdict.startswith("combined, top 2 (16.7 %): KL") for verdict in found.verdicts)


def test_statistics_are_made_anew_without_the_model(
    validated: tuple[Path, headscore.Validation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, found = validated
    monkeypatch.setitem(sys.modules, "torch", None)
    again = headscore.validate(out, tmp_path / "again", bootstrap=200)
    assert again.table.equals(found.table) and again.fit is None
    wider = headscore.validate(out, tmp_path / "wider", bootstrap=200, level=0.99)
    assert (wider.table["top_high"] >= again.table["top_high"]).all() and wider.table["top"].equals(again.table["top"])
    assert not (tmp_path / "wider" / "weights.json").exists()
    for option in ({"k": ["1"]}, {"draws": 3}, {"signal": ["ent"]}, {"max_samples": 5}, {"ablate": "mean"}):
        with pytest.raises(headscore.InputError, match=rf"^{next(iter(option))}: needs the model, and .* is a validation"):
            headscore.validate(out, tmp_path / "other", **option)


class Stopped(Exception):
    pass


def test_a_run_that_is_stopped_goes_on_and_gives_the_same(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = headscore.validate(results, tmp_path / "whole", **ONE_BY_ONE)
    ran: list[int] = []

    def stop_after(sets: int) -> Any:
        def progress(done: int, total: int) -> None:
            ran.append(done)
            if done >= 10 * sets:
                raise Stopped

        return progress

    for sets in (2, 3):
        with pytest.raises(Stopped):
            headscore.validate(results, tmp_path / "stopped", progress=stop_after(sets), **ONE_BY_ONE)
    last: list[int] = []
    found = headscore.validate(results, tmp_path / "stopped", progress=lambda done, total: last.append(total), **ONE_BY_ONE)
    assert found.measured.outcomes.equals(whole.measured.outcomes) and found.table.equals(whole.table)
    distinct = {key for (key,) in _keys(whole.measured.sets).select("key").iter_rows()}
    assert last[-1] < 10 * len(distinct), "no set is run twice"
    headscore.validate(
        results, tmp_path / "stopped", progress=lambda *_: pytest.fail("nothing is left to be run"), **ONE_BY_ONE
    )


def _keys(sets: pl.DataFrame) -> pl.DataFrame:
    return sets.group_by("signal", "k", "set", "draw").agg(
        key=pl.struct("layer", "head").map_batches(
            lambda heads: set_key([tuple(head.values()) for head in heads]), return_dtype=pl.String, returns_scalar=True
        )
    )


def test_another_ranking_runs_only_the_sets_that_it_does_not_share(results: Path, tmp_path: Path) -> None:
    headscore.validate(results, tmp_path / "v", **ONE_BY_ONE)
    runs: list[int] = []
    headscore.validate(
        results, tmp_path / "v", progress=lambda _, total: runs.append(total), **{**ONE_BY_ONE, "k": ["2", "25%", "50%"]}
    )
    assert 0 < runs[-1] <= 10 * 6, "the sets of the new k alone"
    with pytest.raises(headscore.InputError, match=r"outcomes\.jsonl: holds outcomes for another rows"):
        headscore.validate(results, tmp_path / "v", **{**ONE_BY_ONE, "max_samples": 9})
    headscore.validate(results, tmp_path / "v", overwrite=True, **{**ONE_BY_ONE, "max_samples": 9})


def test_groups_of_heads_are_taken_out_as_groups(results: Path, tmp_path: Path) -> None:
    headscore.score(results.parent / "c", tmp_path / "r", by="kv_head")
    found = headscore.validate(tmp_path / "r", tmp_path / "v", **{**FEW, "k": ["1"]}, single=True, gate_gradient=True)
    assert set(found.measured.sets.columns) >= {"layer", "kv_head"} and found.measured.facts["units"] == 6
    assert found.effects is not None and len(found.effects) == 3 * 6
    assert found.effects.filter(effect="kl").sort("mean", descending=True).row(0)[:2] == (1, 1)


def test_means_stand_in_for_heads(results: Path, tmp_path: Path) -> None:
    zero = headscore.validate(results, tmp_path / "zero", **FEW)
    mean = headscore.validate(results, tmp_path / "mean", ablate="mean", **FEW)
    assert mean.measured.facts["ablation"] == "mean"
    assert not np.allclose(zero.table["top"], mean.table["top"], rtol=1e-2)


def test_rows_without_answers_are_judged_by_divergence_alone(decisive: Path, tmp_path: Path) -> None:
    rows = [{"question": row["question"]} for row in tiny.arc_rows()[:30]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "template.txt").write_text("Say: {question} Now:")
    options = {"model": str(decisive), "data": str(tmp_path / "rows.jsonl"), "template": str(tmp_path / "template.txt")}
    headscore.capture(tmp_path / "c", max_samples=30, **options)
    headscore.score(tmp_path / "c", tmp_path / "r")
    found = headscore.validate(tmp_path / "r", tmp_path / "v", **FEW)
    assert set(found.table["metric"]) == {"kl"}
    assert found.verdicts[0].startswith("CAUTION: these are rows that the ranking was made of")
    with pytest.raises(headscore.InputError, match="gate_gradient: no row has an answer"):
        headscore.validate(tmp_path / "r", tmp_path / "v", gate_gradient=True, **FEW)


def test_another_model_is_refused_unless_it_is_asked_for(llama: Path, results: Path, tmp_path: Path) -> None:
    with pytest.raises(headscore.InputError, match="is not the model that was captured"):
        headscore.validate(results, tmp_path / "v", model=str(llama), **FEW)
    found = headscore.validate(results, tmp_path / "v", model=str(llama), allow_other_model=True, **FEW)
    assert found.verdicts[0].startswith("CAUTION: the ranking was captured from a model other")


def headscore_cli(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "headscore", *words], capture_output=True, text=True)


def test_the_command_line_says_what_the_library_finds(
    results: Path, validated: tuple[Path, headscore.Validation], tmp_path: Path
) -> None:
    out, found = validated
    done = headscore_cli("validate", str(out), "--out", str(tmp_path / "v"), "--bootstrap", "200", "--fit-weights", "--single")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[: len(found.verdicts)] == found.verdicts
    again = headscore_cli("validate", "--config", str(tmp_path / "v" / "config.yaml"), "--out", str(tmp_path / "w"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "w" / "validation.csv").read_bytes() == (tmp_path / "v" / "validation.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": ["0"]}, "k: '0' is not a number of heads"),
        ({"k": ["100%"]}, "k: '100%' leaves none of the 12 heads"),
        ({"signal": ["lift2"]}, "signal lift2: "),
        ({"draws": -1}, "draws: -1 is not between 0 and 10000"),
        ({"fit_weights": True}, "fit_weights: needs the effects of single heads; give single"),
        ({"adapter": "x"}, "belong to a model"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl: data file not found"),
        ({"ablate": "half"}, "ablate: 'half' is not one of zero, mean"),
    ],
)
def test_options_that_cannot_be_are_told(results: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(headscore.InputError) as error:
        headscore.validate(results, tmp_path / "v", **{**FEW, **options})
    assert message in str(error.value) and not (tmp_path / "v").exists()


def test_folders_that_are_no_results_are_told(results: Path, tmp_path: Path, cache: Path) -> None:
    for folder, message in (
        (tmp_path, "holds no results of headscore score"),
        (cache, "holds no results of headscore score"),
        (results.parent / "nowhere", "holds no results of headscore score"),
    ):
        with pytest.raises(headscore.InputError, match=message):
            headscore.validate(folder, tmp_path / "v")
    with pytest.raises(headscore.InputError, match="holds the results of a ranking; give the validation a folder of its own"):
        headscore.validate(results, results)
    config = (results / "config.yaml").read_text()
    for before, after in (("max_length: 512", "max_length: x"), ("by: head", "by: [1]"), ("record:", "recorded:")):
        assert before in config
        other = Path(shutil.copytree(results, tmp_path / after.partition(":")[0] / "r"))
        (other / "config.yaml").write_text(config.replace(before, after))
        with pytest.raises(headscore.InputError, match=r"config\.yaml: was not written by headscore score"):
            headscore.validate(other, tmp_path / "v")
    damaged = tmp_path / "r"
    headscore.score(results.parent / "c", damaged)
    (damaged / "heads.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(headscore.InputError, match=r"heads\.parquet: is damaged"):
        headscore.validate(damaged, tmp_path / "v")
