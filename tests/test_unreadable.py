"""What the system refuses to read may be whole: it is named, never called damaged, never made again or replaced."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from cli_runs import Cli
from resuming import again, files_of

import headscore
from headscore.capture.writing import shard_writer
from headscore.data.cache.folder import shard_path
from headscore.data.errors import DamagedShardError, HeadscoreError, InputError, RunError, UnreadableFileError
from headscore.data.files import plain
from headscore.data.files.plain import PlainFile

CODES = ("EIO", "EACCES", "ENOLCK", "ESTALE", "EMFILE")
WAYS = ("open", "stat", "_fill")  # the last reads for HDF5

Refuse = Callable[[Path, str, str], None]


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Lets one way to read a file or folder fail, as a failing disk or a lost mount does."""

    def install(path: Path, way: str, refusal: str) -> None:
        owner = {"stat": Path, "iterdir": Path, "_fill": PlainFile}.get(way, plain.os)
        real, code, meant = getattr(owner, way), getattr(errno, refusal), path.stat()

        def is_meant(given: int | str | Path) -> bool:
            if isinstance(given, PlainFile):
                return os.path.samestat(os.fstat(given.fileno()), meant)
            return os.fspath(given) == os.fspath(path)

        def failing(given: Any, *arguments: Any, **options: Any) -> Any:
            if is_meant(given):
                raise OSError(code, os.strerror(code))
            return real(given, *arguments, **options)

        monkeypatch.setattr(owner, way, failing)

    return install


# ---------------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("way", "refusal"), [*zip(WAYS, CODES, strict=False)])
def test_a_shard_that_cannot_be_read_is_not_made_again(
    llama: Path, copy: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, way: str, refusal: str, overwrite: bool
) -> None:
    before = files_of(copy)
    refuse(shard_path(copy, 1), way, refusal)
    with pytest.raises(
        UnreadableFileError, match=rf"00001\.h5: cannot be read: {os.strerror(getattr(errno, refusal))}; it may"
    ):
        again(llama, copy, overwrite=overwrite)
    monkeypatch.undo()
    assert files_of(copy) == before
    again(llama, copy)
    assert files_of(copy) == before, "all were whole"


@pytest.mark.parametrize("refusal", CODES)
@pytest.mark.parametrize("way", WAYS)
def test_a_shard_that_cannot_be_read_is_not_called_damaged(
    copy: Path,
    tmp_path: Path,
    refuse: Refuse,
    run_cli: Cli,
    way: str,
    refusal: str,
) -> None:
    refuse(shard_path(copy, 1), way, refusal)
    why = rf"00001\.h5: cannot be read: {os.strerror(getattr(errno, refusal))}"
    readers: list[Callable[[], Any]] = [
        lambda: headscore.score(copy),
        lambda: headscore.score(copy, partial=True),
        lambda: headscore.scan_cache(copy).collect(),
        lambda: headscore.merge([copy], tmp_path / "merged"),
    ]
    for reader in readers:
        with pytest.raises(UnreadableFileError, match=why):
            reader()
    facts = headscore.inspect(copy, verify=True)
    assert facts["damaged"] == [] and len(facts["unreadable"]) == 1 and facts["shards"]["missing"] == ""
    status, out, err = run_cli("inspect", copy, "--verify")
    assert status == 1 and "2 shards are whole, 0 damaged, 1 cannot be read" in out and "refused   " in out
    assert err.endswith("1 of 3 shards cannot be read, and may be whole\n")
    assert run_cli("score", copy, "--out", tmp_path / "results")[0] == 1 and not (tmp_path / "results").exists()


def test_another_process_s_shard_that_cannot_be_read_is_left_to_it(
    llama: Path, copy: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headscore")
    before = files_of(copy)
    refuse(shard_path(copy, 1), "_fill", "EIO")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    again(llama, copy)
    assert "00001.h5: cannot be read: Input/output error" in caplog.text
    assert "1 of 3 shards are still to be made by other processes" in caplog.text
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UnreadableFileError, match=r"00001\.h5"):
        again(llama, copy)
    assert files_of(copy) == before


@pytest.mark.parametrize("place", ["shards", "."])
@pytest.mark.parametrize(("way", "refusal"), [("iterdir", "EACCES"), ("stat", "ESTALE")])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    llama: Path, copy: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, place: str, way: str, refusal: str
) -> None:
    before = files_of(copy)
    refuse(copy / place, way, refusal)
    with pytest.raises(HeadscoreError, match=f"{copy / place}: cannot be"):
        again(llama, copy)
    if place == "shards":
        with pytest.raises(UnreadableFileError, match="shards: cannot be read"):
            headscore.score(copy)
    monkeypatch.undo()
    assert files_of(copy) == before


# ------------------------------------------------------------------------------------------------------------ cache.json


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("way", "refusal"), [("open", "EACCES"), ("stat", "ESTALE")])
def test_a_cache_json_that_cannot_be_read_is_not_written_again(
    llama: Path, copy: Path, refuse: Refuse, way: str, refusal: str, overwrite: bool
) -> None:
    before, content = files_of(copy), (copy / "cache.json").read_bytes()
    refuse(copy / "cache.json", way, refusal)
    with pytest.raises(UnreadableFileError, match=r"cache\.json: cannot be read"):
        again(llama, copy, seed=8, overwrite=overwrite)
    assert files_of(copy) == before and (copy / "cache.json").open("rb").read() == content


