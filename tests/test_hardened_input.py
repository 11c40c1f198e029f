"""What a stranger's tokenizer, file, path or text does: one line and an exit status, and nothing that drives a terminal."""

import datetime
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

import headscore
from headscore.cli import app
from headscore.data.errors import InputError, printable
from headscore.data.files import whole_file as files
from headscore.data.files.foreign import foreign_faults_told
from headscore.data.files.strict_yaml import MAX_YAML_BYTES, read_yaml
from headscore.data.limits import MIN_ADDRESS_SPACE
from headscore.data.options.settings import CaptureSettings
from headscore.data.prompts import rows
from headscore.data.prompts.rows import read_data
from headscore.data.text import OneLine, has_unprintable, json_text, logged_in_one_line
from headscore.score.outputs import yaml_text

FORGED = "w\n2026-01-01 00:00:00,000 ERROR forged\x1b[31m\u202e\x9b\x7f"


def command(*arguments: object, before: str = "", **more: Any) -> "subprocess.CompletedProcess[bytes]":
    """The real command in a process of its own; `before` is shell that precedes it."""
    words = [sys.executable, "-m", "headscore", *(os.fsencode(str(word)) for word in arguments)]
    if before:
        words = ["sh", "-c", f'{before}; exec "$@"', "sh", *words]
    return subprocess.run(words, capture_output=True, check=False, timeout=300, **more)


def told(done: "subprocess.CompletedProcess[bytes]", status: int = 2) -> str:
    """The one line with which a command ended; log lines may come before it."""
    lines = done.stderr.decode().splitlines()
    assert done.returncode == status, lines
    assert [line.startswith("headscore: error: ") for line in lines] == [False] * (len(lines) - 1) + [True], lines
    assert not any("Traceback" in line or "panicked" in line for line in lines)
    return lines[-1]


# ----------------------------------------------------------------------------------------------- what is read is what is hashed


@pytest.mark.parametrize("name", ["d[1].parquet", "*.parquet", "d?.parquet", "{a,b}.parquet", "d[1].jsonl", "d[1].csv"])
def test_a_file_whose_name_is_a_pattern_is_that_file(name: str, tmp_path: Path) -> None:
    write = {".parquet": pl.DataFrame.write_parquet, ".csv": pl.DataFrame.write_csv, ".jsonl": pl.DataFrame.write_ndjson}
    for other in ("d1", "dx", "a", "b"):
        write[Path(name).suffix](pl.DataFrame({"question": ["another file's"]}), tmp_path / f"{other}{Path(name).suffix}")
    write[Path(name).suffix](pl.DataFrame({"question": ["its own"]}), tmp_path / name)
    data = read_data(tmp_path / name)
    assert data.rows == [{"question": "its own"}]
    assert data.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_file_that_is_replaced_while_it_is_read_has_the_hash_of_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"question": "first"}')
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    real = rows._READERS[".jsonl"]

    def late(path: Path, content: bytes) -> list[rows.Row]:
        path.write_text('{"question": "second"}')
        return real(path, content)

    monkeypatch.setitem(rows._READERS, ".jsonl", late)
    assert read_data(path) == rows.Data([{"question": "first"}], before)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"question": "first"}\n')
    real = os.fstat

    def growing(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        with path.open("a") as file:
            file.write('{"question": "more"}\n')
        return found

    monkeypatch.setattr("headscore.data.prompts.rows.os.fstat", growing)
    with pytest.raises(InputError, match="changed while it was read"):
        read_data(path)


# --------------------------------------------------------------------------------------------------------- foreign libraries

Change = Callable[[dict[str, Any]], Any]
TOKENIZERS: dict[str, tuple[Change, str]] = {
    "no UNK": (
        lambda t: t.update(model={"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1}, "unk_token": "[UNK]"}),
        ": --model: its tokenizer fails: Exception: WordLevel error: Missing [UNK] token",
    ),
    "no unk_id": (
        lambda t: t.update(model={"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}),
        ": --model: its tokenizer fails: Exception: Encountered an unknown token",
    ),
    "a panic in decoding": (
        lambda t: t.update(decoder={"type": "Strip", "content": "e", "start": 100, "stop": 100}),
        "its tokenizer cannot decode tokens of its own",
    ),
    "a normalizer that fills the memory": (
        lambda t: t.update(normalizer={"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 200_000}),
        "its normalizer puts in 200000 characters at once",
    ),
    "one that does it step by step": (
        lambda t: t.update(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 900}] * 9,
            }
        ),
        ": --model: its tokenizer cannot be used: its normalizer makes more than ",
    ),
    "a decoder that fills the memory": (
        lambda t: t.update(
            decoder={
                "type": "Sequence",
                "decoders": [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 200_000}],
            }
        ),
        "its decoder puts in 200000 characters at once",
    ),
    "an id beyond 31 bits": (lambda t: t["model"]["vocab"].update(e=2**31), "its tokenizer has a token of number 2147483648"),
    "an id added beyond 31 bits": (
        lambda t: t["post_processor"]["special_tokens"]["<s>"].update(ids=[2**32 - 1]),
        ": --model: its tokenizer gives 4294967295, which is no token id",
    ),
}


@pytest.mark.parametrize("fault", TOKENIZERS)
def test_a_tokenizer_that_fails_is_told_in_one_line(fault: str, llama: Path, tmp_path: Path) -> None:
    change, message = TOKENIZERS[fault]
    shutil.copytree(llama, tmp_path / "m")
    content = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(content))
    done = command("capture", "--model", tmp_path / "m", "--out", tmp_path / "c", "--max-samples", 4)
    assert message in told(done)
    assert done.stderr.count(b"\n") == 1 and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(pl.Datetime("ms"), 10**15), (pl.Duration("ms"), 2**62), (pl.Date, 10**8), (pl.Datetime("ms"), -(10**15))],
)
def test_times_that_python_has_not_are_told_by_column(dtype: Any, value: int, tmp_path: Path) -> None:
    kind = pl.Int32 if dtype is pl.Date else pl.Int64
    frame = pl.DataFrame({"question": ["a"], "when": pl.Series([value], dtype=kind).cast(dtype)})
    frame.write_parquet(tmp_path / "d.parquet")
    done = command("capture", "--data", tmp_path / "d.parquet", "--out", tmp_path / "c")
    assert f"{tmp_path}/d.parquet: column 'when' (" in told(done) and done.stderr.count(b"\n") == 1


