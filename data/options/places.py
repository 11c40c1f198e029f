"""Paths that a configuration file holds: absolute, or relative to the folder of the file, wherever it is read."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..text import require_text
from ..voice import option_flag
from .settings import BUILT_IN_TEMPLATES, DEFAULT_MODEL, SAMPLE_DATA

# The options that are paths, and the words that each takes besides.
PLACES: Mapping[str, tuple[str, ...]] = {
    "model": (DEFAULT_MODEL,),
    "adapter": (),
    "data": (SAMPLE_DATA,),
    "template": BUILT_IN_TEMPLATES,
    "signals": (),
    "cache": (),
    "results": (),
    "out": (),
    "against": (),
}
_MAY_BE_ON_THE_HUB = ("model", "adapter")


def written_place(name: str, value: str | Path, folder: Path) -> str:
    """What a configuration file in `folder` says for a path that an option was given: relative to it where it lies in it.

    What is no path stays as it is: a word that the option takes besides, or the hub id of a model. Raises InputError for a path
    that is no text.
    """
    given = str(value)
    if _is_word(name, given) or (name in _MAY_BE_ON_THE_HUB and not _there(given)):
        return given
    path, base = expanded(given).absolute(), folder.absolute()
    told = str(_told_apart(name, path.relative_to(base))) if path.is_relative_to(base) else str(path)
    require_text(option_flag(name), told)
    return told


def read_place(name: str, value: str | Path, folder: Path) -> str:
    """The path that a configuration file in `folder` means by what it says for an option; the inverse of `written_place`."""
    said = str(value)
    if _is_word(name, said) or (name in _MAY_BE_ON_THE_HUB and not _there(folder / expanded(said))):
        return said
    return str(_told_apart(name, folder / expanded(said)))


def expanded(path: str | Path) -> Path:
    """A path with `~` put in full; where no home is known it is left alone, unlike `Path.expanduser` does."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - as said


def written_options(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Options as a configuration file in `folder` holds them, as YAML's own types; None for what was left to its default."""
    return {name: _written(name, value, folder) for name, value in options.items()}


def _written(name: str, value: Any, folder: Path) -> Any:
    if name in PLACES and isinstance(value, str | Path):
        return written_place(name, value, folder)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _is_word(name: str, text: str) -> bool:
    return text in PLACES[name]


def _there(path: str | Path) -> bool:
    return os.path.lexists(expanded(path))


def _told_apart(name: str, path: Path) -> str:
    """The path with `./` before it where it would be taken for a word otherwise."""
    return os.path.join(os.curdir, path) if _is_word(name, str(path)) else str(path)  # noqa: PTH118 - Path drops "./"


def last_part(text: str, is_path: bool = False) -> str:
    """A name as others know it: of a path, which only its author's machine has, the last part.

    Args:
        text: a path, or a name as of a model of a hub, which has at most one slash and does not begin with it.
        is_path: whether it is a path even if it looks like such a name.
    """
    rooted = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith((".", "~"))
    parts = re.split(r"[/\\]", text.rstrip("/\\"))
    return parts[-1] if is_path or rooted or len(parts) > 2 or "\\" in text else text
