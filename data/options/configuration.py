"""Reads the options that stand in a YAML file: those of one command, also out of a file that another command wrote."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import HeadscoreError, InputError, OptionError
from ..files.strict_yaml import read_yaml
from .checked import checked_option
from .evidence_settings import CompareSettings, ControlSettings, StabilitySettings, SweepSettings
from .places import PLACES, read_place
from .settings import METADATA_FILE, RECORD_KEY, RunSettings, ValidateSettings, WorkSettings

logger = logging.getLogger("headscore")

FORMER_COMPRESSION = "compression"  # an option of `capture` in 0.1
CACHE_FOLDER = "cache"  # beside the config.yaml of a run
_ALL = (CompareSettings, StabilitySettings, SweepSettings, ControlSettings, ValidateSettings, WorkSettings, RunSettings)
_SETTINGS = {field.name: settings for settings in _ALL for field in dataclasses.fields(settings)}
_SWITCHES = ("report", "partial", "overwrite", "quiet")
# The options of all commands, by every name that each goes by, with `_`.
_OTHERS = {name: name for name in (*_SETTINGS, *_SWITCHES, *PLACES)} | {
    alias.removeprefix("--").replace("-", "_"): field.name
    for settings in _ALL
    for field in dataclasses.fields(settings)
    for alias in field.metadata["aliases"]
}
_OTHERS["output_dir"] = "out"


def read_configuration(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """The options that a YAML file gives a command, by their names; what it leaves to its default by null is not among them.

    Options of other commands are ignored, and named in the log. Paths are relative to the file's folder. The cache is, if the
    file names none, the one in `cache/` beside it, where `headscore run` keeps it.

    Args:
        path: the file.
        names: those of the command's options, by every name that each goes by, with `_`.

    Raises InputError for a file that cannot be read, an option that no command has, one that appears twice, and a bad value.
    """
    values: dict[str, Any] = {}
    others: dict[str, str] = {}
    for key, value in without_former(_content(path), path).items():
        name, other = names.get(key.replace("-", "_")), _OTHERS.get(key.replace("-", "_"))
        if key == RECORD_KEY:
            continue
        if name is None and other is None:
            raise OptionError(f"--config {path}: unknown key '{key:.80}'; known are {', '.join(sorted(set(names.values())))}")
        if name in values or (name is None and other in others):
            raise OptionError(f"--config {path}: '{key}' appears twice")
        if name is None:
            others[str(other)] = key
        else:
            values[name] = _value(path, name, value)
    if others:
        logger.info("--config %s: ignored, as options of other commands: %s", path, ", ".join(others.values()))
    if "cache" in names.values() and values.get("cache") is None and (path.parent / CACHE_FOLDER / METADATA_FILE).exists():
        values["cache"] = path.parent / CACHE_FOLDER
    return {name: value for name, value in values.items() if value is not None}


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path, follow_links=True)
    except HeadscoreError as error:
        raise error.retold(f"--config {error.message}") from error
    if not isinstance(content, dict):
        raise OptionError(f"--config {path}: expected 'option: value' lines")
    return content


def without_former(content: Mapping[Any, Any], path: Path) -> dict[Any, Any]:
    """The content of a configuration file without options of older versions that change nothing, which are named in the log.

    Raises InputError for one that asks for something that no longer exists.
    """
    given = content.get(FORMER_COMPRESSION, "none")
    if given not in ("none", None):
        raise InputError(f"{path}: '{FORMER_COMPRESSION}: {given!s:.20}': caches are not compressed any more; remove the line")
    if FORMER_COMPRESSION in content:
        logger.info("%s: ignored, as caches are not compressed any more: %s", path, FORMER_COMPRESSION)
    return {key: value for key, value in content.items() if key != FORMER_COMPRESSION}


def _value(path: Path, name: str, value: Any) -> Any:
    if value is None:
        return None
    try:
        made = checked_option(_SETTINGS[name], name, value) if name in _SETTINGS else value
    except OptionError as error:
        raise error.retold(f"--config {path}: {error.message}") from error
    if name in _SWITCHES and not isinstance(made, bool):
        raise OptionError(f"--config {path}: --{name}: expected true or false, got {made!r:.80}")
    if name in PLACES:
        if not isinstance(made, str | Path) or made == "":
            raise OptionError(f"--config {path}: --{name}: expected a path, got {made!r:.80}")
        return read_place(name, made, path.parent)
    return made
