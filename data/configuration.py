"""Reads the options that stand in a YAML file: those of one command, also out of a file that another command wrote."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .cache import METADATA_FILE
from .checked import checked_option
from .errors import InputError, one_line
from .places import PLACES, read_place
from .settings import RECORD_KEY, RunSettings, WorkSettings

logger = logging.getLogger("headscore")

CACHE_FOLDER = "cache"  # beside the config.yaml of a run
_SETTINGS = {field.name: settings for settings in (WorkSettings, RunSettings) for field in dataclasses.fields(settings)}
_SWITCHES = ("report", "partial", "overwrite")


def read_configuration(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """The options that a YAML file gives a command, by their names; what it leaves to its default by null is not among them.

    Options of other commands are passed over, and named in the log. Paths count from the file's folder. The cache is, if the
    file names none, the one in `cache/` beside it, where `headscore run` keeps it.

    Args:
        path: the file.
        names: those of the command's options, by every name that each goes by, with `_`.

    Raises InputError for a file that cannot be read, an option that no command has, one that stands twice, and a bad value.
    """
    values: dict[str, Any] = {}
    others = []
    for key, value in _content(path).items():
        name = names.get(str(key).replace("-", "_"))
        if key == RECORD_KEY:
            continue
        if name is None and str(key).replace("-", "_") in {*_SETTINGS, *_SWITCHES, *PLACES}:
            others.append(str(key))
        elif name is None:
            raise InputError(f"--config {path}: unknown key '{key}'; known are {', '.join(sorted(set(names.values())))}")
        elif name in values:
            raise InputError(f"--config {path}: '{key}' stands twice")
        else:
            values[name] = _value(path, name, value)
    if others:
        logger.info("--config %s: passed over, as options of other commands: %s", path, ", ".join(others))
    if "cache" in names.values() and values.get("cache") is None and (path.parent / CACHE_FOLDER / METADATA_FILE).exists():
        values["cache"] = path.parent / CACHE_FOLDER
    return {name: value for name, value in values.items() if value is not None}


def _content(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: cannot be read as YAML: {one_line(error)[:200]}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: expected 'option: value' lines")
    return content


def _value(path: Path, name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        made = checked_option(_SETTINGS[name], name, value) if name in _SETTINGS else value
    except InputError as error:
        raise InputError(f"--config {path}: {error.message}") from error
    if name in _SWITCHES and not isinstance(made, bool):
        raise InputError(f"--config {path}: --{name}: expected true or false, got {made!r:.80}")
    if name in PLACES:
        if not isinstance(made, str | Path) or made == "":
            raise InputError(f"--config {path}: --{name}: expected a path, got {made!r:.80}")
        return read_place(name, made, path.parent)
    return made
