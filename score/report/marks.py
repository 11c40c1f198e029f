"""What charts of heads share: the live ranking by Vega-Lite's own parameters, the marks of the top k, and the picked head."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import altair as alt

if TYPE_CHECKING:
    from ..pipeline import Scores

INK = "#010101"  # of marks on the page's background; the report makes it the colour of the text
MARK = "#D55E00"  # of the picked head
TOP = "datum.rank <= k"
PICKED = alt.selection_point(name="picked", fields=["layer", "head"], toggle=False)
PICKED_ONLY: Any = {"param": "picked", "empty": False}
_ORDER = [
    alt.SortField("combined", order="descending"),
    alt.SortField("tiebreak", order="descending"),
    alt.SortField("layer", order="ascending"),
    alt.SortField("head", order="ascending"),
]


@dataclass(frozen=True)
class Ranking:
    """Where the sliders start, and how far k goes."""

    lambda_ent: float = 0.5
    lambda_task: float = 1.0
    k: int = 20
    heads: int = 100  # in all

    @classmethod
    def of(cls, scores: "Scores") -> Self:
        """The weights and the number of top heads of a result."""
        settings = scores.settings
        k, heads = (len(scores.tables[name]["head"]) for name in ("topk_global", "combined"))
        return cls(settings.lambda_ent, settings.lambda_task, k, heads)

    def parameters(self) -> list[Any]:
        """The three parameters with their sliders."""
        most = max(3.0, 2 * self.lambda_ent, 2 * self.lambda_task)
        most_heads = min(self.heads, max(100, 4 * self.k))

        def slider(name: str, label: str, value: float, least: float, most: float, step: float) -> Any:
            return alt.param(name, value=value, bind=alt.binding_range(min=least, max=most, step=step, name=label))

        return [
            slider("lambda_ent", "λ_ent ", self.lambda_ent, 0, most, _step(self.lambda_ent)),
            slider("lambda_task", "λ_task ", self.lambda_task, 0, most, _step(self.lambda_task)),
            slider("k", "k ", self.k, 1, most_heads, 1),
        ]


def _step(value: float) -> float:
    """How far apart a slider's places are: so that `value` is one of them, as a browser moves others to the next."""
    steps = (0.05, *(10.0**-digits for digits in range(2, 9)))
    return next((step for step in steps if math.isclose(round(value / step) * step, value, rel_tol=1e-12)), 1e-9)


def ranked(chart: Any, ranking: Ranking | None, first: bool = False) -> Any:
    """Give `chart` the `name` of every head, as L3H7, and with a ranking its sliders, `combined` and `rank` as they stand.

    The order of operations is that of fuse.py, so that Vega's doubles are those of `score` to the last bit. first: compute this
    before the transforms that the chart has already. Changes the chart and returns it, as Altair's copies take their time.
    """
    own = list(chart.transform) if chart.transform is not alt.Undefined else []
    made = [*_NAME, *(_RANKING if ranking else [])]
    chart.transform = [*made, *own] if first else [*own, *made]
    if ranking:
        own = list(chart.params) if chart.params is not alt.Undefined else []
        chart.params = [*own, *(parameter.param for parameter in ranking.parameters())]
    return chart


def _fused(column: str) -> str:
    out, ent, task = (f"datum['{column.format(name)}']" for name in ("out", "ent", "task"))
    return f"{out} + lambda_ent * {ent} + lambda_task * {task}"


def top_only(chart: Any) -> Any:
    """`chart` of the top k heads alone."""
    return chart.transform_filter(TOP)


_NAME = [alt.CalculateTransform(calculate="'L' + datum.layer + 'H' + datum.head", **{"as": "name"})]
_ROW_NUMBER: Any = [{"op": "row_number", "as": "rank"}]
_RANKING = [
    alt.CalculateTransform(calculate=_fused("rank_{}"), **{"as": "combined"}),
    alt.CalculateTransform(calculate=_fused("{}_z"), **{"as": "tiebreak"}),
    alt.WindowTransform(window=_ROW_NUMBER, sort=_ORDER, frame=[None, 0]),
]
