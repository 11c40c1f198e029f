"""What the columns of a frame of heads are: which are signals, what they are called, and how a chart gets at them."""

import contextlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl
from altair.utils import schemapi

from ...data.errors import InputError, printable
from ...data.options.settings import NormMode, Unit
from ..expressions import names_of
from ..recipe import RESULT_COLUMNS
from ..signal_sources import built_in_signals

UNITS = {"head": "H", "kv_head": "G"}  # of what is ranked: its column, and its letter in names as L3H7
_NOT_SIGNALS = ("layer", *UNITS, *RESULT_COLUMNS)
# columns that charts add
ADDED = ("name", "place", "ties", "first", "group", "tiebreak", "tossed", "label", "below", "in_layer")
_WORDS = 72  # characters
_LABELS = {"combined": "combined score"}
_MIDDLE: dict[NormMode, float] = {"zscore": 0, "percentile": 0.5}  # normalised values on either side of it mean something


def unit_of(frame: pl.DataFrame) -> Unit:
    """What a line of `frame` is about: `head` or `kv_head`."""
    return "kv_head" if "kv_head" in frame.columns and "head" not in frame.columns else "head"


def require_frame(frame: Any) -> None:
    """Raises InputError for what is no polars DataFrame."""
    if not isinstance(frame, pl.DataFrame):
        advice = "; collect() it first" if isinstance(frame, pl.LazyFrame) else ""
        raise InputError(f"a chart: the frame is a {type(frame).__name__}, not a polars DataFrame{advice}")


def require_text(where: str, **given: Any) -> None:
    """Raises InputError where what a chart is told by name is no text."""
    for name, value in given.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: {name}={value!r:.80} is not text")


def require_count(where: str, **given: Any) -> None:
    """Raises InputError where what a chart is told by name is no whole number of at least 1."""
    for name, value in given.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{where}: {name}={value!r:.80} is not a whole number of at least 1")


def require_columns(frame: pl.DataFrame, *columns: str, numbers: Iterable[str] = ()) -> None:
    """Raises InputError where a chart cannot be made of a frame.

    It is none, a column is missing, one of `numbers` is of something else (nothing but nulls will do), or it has no lines.
    """
    require_frame(frame)
    if missing := [name for name in columns if name not in frame.columns]:
        raise InputError(f"a chart: the frame has no {', '.join(missing)}; it has {', '.join(frame.columns)}")
    if frame.is_empty():
        raise InputError("a chart: the frame has no lines")
    for name in numbers:
        if not frame[name].dtype.is_numeric() and frame[name].dtype != pl.Null:
            raise InputError(f"a chart: the column {name} is of {frame[name].dtype}, not of numbers")


def signals_of(frame: pl.DataFrame) -> list[str]:
    """The signals in `frame`: columns with a norm and a rank, or where there are none, all columns of numbers."""
    columns = frame.columns
    with_ranks = [name for name in columns if {f"{name}_norm", f"{name}_rank"} <= set(columns)]
    return with_ranks or [name for name in columns if name not in _NOT_SIGNALS and frame[name].dtype.is_numeric()]


def finite(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with null for NaN and infinity, which JSON has no words for."""
    return frame.with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in frame.columns if frame[name].dtype.is_float()
    )


def inline(frame: pl.DataFrame) -> alt.InlineData:
    """The lines of a frame as the data of a chart."""
    with schemapi.debug_mode(False):  # every line would be validated by itself
        return alt.InlineData(values=finite(frame).to_dicts())


@dataclass(frozen=True)
class Column:
    """A column as charts show it.

    Args:
        name: in the frame.
        label: what people call it.
        description: what it is, as a sentence; empty where nothing is known.
        middle: the value that divides low from high; None where there is none.
        in_layer: whether the rank in its layer is meant, 1 = lowest, in place of the value.
    """

    name: str
    label: str
    description: str = ""
    middle: float | None = None
    in_layer: bool = False

    def described(self) -> str:
        """Label and description."""
        return f"{self.label}: {self.description}" if self.description else self.label


def raw_columns(signals: Sequence[str]) -> list[Column]:
    """The columns of signals themselves."""
    known = descriptions(signals)
    return [Column(name, printable(name), known.get(name, "")) for name in signals]


def layer_columns(signals: Sequence[str]) -> list[Column]:
    """The ranks of signals within their layers."""
    return [Column(name, printable(name), in_layer=True) for name in signals]


def norm_columns(signals: Sequence[str], norm_mode: NormMode) -> list[Column]:
    """The columns of signals' normalised values."""
    return [Column(f"{name}_norm", f"{printable(name)}, normalised", middle=_MIDDLE.get(norm_mode)) for name in signals]


def any_column(name: str, signals: Sequence[str], norm_mode: NormMode) -> Column:
    """Some column of a frame with `signals`."""
    of_signals = [*raw_columns(signals), *norm_columns(signals, norm_mode)]
    return next((column for column in of_signals if column.name == name), Column(name, _LABELS.get(name, printable(name))))


def descriptions(signals: Sequence[str]) -> dict[str, str]:
    """The first sentence of each built-in signal's documentation, by the names of those among `signals`."""
    found: dict[str, str] = {}
    for name, function in built_in_signals().items():
        expression = function()
        sentence = _first_sentence(inspect.getdoc(function) or "")
        outputs = _outputs(expression, signals) if expression.meta.has_multiple_outputs() else [name]
        found |= dict.fromkeys(outputs, sentence)
    return {name: found[name] for name in signals if found.get(name)}


def in_words(signals: Sequence[str], own: Mapping[str, Any]) -> dict[str, str]:
    """What signals are, in a few words: the beginning of their documentation, or of the user's definition in `own`."""
    known = {name: re.split(r":|, or |, where |\.$", sentence)[0] for name, sentence in descriptions(signals).items()}
    given = {name: printable(" ".join(str(text).split())) for name, text in own.items() if name in signals and text is not None}
    return {name: f"{text[:_WORDS]}{'…' * (len(text) > _WORDS)}" for name, text in {**known, **given}.items()}


def _outputs(expression: pl.Expr, signals: Sequence[str]) -> list[str]:
    """The signals that an expression with several outputs gives: each is a measure of its name."""
    with contextlib.suppress(InputError):
        return names_of(expression, dict.fromkeys(signals, pl.Float64), "")
    return []


def _first_sentence(text: str) -> str:
    return " ".join(re.split(r"\n\n|(?<=\.)\s+(?=[A-Z`])", text)[0].replace("`", "").split())


def value(column: str) -> str:
    """A head's value in `column`, in Vega's expression language."""
    return f"datum[{json.dumps(column)}]"


def field(column: str) -> str:
    """The name by which an encoding has `column`: its own, or where that is a path to Vega-Lite or taken, that of a copy."""
    plain = re.fullmatch(r"[A-Za-z_]\w*", column, re.ASCII) and column not in ADDED
    return column if plain else f"column_{column.encode().hex()}"


def copies(columns: Iterable[str]) -> list[Any]:
    """The transforms that make the copies which `field` names."""
    unlike = [column for column in dict.fromkeys(columns) if field(column) != column]
    return [alt.CalculateTransform(calculate=value(column), **{"as": field(column)}) for column in unlike]
