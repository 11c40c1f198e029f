"""What signals there are, what each is made of, and whether a cache has it."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import polars as pl

from ..data.cache.folder import Cache, open_cache
from ..data.errors import InputError
from ..data.files.whole_file import given_path
from ..data.options.settings import ScoreSettings
from ..data.options.signatures import library_call
from ..data.prompts.templates import ALWAYS_SPANS
from .recipe import Recipe, checked_signal, choose_measures, with_signals
from .signal_sources import built_in_signals, own_signals, title_of

logger = logging.getLogger("headscore")

_COLUMNS = {"signal": pl.String, "needs": pl.String, "there": pl.Boolean, "what": pl.String}


@library_call(ScoreSettings)
def signals(cache: str | Path | None = None, **options: Any) -> pl.DataFrame:
    """The built-in signals and one's own; the library call of `headscore signals`.

    Args:
        cache: a cache folder or a shard file; without one, what a signal needs is listed as its formula says. Where it has no
            span `question` and no other is asked for, the first of its template counts as the task's, and the log says so.
        options: fields of ScoreSettings, such as `signal`, `signals` and `measure`.

    Returns one line per signal: `signal`, its name; `needs`, the measures it is made of; `there`, whether the cache has them
    (null without a cache); `what`, the first sentence of its documentation, or why the cache does not have it.
    Raises InputError for a cache or options that cannot be used.
    """
    settings = ScoreSettings(**options)
    if cache is None:
        return pl.DataFrame([*_formulas(), *_own_formulas(settings)], schema=_COLUMNS, orient="row")
    opened = open_cache(given_path("cache", cache))
    settings = with_a_task_span(opened, settings, tell=True)
    recipe = choose_measures(opened, settings)
    built_in = with_signals(recipe, ScoreSettings(task_span=settings.task_span)).signals
    lines: list[Any] = [(name, _names(signal.expression), True, signal.title) for name, signal in built_in.items()]
    lines += [_own_line(recipe, *own) for own in own_signals(settings, list(built_in))]
    return pl.DataFrame(lines, schema=_COLUMNS, orient="row")


def measures(cache: str | Path, **options: Any) -> list[str]:
    """The names that a signal may be made of in a cache, in order. Raises InputError as `signals`."""
    opened = open_cache(given_path("cache", cache))
    return list(choose_measures(opened, with_a_task_span(opened, ScoreSettings(**options))).schema)


def with_a_task_span(cache: Cache, settings: ScoreSettings, tell: bool = False) -> ScoreSettings:
    """The settings for a look at any cache: where it lacks the default span, the first of its own counts; the log may tell."""
    names = cache.metadata["span_names"]
    if settings.task_span != ScoreSettings.task_span or settings.task_span[0] in names:
        return settings
    own = [name for name in names if name not in ALWAYS_SPANS] or names
    if tell:
        logger.info("%s: has no span '%s', so '%s' counts as the task's", cache.path, settings.task_span[0], own[0])
    return dataclasses.replace(settings, task_span=(own[0],))


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
