"""Where signals come from: the functions of signals.py, and what the user brings."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from ..data.errors import OptionError, did_you_mean
from ..data.options.settings import ScoreSettings
from . import signals as built_in
from .expressions import functions_of, read_expressions, read_python_file


def built_in_signals() -> dict[str, Any]:
    """The functions of signals.py, by name."""
    return functions_of(built_in)


def title_of(function: Any) -> str:
    """The first sentence of a signal's documentation, without its full stop."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()).rstrip(".")


def own_signals(settings: ScoreSettings, known: Sequence[str]) -> Iterator[tuple[str, str, pl.Expr]]:
    """The signals that the user brings: where each comes from, its name, and its expression.

    Raises InputError for what is no expression, and for a name without one that is not among the `known` signals.
    """
    given = {name: value for name, value in settings.signal.items() if value is not None}
    for name in [name for name in settings.signal if name not in given and name not in known]:
        meant = did_you_mean(name, known)
        raise OptionError(f"--signal {name}: is not a built-in signal; {meant}give NAME='SQL', or one of {', '.join(known)}")
    for name, expression in read_expressions(given, "--signal").items():
        yield f"--signal {name}", name, expression
    if settings.signals is not None:
        for name, expression in read_python_file(settings.signals, "--signals").items():
            yield f"--signals {settings.signals}: {name}", name, expression
