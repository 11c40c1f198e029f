"""Writes files whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, RunError, one_line

_UMASK = os.umask(0)  # reading it means setting it, so it is read once and not from a thread
os.umask(_UMASK)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; on success it is flushed to disk and renamed, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; RunError where that fails."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all; RunError where that fails."""
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` if need be, and on failure removes it again if it was made here and is still empty.

    Raises InputError where it cannot be made or written to.
    """
    new = not os.path.lexists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".writable.", dir=folder):
            pass
    except FileExistsError as error:
        raise InputError(f"--out {folder}: is a file; give a folder") from error
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written: {error.strerror or one_line(error)}") from error
    try:
        yield
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()
