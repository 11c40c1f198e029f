"""Writes folders whole or not at all, and replaces only what headscore has written."""

import contextlib
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import HeadscoreError, OptionError, RunError, one_line
from .bounded_json import parse_json
from .plain import kind_of, names_in, read_plain
from .whole_file import TEMPORARY, folder_locked

_MAX_MARK = 1 << 20
_FORMER = "-former"


@contextlib.contextmanager
def whole_folder(path: Path, mark: str, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to write to, which becomes `path` once the context has ended, and nothing of which is left on failure.

    Args:
        path: where the folder goes; there may be an empty one. The folder that it is in is there.
        mark: the name of a file by which a folder of ours is told from others; what is written is to have it.
        overwrite: replace a folder of ours that holds nothing but what is written now.

    Raises InputError where something is in the way, RunError where the disk refuses.
    """
    try:
        _clear_leftovers(path)
        there = _require_free(path, mark, overwrite)
        name = f".{path.name}.{secrets.token_hex(8)}"
        made, former = path.with_name(f"{name}{TEMPORARY}"), path.with_name(f"{name}{_FORMER}{TEMPORARY}")
        try:
            made.mkdir()
            with folder_locked(made):
                yield made
                if there:
                    _require_replaceable(path, made)
                    path.rename(former)
                try:
                    made.rename(path)
                except OSError:
                    if there:
                        former.rename(path)
                    raise
        finally:
            for each in (made, former):
                shutil.rmtree(each, ignore_errors=True)
    except OSError as error:
        if isinstance(error, HeadscoreError):
            raise
        raise RunError(f"--out {path}: cannot be written: {error.strerror or one_line(error)}") from error


def is_mark(path: Path) -> bool:
    """Whether a file is one by which an export says what it is of."""
    try:
        found = parse_json(read_plain(path, _MAX_MARK) or b"")
    except (HeadscoreError, ValueError):
        return False
    return isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("headscore", "format"))


def _require_free(path: Path, mark: str, overwrite: bool) -> bool:
    """Whether a folder of ours is there that is to be replaced."""
    kind = kind_of(path)
    if not kind or (kind == stat.S_IFDIR and not names_in(path)):
        return False
    if kind != stat.S_IFDIR:
        raise OptionError(f"--out {path}: is not a folder; use another --out")
    if not is_mark(path / mark):
        raise OptionError(f"--out {path}: is a folder that headscore export did not write; use another --out")
    if not overwrite:
        raise OptionError(f"--out {path}: already exists; use another --out, or --overwrite")
    return True


def _require_replaceable(path: Path, made: Path) -> None:
    """Raises InputError where a folder of ours holds what somebody else, or an export of another kind, has put there."""
    if others := sorted(set(names_in(path)) - set(names_in(made))):
        raise OptionError(
            f"--out {path}: holds '{others[0]:.80}', which this export does not write, so it is not replaced; use another --out"
        )


def _clear_leftovers(path: Path) -> None:
    """Bring back the folder that a killed process had just put aside, and remove what it had not finished.

    What cannot be told from the work of a living process, where there are no locks, is left.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}({_FORMER})?{re.escape(TEMPORARY)}")
    left = [path.with_name(name) for name in names_in(path.parent) if pattern.fullmatch(name)]
    for each in sorted(left, key=lambda each: _FORMER not in each.name):
        made = each.with_name(each.name.replace(_FORMER, ""))
        with folder_locked(made if kind_of(made) else each) as is_ours:
            if not is_ours or kind_of(each) != stat.S_IFDIR:
                continue
            if _FORMER in each.name and not kind_of(path):
                each.rename(path)
            else:
                shutil.rmtree(each, ignore_errors=True)
