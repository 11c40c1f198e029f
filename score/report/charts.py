"""Charts of scored heads: one function each, a polars frame in, an Altair chart out, which a notebook shows.

Every frame has `layer` and `head`. `Scores.heads` has all columns that a chart may need. Where a frame has the ranks and the
normalised values of the three signals (RANKED), its charts have sliders for λ_ent, λ_task and k. As they move, Vega-Lite itself
computes fusion and order of the heads anew, with the operations of `fuse.py` in the same order. A click on a head marks it.
All raise InputError for a frame that has no lines, or lacks a column that the chart is made of.
"""

from typing import TYPE_CHECKING

import altair as alt
from altair.utils import schemapi

from ...data.errors import InputError
from ..signals import SIGNALS, SINK
from .marks import Ranking
from .views import bars_chart, map_chart, map_columns, maps_chart, profiles_chart, scatter_chart

if TYPE_CHECKING:
    import polars as pl

RANKED = tuple(f"{kind}{name}{end}" for kind, end in (("rank_", ""), ("", "_z")) for name in SIGNALS)
_PLACE = ("layer", "head")


def heatmap(frame: "pl.DataFrame", column: str | None = None, ranking: Ranking | None = None) -> alt.LayerChart:
    """A layer × head map of one column, with the top k heads marked.

    frame: layer, head and `column`; with RANKED too, `combined` follows the sliders and the marks are those of the top k.
    column: by default `combined`, or else the first column that is not layer or head. ranking: where the sliders start.
    How to read: a cell is a head, the brighter (for normalised values: the more orange) the more the task drives it.
    """
    others = [name for name in frame.columns if name not in _PLACE]
    column = column or ("combined" if "combined" in others or not others else others[0])
    _require(frame, column)
    return map_chart(_data(frame), _shape(frame), column, _ranking(frame, ranking))


def signal_maps(frame: "pl.DataFrame", ranking: Ranking | None = None) -> alt.ConcatChart:
    """A layer × head map of each signal, raw in the first row and normalised within the layer in the second.

    frame: layer, head, and any of out_raw, ent_raw, task_raw, out_z, ent_z, task_z; with RANKED the top k are marked.
    How to read: as `heatmap`; compare the maps to see which signal brings a head to the top.
    """
    _require(frame, *(map_columns(frame.columns) or ["out_raw"]))
    return maps_chart(_data(frame), _shape(frame), frame.columns, _ranking(frame, ranking))


def entropy_and_task(frame: "pl.DataFrame", ranking: Ranking | None = None) -> alt.LayerChart:
    """Every head by the entropy of its attention and its mass on the task's tokens, the mass on the first token as colour.

    frame: layer, head, ent_raw, task_raw; `sink`, the mass on the first token, is the colour; with RANKED the top k have rings.
    How to read: up and to the left are heads that look at little else than the task; bright ones rest on the first token.
    """
    _require(frame, "ent_raw", "task_raw")
    return scatter_chart(_data(frame), SINK in frame.columns, _ranking(frame, ranking))


def layer_profiles(frame: "pl.DataFrame", ranking: Ranking | None = None) -> alt.ConcatChart:
    """Each signal from the first layer to the last: mean and range of a layer's heads, and the top k heads as dots.

    frame: layer, head, and any of out_raw, ent_raw, task_raw; with RANKED the top k are dots, and a last chart counts them.
    How to read: a dot far above the line is a head that stands out in its layer.
    """
    _require(frame, *([c for name in SIGNALS if (c := f"{name}_raw") in frame.columns] or ["out_raw"]))
    return profiles_chart(_data(frame), frame.columns, _ranking(frame, ranking))


def top_heads(frame: "pl.DataFrame", ranking: Ranking | None = None) -> alt.Chart:
    """The top k heads as bars, divided into what each signal adds to the combined score.

    frame: layer, head and RANKED. How to read: the bar's length is the combined score, its parts are the weighted ranks.
    """
    _require(frame, *RANKED)
    return bars_chart(_data(frame), ranking or Ranking())


def _require(frame: "pl.DataFrame", *columns: str) -> None:
    if missing := [name for name in (*_PLACE, *columns) if name not in frame.columns]:
        raise InputError(f"a chart: the frame has no {', '.join(missing)}; the frame `heads` of a result has every column")
    if frame.is_empty():
        raise InputError("a chart: the frame has no lines")


def _data(frame: "pl.DataFrame") -> alt.InlineData:
    with schemapi.debug_mode(False):  # every line would be validated by itself
        return alt.InlineData(values=frame.to_dicts())  # a frame would be refused from 5,000 lines on


def _shape(frame: "pl.DataFrame") -> tuple[int, int]:
    return frame["layer"].n_unique(), frame["head"].n_unique()


def _ranking(frame: "pl.DataFrame", ranking: Ranking | None) -> Ranking | None:
    return (ranking or Ranking()) if set(RANKED) <= set(frame.columns) else None
