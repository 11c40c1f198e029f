"""Each cause that a caller would tell apart has a class of its own, and nothing treats one as another."""

import ast
import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import pytest
from made_caches import clean, made_cache

import headscore
from headscore.capture.job.ranks import Rank
from headscore.capture.job.resume import require_same_capture, start_cache
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.files.plain import PlainFile
from headscore.data.options.settings import METADATA_FILE

ROOT = Path(__file__).parent.parent
BELOW = {
    headscore.InputError: [
        headscore.OptionError,
        headscore.NewerFormatError,
        headscore.DamagedShardError,
        headscore.ForeignShardError,
    ],
    headscore.RunError: [headscore.UnreadableFileError],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_cache(tmp_path_factory.mktemp("made") / "cache", **clean(2, 4, 6), shards=[[0, 1, 2], [3, 4, 5]])


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cache"))


def make_newer(path: Path) -> None:
    """Let a shard, or the metadata of a cache, be what a later headscore would write."""
    if path.name == METADATA_FILE:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
        return
    with h5py.File(path, "r+", libver=("v110", "v110"), locking=False) as file:
        file.attrs["format_version"] = 2


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def readers(cache: Path, out: Path) -> list[Any]:
    return [
        lambda: headscore.score(cache),
        lambda: headscore.score(cache, partial=True),
        lambda: headscore.scan_cache(cache).collect(),
        lambda: headscore.merge([cache], out),
    ]


def test_no_class_is_a_kind_of_another_cause() -> None:
    for parent, status in ((headscore.InputError, 2), (headscore.RunError, 1)):
        for error in BELOW[parent]:
            assert error.__bases__ == (parent,) and error.exit_status == status
    assert not issubclass(headscore.RunError, headscore.InputError) and not issubclass(headscore.InputError, headscore.RunError)


def test_an_error_that_is_told_again_keeps_its_cause() -> None:
    for errors in BELOW.values():
        for error in errors:
            again = error("shard").retold("cache: shard")
            assert type(again) is error and again.message == "cache: shard"


def test_a_damaged_shard(cache: Path, tmp_path: Path) -> None:
    os.truncate(shard_path(cache, 1), 5000)
    for read in readers(cache, tmp_path / "merged"):
        with pytest.raises(headscore.DamagedShardError, match=r"00001\.h5"):
            read()
    assert len(headscore.inspect(cache)["damaged"]) == 1
    assert open_cache(cache).skipped_in_whole(1) is None, "so that it is made again"


def test_a_foreign_shard(cache: Path, tmp_path: Path) -> None:
    shutil.copy(shard_path(cache, 0), shard_path(cache, 1))
    for read in readers(cache, tmp_path / "merged"):
        with pytest.raises(headscore.ForeignShardError, match=r"00001\.h5: is shard 0"):
            read()
    with pytest.raises(headscore.ForeignShardError):
        open_cache(cache).skipped_in_whole(1)


def test_a_shard_of_a_newer_format(cache: Path, tmp_path: Path) -> None:
    make_newer(shard_path(cache, 1))
    before = contents(cache)
    inspecting = [lambda: headscore.inspect(cache), lambda: headscore.inspect(shard_path(cache, 1))]
    for read in [*readers(cache, tmp_path / "merged"), *inspecting]:
        with pytest.raises(headscore.NewerFormatError, match=r"00001\.h5: cache format 2, this headscore reads 1; upgrade"):
            read()
    with pytest.raises(headscore.NewerFormatError):
        open_cache(cache).skipped_in_whole(1)
    assert {name: content for name, content in contents(cache).items() if name in before} == before


@pytest.mark.parametrize("shards_too", [False, True])
def test_a_cache_of_a_newer_format_is_left_alone(cache: Path, tmp_path: Path, shards_too: bool) -> None:
    """Also where its shards are of this format, a capture does not write cache.json again from what they say."""
    metadata = open_cache(cache).metadata
    for path in (cache / METADATA_FILE, *([shard_path(cache, number) for number in (0, 1)] if shards_too else [])):
        make_newer(path)
    before = contents(cache)
    for read in [*readers(cache, tmp_path / "merged"), lambda: headscore.inspect(cache)]:
        with pytest.raises(headscore.NewerFormatError, match=r"cache\.json: cache format 2"):
            read()
    for begin in (
        lambda: require_same_capture(cache, metadata, False, [0, 1]),
        lambda: start_cache(cache, metadata, False, Rank()),
    ):
        with pytest.raises(headscore.NewerFormatError, match=r"upgrade headscore"):
            begin()
    assert contents(cache) == before
    start_cache(cache, metadata, True, Rank())  # which was asked for with --overwrite
    assert open_cache(cache).metadata == metadata


def test_shards_of_a_newer_format_without_their_cache_json_are_left_alone(cache: Path) -> None:
    metadata = open_cache(cache).metadata
    for number in (0, 1):
        make_newer(shard_path(cache, number))
    (cache / METADATA_FILE).unlink()
    before = contents(cache)
    with pytest.raises(headscore.NewerFormatError, match=r"00000\.h5: cache format 2"):
        start_cache(cache, metadata, False, Rank())
    assert contents(cache) == before


def test_an_unreadable_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PlainFile, "_fill", refused)
    for read in readers(cache, tmp_path / "merged"):
        with pytest.raises(headscore.UnreadableFileError, match="Input/output error"):
            read()


@pytest.mark.parametrize(
    "options",
    [{"top_k": 0}, {"top_k": 1000}, {"norm_mode": "no"}, {"task_span": "no"}, {"weight": {"no": 1.0}}, {"signal": {"a": "("}}],
    ids=str,
)
def test_a_bad_option(cache: Path, options: dict[str, Any]) -> None:
    with pytest.raises(headscore.OptionError):
        headscore.score(cache, **options)
    with pytest.raises(headscore.InputError) as error:
        headscore.score(cache / "nowhere")
    assert not isinstance(error.value, headscore.OptionError), "a cache that is not there is no bad option"


def test_what_speaks_of_an_option_first_is_a_bad_option() -> None:
    for path in (path for room in ("data", "capture", "score") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError" and node.args:
                text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
                assert not (isinstance(text, ast.Constant) and str(text.value).startswith("--")), (path, node.lineno)


def test_a_failed_run(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(headscore.RunError) as error:
        headscore.merge([cache], tmp_path / "merged")
    assert type(error.value) is headscore.RunError
