"""File systems without locks, and files that the system refuses to read: nothing whole is made again, nothing waits for ever.

Where a C compiler is at hand, a library loaded before all others lets every lock of a process fail, those of HDF5 included.
"""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import tiny
from gguf import GGMLQuantizationType
from gguf_files import SIZES, write_gguf
from transformers import LlamaConfig

import headscore
from headscore.capture.model.gguf import converted
from headscore.data.cache.folder import shard_files, shard_path
from headscore.data.files import whole_file as files
from headscore.data.files.whole_file import TEMPORARY, remove_leftovers, write_text

NO_LOCKS = ("ENOLCK", "EAGAIN", "ENOSYS", "EOPNOTSUPP")

NO_LOCKS_C = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

static int refused(void) { errno = atoi(getenv("REFUSED_LOCKS")); return -1; }

int flock(int handle, int how) { return refused(); }
int lockf(int handle, int how, off_t length) { return refused(); }

static int control(const char *name, int handle, int command, void *argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW) return refused();
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, name);
    return real(handle, command, argument);
}

#define CONTROL(name) int name(int handle, int command, ...) { \
    va_list arguments; va_start(arguments, command); void *argument = va_arg(arguments, void *); va_end(arguments); \
    return control(#name, handle, command, argument); }
CONTROL(fcntl)
CONTROL(fcntl64)
"""

PROGRAM = """
import fcntl, json, sys
from pathlib import Path
import h5py, headscore
sys.path.insert(0, sys.argv[3])
from resuming import OPTIONS, files_of
model, out = sys.argv[1], Path(sys.argv[2])
refused = []
for lock in (lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), lambda file: fcntl.lockf(file, fcntl.LOCK_EX)):
    with (out.parent / "lock").open("w") as file:
        try: lock(file)
        except OSError as error: refused.append(error.errno)
headscore.capture(out, model=model, **OPTIONS)
made = files_of(out)
try: h5py.File(out / "shards" / "00000.h5").close()
except OSError as error: refused.append(error.errno)
headscore.capture(out, model=model, **OPTIONS)
facts = headscore.inspect(out, verify=True)
merged = headscore.merge([out], out.parent / "merged")
scores = [headscore.score(cache).raw.write_csv() for cache in (out, out.parent / "merged", out / "shards" / "00001.h5")]
result = {"refused": refused, "kept": files_of(out) == made, "facts": facts, "missing": merged.missing, "scores": scores}
print(json.dumps(result))
"""


@pytest.fixture(scope="session")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose locks fail with the errno in REFUSED_LOCKS."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler, for locks that fail")
    folder = tmp_path_factory.mktemp("no_locks")
    (folder / "no_locks.c").write_text(NO_LOCKS_C)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "no_locks.so"), str(folder / "no_locks.c"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the C compiler builds no library here: {done.stderr[-200:]}")
    return folder / "no_locks.so"


@pytest.mark.parametrize("refusal", NO_LOCKS)
def test_a_file_system_without_locks_is_as_good_as_any(
    llama: Path, cache: Path, tmp_path: Path, no_locks: Path, refusal: str
) -> None:
    """Capture, resume, verify, merge and score; with the variable that makes HDF5 insist on locks."""
    code = getattr(errno, refusal)
    environment = {**os.environ, "LD_PRELOAD": str(no_locks), "REFUSED_LOCKS": str(code), "HDF5_USE_FILE_LOCKING": "TRUE"}
    command = [sys.executable, "-c", PROGRAM, str(llama), str(tmp_path / "c"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["refused"] == [code] * 3, "flock, lockf and HDF5's own lock are meant to fail"
    assert result["kept"] and result["facts"]["damaged"] == result["facts"]["unreadable"] == [] and result["missing"] == 0
    whole = headscore.score(tmp_path / "c").raw.write_csv()
    assert result["scores"] == [whole, whole, headscore.score(shard_path(tmp_path / "c", 1)).raw.write_csv()]
    assert not list(tmp_path.rglob(f"*{TEMPORARY}"))


@pytest.mark.parametrize("wanted", [None, "TRUE", "FALSE", "BEST_EFFORT"])
def test_shards_are_read_whoever_has_locked_them(cache: Path, tmp_path: Path, wanted: str | None) -> None:
    """Whatever HDF5's variable says."""
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    locked = [path.open("r+b") for path in shard_files(copy)]
    for file in locked:
        fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        h5py.File(shard_path(copy, 0))
    environment = {key: value for key, value in os.environ.items() if key != "HDF5_USE_FILE_LOCKING"}
    environment |= {"HDF5_USE_FILE_LOCKING": wanted} if wanted else {}
    for command in (["inspect", str(copy), "--verify"], ["score", str(copy), "--out", str(tmp_path / "results")]):
        done = subprocess.run([sys.executable, "-m", "headscore", *command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    for file in locked:
        file.close()


# ------------------------------------------------------------------------------------------------------ unfinished files


@pytest.fixture
def refuse_locks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets Python's locks fail; one that might wait for ever fails the test."""

    def refuse(code: int) -> None:
        def flock(_: Any, how: int) -> None:
            assert how & fcntl.LOCK_NB, "a lock that waits may wait for ever"
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)

    return refuse


@pytest.mark.parametrize("refusal", NO_LOCKS)
def test_without_locks_an_unfinished_file_is_left_and_named(
    tmp_path: Path, refuse_locks: Callable[[int], None], refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headscore")
    unfinished = tmp_path / f".00001.h5.abc{TEMPORARY}"
    unfinished.write_bytes(b"half a file")
    refuse_locks(getattr(errno, refusal))
    remove_leftovers(tmp_path)
    assert unfinished.exists()
    assert [unfinished.name in record.message for record in caplog.records] == [True], "it is named once"
    write_text(tmp_path / "new", "whole")
    assert (tmp_path / "new").read_text() == "whole" and len(list(tmp_path.iterdir())) == 2


def test_with_locks_what_another_process_writes_is_left_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headscore")
    with (tmp_path / f".00001.h5.abc{TEMPORARY}").open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1 and not caplog.records
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir()) and "removed what a killed process left" in caplog.text


@pytest.mark.parametrize("keep_existing", [False, True])
def test_a_file_is_locked_from_its_beginning_until_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_existing: bool
) -> None:
    """Another process that clears away at any moment finds it locked."""
    moments = []

    def clear_at(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            moments.append(name)
            there = list(tmp_path.glob(f".*{TEMPORARY}"))
            remove_leftovers(tmp_path)
            assert list(tmp_path.glob(f".*{TEMPORARY}")) == there, name
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    clear_at(os, "fsync")
    clear_at(os, "link" if keep_existing else "replace")
    assert write_text(tmp_path / "new", "whole", keep_existing=keep_existing)
    assert moments == ["fsync", "link" if keep_existing else "replace", "fsync"], "the file, then its folder; at the first try"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("keep_existing", [False, True])
def test_a_file_that_is_taken_for_a_leftover_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_existing: bool
) -> None:
    """A process on another machine, whose locks this one does not see, removes it while it is written."""
    real, taken = os.fsync, []

    def fsync(handle: int) -> None:
        real(handle)
        if len(taken) < times:
            taken.append(handle)
            next(tmp_path.glob(f".*{TEMPORARY}")).unlink()

    monkeypatch.setattr(files.os, "fsync", fsync)
    times = files.TRIES - 1
    assert write_text(tmp_path / "new", "whole", keep_existing=keep_existing)
    assert (tmp_path / "new").read_text() == "whole" and len(taken) == times
    times, taken = files.TRIES, []
    with pytest.raises(headscore.RunError, match=r"other: cannot be written: No such file"):
        write_text(tmp_path / "other", "whole", keep_existing=keep_existing)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("refusal", NO_LOCKS)
