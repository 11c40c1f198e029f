import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import tiny
import yaml
from cli_runs import Cli
from hypothesis import given
from hypothesis import strategies as st

import headscore
from headscore import cli, options
from headscore.data.cache.folder import shard_path
from headscore.data.options.configuration import read_configuration
from headscore.data.options.places import read_place, written_options, written_place
from headscore.data.options.settings import DEFAULT_MODEL, RunSettings, ScoreSettings, WorkSettings


def write(path: Path, rows: Any) -> Path:
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    return path


# --------------------------------------------------------------------------------------------------------- what must work


def test_run_captures_scores_and_prints_the_top_heads(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    status, out, _ = run_cli("run", "--model", llama, "--out", tmp_path / "r", "--max-samples", 10)
    assert status == 0
    top = json.loads((tmp_path / "r" / "topk_global.json").read_text())[0]
    first = out.splitlines()[1].split()
    assert first[0] in ("1", "1=") and first[1:3] == [f"L{top['layer']}H{top['head']}", f"{top['combined']:.2f}"]
    assert "12 heads, 10 samples" in out
    assert headscore.inspect(tmp_path / "r" / "cache")["samples"] == 10
    before = (tmp_path / "r" / "scores_raw.csv").read_bytes()
    assert run_cli("run", "--model", llama, "--out", tmp_path / "r", "--max-samples", 10)[0] == 0, "the same run again"
    status, _, err = run_cli("run", "--model", llama, "--out", tmp_path / "r", "--max-samples", 10, "--lambda-ent", 3)
    assert status == 2 and "holds another run (lambda_ent differ)" in err
    assert (tmp_path / "r" / "scores_raw.csv").read_bytes() == before


def test_the_older_names_work_with_dashes_and_underscores(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    older = ["--model_path", llama, "--data_path", tiny.LLM_ADAPTERS, "--output_dir", tmp_path / "r", "--max_samples", 5]
    older += ["--batch_size", 2, "--max_length", 400, "--device", "cpu", "--dtype", "fp32", "--seed", 1]
    older += ["--score_query_mode", "all_tokens", "--norm_mode", "percentile", "--lambda_ent", 0.2, "--lambda_task", 0.7]
    status, _, err = run_cli("run", *older)
    assert status == 0, err
    config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert config["score_query_mode"] == config["queries"] == "all_tokens"
    assert (config["norm_mode"], config["lambda_ent"], config["lambda_task"]) == ("percentile", 0.2, 0.7)
    assert (config["data"], config["batch_size"], config["max_length"], config["seed"]) == (str(tiny.LLM_ADAPTERS), 2, 400, 1)


def test_capture_then_score_with_other_weights(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    assert run_cli("capture", "--model", llama, "--out", tmp_path / "c", "--max-samples", 5)[0] == 0
    run_cli(
        "score",
        tmp_path / "c",
        "--out",
        tmp_path / "r",
        "--lambda-task",
        0,
        "--task-span",
        "choices",
        "--task-span",
        "question",
    )
    options = {"lambda_task": 0.0, "task_span": ["choices", "question"]}
    expected = headscore.score(tmp_path / "c", **options).combined.write_csv()
    assert (tmp_path / "r" / "scores_combined.csv").read_text() == expected


def test_config_file_gives_defaults_and_the_command_line_wins(run_cli: Cli, cache: Path, tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "lambda-ent: 0.1\nlambda_task: 0.2\nnorm_mode: percentile\ntask_span: choices\n")
    status, _, err = run_cli("score", cache, "--out", tmp_path / "r", "--config", config, "--lambda-task", 0.9)
    assert status == 0, err
    made = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert (made["lambda_ent"], made["lambda_task"], made["norm_mode"]) == (0.1, 0.9, "percentile")
    assert made["task_span"] == ["choices"]
    status, _, err = run_cli("score", "--config", tmp_path / "r" / "config.yaml", "--out", tmp_path / "again")
    assert status == 0, err
    for name in ("scores_combined.csv", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "r" / name).read_bytes()


@pytest.mark.parametrize(
    ("configured", "given", "weights"),
    [
        ("weight: {lift: 2, out: 3}", ["--weight", "lift=5"], {"out": 3, "ent": 0.5, "task": 1, "lift": 5}),
        ("weight: {lift: 2}", ["--weight", "sink = 5"], {"out": 1, "ent": 0.5, "task": 1, "lift": 2, "sink": 5}),
        ("weight: {lift: 2}", [], {"out": 1, "ent": 0.5, "task": 1, "lift": 2}),
        ("lambda_ent: 2", ["--weight", "ent=1"], {"out": 1, "ent": 1, "task": 1}),
        ("lambda_ent: 2", ["--weight", "lift=1"], {"out": 1, "ent": 2, "task": 1, "lift": 1}),
        ("weight: {ent: 1}", ["--lambda-ent", 2], {"out": 1, "ent": 2, "task": 1}),
        ("weight: {ent: 1, task: 4}", ["--weight", "lift=1", "--lambda-ent", 2], {"out": 1, "ent": 2, "task": 4, "lift": 1}),
        ("weight: {ent: 1}", ["--weight", "ent=3"], {"out": 1, "ent": 3, "task": 1}),
        ("weight: null\nlambda_ent: null", ["--weight", "task=3"], {"out": 1, "ent": 0.5, "task": 3}),
    ],
)
def test_the_command_line_wins_weight_by_weight(
    run_cli: Cli, cache: Path, tmp_path: Path, configured: str, given: list[object], weights: dict[str, float]
) -> None:
    config = write(tmp_path / "c.yaml", configured)
    status, _, err = run_cli("score", cache, "--out", tmp_path / "r", "--config", config, *given)
    assert status == 0, err
    made = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    settings = ScoreSettings(**{name: made[name] for name in ("weight", "lambda_ent", "lambda_task")})
    assert settings.weights == weights


def test_measures_and_signals_of_both_the_configuration_and_the_command_line_count(
    run_cli: Cli, cache: Path, tmp_path: Path
) -> None:
    config = write(tmp_path / "c.yaml", "measure: {a: position > 1, b: position > 2}\nsignal: {x: a - b, y: a}\n")
    given = ["--measure", "b=position > 3", "--signal", "y = b", "--signal", "z = a"]
    status, _, err = run_cli("score", cache, "--out", tmp_path / "r", "--config", config, *given)
    assert status == 0, err
    made = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert made["measure"] == {"a": "position > 1", "b": "position > 3"}
    assert made["signal"] == {"x": "a - b", "y": "b", "z": "a"}


def test_null_in_a_configuration_means_the_default(run_cli: Cli, cache: Path, tmp_path: Path) -> None:
    fields = dataclasses.fields(ScoreSettings) + dataclasses.fields(WorkSettings)
    names = [field.name for field in fields] + ["partial", "overwrite", "report", "out"]
    config = write(tmp_path / "c.yaml", "".join(f"{name}: null\n" for name in names))
    assert run_cli("score", cache, "--config", config)[:2] == run_cli("score", cache)[:2]
    assert run_cli("score", cache)[0] == 0


def test_config_of_a_run_repeats_it(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    run_cli("run", "--model", llama, "--out", tmp_path / "r", "--max-samples", 5, "--seed", 3, "--lambda-ent", 2)
    status, _, err = run_cli("run", "--config", tmp_path / "r" / "config.yaml", "--out", tmp_path / "again")
    assert status == 0, err
    for name in ("config.yaml", "topk_global.json", "cache/cache.json", "cache/shards/00000.h5"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "r" / name).read_bytes(), name


def test_rows_with_their_own_spans(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Tea {i} is hot.", "spans": [{"name": "drink", "start": 0, "end": 3}]} for i in range(6)]
    options = ["--model", llama, "--data", write(tmp_path / "d.jsonl", rows), "--out", tmp_path / "r"]
    status, _, err = run_cli("run", *options)
    assert status == 2 and "has no span 'question'; it has template, special, drink" in err
    status, _, err = run_cli("run", *options, "--task-span", "drink")
    assert status == 0, err
    status, out, _ = run_cli("inspect", tmp_path / "r" / "cache")
    assert status == 0 and "(text style, 6 rows)" in out and "[drink:Tea]" in out


def test_a_boolean_that_is_on_can_be_turned_off(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    options = ["--model", llama, "--max-samples", 3, "--no-share-prefixes", "--out", tmp_path / "c"]
    assert run_cli("capture", *options)[0] == 0
    assert json.loads((tmp_path / "c" / "cache.json").read_text())["self_check"]["shared_prefixes"] is False


def test_a_template_file(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", [{"ctx": f"fact {i}", "ask": f"why {i}?"} for i in range(6)])
    template = write(tmp_path / "t.txt", "{{note}} {ctx}\nQ: {ask}\nA:\n")
    options = ["--model", llama, "--data", data, "--template", template]
    assert run_cli("capture", *options, "--out", tmp_path / "c")[0] == 0
    assert run_cli("score", tmp_path / "c", "--out", tmp_path / "r", "--task-span", "ask")[0] == 0
    task = pl.read_csv(tmp_path / "r" / "scores_raw.csv")["task_raw"]
    assert task.min() > 0 and task.max() < 1
    status, out, _ = run_cli("inspect", tmp_path / "c")
    assert status == 0 and "  | {{note}} {ctx}" in out and "[ask:" in out and "{note}" in out
    missing = "has no span 'question'; it has template, special, ctx, ask"
    status, _, err = run_cli("score", tmp_path / "c", "--out", tmp_path / "s")
    assert status == 2 and missing in err
    status, _, err = run_cli("run", *options, "--out", tmp_path / "s")
    assert status == 2 and missing in err and not (tmp_path / "s").exists(), "said before the model runs"


def test_inspect_prints_the_cache(run_cli: Cli, cache: Path) -> None:
    status, out, _ = run_cli("inspect", cache, "--verify")
    assert status == 0
    for wanted in (
        "llama, fp32",
        "3 layers of 4 heads, 2 kv heads",
        "24 with",
        "3 of 3",
        "skipped   0 rows",
        "3 shards are whole",
    ):
        assert wanted in out, wanted
    assert "  | Question: {question}\n  | Choices:\n  | {choices}\n  | Answer:" in out
    assert "[question:" in out
    status, out, _ = run_cli("inspect", cache, "--json")
    assert status == 0 and json.loads(out)["samples"] == 24


def test_inspect_names_damage_and_fails(run_cli: Cli, cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cache, tmp_path / "copy")
    shard = shard_path(copy, 2)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 16
    shard.write_bytes(content)
    status, out, err = run_cli("inspect", copy, "--verify")
    assert status == 2 and "00002.h5" in out and "1 of 3 shards are damaged; the same `headscore capture`" in err


def test_inspect_escapes_what_could_drive_a_terminal(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    rows = tiny.arc_rows()[:2]
    for row in rows:
        row["question"] = "\x1b[31mred\x1b[0m or blue?"
    run_cli("capture", "--model", llama, "--data", write(tmp_path / "d.jsonl", rows), "--out", tmp_path / "c")
    status, out, _ = run_cli("inspect", tmp_path / "c")
    assert status == 0 and "\x1b" not in out and "\\x1b[31mred" in out


def test_no_command_prints_the_help(run_cli: Cli) -> None:
    status, out, err = run_cli()
    assert status == 2 and "Commands:" in out and err == ""


def test_the_help_has_every_summary_in_full_and_options_in_groups(run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run_cli("--help")
    words = " ".join(out.split())
    for name in ("run", "capture", "score", "report", "inspect", "merge", "signals", "version"):
        assert f"{name} {options.summary(getattr(cli, name))}" in words
    assert not re.search(r"\.\.\.|…", out.split("Commands:")[1])
    fields = {name for each in (RunSettings, WorkSettings) for name in each.__dataclass_fields__}
    grouped = [name for names in options.GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped)) and fields <= set(grouped), "each option stands in one group"
    for command, groups in (("capture", ["Model", "Data", "Prompt", "Batches"]), ("score", ["Signals", "Ranking", "Work"])):
        _, out, _ = run_cli(command, "--help")
        headings = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert set(groups) < set(headings) and headings[-2:] == ["Output", "Other"], headings


def test_the_version_is_an_option_and_a_command(run_cli: Cli) -> None:
    assert run_cli("--version") == run_cli("version") == (0, f"{headscore.__version__}\n", "")


@pytest.mark.parametrize("shell", options.SHELLS)
def test_shells_are_told_how_to_complete(run_cli: Cli, shell: str) -> None:
    status, script, _ = run_cli("--show-completion", shell)
    assert status == 0 and f"_HEADSCORE_COMPLETE=complete_{shell}" in script
    status, _, err = run_cli("--show-completion", "csh")
    assert status == 2 and "--show-completion: 'csh' is not one of bash, zsh, fish" in err


def completions(*words: str) -> set[str]:
    program = "import sys; sys.argv[0] = 'headscore'; from headscore.cli import main; main()"
    asked = {
        "_HEADSCORE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("headscore", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **asked})
    return set(done.stdout.split())


def test_commands_options_and_choices_are_completed(tmp_path: Path) -> None:
    assert {"run", "report"} == completions("r")
    assert {"--lambda-ent", "--lambda-task"} == completions("score", "--lam")
    assert {"last_token"} == completions("score", "--score-query-mode", "last")
    assert {"last-token"} == completions("score", "--score-query-mode", "last-")
    assert {"zscore", "percentile", "ratio", "none"} == completions("score", "--norm-mode", "")
    assert completions("score", "--config", str(tmp_path / "nowhere.yaml"), "--fus") == {"--fusion"}


@pytest.mark.parametrize("spelling", ["all_tokens", "all-tokens"])
def test_choices_have_one_spelling_and_take_either(run_cli: Cli, cache: Path, tmp_path: Path, spelling: str) -> None:
    expected = headscore.score(cache, score_query_mode="all_tokens").combined.write_csv()
    assert headscore.score(cache, score_query_mode=spelling).combined.write_csv() == expected
    config = write(tmp_path / "c.yaml", f"score_query_mode: {spelling}\n")
    for number, way in enumerate((["--score-query-mode", spelling], ["--config", config])):
        status, _, err = run_cli("score", cache, "--out", tmp_path / str(number), *way)
        assert status == 0, err
        assert (tmp_path / str(number) / "scores_combined.csv").read_text() == expected
        assert yaml.safe_load((tmp_path / str(number) / "config.yaml").read_text())["score_query_mode"] == "all_tokens"


def test_without_out_the_scores_are_printed_and_nothing_is_written(
    run_cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(cache.rglob("*"))
    status, out, _ = run_cli("score", cache)
    assert (
        status == 0 and out.splitlines()[0].split()[:2] == ["rank", "head"] and out.splitlines()[-1] == "12 heads, 24 samples"
    )
    assert not list(tmp_path.iterdir()) and sorted(cache.rglob("*")) == before


@pytest.mark.parametrize(("asked", "lines"), [(None, 10), (1, 1), (5, 5), (11, 10)])
def test_no_more_heads_are_printed_than_asked_for(run_cli: Cli, cache: Path, asked: int | None, lines: int) -> None:
    status, out, _ = run_cli("score", cache, "--quiet", *(["--top-k", asked] if asked else []))
    assert status == 0 and len(out.splitlines()) == 1 + lines + 2


# ------------------------------------------------------------------------------------------------------ configuration files


def test_the_config_of_a_run_serves_score_and_capture(
    run_cli: Cli, llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    assert (
        run_cli("run", "--model", llama, "--out", tmp_path / "r", "--max-samples", 5, "--lambda-ent", 2, "--no-report")[0] == 0
    )
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    status, out, err = run_cli("score", "--config", Path("r", "config.yaml"), "--out", "s", "--lambda-task", 3)
    assert status == 0 and "12 heads, 5 samples" in out, err
    ignored = [line for line in caplog.messages if "ignored" in line]
    assert len(ignored) == 1 and "model, revision, adapter, data" in ignored[0]
    made = yaml.safe_load((tmp_path / "s" / "config.yaml").read_text())
    assert (made["lambda_ent"], made["lambda_task"]) == (2.0, 3.0)
    status, _, err = run_cli("capture", "--config", tmp_path / "r" / "config.yaml", "--out", tmp_path / "c")
    assert status == 0, err
    for file in ("cache.json", "shards/00000.h5"):
        assert (tmp_path / "c" / file).read_bytes() == (tmp_path / "r" / "cache" / file).read_bytes()


def test_the_paths_of_a_config_count_from_its_folder(
    run_cli: Cli, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is given; and those that a run writes lead to the same files from anywhere."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    shutil.copytree(llama, here / "tiny")
    write(here / "rows.jsonl", tiny.arc_rows()[:4])
    write(here / "t.txt", "{question}\n{choices}\n")
    config = write(here / "c.yaml", "model: tiny\ndata: rows.jsonl\ntemplate: t.txt\nout: results\nreport: false\n")
    monkeypatch.chdir(there)
    status, _, err = run_cli("run", "--config", config)
    assert status == 0, err
    made = here / "results" / "config.yaml"
    written = yaml.safe_load(made.read_text())
    assert [written[name] for name in ("model", "data", "template")] == [str(here / n) for n in ("tiny", "rows.jsonl", "t.txt")]
    status, _, err = run_cli("run", "--config", made, "--out", "again", "--no-report")
    assert status == 0, err
    assert (there / "again" / "topk_global.json").read_bytes() == (here / "results" / "topk_global.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "word"), [("model", DEFAULT_MODEL), ("data", "samples"), ("template", "arc"), ("adapter", "org/a")]
)
def test_words_of_a_config_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, word: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert written_place(name, word, tmp_path) == read_place(name, word, tmp_path) == word
    if name in ("data", "template"):  # a file of that name is told apart
        assert written_place(name, f"./{word}", tmp_path) == f"./{word}"
        assert Path(read_place(name, f"./{word}", tmp_path / "other")) == tmp_path / "other" / word


@given(parts=st.lists(st.sampled_from(["a", "b c", "..", "samples", "é"]), min_size=1, max_size=4), inside=st.booleans())
def test_a_path_that_is_written_is_read_as_the_same_place(parts: list[str], inside: bool) -> None:
    folder = Path("/results/of a run")
    path = Path(folder if inside else "/elsewhere", *parts)
    for name in ("cache", "data", "template", "signals"):
        assert Path(read_place(name, written_place(name, path, folder), folder)).resolve() == path.resolve()


def test_every_option_stands_in_a_config_and_is_read_back(run_cli: Cli, llama: Path, tmp_path: Path) -> None:
    settings = RunSettings(model=str(llama), max_samples=3, weight={"out": 2.0}, template="plain", top_k=2)
    options_written = written_options(dataclasses.asdict(settings), tmp_path)
    assert {*options_written} == {*RunSettings.__dataclass_fields__} and options_written["batch_size"] is None
    config = write(tmp_path / "c.yaml", yaml.safe_dump(options_written))
    read = read_configuration(config, {name: name for name in RunSettings.__dataclass_fields__})
    assert RunSettings(**read) == settings
    status, _, err = run_cli("run", "--config", config, "--out", tmp_path / "r", "--no-report")
    assert status == 0, err
    assert len(json.loads((tmp_path / "r" / "topk_global.json").read_text())) == 2


@pytest.mark.parametrize("weights", ["{out: 2, ent: 0.25}", "[out=2, ent=0.25]", '"out=2"\nlambda_ent: 0.25'])
def test_a_config_gives_mappings_or_texts(run_cli: Cli, cache: Path, tmp_path: Path, weights: str) -> None:
    config = write(tmp_path / "c.yaml", f"weight: {weights}\n")
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headscore.cli._print_scores", lambda *_: None)
        patch.setattr("headscore.pipeline.score", lambda **given: seen.update(given))
        status, _, err = run_cli("score", cache, "--config", config)
    assert status == 0, err
    made = ScoreSettings(**{name: value for name, value in seen.items() if name in ScoreSettings.__dataclass_fields__})
    assert (made.weights["out"], made.weights["ent"], made.weights["task"]) == (2.0, 0.25, 1.0)


def test_help_and_version_need_no_heavy_import() -> None:
    program = "import sys; from headscore.cli import main\ntry: main()\nfinally: print([m for m in sys.modules if m in {}])"
    heavy = ["torch", "transformers", "polars", "h5py", "numpy"]
    for arguments in (["--help"], ["capture", "--help"], ["version"]):
        done = subprocess.run(
            [sys.executable, "-c", program.format(heavy), *arguments], capture_output=True, text=True, env={**os.environ}
        )
        assert done.returncode == 0 and done.stdout.strip().endswith("[]"), (arguments, done.stdout, done.stderr)
    assert headscore.__version__ in done.stdout


# ----------------------------------------------------------------------------------------------------------- what is wrong


def bad_data(name: str, content: str | bytes | list[dict[str, Any]]) -> Callable[[Path], list[object]]:
    def options(folder: Path) -> list[object]:
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write(path, content)
        return ["--data", path]

    return options


def row(**changes: Any) -> dict[str, Any]:
    made = {"question": "Is ice cold?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}, "answerKey": "A"}
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def template(text: str) -> Callable[[Path], list[object]]:
    return lambda folder: ["--template", write(folder / "t.txt", text)]


def file_as_model(folder: Path) -> list[object]:
    return ["--model", write(folder / "model.bin", "no model")]


def broken_model(folder: Path) -> list[object]:
    (folder / "broken").mkdir()
    write(folder / "broken" / "config.json", '{"model_type": "llama"}')
    return ["--model", folder / "broken"]


def file_as_out(folder: Path) -> list[object]:
    return ["--out", write(folder / "file", "x")]


def full_out(folder: Path) -> list[object]:
    (folder / "full").mkdir()
    write(folder / "full" / "thesis.txt", "x")
    return ["--out", folder / "full"]


def config(text: str) -> Callable[[Path], list[object]]:
    return lambda folder: ["--config", write(folder / "c.yaml", text)]


def changed_model(change: Callable[[Path], None]) -> Callable[[Path], list[object]]:
    """A saved tiny llama with something done to its folder."""

    def options(folder: Path) -> list[object]:
        tiny.save(tiny.build(tiny.CONFIGS["llama"]()), folder / "changed")
        change(folder / "changed")
        return ["--model", folder / "changed"]

    return options


def set_config(**values: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        made = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**made, **values}))

    return change


def rename_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    save_file({name.replace("q_proj", "qq"): w for name, w in weights.items()}, model / "model.safetensors", {"format": "pt"})


def small_vocabulary(model: Path) -> None:
    config = tiny.CONFIGS["llama"]()
    config.vocab_size = 300
    tiny.build(config).save_pretrained(model)


def cut_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])


def short_gpt2(folder: Path) -> list[object]:
    made = tiny.CONFIGS["gpt2"]()
    made.n_positions = 32
    return ["--model", tiny.save(tiny.build(made), folder / "gpt2")]


BAD_CAPTURES: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "data missing": (lambda _: ["--data", "nowhere.jsonl"], "nowhere.jsonl: data file not found"),
    "data a folder": (lambda folder: ["--data", folder], "is not a file"),
    "data empty": (bad_data("d.jsonl", ""), "d.jsonl: is empty"),
    "data without rows": (bad_data("d.json", "[]"), "d.json: has no rows"),
    "data not JSON": (bad_data("d.json", "hello"), "d.json: not JSON"),
    "data cut short": (bad_data("d.json", '[{"question": "a"}, {"quest'), "d.json: not JSON, or cut short, at line 1"),
    "data binary": (bad_data("d.jsonl", b"\x00\xff\xfe"), "d.jsonl: not UTF-8"),
    "data of another kind": (bad_data("d.xml", "<a/>"), "unknown kind of file '.xml'"),
    "row without a column": (bad_data("d.jsonl", [row(), row(question=...)]), "row 1: has no 'question'"),
    "row without choices": (bad_data("d.jsonl", [row(), row(choices=...)]), "row 1: 'choices' must hold"),
    "row of the wrong type": (bad_data("d.jsonl", [row(question=["x"])]), "row 0: 'question' must be text, got list"),
    "unknown answer label": (bad_data("d.jsonl", [row(), row(), row(answerKey="Z")]), "row 2: answerKey 'Z' is none of"),
    "unknown style": (bad_data("d.jsonl", [{"q": "x"}]), "columns q are of no known style"),
    "no row left": (bad_data("d.jsonl", [row(question=" ")]), "1 of 1 rows would be skipped and none is left"),
    "too many too long": (lambda _: ["--max-length", 30], "rows would be skipped"),
    "too many without a span": (
        bad_data("d.jsonl", [row(), row(question="")]),
        "1 of 2 rows would be skipped and --max-skipped",
    ),
    "template without a column": (template("{question} {mood}"), "{mood} is not a column of"),
    "template without placeholder": (template("hello"), "has no {column} placeholder"),
    "template with stray braces": (template("{question"), "t.txt"),
    "template missing": (lambda _: ["--template", "nowhere.txt"], "--template nowhere.txt: cannot be read"),
    "template for rows with spans": (
        lambda folder: [*bad_data("d.jsonl", [{"text": "a", "spans": []}])(folder), "--template", "arc"],
        "--template arc: ",
    ),
    "span out of range": (
        bad_data("d.jsonl", [{"text": "a", "spans": [{"name": "question", "start": 0, "end": 2}]}]),
        "d.jsonl: row 0: spans[0]: 0 to 2 is not a range of the text",
    ),
    "no chat template": (lambda _: ["--chat"], "--chat: the tokenizer of"),
    "system without chat": (lambda _: ["--system", "Be brief."], "--system: is for chat models; give --chat too"),
    "no generation prompt without chat": (lambda _: ["--no-generation-prompt"], "--no-generation-prompt: is for chat models"),
    "model missing": (lambda folder: ["--model", folder / "nowhere"], "nowhere: no such model"),
    "model a file": (file_as_model, "no such model"),
    "model an empty folder": (lambda folder: ["--model", folder], "it has no config.json"),
    "model broken": (broken_model, "cannot be loaded"),
    "gguf missing": (lambda _: ["--model", "nowhere.gguf"], "nowhere.gguf: file not found"),
    "model arguments": (lambda _: ["--model-kwargs", "{revision: 1}"], "--model-kwargs: not JSON: "),
    "model list": (lambda _: ["--model-kwargs", "[1]"], "--model-kwargs: expected a JSON object, got list"),
    "model dtype": (lambda _: ["--model-kwargs", '{"dtype": "fp8"}'], "--model-kwargs: dtype is given by --dtype"),
    "hub without network": (
        lambda _: ["--model", "no-such/model"],
        "--model no-such/model: there is no such folder, and the hub's cache",
    ),
    "weights missing": (changed_model(rename_weights), "3 weights of the model are not in its files"),
    "layers missing": (changed_model(set_config(num_hidden_layers=5)), "weights of the model are not in its files"),
    "weights cut short": (changed_model(cut_weights), "cannot be loaded as a causal language model: SafetensorError"),
    "config of wrong types": (changed_model(set_config(num_attention_heads="x")), "cannot be loaded"),
    "no layers": (changed_model(set_config(num_hidden_layers=0)), "has no attention layer that could be recorded"),
    "config no object": (changed_model(lambda model: write(model / "config.json", "[]") and None), "cannot be loaded"),
    "tokenizer no object": (
        changed_model(lambda model: write(model / "tokenizer.json", "[]") and None),
        "tokenizer cannot be loaded",
    ),
    "tokenizer of another model": (changed_model(small_vocabulary), "but the model knows 300: they do not match"),
    "prompts longer than positions": (short_gpt2, "gpt2: fails on a prompt of"),
    "half a surrogate": (
        bad_data("d.jsonl", '{"question": "a \\ud800?", "choices": {"text": ["a"], "label": ["A"]}}'),
        "row 0: holds half",
    ),
    "NaN for a question": (bad_data("d.jsonl", [row(), row(question=float("nan"))]), "row 1: 'question' must be text, got NaN"),
    "CSV column twice": (bad_data("d.csv", "question,question\na,b\n"), "column 'question' appears twice"),
    "CSV line too short": (bad_data("d.csv", "question,choices\na\n"), "line 2 has 1 fields, the header 2"),
    "reserved placeholder": (template("{question} {special}"), "{special} is the name of a built-in span"),
    "path too long": (lambda _: ["--data", "x" * 5000], "File name too long"),
    "config key twice": (config("max-samples: 3\nmax_samples: 4"), "'max_samples' appears twice"),
    "config boolean for a number": (config("max_samples: true"), "--max-samples: expected int, got True"),
    "unknown dtype": (lambda _: ["--dtype", "fp8"], "'fp8' is not one of"),
    "unknown device": (lambda _: ["--device", "toaster"], "unknown device 'toaster'"),
    "absent cuda": (lambda _: ["--device", "cuda:7"], "CUDA device"),
    "out a file": (file_as_out, "is a file; give a folder"),
    "out with other things": (full_out, "is not empty and holds no cache"),
    "out not writable": (lambda _: ["--out", "/proc/headscore"], "/proc/headscore: cannot be written"),
    "unknown config key": (config("max_sample: 3"), "unknown key 'max_sample'; known are adapter, batch_size"),
    "config of the wrong type": (config("max_samples: many"), "c.yaml: --max-samples: expected int, got 'many'"),
    "config not YAML": (config("a: [1"), "cannot be read as YAML"),
    "config not a mapping": (config("- 1"), "expected 'option: value' lines"),
    "config missing": (lambda _: ["--config", "nowhere.yaml"], "--config nowhere.yaml: does not exist"),
    "zero samples": (lambda _: ["--max-samples", 0], "--max-samples: 0 is not a number of at least 1"),
    "negative seed": (lambda _: ["--seed", -1], "--seed: -1 is not between"),
    "max-skipped above one": (lambda _: ["--max-skipped", 1.5], "--max-skipped: 1.5 is not between 0.0 and 1.0"),
    "unknown option": (lambda _: ["--max-sample", 3], "--max-sample"),
    "config switch of the wrong type": (config("overwrite: 3"), "--overwrite: expected true or false, got 3"),
    "config path of the wrong type": (config("out: 3"), "--out: expected a path, got 3"),
}


# What is told without torch, as loading it takes seconds.
AT_ONCE = (
    "data missing", "data empty", "row without a column", "unknown style", "template without a column", "template missing",
    "system without chat", "model missing", "model an empty folder", "gguf missing", "model arguments", "config key twice",
    "config not YAML", "unknown config key", "unknown dtype", "unknown device", "zero samples", "unknown option", "out a file",
)  # fmt: skip


def assert_one_line_error(status: int, err: str, message: str) -> None:
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith("headscore: error:")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
    assert message in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize("what", BAD_CAPTURES)
def test_bad_captures_end_in_one_line_and_leave_nothing(run_cli: Cli, llama: Path, tmp_path: Path, what: str) -> None:
    options, message = BAD_CAPTURES[what]
    status, _, err = run_cli("capture", "--model", llama, "--out", tmp_path / "out", *options(tmp_path))
    assert_one_line_error(status, err, message)
    assert not list(tmp_path.rglob("*.h5")) and not list(tmp_path.rglob("cache.json"))


WITHOUT_TORCH = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'tokenizers')));"
    "from headscore.cli import main; main()"
)


@pytest.mark.parametrize("command", ["capture", "run"])
@pytest.mark.parametrize("what", [*AT_ONCE, "unknown span"])
def test_what_is_wrong_with_options_files_and_columns_is_told_without_torch(
    llama: Path, tmp_path: Path, what: str, command: str
) -> None:
    if what == "unknown span" and command == "capture":
        return  # which has no such option
    bad, message = BAD_CAPTURES.get(what, (lambda _: ["--task-span", "mood"], "has no span 'mood'"))
    given = [command, "--model", llama, "--out", tmp_path / "out", *bad(tmp_path)]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, given)], capture_output=True, text=True)
    assert_one_line_error(done.returncode, done.stderr, message)
    assert "out" in what or not (tmp_path / "out").exists()


@pytest.fixture
def broken_caches(cache: Path, tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    newer = shutil.copytree(cache, tmp_path / "newer") / "cache.json"
    newer.write_text(newer.read_text().replace('"format_version": 1', '"format_version": 99'))
    shutil.copytree(cache, tmp_path / "torn")
    shard_path(tmp_path / "torn", 1).write_bytes(b"\x89HDF")
    shutil.copytree(cache, tmp_path / "incomplete")
    shard_path(tmp_path / "incomplete", 1).unlink()
    with h5py.File(tmp_path / "other.h5", "w", locking=False) as file:
        file["x"] = 1
    for name, old, new in (("huge", '"shards": 3', '"shards": 10000000'), ("dims", '"heads": 4', '"heads": "4"')):
        made = shutil.copytree(cache, tmp_path / name) / "cache.json"
        made.write_text(made.read_text().replace(old, new))
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "scores_raw.csv").write_text("precious")
    (tmp_path / "no-out.yaml").write_text("out: ''\n")
    (tmp_path / "blocked" / "run.log").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "config.yaml").write_text("lambda_ent: 9\n")
    return tmp_path