class PanicException(BaseException):
    """Like a panic of a Rust library."""


PanicException.__module__ = "pyo3_runtime"


@pytest.mark.parametrize("error", [ValueError("a\nb"), RecursionError(), OSError(5, "x"), PanicException("p"), StopIteration()])
def test_whatever_a_library_raises_is_an_input_error(error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"^the file: [A-Z]") as raised, foreign_faults_told("the file"):
        os.write(2, b"a report of it\n")
        raise error
    assert "\n" not in str(raised.value) and raised.value.__cause__ is error
    assert capfd.readouterr().err == ("" if isinstance(error, PanicException) else "a report of it\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), InputError("ours"), GeneratorExit()])
def test_what_is_no_fault_of_a_library_stays_what_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, foreign_faults_told("the file"):
        raise error
    assert raised.value is error


# ---------------------------------------------------------------------------------------------------------------------- YAML

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_YAML = {
    "nine lists of nine": (BOMB, "an alias (*name) cannot be used"),
    "a merge": ("<<: {top_k: 1}", "a key is not text"),
    "a key twice": ("top_k: 1\ntop_k: 2", "the key 'top_k' appears twice"),
    "a key twice in quotes": ('top_k: 1\n"top_k": 2', "the key 'top_k' appears twice"),
    "a key in two spellings": ("lambda-ent: 1\nlambda_ent: 2", "'lambda_ent' appears twice"),
    "another command's in two spellings": ("max-length: 1\nmax_length: 2", "'max_length' appears twice"),
    "another command's under its older name": ("model: a\nmodel_path: b", "'model_path' appears twice"),
    "a key twice within": ("weight: {ent: 1, ent: 2}", "the key 'ent' appears twice"),
    "a number and a text": ("model_kwargs: {1: a, '1': b}", "a key is not text"),
    "nested lists": ("weight: " + "[" * 5000, "it is nested more than"),
    "nested objects": ("weight: " + "{a: " * 5000, "it is nested more than"),
    "400 digits": ("top_k: 1" + "0" * 400, "has more than 64 bits"),
    "5000 digits": ("top_k: 1" + "0" * 5000, "Exceeds the limit"),
    "digits by 60": ("top_k: " + "59:" * 3000 + "59", "has more than 64 bits"),
    "no date": ("top_k: 2024-99-99", "month must be in 1..12"),
    "a tag that fails": ("top_k: !!timestamp 'x'", "cannot be read as YAML"),
    "a null character": ('signals: "a\\0b"', "has a null character in it"),
    "half a surrogate pair": ('signals: "\\ud800"', "is not text in UTF-8"),
    "an object of Python": ("top_k: !!python/object:os.system {}", "could not determine a constructor"),
}


@pytest.mark.parametrize("what", BAD_YAML)
def test_yaml_that_says_what_it_cannot_is_told_in_one_line(what: str, last_token_cache: Path, tmp_path: Path) -> None:
    text, message = BAD_YAML[what]
    (tmp_path / "c.yaml").write_text(text)
    assert message in told(command("score", last_token_cache, "--config", tmp_path / "c.yaml"))


@pytest.mark.parametrize("kind", ["pipe", "endless", "large", "folder"])
def test_a_configuration_is_a_regular_file_of_bounded_size(kind: str, last_token_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    assert f"--config {path}: is " in told(command("score", last_token_cache, "--config", path))
    results = tmp_path / "r"
    headscore.score(last_token_cache, results)
    (results / "config.yaml").unlink()
    path.rename(results / "config.yaml")
    assert f"{results}/config.yaml" in told(command("score", last_token_cache, "--out", results)) or kind == "folder"


def test_a_link_may_name_a_configuration(last_token_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("top_k: 3")
    (tmp_path / "c.yaml").symlink_to("real.yaml")
    assert command("score", last_token_cache, "--config", tmp_path / "c.yaml").returncode == 0


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=9), PLAIN, max_size=4))
def test_yaml_is_read_as_it_was_written(value: dict[str, Any]) -> None:
    path = files.user_cache() / "law.yaml"
    files.write_text(path, yaml_text(value))
    assert read_yaml(path) == value


