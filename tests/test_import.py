"""`headscore import`: published lists become rankings that compare, validate and export take; hostile ones are refused."""

import io
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import yaml
from cli_runs import Cli

import headscore
from headscore.data.errors import InputError
from headscore.score.results import read_results

FEW: dict[str, Any] = {"draws": 3, "max_samples": 6, "bootstrap": 100, "data": str(tiny.ARC)}
FORMATS = {"duo": "", "retrieval_head": ".json", "qrhead": ".yaml", "lofit": ".npy"}


@pytest.fixture
def results(ranked: tuple[Path, Path]) -> Path:
    return ranked[1]


def imported(path: Path, format: str, folder: Path) -> headscore.Results:
    return headscore.import_list(path, folder / "imported", format=format)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize(("format", "suffix"), FORMATS.items())
@pytest.mark.parametrize("signal", [None, "-ent"])
def test_what_was_exported_is_imported_in_the_same_order(
    results: Path, tmp_path: Path, format: str, suffix: str, signal: str | None
) -> None:
    chosen = {"top_k": 12} if format == "qrhead" else {}
    made = headscore.export(results, tmp_path / f"made{suffix}", format=format, signal=signal, **chosen)
    found = imported(made.path, format, tmp_path)
    assert found.whole == (format in ("duo", "retrieval_head")), "a list of chosen heads may be of a larger model"
    assert found.unit == ("kv_head" if format == "duo" else "head")
    if format == "duo":
        groups = headscore.export(results, tmp_path / "groups.csv", format="csv", by="kv_head", signal=signal)
        assert found.order() == groups.heads
    else:
        assert found.order() == made.heads == read_results(results).order(*([signal] if signal else []))
    assert found.signals == [] and found.weights == {}


@pytest.mark.parametrize("format", ["qrhead", "lofit"])
def test_a_part_of_a_ranking_stays_a_part(results: Path, tmp_path: Path, format: str) -> None:
    made = headscore.export(results, tmp_path / f"made{FORMATS[format]}", format=format, top_k=5)
    found = imported(made.path, format, tmp_path)
    assert found.order() == made.heads and not found.whole
    line = headscore.compare([results, tmp_path / "imported"], top_k=5).pairs.row(0, named=True)
    assert (line["shared"], line["heads"]) == (5, 5) and line["kendall"] > 0.8, "the ranking has ties"
    again = headscore.export(tmp_path / "imported", tmp_path / f"again{FORMATS[format]}", format=format, top_k=5)
    assert again.heads == made.heads
    with pytest.raises(InputError, match=r"needs all heads of the model, and .* has only some"):
        headscore.export(tmp_path / "imported", tmp_path / "x.json", format="retrieval_head")


def test_scores_of_samples_are_averaged_and_equal_ones_are_in_the_order_of_layers(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"1-0": [0.125, 0.375], "0-1": [0.5], "0-0": [0.25], "1-1": [1, 0]}))
    found = imported(tmp_path / "a.json", "retrieval_head", tmp_path)
    assert found.order() == [(0, 1), (1, 1), (0, 0), (1, 0)] and found.whole
    assert found.heads.sort("rank")["tied_rank"].to_list() == [1, 1, 3, 3]


def test_published_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(
        '# Default\n\nattn_head_set: "8-21,8-14,7-22" # top16\nmodel_base_class: "Llama-3.2-1B-Instruct"\n'
    )
    assert imported(tmp_path / "q.yaml", "qrhead", tmp_path).order() == [(8, 21), (8, 14), (7, 22)]
    (tmp_path / "q.json").write_text(json.dumps([["3-1", 0.5], ["0-7", 0.25]], indent=4))
    assert imported(tmp_path / "q.json", "qrhead", tmp_path / "2").order() == [(3, 1), (0, 7)]
    np.savetxt(tmp_path / "full_attention_heads.tsv", [[0.1, 1.3], [0.0, 0.5]], delimiter="\t")
    found = imported(tmp_path / "full_attention_heads.tsv", "duo", tmp_path / "3")
    assert found.order() == [(0, 1), (1, 1), (0, 0), (1, 0)] == imported(tmp_path, "duo", tmp_path / "4").order()
    assert found.record["imported"] | {"sha256": ""} == {
        "file": "full_attention_heads.tsv", "format": "duo", "sha256": "", "heads": 4, "whole": True
    }  # fmt: skip
    (tmp_path / "l.npy").write_bytes(npy(np.asfortranarray([[2, 1], [0, 3], [1, 1]], dtype=np.int32)))
    assert imported(tmp_path / "l.npy", "lofit", tmp_path / "5").order() == [(2, 1), (0, 3), (1, 1)]


