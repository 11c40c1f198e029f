"""Everything but a capture works without POSIX, as on Windows; here its calls are taken away from a process on Linux."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from headscore import capture
from headscore.data.cache.folder import shard_path
from headscore.data.errors import HeadscoreError
from headscore.data.files import plain
from headscore.data.files.plain import PlainFile
from headscore.data.files.whole_file import TEMPORARY, write_text

# Every Python process that finds this on its path begins with it, so workers do too.
WITHOUT_POSIX = '''
import os, signal, stat, sys

for module in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[module] = None
MISSING = {
    os: """O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK chown fchmod fchown fork forkpty getgid getuid lockf mkfifo
        mknod nice pread preadv pwrite pwritev readv register_at_fork sendfile statvfs sync wait4 writev""",
    signal: "SIGALRM SIGHUP SIGUSR1 SIGUSR2 alarm pthread_sigmask setitimer",
}
for module, names in MISSING.items():
    for name in names.split():
        delattr(module, name)

def is_open(path):
    try:
        found = os.lstat(path)
    except OSError:
        return False
    for handle in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(handle)), found):
                return True
        except OSError:
            pass
    return False

def refusing(real):
    def call(*paths, **options):
        for path in paths:
            if is_open(path):
                raise PermissionError(13, "it is being used by another process", os.fspath(path))
        return real(*paths, **options)
    return call

for name in ("link", "remove", "rename", "replace", "unlink"):
    setattr(os, name, refusing(getattr(os, name)))

def open_no_folder(path, *how, real=os.open, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))
    return real(path, *how, **options)

os.open = open_no_folder
'''

COMMANDS = (
    ("inspect", "cache", "--verify"),
    ("inspect", "cache", "--json"),
    ("score", "cache", "--out", "scores"),
    ("score", "cache", "--out", "scores", "--workers", "2", "--lambda-task", "2", "--overwrite"),
    ("score", "cache/shards/00001.h5", "--out", "of_one", "--score-query-mode", "all_tokens"),
    ("merge", "cache/shards/00002.h5", "cache/shards/00000.h5", "--out", "merged"),
    ("merge", "cache", "--out", "merged"),
    ("report", "merged", "--out", "page"),
)

Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def french_cache(llama: Path, tmp_path: Path) -> Path:
    """A cache whose texts are not ASCII, but can be printed on Windows."""
    rows = [{**row, "question": f"Où est l’été ? {row['question']}"} for row in tiny.arc_rows()[:24]]
    (tmp_path / "été.json").write_text(json.dumps([{**rows[0], "question": ""}, *rows]))
    out, data = tmp_path / "french", str(tmp_path / "été.json")
    capture(out, model=str(llama), data=data, shard_size=10, queries="all_tokens", max_skipped=0.1)
    return out


@pytest.fixture
def without_posix(tmp_path: Path) -> Start:
    """Runs headscore in a folder, without POSIX, and with an encoding that has few characters, as Windows has for files."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux, to know which files are open")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(WITHOUT_POSIX)
    path = os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")])
    encoding = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "cp1252"}

    def start(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
        return headscore(folder, *command, PYTHONPATH=path, **encoding)

    return start


def headscore(folder: Path, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    program = [sys.executable, "-m", "headscore", *command]
    options = {"capture_output": True, "encoding": "cp1252" if environment else "utf-8", "timeout": 120}
    return subprocess.run(program, cwd=folder, env={**os.environ, **environment}, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a folder, without logs, which tell the time, and what is kept of a cache, which depends on times too."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != "run.log" and "derived" not in name}


def test_all_but_a_capture_gives_the_same_without_posix(french_cache: Path, tmp_path: Path, without_posix: Start) -> None:
    printed: dict[str, list[str]] = {}
    here = tmp_path / "here"  # the same place, as a configuration names it
    for name, run in (("with", headscore), ("without", without_posix)):
        shutil.copytree(french_cache, here / "cache")
        for command in COMMANDS:
            done = run(here, *command)
            assert done.returncode == 0, (command, done.stderr)
            printed.setdefault(name, []).append(done.stdout)
        here.rename(tmp_path / name)
    assert printed["without"] == printed["with"] and "Où est l’été ?" in printed["with"][0]
    one, other = contents(tmp_path / "with"), contents(tmp_path / "without")
    assert len(one) > 30 and one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


PLACES: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "a link for a shard": ("shards/00001.h5", lambda path, cache: path.symlink_to(shard_path(cache, 1)), "not a file of this"),
    "a pipe for a shard": ("shards/00001.h5", lambda path, _: os.mkfifo(path), "is not a file of this folder"),
    "a folder for a shard": ("shards/00001.h5", lambda path, _: path.mkdir(), "is not a file of this folder"),
    "a link for the shards": ("shards", lambda path, cache: path.symlink_to(cache / "shards"), "is not a file of this folder"),
    "a link for cache.json": ("cache.json", lambda path, cache: path.symlink_to(cache / "cache.json"), "is a link"),
    "a pipe for cache.json": ("cache.json", lambda path, _: os.mkfifo(path), "is not a regular file"),
    "a folder for cache.json": ("cache.json", lambda path, _: path.mkdir(), "is a folder, not a file"),
}


@pytest.mark.parametrize("what", PLACES)
def test_what_is_no_file_of_the_cache_is_refused_without_posix(
    cache: Path, tmp_path: Path, without_posix: Start, what: str
) -> None:
    name, make, told = PLACES[what]
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    make(copy / name, cache)
    done = without_posix(tmp_path, "score", "copy", "--out", "results")
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("has_flag", [True, False])
def test_a_link_that_comes_while_a_file_is_opened_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_flag: bool
) -> None:
    path, secret, real = tmp_path / "file", tmp_path / "secret", os.open
    path.write_text("plain")
    secret.write_text("secret")

    def slow(name: Path, flags: int) -> int:
        path.unlink()
        path.symlink_to(secret)
        return real(name, flags)

    if not has_flag:
        monkeypatch.setattr(plain, "_FOLLOW_NO_LINK", 0)
    monkeypatch.setattr(plain.os, "open", slow)
    with pytest.raises(HeadscoreError, match=f"{path}: "):
        PlainFile(path)


def test_without_posix_an_unfinished_file_is_left_and_named(cache: Path, tmp_path: Path, without_posix: Start) -> None:
    left = tmp_path / "merged" / "shards" / f".00001.h5.abc{TEMPORARY}"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a file")
    done = without_posix(tmp_path, "merge", str(cache), "--out", "merged")
    assert done.returncode == 2 and "is not empty and holds no cache" in done.stderr
    shutil.copy(cache / "cache.json", tmp_path / "merged")
    done = without_posix(tmp_path, "merge", str(cache), "--out", "merged")
    assert done.returncode == 0 and f"{left.name} may be left by a killed process" in done.stderr, done.stderr
    assert left.read_bytes() == b"half a file" and [*(tmp_path / "merged").rglob(f"*{TEMPORARY}")] == [left]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_user_s_files_have(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "")
        write_text(tmp_path / "new", "", keep_existing=True)
        (tmp_path / "theirs").touch()
    finally:
        os.umask(before)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
