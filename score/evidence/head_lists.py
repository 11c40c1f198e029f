"""Reads a list of heads that somebody else has made: CSV, Parquet or JSON with layer, head and perhaps a score."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ...data.cache.metadata import MAX_HEADS
from ...data.errors import InputError, one_line
from ...data.files.bounded_json import parse_json
from ...data.files.foreign import foreign_faults_told
from ...data.files.plain import read_plain

KINDS = (".csv", ".json", ".parquet")
UNITS = ("head", "kv_head")
SCORE_COLUMNS = ("score", "combined")  # looked for in this order
RANK_COLUMN = "rank"
_MAX_BYTES = 32 << 20
_MAX_COLUMNS = 1024
_MAX_NUMBER = 1 << 20  # of a layer or a head

Columns = dict[str, list[Any]]


def read_head_list(path: Path, column: str | None = None) -> pl.DataFrame:
    """A list of heads, best first: `layer`, `head` (or `kv_head`), `score`.

    A score comes from `column`, or if that is None from a column `score` or `combined`, or the only other column. Heads are put
    in its order, higher first; equal ones by a column `rank`, lower first, or else as in the file. Without a score `rank` alone
    says the order, or else the file's lines do; the score is then minus the place.

    Args:
        path: of a .csv, .json or .parquet file. JSON is an array of objects, or of arrays [layer, head] or [layer, head,
            score].
        column: that is the score.

    Raises InputError where the file is missing, too large, or is no such list: a head appears twice, a layer or head is no
    whole number, a score is not finite.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of file '{path.suffix:.20}'; expected {', '.join(KINDS)}")
    content = read_plain(path, _MAX_BYTES, follow_links=True)
    if content is None:
        raise InputError(f"{path}: does not exist")
    columns = reader(path, content)
    unit = next((name for name in UNITS if name in columns), None)
    if "layer" not in columns or unit is None:
        raise InputError(f"{path}: has no columns 'layer' and 'head' (or 'kv_head') of numbers; it has {_shown(columns)}")
    lines = len(columns["layer"])
    if not 0 < lines <= MAX_HEADS:
        raise InputError(f"{path}: lists {lines} heads; expected 1 to {MAX_HEADS}")
    places = {name: [_whole(path, name, value) for value in columns[name]] for name in ("layer", unit)}
    frame = pl.DataFrame({**places, "score": _scores(path, columns, column, lines)}, schema_overrides={"score": pl.Float64})
    frame = frame.cast({"layer": pl.Int32, unit: pl.Int32})
    if (twice := frame.select("layer", unit).is_duplicated()).any():
        layer, head = frame.filter(twice).select("layer", unit).row(0)
        raise InputError(f"{path}: layer {layer}, {unit} {head} appears twice")
    ranks = [_number(path, RANK_COLUMN, value) for value in columns.get(RANK_COLUMN, range(lines))]
    return (
        frame.with_columns(_rank=pl.Series(ranks))
        .sort(["score", "_rank"], descending=[True, False], maintain_order=True)
        .drop("_rank")
    )


def _scores(path: Path, columns: Columns, column: str | None, lines: int) -> list[float]:
    name = column or next((name for name in SCORE_COLUMNS if name in columns), None)
    if name is not None and name not in columns:
        raise InputError(f"{path}: has no column '{name:.40}'; it has {_shown(columns)}")
    if name is None and RANK_COLUMN in columns:
        return [-_number(path, RANK_COLUMN, value) for value in columns[RANK_COLUMN]]
    if name is None:
        others = [other for other in columns if other not in ("layer", *UNITS)]
        if len(others) > 1:
            raise InputError(f"{path}: which column is the score? Call it 'score'; there are {_shown(others)}")
        name = others[0] if others else None
    return [-float(place) for place in range(1, lines + 1)] if name is None else [_number(path, name, v) for v in columns[name]]


def _whole(path: Path, name: str, value: Any) -> int:
    number = value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal() and len(value) < 20:
        number = int(value)
    if isinstance(value, float) and value.is_integer():  # as pandas writes them where some are missing
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < _MAX_NUMBER:
        raise InputError(f"{path}: {name} {value!r:.40} is not a whole number from 0 to {_MAX_NUMBER - 1}")
    return number


def _number(path: Path, name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path}: {name} {value!r:.40} is not a finite number")
    return number


def _shown(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"{name:.40}" for name in list(names)[:12]) or "none"


def csv_columns(path: Path, content: bytes) -> Columns:
    """The texts of a CSV file by column. Raises InputError where it is none, or too large for a list of heads."""
    lines: list[list[str]] = []
    try:
        for line in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True):
            if line and lines and len(line) != len(lines[0]):
                raise InputError(f"{path}: row {len(lines)} has {len(line)} fields, the header {len(lines[0])}")
            if len(line) > _MAX_COLUMNS or len(lines) > MAX_HEADS:
                raise InputError(f"{path}: has more than {_MAX_COLUMNS} columns, or lists more than {MAX_HEADS} heads")
            lines += [line] if line else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not CSV in UTF-8: {one_line(error)[:120]}") from error
    names = [name.strip() for name in lines[0]] if lines else []
    if len(set(names)) < len(names):
        raise InputError(f"{path}: a column appears twice")
    return {name: [line[place] for line in lines[1:]] for place, name in enumerate(names)}


def _read_json(path: Path, content: bytes) -> Columns:
    try:
        found = parse_json(content)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON: {one_line(error)[:120]}") from error
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: expected a JSON array of objects with 'layer' and 'head'")
    lines = [_as_object(line) for line in found]
    names = list(lines[0] or ())
    if any(line is None or line.keys() != lines[0].keys() for line in lines):  # type: ignore[union-attr]
        raise InputError(f"{path}: expected objects with the same names, or arrays [layer, head] or [layer, head, score]")
    return {name: [line[name] for line in lines] for name in names}  # type: ignore[index]


def _as_object(line: Any) -> dict[str, Any] | None:
    if isinstance(line, list) and len(line) in (2, 3):
        return dict(zip(("layer", "head", "score"), line, strict=False))
    return line if isinstance(line, dict) else None


def _read_parquet(path: Path, content: bytes) -> Columns:
    """Columns of numbers alone, once the file says that there are few lines: so little memory is asked for."""
    with foreign_faults_told(f"{path}: not a readable parquet file"):
        lazy = pl.scan_parquet(io.BytesIO(content))
        schema = lazy.collect_schema()
        numbers = [name for name, dtype in schema.items() if dtype.is_numeric()]
        lines = int(lazy.select(pl.len()).collect().item())
        few = lines <= MAX_HEADS and len(numbers) <= _MAX_COLUMNS
        frame = lazy.select(numbers).collect() if few else None
    if frame is None:
        raise InputError(f"{path}: lists {lines} heads with {len(numbers)} columns of numbers; expected at most {MAX_HEADS}")
    return {name: frame[name].to_list() for name in numbers}


_READERS = {".csv": csv_columns, ".json": _read_json, ".parquet": _read_parquet}
