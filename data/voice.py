"""How messages name options: as the command line does (`--top-k`), which is how they are written, or as the library (`top_k`).

Only options that headscore has are renamed: what stands in `backticks` or 'quotes', and every other word, stays as it is.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

_options: dict[str, tuple[str, ...] | None] = {}  # the choices of every option by its flag; None for what is on or off
_speaks_of_options = False

_QUOTED = r"`[^`]*`|(?<!\w)'[^']*'(?!\w)"
_FLAG = r"(?P<subject>^|(?<=: ))?(?<![\w/.=-])--(?P<flag>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?![\w-])"
_VALUE = r"(?: (?P<value>[A-Za-z_]\w*=[\w.+-]*\w|[A-Z][A-Z_]*\b|-?\d+(?:\.\d+)?\b|[a-z]\w*))?"
_PIECE = re.compile(f"{_QUOTED}|{_FLAG}{_VALUE}")


def option_flag(name: str) -> str:
    """The command-line spelling of an option: `max_samples` -> `--max-samples`."""
    return "--" + name.replace("_", "-")


def learn_options(types: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Note that messages may name these options, by the names of their parameters."""
    for name, declared in types.items():
        kinds = (declared, *get_args(declared))
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        flag = option_flag(name)
        before = _options.get(flag) or ()  # commands may have other choices of an option
        _options[flag] = None if isinstance(defaults.get(name), bool) else (*before, *map(str, choices))


@contextlib.contextmanager
def speaking_of_options() -> Iterator[None]:
    """Within this context errors name the options of the command line, not the parameters of the library."""
    global _speaks_of_options
    before, _speaks_of_options = _speaks_of_options, True
    try:
        yield
    finally:
        _speaks_of_options = before


def spoken(message: str) -> str:
    """A message, which is written in terms of options, in those that its reader uses."""
    return message if _speaks_of_options else as_parameters(message)


def as_parameters(message: str) -> str:
    """A message, which is written in terms of options, in terms of the library's parameters."""
    return _PIECE.sub(_as_parameter, message)


def _as_parameter(match: re.Match[str]) -> str:
    """A parameter for an option, with its value where one is meant: `--queries all_tokens` -> `queries='all_tokens'`.

    An option that a message begins with, and so is about, has no value but a choice: `--out DIR: …` -> `out DIR: …`.
    """
    flag, value, is_subject = match["flag"], match["value"] or "", match["subject"] is not None
    rest = f" {value}" if value else ""
    if flag is None:
        return match[0]
    if flag.startswith("no-") and _options.get(f"--{flag.removeprefix('no-')}", "") is None:
        return f"{_name(flag.removeprefix('no-'))}=False{rest}"
    if f"--{flag}" not in _options:
        return match[0]
    choices = _options[f"--{flag}"]
    if choices is None:
        return _name(flag) + ("" if is_subject else "=True") + rest
    if value in choices:
        return f"{_name(flag)}='{value}'"
    if is_subject or not value or value[0].islower():
        name, _, number = value.partition("=")
        return f"{_name(flag)}={{'{name}': {number}}}" if number and not is_subject else _name(flag) + rest
    return f"{_name(flag)}={value}"


def _name(flag: str) -> str:
    return flag.replace("-", "_")