BAD_SCORES: dict[str, tuple[list[object], str]] = {
    "cache missing": (["{tmp}/nowhere"], "nowhere: cache not found; make one with"),
    "cache an empty folder": (["{tmp}/empty"], "empty: is not a cache"),
    "cache of a newer format": (["{tmp}/newer"], "cache format 99, this headscore reads 1; upgrade headscore"),
    "cache with a torn shard": (["{tmp}/torn"], "00001.h5: is not a readable shard"),
    "cache incomplete": (["{tmp}/incomplete"], "1 of 3 shards are missing"),
    "another HDF5 file": (["{tmp}/other.h5"], "other.h5: is not a shard of a headscore cache"),
    "unknown span": (["{cache}", "--task-span", "mood"], "has no span 'mood'; it has question"),
    "all_tokens from last_token": (["{last}", "--score-query-mode", "all_tokens"], "--queries all_tokens"),
    "NaN λ": (["{cache}", "--lambda-task", "nan"], "--lambda-task: nan is not a finite number"),
    "infinite λ": (["{cache}", "--lambda-task", "inf"], "--lambda-task: inf is not"),
    "λ that is no number": (["{cache}", "--lambda-task", "much"], "--lambda-task': Input should be a valid number"),
    "top-k too large": (["{cache}", "--top-k", "13"], "--top-k: 13 is more than the 12 heads"),
    "top-k zero": (["{cache}", "--top-k", "0"], "--top-k: 0 is not a number of at least 1"),
    "top-k-per-layer too large": (["{cache}", "--top-k-per-layer", "5"], "--top-k-per-layer: 5 is more than the 4 heads"),
    "unknown norm mode": (["{cache}", "--norm-mode", "softmax"], "'softmax' is not one of"),
    "out with another run": (["{cache}", "--out", "{tmp}/results"], "holds another run"),
    "out not writable": (["{cache}", "--out", "/proc/headscore"], "/proc/headscore: cannot be written"),
    "out a cache": (["{cache}", "--out", "{tmp}/torn"], "is a cache; give the results a folder of their own"),
    "out with a stranger's file": (["{cache}", "--out", "{tmp}/stranger"], "holds a scores_raw.csv of unknown origin"),
    "out with a folder in the way": (["{cache}", "--out", "{tmp}/blocked", "--overwrite"], "a folder 'run.log' is in the way"),
    "cache with huge plan": (["{tmp}/huge"], "9999997 of 10000000 shards are missing"),
    "cache with dims as text": (["{tmp}/dims"], "has no usable 'dims'"),
    "unknown config key": (["{cache}", "--config", "{tmp}/results/config.yaml", "--config", "{tmp}/bad.yaml"], "bad.yaml"),
    "no cache given": ([], "cache"),
    "weight without a number": (["{cache}", "--weight", "ent"], "--weight: expected NAME=VALUE, got 'ent'"),
    "a weight twice": (["{cache}", "--weight", "ent=1", "--weight", "ent=2"], "--weight: 'ent' appears twice"),
    "two weights of a signal": (
        ["{cache}", "--weight", "ent=1", "--lambda-ent", 2],
        "--weight ent=1: --lambda-ent says 2; give one",
    ),
    "no weight at all": (
        ["{cache}", "--weight", "out=0", "--lambda-ent", 0, "--lambda-task", 0],
        "--weight: every weight is 0",
    ),
    **{
        f"out in {place} of a cache": (
            ["{cache}", "--out", "{tmp}/torn/" + place],
            ("lies in" if "/" in place else "is") + f" '{place.split('/')[0]}' of the cache",
        )
        for place in ("shards", "derived", "charts", "shards/new", "derived/a/b")
    },
    "out empty": (["{cache}", "--out", ""], "--out: expected a path, got ''"),
    "out empty in a config": (["{cache}", "--no-out", "--config", "{tmp}/no-out.yaml"], "--out: expected a path, got ''"),
    "cache empty": (["", "--partial"], "cache: expected a path, got ''"),
    "weight of a misspelt signal": (
        ["{cache}", "--weight", "lfit=1"],
        "--weight lfit: there is no such signal; did you mean 'lift'? there are out,",
    ),
    "weight of no signal": (
        ["{cache}", "--weight", "zzzz=1"],
        "--weight zzzz: there is no such signal; there are out, ent, task",
    ),
    "weight of a measure": (
        ["{cache}", "--weight", "entropy=1"],
        "--weight entropy: is a measure, not a signal; make one of it: --signal 'x = entropy'",
    ),
    "weight of a measure of one's own": (
        ["{cache}", "--measure", "late = position > 3", "--weight", "late=1"],
        "--signal 'x = late' --weight x=1",
    ),
    "no built-in signal": (
        ["{cache}", "--signal", "snik"],
        "--signal snik: is not a built-in signal; did you mean 'sink'? give NAME='SQL', or one of out,",
    ),
    "report without a folder": (["{cache}", "--report", "--no-out"], "--report: needs a folder for it; give --out"),
}


