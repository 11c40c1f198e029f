"""Writes files whole or not at all, and clears away what a killed process left half-written."""

import contextlib
import errno
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, RunError, one_line

logger = logging.getLogger("headscore")

TEMPORARY = ".headscore-tmp"  # how the names of unfinished files end
_UMASK = os.umask(0)  # reading it means setting it, so it is read once and not from a thread
os.umask(_UMASK)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """An open file beside `path`, removed in the end if it is still there.

    It is locked while it is open, which is how another process tells it from one that a killed process left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else it was taken for a leftover before it was locked
            break
        os.close(handle)
    with os.fdopen(handle, "wb") as file:
        try:
            yield file, Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def write_text(path: Path, text: str, *, keep_existing: bool = False) -> bool:
    """Write a UTF-8 text file; as `write_bytes`."""
    return write_bytes(path, text.encode(), keep_existing=keep_existing)


def write_bytes(path: Path, content: bytes | memoryview, *, keep_existing: bool = False, durable: bool = True) -> bool:
    """Write a file whole or not at all: under another name, flushed to disk, then renamed.

    keep_existing: where a file is there already, of whatever process, leave it and return False. durable: False saves the time
    of flushing, for a file with checksums that may be lost in a power cut. Raises RunError where the disk refuses.
    """
    written = True
    try:
        with _temporary(path) as (file, temporary):
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)
            if durable:
                os.fsync(file.fileno())
            if keep_existing:
                written = _link(temporary, path)
            else:
                temporary.replace(path)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error
    return written


def require_plain_file(path: Path) -> None:
    """Raises InputError for what is there but is no regular file: reading a pipe or a device might never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file")


def _link(temporary: Path, path: Path) -> bool:
    """Give a finished file its name unless another has it; whether it got it."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:  # some file systems have no hard links; there two processes might both rename
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if path.exists():
            return False
        temporary.replace(path)
    return True


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder` that no living process is writing, naming each in the log."""
    for path in sorted(folder.glob(f".*{TEMPORARY}")):
        with contextlib.suppress(OSError), path.open("r+b") as file:  # locked, or gone in the meantime
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            logger.info("%s: removed what a killed process left half-written", path)


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` if need be, and on failure removes it again if it was made here and is still empty.

    Raises InputError where it cannot be made or written to.
    """
    new = not os.path.lexists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder / "writable"):
            pass
        remove_leftovers(folder)
    except FileExistsError as error:
        raise InputError(f"--out {folder}: is a file; give a folder") from error
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written: {error.strerror or one_line(error)}") from error
    try:
        yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # not empty, or another process was faster
                folder.rmdir()
