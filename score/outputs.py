"""Writes the seven result files of a run."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from ..data.errors import InputError, one_line
from ..data.files import check_writable, write_text

if TYPE_CHECKING:
    from .pipeline import Scores

logger = logging.getLogger("headscore")

CONFIG_FILE = "config.yaml"
LOG_FILE = "run.log"
RECORD_KEY = "record"  # what --config ignores: how the scored cache was made
_CAPTURE_KEYS = ("model", "data", "templates", "settings", "plan", "versions")


@contextlib.contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Within this context headscore's log lines are also written to `folder/run.log`.

    Raises InputError where the folder cannot be written.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written: {error.strerror or one_line(error)}") from error
    handler = logging.FileHandler(folder / f".{LOG_FILE}.part", mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
        handler.close()
        Path(handler.baseFilename).replace(folder / LOG_FILE)
    finally:
        handler.close()
        logger.removeHandler(handler)
        logger.setLevel(level)
        Path(handler.baseFilename).unlink(missing_ok=True)
        if new and not any(folder.iterdir()):  # a run that failed leaves nothing behind
            folder.rmdir()


def write_results(folder: Path, scores: "Scores", extra: Mapping[str, Any], overwrite: bool) -> None:
    """Write config.yaml, three CSV and two JSON files to `folder`, each whole or not at all.

    extra: what config.yaml holds besides the score settings. Raises InputError where the folder holds another run's results and
    `overwrite` is False; the same run may be repeated.
    """
    config = run_config(scores, extra)
    require_same_run(folder, config, overwrite)
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # written last, so that its presence says the others are of one run
    write_text(folder / "scores_raw.csv", scores.raw.write_csv())
    write_text(folder / "scores_norm.csv", scores.norm.write_csv())
    write_text(folder / "scores_combined.csv", scores.combined.write_csv())
    write_text(folder / "topk_global.json", _json_lines(scores.topk_global))
    write_text(folder / "topk_per_layer.json", _json_lines(scores.topk_per_layer))
    header = "# Repeats this run: headscore score --config config.yaml --out NEW_FOLDER\n"
    if "model" in extra:
        header = "# Repeats this run: headscore run --config config.yaml --out NEW_FOLDER\n"
    write_text(folder / CONFIG_FILE, header + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    logger.info("%s: results written", folder)


def run_config(scores: "Scores", extra: Mapping[str, Any]) -> dict[str, Any]:
    """What config.yaml holds: every option by its name, and under `record` how the cache was made."""
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(scores.settings).items()
        if value is not None
    }
    record = {"headscore": version("headscore"), "samples": scores.samples}
    record |= {key: scores.metadata[key] for key in _CAPTURE_KEYS if key in scores.metadata}
    return {**extra, **settings, RECORD_KEY: record}


def require_same_run(folder: Path, config: dict[str, Any], overwrite: bool) -> None:
    """Raises InputError, listing what differs, where `folder` holds the results of a run with another configuration."""
    path = folder / CONFIG_FILE
    if overwrite or not path.exists():
        return
    try:
        existing = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read; use another --out, or --overwrite: {one_line(error)[:120]}") from error
    existing = existing if isinstance(existing, dict) else {}
    different = sorted(key for key in {*existing, *config} - {"cache"} if existing.get(key) != config.get(key))
    if different:
        raise InputError(
            f"--out {folder}: holds another run ({', '.join(different)} differ); use another --out, or --overwrite"
        )


def _json_lines(frame: pl.DataFrame) -> str:
    """A JSON array with one object a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in frame.to_dicts()) + "\n]\n"