def test_a_lost_cache_json_is_written_again_from_what_can_be_read(llama: Path, copy: Path, refuse: Refuse) -> None:
    (copy / "cache.json").unlink()
    for number in range(3):
        refuse(shard_path(copy, number), "open", "EIO")
        with pytest.raises(UnreadableFileError, match=r"00000\.h5: cannot be read"):  # and not that --overwrite would help
            again(llama, copy)
    assert not (copy / "cache.json").exists()


# ------------------------------------------------------------------------------------------------- the end of a capture


def loses(monkeypatch: pytest.MonkeyPatch, lost: set[int], after: Callable[[Path], None]) -> None:
    """Lets something happen to shards once they have been written."""
    real = shard_writer.write_shard

    def write_shard(path: Path, number: int, *arguments: Any) -> None:
        real(path, number, *arguments)
        if number in lost:
            after(path)

    monkeypatch.setattr(shard_writer, "write_shard", write_shard)


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (Path.unlink, "there is no such file"),
        (lambda path: os.truncate(path, 5000), "is not a readable shard, or is damaged"),
    ],
)
def test_a_process_whose_own_shard_is_lost_does_not_end_well(
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: Cli,
    after: Callable[[Path], None],
    why: str,
) -> None:
    loses(monkeypatch, {1}, after)
    options = ["--max-samples", 24, "--shard-size", 10, "--queries", "all_tokens", "--seed", 7]
    status, _, err = run_cli("capture", "--model", llama, "--out", tmp_path / "c", *options)
    assert status == 1 and err.splitlines()[-1].startswith("headscore: error: "), err
    assert "at the end, 1 of this process's 3 shards are missing or damaged: 00001.h5 (" in err and why in err
    assert not (tmp_path / "c" / "skipped.jsonl").exists(), "a cache with it counts as complete"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    again(llama, tmp_path / "c")
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name)
    monkeypatch.undo()
    again(llama, tmp_path / "c")
    assert headscore.inspect(tmp_path / "c", verify=True)["damaged"] == []


# --------------------------------------------------------------------------------------------------- causes told apart


def test_damage_is_told_apart_from_another_version(llama: Path, copy: Path) -> None:
    """A shard that a newer headscore has made is whole, so it is not made again."""
    os.truncate(shard_path(copy, 0), 5000)
    with pytest.raises(DamagedShardError, match=r"00000\.h5"):
        headscore.score(copy)
    with h5py.File(shard_path(copy, 1), "r+", libver=("v110", "v110"), locking=False) as file:
        file.attrs["format_version"] = 2
    before = files_of(copy)["00001.h5"]
    with pytest.raises(InputError, match=r"00001\.h5: cache format 2, this headscore reads 1; upgrade") as error:
        again(llama, copy)
    assert not isinstance(error.value, DamagedShardError) and files_of(copy)["00001.h5"] == before


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(__file__)
    for name in ("folder", "pipe", "link", "socket", "nothing", "x" * 300, "link/below"):
        with socket.socket(socket.AF_UNIX) as listening:
            if name == "socket":
                listening.bind(str(tmp_path / "socket"))
            with pytest.raises(InputError, match=r"is a link|is a folder|is not a regular file|does not exist"):
                PlainFile(tmp_path / name)
    handles = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(3):
        with pytest.raises(InputError):
            PlainFile(tmp_path / "pipe")
    assert not handles or len(list(Path("/proc/self/fd").iterdir())) == handles, "nothing stays open"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that gives a real EIO")
def test_a_refused_read_is_remembered() -> None:
    """The first page of a process's memory, which is never there."""
    with PlainFile(Path("/proc/self/mem")) as file:
        assert isinstance(file.fault("no shard"), DamagedShardError)
        file.require_read()
        buffer = bytearray(b"12345678")
        assert file.readinto(buffer) == 8 and buffer == bytes(8)
        with pytest.raises(UnreadableFileError):
            file.require_read()
        assert isinstance(file.fault("no shard"), UnreadableFileError) and isinstance(file.fault(""), RunError)


PROGRAM = """
import sys
import headscore
from headscore.data.files.plain import PlainFile
real, calls, kept = PlainFile._fill, [], []
def fill(*of):
    calls.append(1)
    if len(calls) > int(sys.argv[2]):
        raise OSError(5, "Input/output error")
    return real(*of)
PlainFile._fill = fill  # which keeps what is kept until the last
try:
    headscore.score(sys.argv[1])
except headscore.HeadscoreError as error:
    kept.append(error)
    sys.last_value = error
    print(type(error).__name__)
"""


def ends_well(cache: Path, reads: int, error: str) -> None:
    """A program that keeps the error of a shard ends well.

    An error keeps the frames that it came through; none may hold memory of HDF5's, which is gone by then, or what h5py opened.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(cache), str(reads)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{error}\n"), done.stderr


@pytest.mark.parametrize("after", [0, 1, 3, 12])
def test_a_program_that_keeps_the_error_of_a_refused_read_ends_well(copy: Path, after: int) -> None:
    ends_well(copy, after, "UnreadableFileError")


@pytest.mark.parametrize("length", [0, 5, 600, 5000])
def test_a_program_that_keeps_the_error_of_a_damaged_shard_ends_well(copy: Path, length: int) -> None:
    os.truncate(shard_path(copy, 1), length)
    ends_well(copy, 10_000, "DamagedShardError")
