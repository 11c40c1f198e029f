"""What charts of heads share: the live ranking by Vega-Lite's own parameters, the marks of the top k, and the picked head."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import altair as alt
import polars as pl

from ...data.errors import printable
from ...data.options.settings import DEFAULT_WEIGHTS, Fusion, NormMode, Unit, Within
from ..evidence.checks import COIN_TOSS
from ..evidence.null import Level, Null, ordinal
from ..ranking import RRF_CONSTANT, TIE_DIGITS
from .columns import UNITS, copies, in_words, value

if TYPE_CHECKING:
    from ..scores import Scores

INK = "#010101"  # of marks on the page's background; the report makes it the colour of the text
MARK = "#D55E00"  # of the picked head
TOP = "datum.rank <= k"
PICKED_ONLY: Any = {"param": "picked", "empty": False}


@dataclass(frozen=True)
class Ranking:
    """How heads are ranked while sliders move.

    Args:
        weights: where the sliders start, by signal; none where the ranking of the frame itself is shown.
        fusion: as in `rank`.
        norm_mode: as in `rank`.
        within: as in `rank`.
        k: how many heads are marked at first.
        heads: how many there are in all, which is as far as k goes.
        stable: whether the frame has what a bootstrap found of these weights and this k.
        null: what random ranks would give with these weights.
        uniform: what uniform attention would give a signal, where that is known.
        words: what a signal is, in a few words.
    """

    weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    fusion: Fusion = "rank"
    norm_mode: NormMode = "zscore"
    within: Within = "layer"
    k: int = 20
    heads: int = 100
    stable: bool = False
    null: Null | None = None
    uniform: Mapping[str, float] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, scores: "Scores") -> Self:
        """That of a result, with a slider for each signal that has a weight other than 0, or is defined for every head."""
        settings, heads = scores.settings, scores.heads
        weights = {name: weight for name, weight in settings.weights.items() if weight or _is_finite(heads[f"{name}_norm"])}
        return cls(
            weights,
            settings.fusion,
            settings.norm_mode,
            settings.within,
            scores.top_k,
            len(heads),
            "p_top" in heads.columns,
            scores.null,
            scores.uniform,
            in_words(list(weights), settings.signal),
        )

    def columns(self) -> list[str]:
        """The columns that the ranking is made of."""
        kind = "norm" if self.fusion == "sum" else "rank"
        return list(dict.fromkeys(f"{name}_{kind}" for kind in (kind, "norm") for name in self.weights))

    def terms(self) -> list[str]:
        """What each signal adds to the combined score, in Vega's expression language."""
        return [f"{parameter} * {self._by_fusion(name)}" for name, parameter in self.named_parameters().items()]

    def named_parameters(self) -> dict[str, str]:
        """The parameter that is a signal's weight."""
        return {name: f"weight_{place}" for place, name in enumerate(self.weights)}

    def given(self) -> dict[str, float]:
        """The parameters where the sliders start."""
        return {**{parameter: self.weights[name] for name, parameter in self.named_parameters().items()}, "k": self.k}

    def is_given(self) -> str:
        """Whether the sliders stand where they started, as what was found of this ranking alone holds only there."""
        return " && ".join(f"{parameter} == {json.dumps(number)}" for parameter, number in self.given().items())

    def null_levels(self) -> dict[str, Level]:
        """What random ranks would give, by what people read: the best score, and the k-th."""
        if self.null is None:
            return {}
        places = {"best": self.null.best, **({ordinal(self.null.k): self.null.kth} if self.null.k > 1 else {})}
        return {f"{name} {level.mean:.{_decimals(level.high)}f}": level for name, level in places.items()}

    def _by_fusion(self, signal: str) -> str:
        rank = value(f"{signal}_rank")
        if self.fusion == "rrf":  # the place counts from the highest
            return f"(1 / ({RRF_CONSTANT} + (datum.group + 1 - {rank})))"
        return rank if self.fusion == "rank" else value(f"{signal}_norm")

    def transforms(self, unit: Unit) -> list[Any]:
        """What gives every head `combined`, `rank`, `place`, its rank as it is shown, and `tossed`: whether it is a coin toss
        that it is in the top.

        The operations are those of ranking.py in their order, so that Vega's doubles are those of `score` to the last bit.
        """
        places: list[Any] = [{"op": "count", "as": "ties"}, {"op": "min", "field": "rank", "as": "first"}]
        shown = [
            _calculated("level", f"format(datum.combined, '.{TIE_DIGITS - 1}e')"),
            alt.JoinAggregateTransform(joinaggregate=places, groupby=["level"]),
            _calculated("place", "datum.ties > 1 ? datum.first + '=' : '' + datum.rank"),
            _calculated("tossed", self._tossed()),
        ]
        if not self.weights:
            return shown
        tiebreak = [f"{weight} * {value(f'{name}_norm')}" for name, weight in self.named_parameters().items()]
        fused = [_calculated("combined", " + ".join(self.terms())), _calculated("tiebreak", " + ".join(tiebreak))]
        if self.fusion == "rrf":
            count: Any = [{"op": "count", "as": "group"}]
            groups = ["layer"] if self.within == "layer" else []
            fused.insert(0, alt.JoinAggregateTransform(joinaggregate=count, groupby=groups))
        number: Any = [{"op": "row_number", "as": "rank"}]
        return [*fused, alt.WindowTransform(window=number, sort=_order(unit), frame=[None, 0]), *shown]

    def _tossed(self) -> str:
        low, high = COIN_TOSS
        return f"{self.is_given()} && datum.p_top >= {low} && datum.p_top <= {high}" if self.stable else "false"

    def parameters(self) -> list[Any]:
        """The parameters with their sliders: a weight for each signal, and k."""
        sliders = []
        for name, parameter in self.named_parameters().items():
            weight = self.weights[name]
            most = min(max(3.0, 2 * abs(weight)), sys.float_info.max)
            words = f": {self.words[name]} " if self.words.get(name) else " "
            called = f"λ {printable(name)}{words}"
            bind = alt.binding_range(min=-most if weight < 0 else 0, max=most, step=_step(weight), name=called)
            sliders.append(alt.param(parameter, value=weight, bind=bind))
        most_heads = min(self.heads, max(100, 4 * self.k))
        bind = alt.binding_range(min=1, max=most_heads, step=1, name="k: how many heads are the top ")
        return [*sliders, alt.param("k", value=self.k, bind=bind)]


