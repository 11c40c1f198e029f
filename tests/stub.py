"""Makes __init__.pyi, which tells type checkers and editors what the library's calls take: `make stub`, or

python tests/stub.py

It is made of the real signatures, which are made of the settings classes; tests/test_library.py says where it is out of date.
"""

import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import headscore

STUB = Path(headscore.__file__).with_name("__init__.pyi")

HEAD = '''"""The library's calls with their parameters; see __init__.py.

This file is made by tests/stub.py. After a change of an option or a call, make it anew: make stub
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal

import polars as pl
from transformers import PreTrainedModel
'''
CALLS = (
    "capture",
    "score",
    "report",
    "run",
    "signals",
    "control",
    "compare",
    "stability",
    "sweep",
    "export",
    "import_list",
    "validate",
    "head_masks",
)  # whose options are the fields of settings classes
RETURNED = {"HeadMasks": "headscore.capture.ablating.head_masks"}  # not public by name
_MODULE = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])")
LONGEST = 128  # as pyproject.toml says
_PLAIN = {"DataFrame": "pl.DataFrame", "NoneType": "None"}


def text() -> str:
    """The stub as it ought to be."""
    return "\n".join([HEAD + "\n" + "\n".join(_imports()) + "\n", *(_call(name) for name in CALLS), _all()])


def shown(annotation: Any) -> str:
    """A type as the stub writes it."""
    if isinstance(annotation, str):
        return annotation
    if typing.get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(_quoted, typing.get_args(annotation)))}]"
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " | ".join(map(shown, typing.get_args(annotation)))
    name = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    name = _MODULE.sub("", name)
    return _PLAIN.get(name, re.sub(r"\bExpr\b", "pl.Expr", name))


def default(value: Any) -> str:
    """A default as the stub writes it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_quoted, value))}{',' * (len(value) == 1)})"
    return _quoted(value)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _imports() -> list[str]:
    """The public names that are what they are: classes, and functions without options of their own. And what calls return."""
    places = {name: place for name, place in headscore._PUBLIC.items() if name not in CALLS}
    lines = [(place, f"{name} as {name}") for name, place in places.items()]
    lines += [(place, name) for name, place in RETURNED.items()]
    return [f"from {place.replace('headscore', '')} import {name}" for place, name in sorted(lines)]


def _call(name: str) -> str:
    lines, keyword = [f"def {name}("], False
    for parameter in inspect.signature(getattr(headscore, name)).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keyword:
            keyword = True
            lines.append("    *,")
        given = "" if parameter.default is inspect.Parameter.empty else f" = {default(parameter.default)}"
        lines += _fitting(f"    {parameter.name}: {shown(parameter.annotation)}{given},")
    return "\n".join([*lines, f") -> {shown(inspect.signature(getattr(headscore, name)).return_annotation)}: ..."])


def _fitting(line: str) -> list[str]:
    """A parameter whose choices fill more than a line, as the formatter breaks it."""
    parts = re.fullmatch(r"(.*Literal\[)(.*)(\].*)", line) if len(line) > LONGEST else None
    return [parts[1], f"        {parts[2]}", f"    {parts[3]}"] if parts else [line]


def _all() -> str:
    names = "\n".join(f'    "{name}",' for name in headscore.__all__)
    return f"\n__version__: str\n__all__ = [\n{names}\n]\n"


if __name__ == "__main__":
    STUB.write_text(text())
