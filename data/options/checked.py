"""What checks the values of a dataclass of options, whoever gives them: the command line, a YAML file or a library call."""

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import OptionError, one_line
from ..text import require_text, shown
from ..voice import learn_options, option_flag

_NAME = r"[A-Za-z_]\w*"
MAX_WEIGHT = 1e15  # beyond it a sum of ranks has no digits left for the other signals
_ASSIGNMENT = re.compile(rf"\s*({_NAME})\s*(?:=(?!=)\s*(.*\S)\s*)?", re.DOTALL)  # NAME=VALUE, or NAME alone
_WEIGHT = re.compile(r"\s*(\S|\S.*\S)\s*=\s*([^=]*[^=\s])\s*", re.DOTALL)  # a name that is there, whatever it is made of


def option(
    default: Any,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    is_json: bool = False,
) -> Any:
    """A dataclass field with what the command line needs to know.

    Args:
        default: its value where none is given.
        help: what it is, in a sentence or two.
        aliases: its older names on the command line.
        least: the smallest value.
        most: the largest value.
        is_json: whether its text is a JSON object, which may also be given as a dict.
    """
    known = {"help": help, "aliases": aliases, "least": least, "most": most, "is_json": is_json}
    return dataclasses.field(default=default, metadata=known)


class Checked:
    """Checks every field of a settings class against its type and range when it is made.

    Raises InputError naming the option, the value and what is allowed.
    """

    def __init_subclass__(cls) -> None:
        """Let messages name the options of the class."""
        types = get_type_hints(cls)
        fields = {name: field for name, field in vars(cls).items() if isinstance(field, dataclasses.Field)}
        learn_options({name: types[name] for name in fields}, {name: field.default for name, field in fields.items()})

    def __post_init__(self) -> None:
        for name in type(self).__dataclass_fields__:  # type: ignore[attr-defined]
            object.__setattr__(self, name, checked_option(type(self), name, getattr(self, name)))


def checked_option(settings: type, name: str, value: Any) -> Any:
    """`value` as a settings class keeps it for `name`; InputError, naming the option, where its type or range is another.

    Only lossless changes are made: int to float, str to Path, list to tuple, `last-token` to `last_token`.
    """
    field: dataclasses.Field[Any] = settings.__dataclass_fields__[name]  # type: ignore[attr-defined]
    made = _coerced(option_flag(name), value, _types(settings)[name], field)
    for text in _texts_in(made):
        require_text(option_flag(name), text)
    _check_range(option_flag(name), made, field.metadata)
    return made


def require_weight(what: str, value: float) -> None:
    """Raises InputError for a number that no sum can be weighted by; `what` is the option, for the message."""
    if not math.isfinite(value):
        raise OptionError(f"{what}: {value} is not a finite number")
    if abs(value) > MAX_WEIGHT:
        raise OptionError(f"{what}: {value:g} is not between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}")


def _texts_in(value: Any) -> Iterator[str | Path]:
    if isinstance(value, str | Path):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for text in value.values() if isinstance(text, str))
    elif isinstance(value, tuple):
        yield from value


@functools.cache
def _types(settings: type) -> dict[str, Any]:
    return get_type_hints(settings)


def _coerced(flag: str, value: Any, hint: Any, field: "dataclasses.Field[Any]") -> Any:
    kinds = (hint,) if get_origin(hint) in (Literal, tuple, Mapping) else get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(k for k in kinds if k is not type(None))
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    if get_origin(kind) is Literal:
        return _choice(flag, value, get_args(kind))
    if get_origin(kind) is Mapping:
        return _assignments(flag, value, number=get_args(kind)[1] is float)
    if get_origin(kind) is tuple:
        return _names(flag, value, may_be_empty=field.default == ())
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    if field.metadata["is_json"] and isinstance(value, dict):  # of a configuration file, or a library call
        return _as_json(flag, value)
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or value == "":
        raise OptionError(f"{flag}: expected {'a path' if kind is Path else kind.__name__}, got {shown(value):.80}")
    if kind is int and not -(1 << 63) <= value < 1 << 63:
        raise OptionError(f"{flag}: {shown(value):.40} has more than 64 bits")
    return value


def _choice(flag: str, value: Any, choices: tuple[str, ...]) -> str:
    """The choice that is meant, with `-` for `_` or the other way round."""
    made = value.replace("-", "_") if isinstance(value, str) else value
    if made not in choices:
        raise OptionError(f"{flag}: {shown(value):.80} is not one of {', '.join(choices)}")
    return made


def _names(flag: str, value: Any, may_be_empty: bool) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    are_names = isinstance(values, list | tuple) and all(isinstance(name, str) and name for name in values)
    if not are_names or not (values or may_be_empty):
        raise OptionError(f"{flag}: expected one or more names, got {shown(value):.80}")
    return tuple(values)


def _assignments(flag: str, value: Any, number: bool) -> dict[str, Any]:
    """A mapping, or texts NAME=VALUE, as a dict; a NAME alone has the value None, and numbers must be finite."""
    pairs = list(value.items()) if isinstance(value, Mapping) else [_pair(flag, text, number) for text in _texts(flag, value)]
    made: dict[str, Any] = {}
    for name, given in pairs:
        if not isinstance(name, str) or not (number or re.fullmatch(_NAME, name)):  # a weight may be of any span's mass
            raise OptionError(f"{flag}: {shown(name):.80} is not a name; use letters, digits and _")
        if name in made:
            raise OptionError(f"{flag}: '{name}' appears twice")
        made[name] = _number(flag, name, given) if number else given
    return made


def _texts(flag: str, value: Any) -> list[str] | tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise OptionError(f"{flag}: expected NAME=VALUE, got {shown(value):.80}")
    return texts


def _pair(flag: str, text: str, number: bool) -> tuple[str, str | None]:
    found = (_WEIGHT if number else _ASSIGNMENT).fullmatch(text)
    if not found:
        raise OptionError(f"{flag}: expected NAME=VALUE, got {text!r:.80}")
    return found[1], found[2]


def _number(flag: str, name: str, given: Any) -> float:
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise OptionError(f"{flag} {name}: {shown(given):.80} is not a finite number")
    require_weight(f"{flag} {name}", value)
    return value


def _as_json(flag: str, value: dict[str, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"{flag}: holds what JSON cannot: {one_line(error)[:200]}") from error


def _check_range(flag: str, value: Any, metadata: Any) -> None:
    least, most = metadata.get("least"), metadata.get("most")
    if value is None or (least is None and most is None):
        return
    if not math.isfinite(value) or (least is not None and value < least) or (most is not None and value > most):
        wanted = f"between {least} and {most}" if most is not None else f"a number of at least {least}"
        raise OptionError(f"{flag}: {value} is not {wanted}")