# ----------------------------------------------------------------------------------------------- paths, homes, memory, numbers

NOT_UTF8 = os.fsdecode(b"\xff")


def test_paths_that_are_no_text_are_told_before_any_work(llama: Path, last_token_cache: Path, tmp_path: Path) -> None:
    odd = tmp_path / NOT_UTF8
    shutil.copytree(llama, odd)
    data, out = ("--data", tmp_path / "d.jsonl"), ("--out", tmp_path / "c")
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, tiny.arc_rows()[:3])))
    (tmp_path / f"{NOT_UTF8}.jsonl").write_text((tmp_path / "d.jsonl").read_text())
    for arguments in (
        ("capture", "--model", llama, *data, "--out", odd / "c"),
        ("capture", "--model", odd, *data, *out),
        ("capture", "--model", llama, "--data", tmp_path / f"{NOT_UTF8}.jsonl", *out),
        ("run", "--model", llama, *data, "--template", odd, *out),
        ("run", "--model", odd, *data, *out),
        ("score", odd),
        ("inspect", odd),
        ("merge", last_token_cache, "--out", odd / "c"),
        ("report", last_token_cache, "--out", odd / "c"),
        ("score", last_token_cache, "--signals", odd / "s.py"),
    ):
        done = command(*arguments)
        assert "is not text in UTF-8" in told(done) and "\\udcff" in told(done) and done.stderr.count(b"\n") == 1
        assert not (tmp_path / "c").exists() and not (odd / "c").exists()


def test_a_folder_that_is_no_text_is_told_where_results_would_name_it(last_token_cache: Path, tmp_path: Path) -> None:
    (tmp_path / NOT_UTF8).mkdir()
    shutil.copytree(last_token_cache, tmp_path / NOT_UTF8 / "c")
    done = command("score", "c", "--out", tmp_path / "r", cwd=tmp_path / NOT_UTF8)
    assert "is not text in UTF-8" in told(done) and not (tmp_path / "r").exists()
    assert command("score", "c", cwd=tmp_path / NOT_UTF8).returncode == 0


def test_a_null_character_is_in_no_option() -> None:
    for options in ({"model": "a\0"}, {"data": "a\0"}, {"template": Path("a\0")}, {"keep": ["a\0"]}, {"model_kwargs": "{}\0"}):
        with pytest.raises(InputError, match="has a null character in it"):
            CaptureSettings(**options)
    for call in (headscore.score, headscore.inspect, headscore.signals):
        with pytest.raises(InputError, match="has a null character in it"):
            call("a\0b")


