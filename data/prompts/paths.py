"""Finds values inside rows by paths such as `question.stem` or `choices.0`, and names the paths that there are."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import InputError, UnfitRowError, printable
from .values import choice_lines, from_json, labelled_choices, scalar_text

MAX_DEPTH = 4  # of the paths that a message names
MAX_ROWS = 1000  # that are looked through for them

_LIST = re.compile(r"\s*(\[|\{|array\()")  # how the text of a list or object begins: in JSON, or as Python or NumPy write it
_LIST_OF_TEXTS = re.compile(r"""\s*(array\(|\[\s*(['"{]|array\()|\{\s*['"]).*[\]})]\s*""", re.DOTALL)


def value_at(value: Any, path: str, where: str, name: str = "") -> Any:
    """What a path leads to: names of objects and, from 0, places in lists, with dots between them.

    A name may hold dots itself: the longest one that is there is tried first. A list or object that is text is read as JSON.
    Raises LookupError where the path leads nowhere, InputError, saying where, for such a text that is no JSON.

    Args:
        value: a row, or what stands in one.
        path: what is left of the way from there.
        where: the file and row, for the message.
        name: the way to there, for the message; empty for a row.
    """
    if isinstance(value, str) and _LIST.match(value):
        value = from_json(value, name, where)
    for key, rest in _ways(value, path):
        try:
            return value_at(value[key], rest, where, f"{name}.{key}".lstrip(".")) if rest else value[key]
        except LookupError:
            continue
    raise LookupError(path)


def _ways(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    """The keys of an object or list that a path may begin with, each with the rest of the path."""
    if isinstance(value, dict):
        names = path.split(".")
        for count in range(len(names), 0, -1):
            if (key := ".".join(names[:count])) in value:
                yield key, ".".join(names[count:])
    elif isinstance(value, list):
        index, _, rest = path.partition(".")
        if index.isdecimal() and int(index) < len(value):
            yield int(index), rest


def text_at(row: dict[str, Any], path: str, where: str, *, is_list: bool = False) -> str:
    """The text of what a path leads to: of choices one line `A. text` each, else as `scalar_text` makes it.

    is_list: whether a text is the JSON of a list. Raises InputError, saying where and which paths there are, and UnfitRowError
    for a list of no choices.
    """
    try:
        value = value_at(row, path, where)
    except LookupError as error:
        raise InputError(f"{where}: has no '{path}'; it has {some(known_paths([row]))}") from error
    if not isinstance(value, list | dict) and not (is_list and isinstance(value, str) and value.strip()):
        return scalar_text(value, path, where)
    try:
        choices = labelled_choices(value, path, where)
    except InputError as error:
        inner = list(_inner_paths(path, value))
        raise error.retold(f"{error.message}; it has {some(inner)}" if inner else error.message) from error
    if not choices:
        raise UnfitRowError(f"'{path}' has no choices")
    return choice_lines(choices)


def is_known(path: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the path leads to something in any of the rows."""
    for row in rows:
        try:
            value_at(row, path, "")
        except LookupError:
            continue
        except InputError:  # is told, with its row, where that is made into a prompt
            pass
        return True
    return False


def holds_lists(column: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether each text in a column that is not empty is written like a list of texts or an object, as in a CSV file."""
    texts = [value for row in rows if isinstance(value := row.get(column), str) and value.strip()]
    return bool(texts) and all(_LIST_OF_TEXTS.fullmatch(text) for text in texts)


def known_paths(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of rows, then the paths that lead into them."""
    columns = dict.fromkeys(column for row in rows for column in row)
    inner = (path for row in rows[:MAX_ROWS] for column, value in row.items() for path in _inner_paths(column, value))
    return list(columns | dict.fromkeys(inner))


def _inner_paths(path: str, value: Any, depth: int = 1) -> Iterator[str]:
    if depth == MAX_DEPTH:
        return
    if isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _inner_paths(f"{path}.0", value[0], depth)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}"
            yield from _inner_paths(f"{path}.{key}", inner, depth + 1)


def some(names: Sequence[str], most: int = 12) -> str:
    """The first names, each cut where it is long, and how many more there are."""
    shown = ", ".join(f"{printable(name):.40}" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
