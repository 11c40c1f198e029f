"""Writes the result files of a run: the five basic tables, config.yaml, run.log, and `Scores.heads` as Parquet and CSV."""

import contextlib
import dataclasses
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from .. import __version__
from ..data.cache.folder import require_outside_caches
from ..data.cache.model_shape import shape_record
from ..data.errors import HeadscoreError, OptionError
from ..data.files.plain import require_own
from ..data.files.strict_yaml import read_yaml
from ..data.files.whole_file import output_folder, write_bytes, write_text
from ..data.options.configuration import without_former
from ..data.options.places import written_options
from ..data.options.settings import METADATA_FILE, RECORD_KEY, ScoreSettings
from ..data.text import OneLine, has_unprintable
from .scores import Scores

logger = logging.getLogger("headscore")

CONFIG_FILE = "config.yaml"
LOG_FILE = "run.log"
CSV_FILES = {"raw": "scores_raw.csv", "norm": "scores_norm.csv", "combined": "scores_combined.csv"}
JSON_FILES = {"topk_global": "topk_global.json", "topk_per_layer": "topk_per_layer.json"}
HEADS_CSV, HEADS_PARQUET = "heads.csv", "heads.parquet"
RESULT_FILES = (*CSV_FILES.values(), *JSON_FILES.values(), HEADS_CSV, HEADS_PARQUET, CONFIG_FILE, LOG_FILE)
CONTROL_FILE = "control.csv"  # of `headscore control`, beside the others
REPORT_FILE = "report.html"
CHARTS_FOLDER = "charts"
CHARTS = ("combined", "top_heads", "signal_maps", "entropy_and_task", "layer_profiles")
REPORT_FILES = (REPORT_FILE, *(f"{CHARTS_FOLDER}/{name}.{kind}" for name in CHARTS for kind in ("svg", "png")))
# Of the record: what came out, and what follows from the model, says nothing about which run it was.
_FOUND = ("null", "checks", "dims", "layers", "projections")
_RECORD_KEYS = ("model", "data", "templates", "settings", "plan", "versions", "control")


