"""A file that grows by a record at a time, of which a killed process loses no more than the record in hand."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError, one_line
from .bounded_json import parse_json
from .plain import read_plain

MAX_BYTES = 1 << 30
_FORMAT = "headscore-journal"


class Journal:
    """Records by their keys, each a line of JSON with its CRC-32 before it; the first line says what they are records of.

    Args:
        path: of the file, which is made if it is not there.
        subject: what the records depend on, of JSON's kinds.
        overwrite: begin anew where the file is about something else.

    A last line that was not written whole is dropped. Raises InputError, naming the first thing that differs, where the file is
    about something else, and for what is no such file or is damaged before its last line.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any], *, overwrite: bool = False):
        self._path = path
        self.records: dict[str, Any] = {}
        content = read_plain(path, MAX_BYTES)
        lines = (content or b"").splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        self._size = sum(map(len, lines))
        if lines:
            first = self._read(lines[0], 1)
            if not isinstance(first, dict) or first.get("format") != _FORMAT:
                raise InputError(f"{path}: is not a journal of headscore; use another --out")
            if different := _difference(first.get("subject"), dict(subject)):
                if not overwrite:
                    raise InputError(f"{path}: {different}; use another --out, or --overwrite")
                lines, self._size = [], 0
        for number, line in enumerate(lines[1:], start=2):
            key, record = self._read(line, number)
            self.records[key] = record
        if not lines:
            self._append({"format": _FORMAT, "subject": dict(subject)})

    def add(self, key: str, record: Any) -> None:
        """Write a record down, for good once this returns. Raises RunError where the disk refuses."""
        self._append([key, record])
        self.records[key] = record

    def _append(self, value: Any) -> None:
        text = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(self._path, flags, 0o666), "r+b") as file:
                file.truncate(self._size)  # without what a killed process left of a line
                file.seek(self._size)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written: {error.strerror or one_line(error)}") from error
        self._size += len(line)

    def _read(self, line: bytes, number: int) -> Any:
        text = line[9:].rstrip(b"\n")
        try:
            if line[:9] != b"%08x " % zlib.crc32(text):
                raise ValueError("its checksum does not match")
            return parse_json(text)
        except ValueError as error:
            raise InputError(f"{self._path}: line {number} is damaged: {one_line(error)[:80]}; remove the file") from error


def _difference(before: Any, now: dict[str, Any]) -> str | None:
    """What differs between the subjects of two journals, in words; None where nothing does."""
    if not isinstance(before, dict):
        return "does not say what it is about"
    known = json.loads(json.dumps(now))
    for name in [*known, *(name for name in before if name not in known)]:
        if before.get(name) != known.get(name):
            return f"holds outcomes for another {name}: {before.get(name)!s:.60}, now {known.get(name)!s:.60}"
    return None