def test_a_model_is_converted_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse_locks: Callable[[int], None], refusal: str
) -> None:
    """A lock of another process that never goes must not be waited for, nor what it makes be touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_gguf(tiny.build(LlamaConfig(**SIZES)), tmp_path / "tiny.gguf", GGMLQuantizationType.F16)
    refuse_locks(getattr(errno, refusal))
    folder = converted(tmp_path / "tiny.gguf")
    assert (folder / "model.safetensors").exists() and converted(tmp_path / "tiny.gguf") == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing else is left"


def test_of_two_that_convert_a_model_at_once_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse_locks: Callable[[int], None]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_gguf(tiny.build(LlamaConfig(**SIZES)), tmp_path / "tiny.gguf", GGMLQuantizationType.F16)
    refuse_locks(errno.ENOLCK)
    from headscore.capture.model import gguf

    real = gguf._convert

    def slow(source: Path, temporary: Path) -> None:
        """The other process begins and ends while this one converts."""
        monkeypatch.setattr(gguf, "_convert", real)
        first.append(converted(source).stat().st_ino)
        real(source, temporary)

    first: list[int] = []
    monkeypatch.setattr(gguf, "_convert", slow)
    folder = converted(tmp_path / "tiny.gguf")
    assert first == [folder.stat().st_ino] and [path.name for path in folder.parent.iterdir()] == [folder.name]


# ----------------------------------------------------------------------------------------------------- read-only folders


def test_a_cache_that_cannot_be_written_is_scored_and_inspected(cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    left = copy / "shards" / f".00001.h5.abc{TEMPORARY}"
    left.write_bytes(b"half a file")
    python = f"{sys.executable} -m headscore"
    script = (
        f"mount --bind {copy} {copy} && mount -o remount,ro,bind {copy} || exit 77\n"
        f"touch {copy}/x 2>/dev/null && exit 78\n"
        f"{python} inspect {copy} --verify && {python} score {copy} --out {tmp_path / 'results'}"
    )
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, for a read-only mount")
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr[-100:]}")
    assert done.returncode == 0, done.stderr
    assert left.exists() and (tmp_path / "results" / "topk_global.json").exists()
