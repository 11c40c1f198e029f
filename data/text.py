"""Text that leaves the program, in which nothing can drive a terminal, forge a line or turn the order of letters around."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import OptionError, printable

_SUSPECT = re.compile(r"[^ -~\n]")  # a quick first look


class OneLine(logging.Formatter):
    """What another formatter makes of a log record, as one line of printable characters.

    Args:
        inner: the other formatter.
    """

    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable(self._inner.format(record))


_AFTER_ONE = {"are": "is", "do": "does", "have": "has"}


def verb(word: str, count: float) -> str:
    """A verb as it follows so many things: 'give', or 'gives' after one."""
    return word if count != 1 else _AFTER_ONE.get(word, f"{word}s")


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as in '0-2, 7'."""
    first, shown = 0, list[str]()
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            shown.append(str(numbers[first]) if end - first == 1 else f"{numbers[first]}-{numbers[end - 1]}")
            first = end
    return ", ".join(shown)


@contextlib.contextmanager
def logged_in_one_line(*libraries: str) -> Iterator[None]:
    """Within this context the handlers that libraries have brought write printable lines, as ours do.

    Args:
        libraries: the names of their loggers. They must have been imported.
    """
    handlers = [handler for name in libraries for handler in logging.getLogger(name).handlers]
    before = [(handler, handler.formatter) for handler in handlers]
    for handler, formatter in before:
        handler.setFormatter(OneLine(formatter or logging.Formatter()))
    try:
        yield
    finally:
        for handler, formatter in before:
            handler.setFormatter(formatter)


def json_text(value: Any, indent: int | None = None) -> str:
    r"""A value as JSON; characters that are not printable are written as \u escapes, and other letters as they are.

    Args:
        value: of JSON's kinds.
        indent: spaces of a level; all is in one line if it is None.
    """
    return _SUSPECT.sub(lambda match: _escaped(match[0]), json.dumps(value, indent=indent, ensure_ascii=False))


def has_unprintable(text: str) -> bool:
    """Whether a text holds a character, other than a line break, that is not printable."""
    return any(not match[0].isprintable() for match in _SUSPECT.finditer(text))


def require_text(what: str, value: str | Path) -> None:
    """Raises InputError for a text or path that no UTF-8 file can hold, or that has a null character in it.

    Args:
        what: the option, for the message.
        value: the text, or a path as the system gives it, where bytes that are no UTF-8 stand as half surrogate pairs.
    """
    text = str(value)
    if "\0" in text:
        raise OptionError(f"{what}: {text!r:.80} has a null character in it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise OptionError(f"{what}: {text!r:.80} is not text in UTF-8, and no result could name it")


def shown(value: Any) -> str:
    """A value as Python writes it, for a message; `…` for what is nested too deeply, or has too many digits, for that."""
    try:
        return repr(value)
    except (RecursionError, ValueError):
        return "…"


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]
