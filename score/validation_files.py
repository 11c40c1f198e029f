"""The files of a validation: what was run, and what statistics make of it."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from .. import __version__
from ..data.errors import InputError, OptionError
from ..data.files.bounded_json import parse_json
from ..data.files.foreign import foreign_faults_told
from ..data.files.plain import read_plain
from ..data.files.whole_file import write_bytes, write_text
from ..data.text import json_text
from .effects import unit_of
from .outputs import CHARTS_FOLDER, CONFIG_FILE, HEADS_PARQUET, LOG_FILE, csv, yaml_text
from .validated import Measured, Validation

FACTS_FILE = "validation.json"
TABLES = ("outcomes", "sets", "ranking", "single", "gradient")  # Parquet; the last two need not be there
JOURNAL_FILE = "outcomes.jsonl"
EFFECTS_FILE = "effects.parquet"
RESULT_FILES = ("validation.csv", "verdicts.txt", EFFECTS_FILE, "effects.csv", "agreement.csv", "weights.json")
REPORT_FILE = "validation.html"
CHARTS = ("curves", "effects")
REPORT_FILES = (REPORT_FILE, *(f"{CHARTS_FOLDER}/{name}.{kind}" for name in CHARTS for kind in ("svg", "png")))
_TABLE_FILES = tuple(f"{name}.parquet" for name in TABLES)
ALL_FILES = (FACTS_FILE, JOURNAL_FILE, *_TABLE_FILES, *RESULT_FILES, *REPORT_FILES, CONFIG_FILE, LOG_FILE)
_FORMAT = "headscore-validation"
_MAX_BYTES = 1 << 30


def require_no_ranking(folder: Path) -> None:
    """Raises InputError where a folder holds a ranking, beside which a validation would be taken for a part of it."""
    if (folder / HEADS_PARQUET).exists():
        raise OptionError(f"--out {folder}: holds the results of a ranking; give the validation a folder of its own")


def write_measured(folder: Path, measured: Measured) -> None:
    """Write what was run; validation.json last, so that its presence says that the tables are of one run."""
    (folder / FACTS_FILE).unlink(missing_ok=True)
    for name in TABLES:
        frame = getattr(measured, name)
        path = folder / f"{name}.parquet"
        if frame is None:
            path.unlink(missing_ok=True)
            continue
        table = io.BytesIO()
        frame.write_parquet(table)
        write_bytes(path, table.getbuffer())
    facts = {"format": _FORMAT, "headscore": __version__, **measured.facts}
    write_text(folder / FACTS_FILE, json_text(facts, indent=1) + "\n")


def is_validation(folder: Path) -> bool:
    """Whether a folder holds what a validation has run."""
    return (folder / FACTS_FILE).exists()


def read_measured(folder: Path) -> Measured:
    """What a validation has run. Raises InputError where a file is missing or damaged."""
    try:
        facts = parse_json(read_plain(folder / FACTS_FILE, _MAX_BYTES) or b"")
    except ValueError as error:
        raise InputError(f"{folder / FACTS_FILE}: is damaged: {error}; run headscore validate again") from error
    needed = ("units", "unit", "noise_floor", "signals", "unseen", "other_model", "overlapping_draws", "ranking")
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT or any(name not in facts for name in needed):
        raise InputError(f"{folder / FACTS_FILE}: was not written by headscore validate; run it again")
    tables = {name: _read_table(folder / f"{name}.parquet") for name in TABLES}
    return Measured(facts=facts, **{name: _needed(name, folder, table) for name, table in tables.items()})  # type: ignore[arg-type]


def read_effects(folder: Path) -> pl.DataFrame:
    """The effects of single heads that a validation found, see `effects_of`.

    Raises InputError where it ran none, or their file is damaged.
    """
    path = folder / EFFECTS_FILE
    found = _read_table(path)
    if found is None:
        raise InputError(f"{folder}: has no {EFFECTS_FILE}; run headscore validate with --single or --gate-gradient")
    wanted = {
        "layer": pl.Int64,
        unit_of("effects", found): pl.Int64,
        "effect": pl.String,
        "mean": pl.Float64,
        "abs_mean": pl.Float64,
    }
    if not wanted.keys() <= set(found.columns):
        raise InputError(f"{path}: is not a table of effects; run headscore validate again")
    with foreign_faults_told(f"{path}: is damaged"):
        return found.select(pl.col(name).cast(dtype) for name, dtype in wanted.items())


def _needed(name: str, folder: Path, table: pl.DataFrame | None) -> pl.DataFrame | None:
    if table is None and name in TABLES[:3]:
        raise InputError(f"{folder / name}.parquet: does not exist; run headscore validate again")
    return table


def _read_table(path: Path) -> pl.DataFrame | None:
    content = read_plain(path, _MAX_BYTES)
    if content is None:
        return None
    with foreign_faults_told(f"{path}: is damaged"):
        return pl.read_parquet(io.BytesIO(content))


def write_validation(folder: Path, found: Validation, config: Mapping[str, Any]) -> None:
    """Write the statistics, and the options that they were made by; files that only an earlier run had are removed.

    So is its report, which is of other statistics; `write_validation_page` of report/validation_page.py makes it anew.
    """
    files: dict[str, bytes] = {
        "validation.csv": csv(found.table).encode(),
        "verdicts.txt": "".join(f"{line}\n" for line in found.verdicts).encode(),
    }
    if found.effects is not None and found.agreement is not None:
        table = io.BytesIO()
        found.effects.write_parquet(table)
        files |= {
            EFFECTS_FILE: table.getvalue(),
            "effects.csv": csv(found.effects).encode(),
            "agreement.csv": csv(found.agreement).encode(),
        }
    if found.fit is not None:
        files["weights.json"] = (json.dumps(asdict(found.fit), indent=1) + "\n").encode()
    for name in (*RESULT_FILES, *REPORT_FILES):
        if name in files:
            write_bytes(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    header = "# Repeats this run: headscore validate --config config.yaml --out NEW_FOLDER\n"
    write_text(folder / CONFIG_FILE, header + yaml_text(config))