@pytest.mark.parametrize("what", BAD_SCORES)
def test_bad_scores_end_in_one_line_and_leave_nothing(
    run_cli: Cli, cache: Path, last_token_cache: Path, broken_caches: Path, what: str
) -> None:
    arguments, message = BAD_SCORES[what]
    places = {"tmp": broken_caches, "cache": cache, "last": last_token_cache}
    filled = [str(argument).format(**places) for argument in arguments]
    before = sorted(broken_caches.rglob("*"))
    out = [] if {"--out", "--no-out"} & {*filled} else ["--out", broken_caches / "out"]
    filled = [argument for argument in filled if argument != "--no-out"]
    status, stdout, err = run_cli("score", *filled, *out)
    assert_one_line_error(status, err, message)
    assert stdout == "" and sorted(broken_caches.rglob("*")) == before


@pytest.mark.parametrize("command", ["run", "capture", "merge", "report"])
@pytest.mark.parametrize(
    ("place", "said"), [("", "--out: expected a path, got ''"), ("{tmp}/torn/shards/x", "lies in 'shards'")]
)
def test_no_command_writes_into_a_cache_or_a_folder_without_a_name(
    run_cli: Cli, cache: Path, broken_caches: Path, command: str, place: str, said: str
) -> None:
    before = sorted(broken_caches.rglob("*"))
    status, _, err = run_cli(command, *([cache] * (command in ("merge", "report"))), "--out", place.format(tmp=broken_caches))
    assert_one_line_error(status, err, said)
    assert sorted(broken_caches.rglob("*")) == before