@contextlib.contextmanager
def results_folder(folder: Path, files: Sequence[str] | None = None) -> Iterator[None]:
    """The folder of a run's results; within this context headscore's log lines are also written to its run.log.

    Args:
        folder: the folder.
        files: the names of the result files; those of `score` if not given.

    Raises InputError where the folder cannot be written, is a cache or one of its own folders, or holds files in the way of the
    results.
    """
    require_outside_caches(folder)
    with output_folder(folder):
        if (folder / METADATA_FILE).exists():
            raise OptionError(f"--out {folder}: is a cache; give the results a folder of their own")
        for name in files or (*RESULT_FILES, REPORT_FILE):
            if (folder / name).is_dir():
                raise OptionError(f"--out {folder}: a folder '{name}' is in the way of the result file; use another --out")
        require_own(folder, (CONFIG_FILE,), (CHARTS_FOLDER,))
        with _log_file(folder / LOG_FILE):
            yield


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(OneLine(logging.Formatter("%(asctime)s %(levelname)s %(message)s")))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
        write_text(path, lines.getvalue())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def write_results(
    folder: Path, scores: Scores, extra: Mapping[str, Any], overwrite: bool, more: Mapping[str, str] | None = None
) -> None:
    """Write config.yaml and the tables of a result to `folder`, each whole or not at all.

    extra: what config.yaml holds besides the score settings. more: further files, by name. Raises InputError where the folder
    holds another run's results and `overwrite` is False; the same run may be repeated.
    """
    config = run_config(scores, extra, folder)
    require_same_run(folder, config, overwrite)
    if overwrite:  # a report that is there may be another run's, and so may the tests of a control
        for name in (*REPORT_FILES, CONTROL_FILE):
            (folder / name).unlink(missing_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # written last, so that its presence says the others are of one run
    for name, file in CSV_FILES.items():
        write_text(folder / file, csv(getattr(scores, name)))
    for name, file in JSON_FILES.items():
        write_text(folder / file, json_lines(getattr(scores, name)))
    for file, text in {HEADS_CSV: csv(scores.heads), **(more or {})}.items():
        write_text(folder / file, text)
    table = io.BytesIO()
    scores.heads.write_parquet(table)
    write_bytes(folder / HEADS_PARQUET, table.getbuffer())
    command = "run" if "model" in extra else "control" if "fdr" in extra else "score"
    header = f"# Repeats this run: headscore {command} --config config.yaml --out NEW_FOLDER\n"
    write_text(folder / CONFIG_FILE, header + yaml_text(config))
    logger.info("%s: results written", folder)


def run_config(scores: Scores, extra: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What config.yaml holds: every option by its name, and under `record` how the cache was made."""
    record = {"headscore": __version__, "samples": scores.samples}
    if scores.missing_shards:
        record["missing_shards"] = scores.missing_shards
    told: Mapping[str, Any] = scores.metadata
    record |= {key: told[key] for key in _RECORD_KEYS if key in told}
    record |= shape_record(scores.metadata)
    if scores.null:
        record["null"] = scores.null.record()
    if scores.checks:
        record["checks"] = {check.name: check.line for check in scores.checks}
    if texts := {name: str(value) for name, value in _expressions(scores.settings).items()}:
        record["expressions"] = texts
    return {**options_config(scores.settings, extra, folder), RECORD_KEY: record}


def yaml_text(config: Mapping[str, Any]) -> str:
    """A configuration as YAML, without letters other than ASCII's where any of them could turn the others' order around."""
    text = str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return str(yaml.safe_dump(config, sort_keys=False)) if has_unprintable(text) else text


def options_config(settings: ScoreSettings, extra: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options in the config.yaml of `folder`; None for what was left to its default, and for a polars expression."""
    chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    for option in ("measure", "signal"):
        chosen[option] = {name: None if isinstance(value, pl.Expr) else value for name, value in chosen[option].items()}
    return {**extra, **written_options(chosen, folder)}


def _expressions(settings: ScoreSettings) -> dict[str, pl.Expr]:
    """The measures and signals that were given as polars expressions, which no configuration file can say."""
    return {name: value for name, value in {**settings.measure, **settings.signal}.items() if isinstance(value, pl.Expr)}


def require_same_run(
    folder: Path, config: dict[str, Any], overwrite: bool, files: Sequence[str] = (*RESULT_FILES, REPORT_FILE)
) -> None:
    """Raises InputError, listing what differs, where `folder` holds any of `files` of a run with another configuration."""
    path = folder / CONFIG_FILE
    there = [name for name in files if (folder / name).exists()]
    if overwrite or not there:
        return
    if CONFIG_FILE not in there:
        raise OptionError(f"--out {folder}: holds a {there[0]} of unknown origin; use another --out, or --overwrite")
    try:
        existing = read_yaml(path)
    except HeadscoreError as error:
        raise error.retold(f"{error.message}; use another --out, or --overwrite") from error
    existing = without_former(existing, path) if isinstance(existing, dict) else {}
    compared = {*existing, *config} - ({"cache"} if RECORD_KEY in config else {"cache", RECORD_KEY})
    different = sorted(key for key in compared if _asked(key, existing) != _asked(key, config))
    if different:
        raise OptionError(
            f"--out {folder}: holds another run ({', '.join(different)} differ); use another --out, or --overwrite"
        )


def _asked(key: str, config: Mapping[str, Any]) -> Any:
    """What a configuration says of a key, and of the record what was there before anything was found."""
    value = config.get(key)
    if key == RECORD_KEY and isinstance(value, dict):
        return {name: part for name, part in value.items() if name not in _FOUND}
    return value


def csv(frame: pl.DataFrame) -> str:
    """A header and a line per row, numbers in full precision, null as nothing."""
    lines = [tuple(frame.columns), *frame.iter_rows()]
    return "".join(",".join("" if value is None else str(value) for value in line) + "\n" for line in lines)


def json_lines(frame: pl.DataFrame) -> str:
    """A JSON array with one object a line."""
    return "[\n" + ",\n".join(map(json.dumps, frame.iter_rows(named=True))) + "\n]\n"