def test_the_command_line(run_cli: Cli, results: Path, tmp_path: Path) -> None:
    headscore.export(results, tmp_path / "l.npy", format="lofit", top_k=4)
    status, out, err = run_cli("import", tmp_path / "l.npy", "--as", "lofit", "--out", tmp_path / "i")
    assert status == 0 and out == f"4 heads; results in {tmp_path / 'i'}\n", err
    assert run_cli("import", tmp_path / "l.npy", "--as", "lofit", "--out", tmp_path / "i")[0] == 0, "the same again"
    headscore.export(results, tmp_path / "m.npy", format="lofit", top_k=3)
    status, _, err = run_cli("import", tmp_path / "m.npy", "--as", "lofit", "--out", tmp_path / "i")
    assert status == 2 and "holds another run (record differ); use another --out, or --overwrite" in err
    assert run_cli("import", tmp_path / "m.npy", "--as", "lofit", "--out", tmp_path / "i", "--overwrite")[0] == 0
    assert len(pl.read_csv(tmp_path / "i" / "heads.csv")) == 3
    status, _, err = run_cli("import", tmp_path / "l.npy", "--out", tmp_path / "j")
    assert status == 2 and "--format: give one of duo, retrieval_head, qrhead, lofit" in err
    status, out, _ = run_cli("compare", results, tmp_path / "i", "--top-k", 3)
    assert status == 0 and "share 3 of their top 3 heads" in out