def test_inspect_of_what_is_not_a_cache(run_cli: Cli, broken_caches: Path) -> None:
    status, _, err = run_cli("inspect", broken_caches / "empty")
    assert_one_line_error(status, err, "is not a cache")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["headscore", "score", str(tmp_path / "no"), "--out", str(tmp_path / "r"), "--debug"])
    with pytest.raises(headscore.InputError):
        cli.main()


def test_a_failed_run_has_exit_status_1(run_cli: Cli, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headscore.capture.recording import reductions

    monkeypatch.setattr(reductions, "output_norms", lambda z: z.norm(dim=-1) * 2)
    status, _, err = run_cli("capture", "--model", llama, "--out", tmp_path / "c", "--max-samples", 3)
    assert status == 1 and err.splitlines()[-1].startswith("headscore: error: self-check failed")


def test_errors_and_log_lines_escape_what_could_drive_a_terminal(
    run_cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would take the place of the command line's
    copy = shutil.copytree(cache, tmp_path / "copy")
    for path in (copy / "cache.json", *copy.glob("shards/*.h5")):
        if path.suffix == ".json":
            path.write_text(path.read_text().replace('"choices"', '"\\u001b]0;x\\u0007"'))
        else:
            with h5py.File(path, "r+", libver=("v110", "v110"), locking=False) as file:
                names = json.loads(file.attrs["span_names"])
                file.attrs["span_names"] = np.bytes_(json.dumps([names[0], "\x1b]0;x\x07", *names[2:]]))
    status, _, err = run_cli("score", copy, "--out", tmp_path / "r", "--task-span", "choices")
    assert status == 2 and "\x1b" not in err and "\\x1b]0;x\\x07" in err
    shard_path(copy, 1).unlink()
    status, _, err = run_cli("score", copy, "--out", tmp_path / "\x1b[31m", "--partial")
    assert status == 0 and "\x1b" not in err and "\\x1b[31m" in err


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from headscore import terminal

    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    caplog.set_level("INFO")
    with terminal.progress("capturing", alone=False) as show:
        for done in range(100, 120):  # what was there before does not count for the speed
            show(done, 120)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 6 and lines[0] == "capturing 102/120 samples, 0.2 samples/s, 72 s left"
