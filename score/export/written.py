"""Writes an export: one file, or a folder of some, whole or not at all, with what it is of inside or beside it."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.cache.folder import require_outside_caches
from ...data.errors import OptionError
from ...data.files.plain import kind_of
from ...data.files.whole_file import write_bytes
from ...data.files.whole_folder import whole_folder
from ...data.text import json_text, require_text

PROVENANCE_FILE = "headscore.json"  # in a folder; beside a file it has the file's name before it


@dataclass(frozen=True)
class Content:
    """What a format makes of the chosen heads.

    Args:
        files: the bytes of a file, or of the files of a folder by name.
        meaning: what it says and what not, in a line.
        told_inside: whether the file itself says what it is of.
    """

    files: bytes | Mapping[str, bytes]
    meaning: str
    told_inside: bool = False


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written.

    Args:
        path: of the file or folder.
        format: its name.
        heads: the (layer, head) or (layer, kv_head) that it is of, best first.
        meaning: what it says and what not, in a line.
        provenance: what it is of.
    """

    path: Path
    format: str
    heads: list[tuple[int, int]]
    meaning: str
    provenance: Mapping[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        """Where it is and what it means, as a console shows this object."""
        return f"{self.path}: {self.meaning}"


def require_writable(path: Path) -> None:
    """Raises InputError for a path that no export can have, before any work is done."""
    require_text("--out", path)
    if not path.name or path.name in (os.curdir, os.pardir):
        raise OptionError(f"--out {path}: is not the name of a file or folder; give one")
    require_outside_caches(path)


def write_export(path: Path, content: Content, provenance: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write an export.

    Args:
        path: of the file or folder.
        content: what is to be there.
        provenance: what it is of.
        overwrite: replace what an earlier export left.

    Raises InputError where something is in the way.
    """
    require_writable(path)
    if isinstance(content.files, bytes):
        _write_file(path, content.files, None if content.told_inside else provenance, overwrite)
        return
    with whole_folder(path, PROVENANCE_FILE, overwrite=overwrite) as folder:
        for name, part in {**content.files, PROVENANCE_FILE: json_bytes(provenance)}.items():
            write_bytes(folder / name, part)


def json_bytes(value: Any) -> bytes:
    """A value as JSON over several lines."""
    return (json_text(value, indent=1) + "\n").encode()


def _write_file(path: Path, content: bytes, provenance: Mapping[str, Any] | None, overwrite: bool) -> None:
    """The file, and before it what it is of, which has its sha256: so neither is taken for one of another export."""
    beside = path.with_name(f"{path.name}.{PROVENANCE_FILE}")
    for each in (path,) if provenance is None else (path, beside):
        kind = kind_of(each)
        if kind not in (0, stat.S_IFREG):
            raise OptionError(f"--out {each}: is not a regular file; use another --out")
        if kind and not overwrite:
            raise OptionError(f"--out {each}: already exists; use another --out, or --overwrite")
    if provenance is not None:
        write_bytes(beside, json_bytes({**provenance, "file": path.name, "sha256": hashlib.sha256(content).hexdigest()}))
    write_bytes(path, content)