# ----------------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("duo", b"1\t2\n3\n", "not a matrix of layers and KV heads: the lines are not of the same length"),
        ("duo", b"1\tx\n", "not a matrix"),
        ("duo", b"1\tnan\n", "the score of layer 0, head 1 is not a finite number"),
        ("duo", b"\xff\xfe", "not a matrix"),
        ("duo", b"", "lists 0 heads"),
        ("duo", b"1\n" * 2000, "not a matrix"),
        ("duo", b"1 " * 70_000, "not a matrix"),
        ("duo", (b"1 " * 300 + b"\n") * 300, "not a matrix"),
        ("retrieval_head", b'{"0-0": [1], "0-0": [2]}', "the key '0-0' appears twice"),
        ("retrieval_head", b'{"0-0": [1e308, 1e308]}', "not a finite number"),
        ("qrhead", b'[["0-1", 1' + b"0" * 400 + b"]]", "is not a head set"),
        ("lofit", npy(np.array([[0, 1]])).replace(b"(1, 2)", b"(True, 2)"), "expected whole numbers"),
        ("lofit", b"\x93NUMPY\x03\x00" + npy(np.array([[0, 1]]))[8:], "version 3 of NumPy's format; write it with numpy.save"),
        ("retrieval_head", b"[1]", "expected an object"),
        ("retrieval_head", b'{"0-0": []}', "0-0 has no list of numbers"),
        ("retrieval_head", b'{"0-0": [true]}', "no list of numbers"),
        ("retrieval_head", b'{"0-0": [NaN]}', "not a finite number"),
        ("retrieval_head", b'{"0-0": [1e999]}', "not a finite number"),
        ("retrieval_head", b'{"0-0-0": [1]}', "'0-0-0' is no 'layer-head'"),
        ("retrieval_head", b'{"-1-0": [1]}', "is no 'layer-head'"),
        ("retrieval_head", b'{"0-0": [1], "00-0": [1]}', "layer 0, head 0 appears twice"),
        ("retrieval_head", b'{"9999999-0": [1]}', "exists in no model"),
        ("retrieval_head", b"{" * 100, "nested more than 32 deep"),
        ("retrieval_head", b'{"0-0": [1' + b"0" * 5000 + b"]}", "not an object"),
        ("qrhead", b"attn_head_set: full_heads\n", "it stands for all heads"),
        ("qrhead", b"a: b\n", "it has no attn_head_set"),
        ("qrhead", b"attn_head_set: [1, 2]\n", "it has no attn_head_set"),
        ("qrhead", b"attn_head_set: 1-2,x\n", "is no 'layer-head'"),
        ("qrhead", b"attn_head_set: 1-2,1-2\n", "layer 1, head 2 appears twice"),
        ("qrhead", b"attn_head_set: &a 1-2\nb: *a\n", "an alias"),
        ("qrhead", b"attn_head_set: !!python/object:os.system 1-2\n", "cannot be read as YAML"),
        ("qrhead", b'[["1-2"]]', "expected pairs"),
        ("qrhead", b"[1", "not a head set"),
        ("lofit", b"no array", "is not a NumPy array"),
        ("lofit", npy(np.zeros((2, 3), np.int64)), "expected whole numbers"),
        ("lofit", npy(np.zeros((2, 2))), "expected whole numbers"),
        ("lofit", npy(np.array([["a", "b"]], object)), "expected whole numbers"),
        ("lofit", npy(np.zeros((0, 2), np.int64)), "expected whole numbers"),
        ("lofit", npy(np.zeros((2, 2), np.int64)), "layer 0, head 0 appears twice"),
        ("lofit", npy(np.array([[0, -1]])), "exists in no model"),
        ("lofit", npy(np.array([[0, 1]]))[:-1], "does not have as many numbers as its header says"),
        ("lofit", npy(np.array([[0, 1]])).replace(b"(1, 2)", b"(9**9, 2)"), "is not a NumPy array"),
        ("lofit", npy(np.array([[0, 1]])).replace(b"(1, 2), }    ", b"(1000000, 2)}"), "whole numbers"),
    ],
)
def test_what_is_no_such_list_is_refused_in_one_line(tmp_path: Path, format: str, content: bytes, message: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        imported(tmp_path / "list", format, tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "imported").exists()


def test_a_large_matrix_is_refused_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes((b"0\t" * 30_000 + b"\n") * 20)
    tracemalloc.start()
    with pytest.raises(InputError, match="not a matrix"):
        imported(tmp_path / "list", "duo", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        imported(tmp_path / "x", "duo", tmp_path)
    with pytest.raises(InputError, match=r"is not a regular file|a folder"):
        imported(tmp_path, "lofit", tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate((32 << 20) + 1)
    for format in FORMATS:
        with pytest.raises(InputError, match="is larger than"):
            imported(tmp_path / "large", format, tmp_path)


def test_other_results_are_not_written_over(results: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(results, tmp_path / "results")
    headscore.export(results, tmp_path / "l.npy", format="lofit", top_k=4)
    with pytest.raises(InputError, match="holds another run"):
        headscore.import_list(tmp_path / "l.npy", copy, format="lofit")
    (copy / "report.html").write_text("of the ranking")
    headscore.import_list(tmp_path / "l.npy", copy, format="lofit", overwrite=True)
    there = {path.name for path in copy.iterdir() if path.is_file()}
    assert there == {"heads.csv", "heads.parquet", "config.yaml", "run.log"}, "nothing is of the old ranking"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_import_may_run_again(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    class Killed(BaseException):
        pass

    first = headscore.export(results, tmp_path / "l.npy", format="lofit", top_k=4).path
    second = headscore.export(results, tmp_path / "m.npy", format="lofit", top_k=3).path
    real = Path.replace
    for killed_at in (1, 2, 3):
        folder, calls = tmp_path / str(killed_at), [0]
        if overwrite:
            headscore.import_list(first, folder, format="lofit")

        def replace(self: Path, target: Any, calls: list[int] = calls, killed_at: int = killed_at) -> Any:
            calls[0] += 1
            if calls[0] == killed_at:
                raise Killed
            return real(self, target)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Path, "replace", replace)
            headscore.import_list(second, folder, format="lofit", overwrite=overwrite)
        with pytest.raises(InputError):
            read_results(folder)
        assert len(headscore.import_list(second, folder, format="lofit", overwrite=overwrite).heads) == 3


@pytest.mark.parametrize("change", [{"whole": "yes"}, {"file": 3}, {"sha256": None}])
def test_a_strangers_import_is_checked(results: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    made = headscore.export(results, tmp_path / "l.npy", format="lofit", top_k=4)
    folder = imported(made.path, "lofit", tmp_path).folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["record"]["imported"] |= change
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="was not written by headscore score"):
        read_results(folder)


# ---------------------------------------------------------------------------------------------------------------- validate


def test_an_imported_list_is_validated_on_a_model_and_rows_that_are_named(ranked: tuple[Path, Path], tmp_path: Path) -> None:
    made = headscore.export(ranked[1], tmp_path / "l.npy", format="lofit", top_k=4)
    folder = imported(made.path, "lofit", tmp_path).folder
    found = headscore.validate(folder, tmp_path / "v", model=str(ranked[0]), **FEW)
    assert found.measured.facts["k"] == [1, 2, 4] and found.measured.facts["units"] == 12
    assert any("imported from l.npy; whether it is of this model" in line for line in found.verdicts)
    assert any("does not have all heads" in line for line in found.verdicts)
    top = found.measured.sets.filter(set="top", k=4).select("layer", "head")
    assert set(top.iter_rows()) == set(made.heads)
    bottom = set(found.measured.sets.filter(set="bottom", k=4).select("layer", "head").iter_rows())
    assert not bottom & set(made.heads)
    again = headscore.validate(tmp_path / "v", tmp_path / "again", bootstrap=100)
    assert again.table.equals(found.table) and again.verdicts == found.verdicts


def test_groups_of_an_imported_pattern_are_validated(ranked: tuple[Path, Path], tmp_path: Path) -> None:
    made = headscore.export(ranked[1], tmp_path / "duo", format="duo")
    folder = imported(made.path, "duo", tmp_path).folder
    found = headscore.validate(folder, tmp_path / "v", model=str(ranked[0]), k=["2"], **FEW)
    assert found.measured.facts["imported"]["whole"] and found.measured.facts["unit"] == "kv_head"
    every = headscore.export(ranked[1], tmp_path / "every.npy", format="lofit").path
    complete = headscore.import_list(every, tmp_path / "complete", format="lofit").folder
    facts = headscore.validate(complete, tmp_path / "w", model=str(ranked[0]), k=["2"], **FEW).measured.facts
    assert facts["imported"]["whole"], "the model says that the list has all heads"
    assert not any("all heads" in line for line in found.verdicts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model and data: the ranking is an imported list, which names neither model nor data; give both"),
        ({"model": "m"}, "data: the ranking is an imported list"),
        ({"model": "m", "data": "d", "signal": ["out"]}, "signal: the ranking is an imported list, which has no signals"),
        ({"model": "m", "data": "d", "single": True, "fit_weights": True}, "fit_weights: the ranking is an imported list"),
    ],
)
def test_what_a_validation_of_a_list_needs(results: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    made = headscore.export(results, tmp_path / "l.npy", format="lofit", top_k=4)
    folder = imported(made.path, "lofit", tmp_path).folder
    with pytest.raises(InputError, match=message):
        headscore.validate(folder, tmp_path / "v", **options)


def test_a_list_of_another_models_heads_is_refused(ranked: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "l.npy").write_bytes(npy(np.array([[0, 0], [7, 1]])))
    folder = imported(tmp_path / "l.npy", "lofit", tmp_path).folder
    options = {**FEW, "model": str(ranked[0])}
    with pytest.raises(InputError, match="lists head 1 of layer 7, which the model does not have"):
        headscore.validate(folder, tmp_path / "v", **options)
    (tmp_path / "m.npy").write_bytes(npy(np.array([[0, 0], [1, 1]])))
    headscore.import_list(tmp_path / "m.npy", tmp_path / "m", format="lofit")
    with pytest.raises(InputError, match="k: 3 is more than the 2 heads of the imported list; give at most 2"):
        headscore.validate(tmp_path / "m", tmp_path / "v", k=["3"], **options)


def test_the_verdict_of_a_validation_beside_the_results_is_on_the_card(ranked: tuple[Path, Path], tmp_path: Path) -> None:
    made = headscore.export(ranked[1], tmp_path / "l.npy", format="lofit", top_k=4)
    folder = imported(made.path, "lofit", tmp_path).folder
    headscore.score(ranked[1].parent / "cache", tmp_path / "r")
    found = headscore.validate(tmp_path / "r", tmp_path / "v", k=["4"], **{**FEW, "data": None})
    text = headscore.export(tmp_path / "r", tmp_path / "r" / "README.md", format="card").path.read_text()
    line = next(line for line in found.verdicts if line.startswith("combined"))
    assert line.split(";")[0].replace("[", "\\[").replace("]", "\\]") in text and "has not been tested" not in text
    for options in ({"signal": "-out"}, {"signal": "out"}, {"by": "kv_head"}):
        unlike = headscore.export(tmp_path / "r", tmp_path / "unlike.md", format="card", overwrite=True, **options)
        assert "has not been tested" in unlike.path.read_text(), "it was not this order that was validated"
    for name, value in (("model_fingerprint", "0" * 64), ("other_model", True)):
        facts = json.loads((tmp_path / "v" / "validation.json").read_text())
        changed = shutil.copytree(tmp_path, tmp_path / "sub" / name, ignore=shutil.ignore_patterns("sub"))
        (changed / "v" / "validation.json").write_text(json.dumps(facts | {name: value}))
        unlike = headscore.export(changed / "r", changed / "unlike.md", format="card", overwrite=True)
        assert "has not been tested" in unlike.path.read_text(), "another model was validated"
    shutil.copytree(tmp_path / "v", tmp_path / "w")
    both = headscore.export(tmp_path / "r", tmp_path / "both.md", format="card").path.read_text()
    assert "\n- v: combined, top 4 " in both and "\n- w: combined, top 4 " in both
    other = headscore.export(folder, tmp_path / "other.md", format="card").path.read_text()
    assert "has not been tested" in other and "imported from" in other, "a validation of another ranking says nothing of it"
