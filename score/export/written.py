"""Writes an export: one file, or a folder of some, whole or not at all, with what it is of inside or beside it."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...data.cache.folder import require_outside_caches
from ...data.errors import OptionError
from ...data.files.plain import kind_of
from ...data.files.whole_file import remove, write_bytes
from ...data.files.whole_folder import is_mark, whole_folder
from ...data.text import json_text, require_text
from ..evidence import compare, stability, sweep
from ..outputs import CHARTS_FOLDER, CONFIG_FILE, CONTROL_FILE, HEADS_PARQUET, REPORT_FILE, RESULT_FILES
from ..validation_files import ALL_FILES, FACTS_FILE

PROVENANCE_FILE = "headscore.json"  # in a folder; beside a file it has the file's name before it
_MAX_NAME = 200  # bytes of a file's name, which has 55 for what comes before and after it
_MARKS = (CONFIG_FILE, HEADS_PARQUET, FACTS_FILE)  # by which a folder of results is known
_RESULTS = {
    CHARTS_FOLDER,
    *RESULT_FILES,
    REPORT_FILE,
    CONTROL_FILE,
    *ALL_FILES,
    *compare.RESULT_FILES,
    *stability.RESULT_FILES,
    *sweep.RESULT_FILES,
}


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
    provenance: Mapping[str, object] = field(repr=False)

    def __repr__(self) -> str:
        """Where it is and what it means, as a console shows this object."""
        return f"{self.path}: {self.meaning}"


def require_writable(path: Path) -> None:
    """Raises InputError for a path that no export can have, before any work is done."""
    require_text("--out", path)
    if not path.name or path.name in (os.curdir, os.pardir):
        raise OptionError(f"--out {path}: is not the name of a file or folder; give one")
    if len(os.fsencode(path.name)) > _MAX_NAME:
        raise OptionError(f"--out {path}: is a name of more than {_MAX_NAME} bytes; give a shorter one")
    require_outside_caches(path)
    folder = path.resolve().parent
    if path.name in _RESULTS and any((folder / name).is_file() for name in _MARKS):
        raise OptionError(f"--out {path}: is the name of a result file, in a folder of results; use another --out")


def write_export(path: Path, content: Content, provenance: Mapping[str, object], *, overwrite: bool) -> None:
    """Write an export.

    Args:
        path: of the file or folder, whose own folder is there.
        content: what is to be there.
        provenance: what it is of.
        overwrite: replace the file that is there, or the folder that an earlier export left.

    Raises InputError where something is in the way.
    """
    require_writable(path)
    if isinstance(content.files, bytes):
        _write_file(path, content.files, None if content.told_inside else provenance, overwrite)
        return
    with whole_folder(path, PROVENANCE_FILE, overwrite=overwrite) as folder:
        for name, part in {**content.files, PROVENANCE_FILE: json_bytes(provenance)}.items():
            write_bytes(folder / name, part)


def json_bytes(value: object) -> bytes:
    """A value as JSON over several lines."""
    return (json_text(value, indent=1) + "\n").encode()


def _write_file(path: Path, content: bytes, provenance: Mapping[str, object] | None, overwrite: bool) -> None:
    """The file, and beside it what it is of, which has its sha256; what an earlier export left there never stands beside it."""
    beside = path.with_name(f"{path.name}.{PROVENANCE_FILE}")
    kind, is_told = kind_of(path), is_mark(beside)
    if kind not in (0, stat.S_IFREG):
        raise OptionError(f"--out {path}: is not a regular file; use another --out")
    if kind and not overwrite:
        raise OptionError(f"--out {path}: already exists; use another --out, or --overwrite")
    if provenance is not None and kind_of(beside) and not is_told:
        raise OptionError(f"--out {path}: {beside.name} is there, and headscore export did not write it; use another --out")
    files = {path: content}
    if provenance is not None:
        told = json_bytes({**provenance, "file": path.name, "sha256": hashlib.sha256(content).hexdigest()})
        # What a killed process leaves is never a new file beside what another is of, and the same command may follow it.
        files = {path: content, beside: told} if kind else {beside: told, path: content}
    if is_told:
        remove(beside)
    for each, part in files.items():
        write_bytes(each, part)
