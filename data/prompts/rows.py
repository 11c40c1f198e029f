"""Reads the rows of a data file and draws the sample of them that is captured."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, one_line
from ..files.foreign import foreign_faults_told
from ..files.strict_json import parse_strictly
from ..options.settings import SAMPLE_DATA

Row = dict[str, Any]

# Reads a Parquet file from stdin and exits with 0, or says in one line why it cannot.
_TRIAL = """
import io, os, sys, polars
try:
    polars.read_parquet(io.BytesIO(sys.stdin.buffer.read()))
except BaseException as error:
    print(type(error).__name__ + ":", *str(error).split(), flush=True)
    os._exit(1)
"""


@dataclass(frozen=True)
class Data:
    """All `rows` of a data file, in file order, and the hex `sha256` of the bytes that they were made of."""

    rows: list[Row]
    sha256: str


def data_file(data: str) -> Path:
    """The path of `--data`: the file itself, or the shipped questions for 'samples'.

    Raises InputError where there is no such file.
    """
    path = Path(str(files("headscore.data") / "samples" / "commonsense_arc.jsonl")) if data == SAMPLE_DATA else Path(data)
    if not path.exists():
        raise InputError(f"{path}: data file not found; give --data an existing .json, .jsonl, .parquet or .csv file")
    if not path.is_file():
        raise InputError(f"{path}: is not a file; give --data a .json, .jsonl, .parquet or .csv file")
    return path


def read_data(path: Path) -> Data:
    """All rows of a data file as dicts from column name to value. What is read is what is hashed: the file is read once.

    JSON and JSONL are told apart by their first character, whatever the file is called. JSON and CSV are parsed by the standard
    library, not by polars, which turns a number in a text column into text, fills short lines and names no row when it fails.
    NaN and Infinity, which pandas writes into JSON, are numbers here too: whatever uses one reports it.
    Raises InputError, with line or row, for a file that is empty, cut short, of another kind or not UTF-8, and for one that
    changes while it is read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of file '{path.suffix}'; expected .json, .jsonl, .parquet or .csv")
    content = _content(path)
    rows = reader(path, content)
    if not rows:
        raise InputError(f"{path}: has no rows")
    return Data(rows, hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            content = file.read()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
    if (before.st_size, before.st_mtime_ns) != (len(content), after.st_mtime_ns):
        raise InputError(f"{path}: changed while it was read; give it again when nothing writes to it")
    return content


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_rows(rows: int, max_samples: int, seed: int) -> list[int]:
    """Row numbers of a seeded sample without replacement, in file order; all of them if `max_samples` >= `rows`.

    With one seed, a smaller sample is a subset of a larger one. RandomState is used because NumPy promises that its
    stream never changes (NEP 19), so the same command draws the same rows with any NumPy.
    """
    if max_samples >= rows:
        return list(range(rows))
    return sorted(np.random.RandomState(seed).permutation(rows)[:max_samples].tolist())


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error


def _read_json(path: Path, content: bytes) -> list[Row]:
    text = _decoded(path, content)
    first = text.lstrip()[:1]
    if first == "[":
        rows = _parsed(path, text, 1)
    elif first == "{":
        rows = list(_json_lines(path, text))
        _require_one_object_a_row(path, rows)
    elif first:
        raise InputError(f"{path}: not JSON: starts with {first!r}; expected a JSON array or one JSON object a line")
    else:
        raise InputError(f"{path}: is empty")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number}: expected a JSON object, got {type(row).__name__}")
    return rows


def _require_one_object_a_row(path: Path, rows: list[Any]) -> None:
    """Raises InputError for a single object of columns, which is what pandas writes unless it is told otherwise."""
    columns = list(rows[0].values()) if len(rows) == 1 else []
    if columns and all(isinstance(column, dict) and list(column) == list(map(str, range(len(column)))) for column in columns):
        raise InputError(f'{path}: holds columns, not rows: save it with to_json(orient="records"), or with lines=True, too')


def _json_lines(path: Path, text: str) -> Iterator[Any]:
    lines = text.split("\n")  # not splitlines(): JSON text may hold U+2028
    if lines[0].strip() == "{":
        raise InputError(f"{path}: has an object over several lines: write an array of objects, or one object a line")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parsed(path, line, number)


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return parse_strictly(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{path}: not JSON, or cut short, at {where}: {error.msg}") from error
    except ValueError as error:
        raise InputError(f"{path}: line {line}: cannot be used as JSON: {one_line(error)}") from error


def _read_parquet(path: Path, content: bytes) -> list[Row]:
    import polars as pl  # here, because the other kinds need none of it and it takes a quarter of a second to import

    _require_survived(path, content)
    with foreign_faults_told(f"{path}: not a readable parquet file"):
        frame = pl.read_parquet(io.BytesIO(content))
    columns = []
    for column in frame:  # one by one, to say which cannot be had
        kind = f"column '{column.name}' ({column.dtype})"
        with foreign_faults_told(f"{path}: {kind} cannot be read; leave it out or save it as text"):
            columns.append(column.to_list())
    return [dict(zip(frame.columns, values, strict=True)) for values in zip(*columns, strict=True)]


def _require_survived(path: Path, content: bytes) -> None:
    """Raises InputError where polars cannot read a Parquet file; one that asks for too much memory ends the process.

    It is tried in a new process, as polars' threads are not in a forked one; they go on to report panics after an error, too.
    """
    if not sys.executable:  # Python is part of another program
        return
    tried = subprocess.run([sys.executable, "-c", _TRIAL], input=content, capture_output=True, check=False)
    if tried.returncode:
        said = (tried.stdout or tried.stderr).decode(errors="replace").split("\n")[0][:200]
        raise InputError(f"{path}: not a readable parquet file: {said or f'reading it ends with status {tried.returncode}'}")


def _read_csv(path: Path, content: bytes) -> list[Row]:
    csv.field_size_limit(sys.maxsize)  # a prompt may be long
    reader = csv.reader(io.StringIO(_decoded(path, content), newline=""), strict=True)
    try:
        columns = next(reader, None)
        if columns is None:
            raise InputError(f"{path}: is empty")
        if len(set(columns)) < len(columns):
            raise InputError(f"{path}: column '{next(c for c in columns if columns.count(c) > 1)}' appears twice")
        rows = []
        for values in reader:
            if values and len(values) != len(columns):
                raise InputError(f"{path}: line {reader.line_num} has {len(values)} fields, the header {len(columns)}")
            if values:  # else a blank line
                rows.append(dict(zip(columns, values, strict=True)))
        return rows
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: not CSV: {error}") from error


_READERS = {".json": _read_json, ".jsonl": _read_json, ".ndjson": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