def test_without_a_home_everything_but_a_conversion_works(
    last_token_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    cache = shutil.copytree(last_token_cache, tmp_path / "c")
    expected = headscore.score(last_token_cache).combined
    assert headscore.score(cache).combined.equals(expected)
    (cache / "derived").unlink(missing_ok=True) if (cache / "derived").is_file() else shutil.rmtree(cache / "derived", True)
    (cache / "derived").write_text("in the way")
    assert headscore.score(cache).combined.equals(expected)
    with pytest.raises(InputError, match="no home folder is known for this user; set XDG_CACHE_HOME"):
        files.user_cache()
    (tmp_path / "c.yaml").write_text("out: ~nobody-of-this-name/r")
    assert command("score", cache, "--config", tmp_path / "c.yaml", cwd=tmp_path).returncode == 0


def test_every_command_knows_what_memory_it_needs_to_start() -> None:
    loading = set(get_command(app).commands) - {"version"}  # type: ignore[attr-defined]
    assert set(MIN_ADDRESS_SPACE) == loading
    assert command("version", before="ulimit -v 65536").returncode == 0, "it needs no library"


@pytest.mark.parametrize("command_name", ["capture", "run", "validate", "score", "control", "report", "inspect", "merge"])
def test_too_little_memory_to_start_is_told_at_once(command_name: str, last_token_cache: Path, tmp_path: Path) -> None:
    kib = (MIN_ADDRESS_SPACE[command_name] << 10) - 1
    first = [] if command_name in ("capture", "run") else [last_token_cache]
    more = [] if command_name == "inspect" else ["--out", tmp_path / "o"]
    done = command(command_name, *first, *more, before=f"ulimit -v {kib}")
    assert f"{command_name}: needs " in told(done, 1) and "`ulimit -v` allows" in told(done, 1)
    assert not (tmp_path / "o").exists() and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command_name", ["score", "inspect"])
def test_with_no_more_memory_than_that_a_command_works(command_name: str, last_token_cache: Path) -> None:
    done = command(command_name, last_token_cache, before=f"ulimit -v {MIN_ADDRESS_SPACE[command_name] << 10}")
    assert done.returncode == 0 or "not enough memory" in told(done, 1)


HUGE = {
    "digits of a number": ("score", "--top-k", "9" * 400),
    "more digits than Python takes": ("score", "--top-k", "9" * 5000),
    "digits of a weight": ("score", "--weight", "out=" + "9" * 5000),
    "a weight": ("score", "--weight", "out=1e307"),
    "a negative weight": ("report", "--weight", "out=-1e307", "--out", "r"),
    "λ": ("report", "--lambda-ent", "1e307", "--out", "r"),
    "digits in the model's arguments": ("capture", "--model-kwargs", '{"x": ' + "9" * 5000 + "}", "--out", "r"),
    "depth of the model's arguments": ("capture", "--model-kwargs", '{"x": ' + "[" * 5000 + "]" * 5000 + "}", "--out", "r"),
    "a name twice in the model's arguments": ("capture", "--model-kwargs", '{"x": 1, "x": 2}', "--out", "r"),
    "samples": ("capture", "--max-samples", "9" * 400, "--out", "r"),
}


@pytest.mark.parametrize("what", HUGE)
def test_numbers_and_depths_beyond_use_are_told(what: str, last_token_cache: Path, tmp_path: Path) -> None:
    name, *options = HUGE[what]
    done = command(name, *([] if name == "capture" else [last_token_cache]), *options, cwd=tmp_path)
    assert len(told(done)) < 1000 and done.stderr.count(b"\n") == 1 and not (tmp_path / "r").exists()


def test_deep_choices_in_csv_are_told(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("question,choices\nHot?," + "[" * 100_000 + "]" * 100_000 + "\n")
    assert "'choices' is not a JSON list" in told(command("capture", "--data", tmp_path / "d.csv", "--out", tmp_path / "c"))


def test_a_dangling_link_for_a_shard_is_told(cache: Path, tmp_path: Path) -> None:
    made = shutil.copytree(cache, tmp_path / "c")
    (made / "shards" / "00001.h5").unlink()
    (made / "shards" / "00001.h5").symlink_to("nowhere")
    for arguments in (("score", made), ("inspect", made, "--verify"), ("merge", made, "--out", tmp_path / "m")):
        assert str(made) in told(command(*arguments))


# ---------------------------------------------------------------------------------------------------------- text that leaves


def is_clean(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model with a weight of a forged name, rows with one, and what a run of them left and wrote."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("forged")
    model = tiny.save(tiny.build(tiny.CONFIGS["llama"]()), folder / "m")
    weights = load_file(model / "model.safetensors")
    save_file({**weights, FORGED: weights["model.norm.weight"].clone()}, model / "model.safetensors", metadata={"format": "pt"})
    rows = [*tiny.arc_rows()[:6], {**tiny.arc_rows()[0], "answerKey": FORGED[-5:]}]
    (folder / f"d{FORGED[1:]}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = command(
        *("run", "--model", model, "--data", folder / f"d{FORGED[1:]}.jsonl", "--out", folder / f"r{FORGED[1:]}"),
        *("--max-skipped", 0.5, "--no-report"),
    )
    assert done.returncode == 0, done.stderr.decode()
    (folder / "stdout").write_bytes(done.stdout)
    (folder / "stderr").write_bytes(done.stderr)
    return folder


def test_nothing_that_a_run_writes_drives_a_terminal_or_forges_a_line(forged: Path) -> None:
    (results,) = (path for path in forged.iterdir() if path.name.startswith("r"))
    texts = [forged / "stdout", forged / "stderr", *results.glob("*.*"), results / "cache" / "cache.json"]
    texts = [path for path in [*texts, results / "cache" / "skipped.jsonl"] if path.suffix != ".parquet"]
    for path in texts:
        assert is_clean(path.read_text()), path
        assert not any(line.startswith("2026-01-01") for line in path.read_text().splitlines()), path
    assert "weights in its files are not used" in (results / "run.log").read_text()
    (skipped,) = map(json.loads, (results / "cache" / "skipped.jsonl").read_text().splitlines())
    assert "\\u202e" in skipped["reason"] or "\u202e" in skipped["reason"]
    config = yaml.safe_load((results / "config.yaml").read_text())
    assert config["data"].endswith(f"{FORGED[1:]}.jsonl"), "what is escaped is read back"


@pytest.mark.parametrize("arguments", [("inspect", "--json"), ("inspect",), ("score",), ("signals",)])
def test_nothing_that_is_printed_of_a_cache_drives_a_terminal(arguments: tuple[str, ...], forged: Path) -> None:
    (results,) = (path for path in forged.iterdir() if path.name.startswith("r"))
    done = command(arguments[0], results / "cache", *arguments[1:])
    assert done.returncode == 0 and is_clean(done.stdout.decode()) and is_clean(done.stderr.decode())
    if "--json" in arguments:
        assert json.loads(done.stdout)["cache"] == str(results / "cache")


def test_what_libraries_log_is_one_line_while_a_capture_runs() -> None:
    from io import StringIO

    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[transformers] %(message)s"))
    library = logging.getLogger("a library of strangers")
    library.addHandler(handler)
    with logged_in_one_line(library.name):
        library.warning("weights: %s", FORGED)
    library.warning("after")
    assert stream.getvalue() == f"[transformers] weights: {printable(FORGED)}\n[transformers] after\n"


@given(st.text())
def test_a_log_line_is_one_line_whatever_it_holds(text: str) -> None:
    record = logging.LogRecord("n", logging.INFO, "p", 1, "%s", (text,), None)
    try:
        raise ValueError(text)
    except ValueError:
        record.exc_info = sys.exc_info()
    line = OneLine(logging.Formatter("%(levelname)s %(message)s")).format(record)
    assert line.isprintable() and line.startswith(f"INFO {printable(text)}")


@given(PLAIN, st.sampled_from([None, 2]))
def test_json_text_is_clean_and_says_the_same(value: Any, indent: int | None) -> None:
    text = json_text(value, indent)
    assert is_clean(text) and json.loads(text) == value and not has_unprintable(text)
    assert json_text("你好 é 🙂") == '"你好 é 🙂"'


def test_the_record_of_a_date_is_its_own(tmp_path: Path) -> None:
    pl.DataFrame({"question": ["a"], "when": [datetime.date(2024, 2, 3)], "none": [None]}).write_parquet(tmp_path / "d.parquet")
    assert read_data(tmp_path / "d.parquet").rows == [{"question": "a", "when": datetime.date(2024, 2, 3), "none": None}]


def test_weights_and_values_whose_sum_no_number_holds_are_told() -> None:
    frame = pl.DataFrame({"layer": [0, 0], "head": [0, 1], "a": [1e300, 1.0]})
    with pytest.raises(InputError, match=r"the weight of 'a': 1e\+307 is not between"):
        headscore.rank(frame, {"a": 1e307})
    with pytest.raises(InputError, match="beyond what a number can hold"):
        headscore.rank(frame, {"a": 1e15}, fusion="sum", norm_mode="none")
    assert headscore.rank(frame, {"a": 1e15})["rank"].to_list() == [1, 2]
