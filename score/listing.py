"""What signals there are, what each is made of, and whether a cache has it."""

from pathlib import Path
from typing import Any

import polars as pl

from ..data.cache import open_cache
from ..data.errors import InputError
from ..data.settings import ScoreSettings
from ..data.signatures import library_call
from .recipe import Recipe, checked_signal, choose_measures, with_signals
from .signal_sources import built_in_signals, own_signals, title_of

_COLUMNS = {"signal": pl.String, "needs": pl.String, "there": pl.Boolean, "what": pl.String}


@library_call(ScoreSettings)
def signals(cache: str | Path | None = None, **options: Any) -> pl.DataFrame:
    """The built-in signals and one's own; the library call of `headscore signals`.

    Args:
        cache: a cache folder or a shard file; without one, what a signal needs is listed as its formula says.
        options: fields of ScoreSettings, such as `signal`, `signals` and `measure`.

    Returns one line per signal: `signal`, its name; `needs`, the measures it is made of; `there`, whether the cache has them
    (null without a cache); `what`, the first sentence of its documentation, or why the cache has it not.
    Raises InputError for a cache or options that cannot be used.
    """
    settings = ScoreSettings(**options)
    if cache is None:
        return pl.DataFrame([*_formulas(), *_own_formulas(settings)], schema=_COLUMNS, orient="row")
    recipe = choose_measures(open_cache(Path(cache)), settings)
    built_in = with_signals(recipe, ScoreSettings(task_span=settings.task_span)).signals
    lines: list[Any] = [(name, _names(signal.expression), True, signal.title) for name, signal in built_in.items()]
    lines += [_own_line(recipe, *own) for own in own_signals(settings, list(built_in))]
    return pl.DataFrame(lines, schema=_COLUMNS, orient="row")


def measures(cache: str | Path, **options: Any) -> list[str]:
    """The names that a signal may be made of in a cache, in order. Raises InputError as `signals`."""
    return list(choose_measures(open_cache(Path(cache)), ScoreSettings(**options)).schema)


def _formulas() -> list[Any]:
    return [(name, _names(function()), None, title_of(function)) for name, function in built_in_signals().items()]


def _own_formulas(settings: ScoreSettings) -> list[Any]:
    return [
        (name, _names(expression), None, where) for where, name, expression in own_signals(settings, list(built_in_signals()))
    ]


def _names(expression: pl.Expr) -> str:
    return ", ".join(dict.fromkeys(expression.meta.root_names())) or str(expression)


def _own_line(recipe: Recipe, where: str, name: str, expression: pl.Expr) -> Any:
    try:
        checked_signal(recipe, where, name, expression)
    except InputError as error:
        return name, _names(expression), False, str(error)
    return name, _names(expression), True, where
