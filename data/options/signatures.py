"""Shows the options of the library's calls: by signature, by `help()`, and by the right name where one is misspelt."""

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..voice import as_parameters, learn_options
from .places import PLACES

Call = TypeVar("Call", bound=Callable[..., Any])

_MODULES = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Z])")  # of a type, such as `collections.abc.`


def library_call(*settings: type) -> Callable[[Call], Call]:
    """Give a function whose last parameter is `**options` the fields of settings classes as its parameters.

    They stand in its signature and its documentation, messages may name them, and a keyword that is none of its parameters is a
    TypeError that suggests the right one.
    """

    def decorate(call: Call) -> Call:
        own = [p for p in inspect.signature(call).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {field.name: field for each in settings for field in dataclasses.fields(each)}
        options = [_parameter(field, hint) for field, hint in zip(fields.values(), _hints(settings), strict=True)]
        signature = inspect.signature(call).replace(parameters=[*own, *options])
        learn_options({p.name: p.annotation for p in own}, {p.name: p.default for p in own})

        @functools.wraps(call)
        def checked(*arguments: Any, **named: Any) -> Any:
            require_known(call.__name__, named, signature.parameters)
            return call(*arguments, **named)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        checked.__doc__ = inspect.cleandoc(call.__doc__ or "") + _documentation(signature, fields)
        return checked  # type: ignore[return-value]

    return decorate


def require_known(call: str, named: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError, suggesting what may have been meant, for a name that is none of those known."""
    names = list(known)
    for name in named:
        if name not in names:
            close = difflib.get_close_matches(name.replace("-", "_").lower(), names, 1)
            meant = f"; did you mean '{close[0]}'?" if close else f"; it has {', '.join(names)}"
            raise TypeError(f"{call}() got an unexpected option '{name}'{meant}")


def _hints(settings: Sequence[type]) -> Iterable[Any]:
    hints = {name: hint for each in settings for name, hint in get_type_hints(each).items()}
    return [hints[name] for name in dict.fromkeys(field.name for each in settings for field in dataclasses.fields(each))]


def _parameter(field: "dataclasses.Field[Any]", hint: Any) -> inspect.Parameter:
    default = {} if get_origin(hint) is Mapping else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_accepted(field, hint))


def _accepted(field: "dataclasses.Field[Any]", hint: Any) -> Any:
    """The type that a call takes for what is kept as `hint`."""
    if get_origin(hint) is tuple:
        return Sequence[str]
    if field.metadata["is_json"]:
        return str | Mapping[str, object] | None
    if field.name in PLACES:
        optional = type(None) in get_args(hint)
        return str | Path | None if optional else str | Path
    return hint


def _documentation(signature: inspect.Signature, fields: Mapping[str, "dataclasses.Field[Any]"]) -> str:
    """The parameters by name, type and default, those that are options with what they are."""
    lines = ["", "", "Parameters:"]
    for parameter in signature.parameters.values():
        lines.append(f"    {_MODULES.sub('', str(parameter))}")
        if parameter.name in fields:
            lines.append(f"        {as_parameters(fields[parameter.name].metadata['help'])}")
    return "\n".join(lines)