def _decimals(value: float) -> int:
    """As many as show three digits."""
    return max(0, 2 - math.floor(math.log10(abs(value)))) if value else 1


def _is_finite(values: pl.Series) -> bool:
    return not values.has_nulls() and bool(values.is_finite().all())


def _calculated(column: str, expression: str) -> Any:
    return alt.CalculateTransform(calculate=expression, **{"as": column})


def _order(unit: Unit) -> list[Any]:
    falling = [alt.SortField(column, order="descending") for column in ("combined", "tiebreak")]
    return falling + [alt.SortField(column, order="ascending") for column in ("layer", unit)]


def _step(value: float) -> float:
    """How far apart a slider's places are: so that `value` is one of them, as a browser moves others to the next."""
    steps = (0.05, *(10.0**-digits for digits in range(2, 9)))
    return next((step for step in steps if math.isclose(round(value / step) * step, value, rel_tol=1e-12)), 1e-9)


def picked(unit: Unit) -> Any:
    """The selection of one head by a click."""
    return alt.selection_point(name="picked", fields=["layer", unit], toggle=False)


def ranked(chart: Any, live: Ranking | None, unit: Unit, columns: Iterable[str] = (), first: bool = False) -> Any:
    """Give `chart` the `name` of every head, as L3H7, and with a ranking its sliders, `combined`, `rank` and `place`.

    columns: those that its encodings need. first: compute all this before the transforms that the chart has already. Changes
    the chart and returns it, as Altair's copies take their time.
    """
    own = list(chart.transform) if chart.transform is not alt.Undefined else []
    name = _calculated("name", f"'L' + datum.layer + '{UNITS[unit]}' + datum.{unit}")
    made = [*copies(columns), name, *(live.transforms(unit) if live else [])]
    chart.transform = [*made, *own] if first else [*own, *made]
    if live:
        own = list(chart.params) if chart.params is not alt.Undefined else []
        chart.params = [*own, *(parameter.param for parameter in live.parameters())]
    return chart


def top_only(chart: Any) -> Any:
    """`chart` of the top k heads alone."""
    return chart.transform_filter(TOP)
