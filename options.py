"""Makes the options of commands from the fields of settings classes, and reads them from a configuration file."""

import dataclasses
import inspect as signatures
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from .data.errors import InputError, one_line
from .data.settings import RECORD_KEY, RunSettings, checked_option, option_flag


def _config_callback(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a YAML file the command's defaults, so that the command line wins over them."""
    if path is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: cannot be read as YAML: {one_line(error)[:200]}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: expected 'option: value' lines")
    names = {
        flag.lstrip("-").replace("-", "_"): parameter.name
        for parameter in context.command.params
        for flag in (*parameter.opts, parameter.name or "")
    }
    values = {}
    for key, value in content.items():
        name = names.get(str(key).replace("-", "_"))
        if key == RECORD_KEY:
            continue
        if name is None or name in ("config", "debug"):
            known = ", ".join(sorted({str(n) for n in names.values()} - {"config", "debug", "help"}))
            raise InputError(f"--config {path}: unknown key '{key}'; known are {known}")
        if name in values:
            raise InputError(f"--config {path}: '{key}' stands twice")
        try:
            known_option = name in RunSettings.__dataclass_fields__
            checked = checked_option(RunSettings, name, value) if known_option else value
        except InputError as error:
            raise InputError(f"--config {path}: {error}") from error
        values[name] = list(checked) if isinstance(checked, tuple) else checked
    context.default_map = {**(context.default_map or {}), **values}
    return path


DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_COMMON: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(help="YAML file with option values; the command line wins.", is_eager=True, callback=_config_callback),
    ],
    "debug": DEBUG,
}
PARTIAL = Annotated[bool, typer.Option("--partial", help="Score what is there of a capture that is not finished.")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace what another run left in --out.")]


def with_options(
    settings: Sequence[type], before: dict[str, Any], after: dict[str, Any], defaults: dict[str, Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `before`, the fields of the settings classes, `after` and the common options as its parameters."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        annotations = dict(before)
        values = dict(defaults)
        hints = {name: hint for each in settings for name, hint in get_type_hints(each).items()}
        for field in [field for each in settings for field in dataclasses.fields(each)]:
            hint = list[str] if get_origin(hints[field.name]) is tuple else hints[field.name]
            flag = option_flag(field.name)
            if field.default is True:
                flag += f"/--no-{flag.removeprefix('--')}"
            flags = (flag, *field.metadata["aliases"])
            annotations[field.name] = Annotated[hint, typer.Option(*flags, help=field.metadata["help"])]
            values[field.name] = list(field.default) if isinstance(field.default, tuple) else field.default
        annotations |= {**after, **_COMMON}
        values |= {"config": None, "debug": False}
        keyword = signatures.Parameter.KEYWORD_ONLY
        parameters = [
            signatures.Parameter(name, keyword, annotation=hint, default=values.get(name, signatures.Parameter.empty))
            for name, hint in annotations.items()
        ]
        command.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = annotations
        return command

    return decorate
