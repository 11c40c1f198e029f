"""Writes folders whole or not at all, and replaces only what headscore has written."""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import HeadscoreError, OptionError, RunError, one_line
from .plain import kind_of, names_in
from .whole_file import TEMPORARY


@contextlib.contextmanager
def whole_folder(path: Path, mark: str, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to write to, which becomes `path` once the context has ended, and nothing of which is left on failure.

    Args:
        path: where the folder goes; there may be an empty one.
        mark: the name of a file by which a folder of ours is told from others; what is written is to have it.
        overwrite: replace a folder of ours.

    Raises InputError where something is in the way, RunError where the disk refuses.
    """
    there = _require_free(path, mark, overwrite)
    name = f".{path.name}.{secrets.token_hex(8)}"
    made, former = path.with_name(f"{name}{TEMPORARY}"), path.with_name(f"{name}-former{TEMPORARY}")
    try:
        made.mkdir(parents=True)
        yield made
        if there:
            path.rename(former)
        try:
            made.rename(path)
        except OSError:
            if there:
                former.rename(path)
            raise
    except OSError as error:
        if isinstance(error, HeadscoreError):
            raise
        raise RunError(f"--out {path}: cannot be written: {error.strerror or one_line(error)}") from error
    finally:
        for each in (made, former):
            shutil.rmtree(each, ignore_errors=True)


def _require_free(path: Path, mark: str, overwrite: bool) -> bool:
    """Whether a folder of ours is there that is to be replaced."""
    kind = kind_of(path)
    if not kind or (kind == stat.S_IFDIR and not names_in(path)):
        return False
    if kind != stat.S_IFDIR:
        raise OptionError(f"--out {path}: is not a folder; use another --out")
    if not os.path.lexists(path / mark):
        raise OptionError(f"--out {path}: is a folder that headscore export did not write; use another --out")
    if not overwrite:
        raise OptionError(f"--out {path}: already exists; use another --out, or --overwrite")
    return True
