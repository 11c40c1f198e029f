"""Writes files whole or not at all, and clears away what a killed process left half-written.

On Windows no file can be renamed or removed while it is open, and a lock needs an open file: there nothing is locked.
"""

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, OptionError, RunError, one_line
from ..text import require_text

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("headscore")

TEMPORARY = ".headscore-tmp"  # how the names of unfinished files end
TRIES = 3
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)  # the last on Windows


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, bool]]:
    """A new and empty file beside `path`, removed in the end if it is still there, and whether it is locked.

    The lock is how another process tells it from one that a killed process left behind. Where it cannot be locked that is no
    harm, see `write_bytes`, and the file is not open, so that it can be renamed on Windows too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            if not (locked := _locked(file)):
                file.close()
            yield temporary, locked
    finally:  # once it is closed, as NFS keeps an open file under another name
        temporary.unlink(missing_ok=True)


def _locked(file: BinaryIO | int) -> bool:
    """Lock an open file without waiting, which might be for ever where locks do not work; whether that succeeded."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[bool]:
    """Locks a folder within this context; whether that succeeded, which it does not where another process has locked it."""
    handle = None
    with contextlib.suppress(OSError):  # Windows opens no folder
        handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle is not None and _locked(handle)
    finally:
        if handle is not None:
            os.close(handle)


def locks_work(folder: Path) -> bool:
    """Whether files in `folder` can be locked, tried with one that nobody else knows; also True where none can be written."""
    try:
        with _temporary(folder / "lock") as (_, locked):
            return locked
    except OSError:
        return True


def write_text(path: Path, text: str, *, keep_existing: bool = False) -> bool:
    """Write a UTF-8 text file; as `write_bytes`."""
    return write_bytes(path, text.encode(), keep_existing=keep_existing)


def write_bytes(path: Path, content: bytes | memoryview, *, keep_existing: bool = False, durable: bool = True) -> bool:
    """Write a file whole or not at all: under another name, flushed to disk, then renamed.

    keep_existing: where a file is there already, of whatever process, leave it and return False. durable: False saves the time
    of flushing, for a file with checksums that may be lost in a power cut. An unfinished file that vanishes is written again:
    without locks that all processes see, one of them may take it for a leftover. Raises RunError where the disk refuses.
    """
    tries = TRIES
    while True:
        try:
            return _write(path, content, keep_existing, durable)
        except OSError as error:
            tries -= 1
            if not tries or error.errno not in (errno.ENOENT, errno.ESTALE):
                raise RunError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error


def _write(path: Path, content: bytes | memoryview, keep_existing: bool, durable: bool) -> bool:
    written = True
    with _temporary(path) as (temporary, _):
        with temporary.open("r+b") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if keep_existing:
            written = _link(temporary, path)
        else:
            temporary.replace(path)
    if durable:
        _flush_folder(path.parent)
    return written


def remove(path: Path) -> None:
    """Remove a file if it is there. Raises RunError where the disk refuses."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be removed: {error.strerror or one_line(error)}") from error


def _link(temporary: Path, path: Path) -> bool:
    """Give a finished file its name unless another has it; whether it got it."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:  # some file systems have no hard links; there two processes might both rename
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        temporary.replace(path)
    return True


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut, where the system has a call for it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder` that no living process is writing, naming each in the log.

    Where there are no locks to tell by, they are left, and the log says so.
    """
    found: list[Path] = []
    with contextlib.suppress(OSError):  # code that needs the folder will report it
        found = sorted(folder.glob(f".*{TEMPORARY}"))
    left = []
    for path in found:
        with contextlib.suppress(OSError), open(path, "r+b", opener=_plainly) as file:
            if _locked(file):
                path.unlink()
                logger.info("%s: removed what a killed process left half-written", path)
            else:
                left.append(path.name)
    if left and not locks_work(folder):
        logger.info(
            "%s: %s may be left by a killed process or be written by a living one, which cannot be told without file locks; "
            "remove them when no headscore is running",
            folder,
            ", ".join(left),
        )


def _plainly(name: str, flags: int) -> int:
    """Opens a file that may be a stranger's link or pipe: neither is followed or waited for."""
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def user_cache() -> Path:
    """The user's folder for what can be made again: `~/.cache/headscore`, which XDG_CACHE_HOME moves.

    Raises InputError for a user without a home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headscore"
    except RuntimeError as error:
        raise InputError("no home folder is known for this user; set XDG_CACHE_HOME to a folder that can be written") from error


def given_path(what: str, value: Any) -> Path:
    """A path that a user gives for `what`. Raises InputError for an empty text, which would be the folder one is in."""
    if not isinstance(value, str | Path) or value == "":
        raise OptionError(f"{what}: expected a path, got {value!r:.80}")
    return Path(value)


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` if need be, and on failure removes it, and those above, if they were made here and are still empty.

    Raises InputError where it cannot be made or written to, or its path is no text that a file can hold.
    """
    require_text("--out", folder)
    new = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _temporary(folder / "writable"):
                pass
            remove_leftovers(folder)
        except FileExistsError as error:
            raise OptionError(f"--out {folder}: is a file; give a folder") from error
        except OSError as error:
            raise OptionError(f"--out {folder}: cannot be written: {error.strerror or one_line(error)}") from error
        yield
    finally:
        for each in new:
            with contextlib.suppress(OSError):  # not empty, or another process was faster
                each.rmdir()
