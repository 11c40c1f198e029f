"""What charts share besides marks: colours, titles, legends, tooltips, and how several are one."""

import itertools
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import altair as alt

from .columns import Column, field
from .marks import Ranking

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D31", "#5E4FA2")  # five of Okabe and Ito, two more
PLAIN = "#777777"  # of a signal that weighs nothing
LEGEND_WIDTH = 40  # characters
_GRADIENT = alt.ExprRef("min(200, width)")  # of a legend
_TITLE_WIDTH = 72


def beside(charts: list[Any], **properties: Any) -> alt.ConcatChart:
    """Charts in one, in which a click on a head marks it in all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Automatically deduplicated")  # it is meant
        return alt.concat(*charts, **properties)


def colours() -> Iterator[str]:
    """The signals' colours, in the order of the weights."""
    return itertools.cycle(COLOURS)


def legend_of(*texts: str, **more: Any) -> alt.Legend:
    """A legend above its chart, with a title of such lines."""
    title = [line for text in texts for line in wrapped(text, LEGEND_WIDTH)]
    return alt.Legend(title=title, orient="top", titleLimit=0, gradientThickness=10, gradientLength=_GRADIENT, **more)


def tooltip_of(columns: Iterable[Column], live: Ranking | None) -> list[Any]:
    """A head's name, values and rank."""
    shown = [alt.Tooltip(f"{field(column.name)}:Q", title=_key(column.label), format=".4f") for column in columns]
    rank = [alt.Tooltip("place:N", title="rank")] if live else []
    return [alt.Tooltip("name:N"), *shown, *rank]


def _key(text: str) -> str:
    """A tooltip's title: Vega-Lite writes it into an expression and escapes quotes, but not what escapes a quote."""
    return text.replace("\\", "\\\\")


def title_of(title: str, text: str) -> alt.Title:
    """A title, and how to read the chart below it."""
    return alt.Title(title, subtitle=wrapped(text, _TITLE_WIDTH), anchor="start")


def wrapped(text: str, width: float) -> list[str]:
    """A text as lines of so many characters."""
    return textwrap.wrap(text, max(24, int(width))) or [""]
