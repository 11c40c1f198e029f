"""A folder that headscore did not make: what is read there is a plain file of bounded size, what is written stays there.

Each command runs in a process of its own, since a pipe would keep it for ever and a device take all memory.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import headscore
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.errors import InputError
from headscore.score.report.vega import _read

SECONDS = 300
STRANGE: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a folder": Path.mkdir,
}


def command(*arguments: object, expect: int = 2) -> str:
    """What a command tells that ends in one line of error with status 2, or with another status."""
    line = [sys.executable, "-m", "headscore", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == expect and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def replaced(path: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make(path)


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / ".00000.h5.0123.headscore-tmp").write_text("another's")
    return folder


def capture_again(llama: Path, out: Path) -> str:
    return command("capture", "--model", llama, "--max-samples", 24, "--shard-size", 10, "--out", out)


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("name", ["skipped.jsonl", "cache.json"])
def test_writers_of_a_cache_refuse_strange_files(llama: Path, cache: Path, copy: Path, name: str, what: str) -> None:
    replaced(copy / name, STRANGE[what])
    before = sorted(copy.rglob("*"))
    for told in (command("merge", cache, "--out", copy), capture_again(llama, copy)):
        assert f"{copy / name}: is " in told
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("there", [True, False], ids=["shards there", "no shard"])
def test_shards_that_are_a_link_are_refused_before_any_work(
    llama: Path, cache: Path, copy: Path, elsewhere: Path, there: bool
) -> None:
    if there:
        shutil.copytree(copy / "shards", elsewhere, dirs_exist_ok=True)
    replaced(copy / "shards", lambda path: path.symlink_to(elsewhere))
    before = sorted(path.name for path in elsewhere.iterdir())
    for told in (
        command("merge", cache, "--out", copy),
        capture_again(llama, copy),
        command("capture", "--model", llama, "--overwrite", "--out", copy),
    ):
        assert f"{copy / 'shards'}: is a link" in told
    assert sorted(path.name for path in elsewhere.iterdir()) == before


@pytest.mark.parametrize("name", ["cache", "cache/shards", "charts"])
def test_a_run_refuses_links_before_any_work(llama: Path, tmp_path: Path, elsewhere: Path, name: str) -> None:
    link = tmp_path / "out" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    told = command("run", "--model", llama, "--max-samples", 4, "--out", tmp_path / "out")
    assert f"{link}: is a link" in told
    assert [path.name for path in elsewhere.iterdir()] == [".00000.h5.0123.headscore-tmp"]


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_config_yaml_is_refused(cache: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    replaced(out / "config.yaml", STRANGE[what])
    assert re.search(r"config.yaml: is |a folder 'config.yaml' is in the way", command("score", cache, "--out", out))
    assert "config.yaml" in command("score", cache, "--config", out / "config.yaml")
    assert [path.name for path in out.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("what", list(STRANGE)[:3])
def test_strange_results_and_leftovers_are_not_opened(cache: Path, tmp_path: Path, what: str) -> None:
    headscore.score(cache, tmp_path)
    for name in ("run.log", "heads.csv", ".heads.csv.0123.headscore-tmp"):
        replaced(tmp_path / name, STRANGE[what])
    command("score", cache, "--out", tmp_path, expect=0)
    assert "fifo" not in (tmp_path / "run.log").read_text() and (tmp_path / "heads.csv").is_file()
    assert os.path.lexists(tmp_path / ".heads.csv.0123.headscore-tmp"), "it is no file of ours"


def test_large_files_are_refused(cache: Path, copy: Path, tmp_path: Path) -> None:
    for path in (copy / "cache.json", tmp_path / "config.yaml"):
        with path.open("wb") as file:
            file.truncate(1 << 40)  # takes no room on disk
    assert "cache.json: is larger than" in command("score", copy)
    assert "is larger than" in command("score", cache, "--config", tmp_path / "config.yaml")


def test_a_longer_skipped_jsonl_is_written_anew(cache: Path, copy: Path) -> None:
    with (copy / "skipped.jsonl").open("wb") as file:
        file.truncate(1 << 40)
    command("merge", cache, "--out", copy, expect=0)
    assert (copy / "skipped.jsonl").stat().st_size == (cache / "skipped.jsonl").stat().st_size


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_vega_bundle_is_made_again(tmp_path: Path, what: str) -> None:
    STRANGE[what](tmp_path / "vega.js")
    assert _read(tmp_path / "vega.js") is None
    with (tmp_path / "large.js").open("wb") as file:
        file.truncate(1 << 40)
    assert _read(tmp_path / "large.js") is None


# ------------------------------------------------------------------------------------------------ another capture at once


@pytest.mark.parametrize("partly", [False, True])
def test_a_capture_that_another_one_replaced_never_succeeds(llama: Path, tmp_path: Path, partly: bool) -> None:
    """The other one has made all shards anew, or some of them; in its place, with --overwrite and another setting."""
    out = tmp_path / "c"
    options = ["capture", "--model", llama, "--shard-size", 2, "--out", out, "--overwrite", "--seed", 5]

    def other(done: int, _: int) -> None:
        if done >= 4 and not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            command(*options, "--max-samples", 4 if partly else 12, expect=0)

    with pytest.raises(InputError, match=r"another capture has been started there since: .*seed was 7, now 5"):
        headscore.capture(out, model=str(llama), max_samples=12, shard_size=2, seed=7, overwrite=True, progress=other)
    assert (tmp_path / "done").exists()
    found = open_cache(out)
    assert found.metadata["settings"]["seed"] == 5
    assert headscore.inspect(out, verify=True)["damaged"] == [] and not found.missing


def test_shards_that_vanished_are_no_success(llama: Path, tmp_path: Path) -> None:
    def remove(done: int, _: int) -> None:
        if done == 6:
            shard_path(tmp_path / "c", 0).unlink(missing_ok=True)

    with pytest.raises(headscore.data.errors.RunError, match="1 of this process's 3 shards are missing"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=6, shard_size=2, progress=remove)


# ---------------------------------------------------------------------------------------------------- older config.yaml


def test_a_config_yaml_that_names_no_compression_still_works(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("run", "--model", llama, "--max-samples", 4, "--no-report", "--out", out, expect=0)
    config = out / "config.yaml"
    config.write_text("compression: none\n" + config.read_text())
    told = command("run", "--model", llama, "--max-samples", 4, "--no-report", "--out", out, expect=0)
    assert "ignored, as caches are not compressed any more: compression" in told
    config.write_text("compression: none\n" + config.read_text())
    told = command("capture", "--config", config, "--out", out / "cache", expect=0)
    assert "ignored, as caches are not compressed any more: compression" in told
    config.write_text(config.read_text().replace("compression: none", "compression: gzip"))
    for arguments in (["run", "--model", llama, "--out", out], ["capture", "--config", config, "--out", out / "cache"]):
        assert "'compression: gzip': caches are not compressed any more; remove the line" in command(*arguments)
    assert json.loads((out / "cache" / "cache.json").read_text())["settings"].keys().isdisjoint({"compression"})
