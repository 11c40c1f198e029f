"""Charts of scored heads: one function each, a polars frame in, an Altair chart out, which a notebook shows.

Every frame has `layer` and `head` (or `kv_head`). `Scores.heads` has all columns that a chart may need; a `Scores` itself does,
too, and says how it was ranked. Where a frame has the ranks and normalised values of the signals that are weighted, its charts
have sliders for the weights and k. As they move, Vega-Lite itself computes fusion and order of the heads anew, with the
operations of `rank` in the same order. A click on a head marks it. All raise InputError for a frame that has no lines, or lacks
a column that the chart is made of.
"""

from collections.abc import Sequence

import altair as alt
import polars as pl

from ...data.errors import InputError
from ...data.options.settings import DEFAULT_WEIGHTS
from ..ranking import FUSIONS
from ..scores import Scores
from .columns import any_column, in_words, inline, layer_columns, raw_columns, require_frame, signals_of, unit_of
from .maps import HeadGrid, map_chart, maps_chart
from .marks import Ranking
from .top_views import top_chart
from .views import SINK, profiles_chart, scatter_chart

Heads = pl.DataFrame | Scores


def heatmap(frame: Heads, column: str | None = None, ranking: Ranking | None = None) -> alt.LayerChart:
    """A layer × head map of one column, with the top k heads marked.

    Args:
        frame: layer, head and `column`; with a ranking, `combined` follows the sliders and the top k are marked.
        column: by default `combined`, or else the first column that is no place of a head. Of `combined`, with a ranking, the
            margin counts the top k heads of each layer.
        ranking: where the sliders start. If not given that of the `Scores`, or the default weights where they make the frame's
            `combined`; else the frame's own `rank`, with a slider for k alone; where it has none nothing is marked.

    How to read: a cell is a head, the brighter (for normalised values: the more orange) the more the task drives it.
    """
    frame, live = _opened(frame, ranking)
    others = [name for name in frame.columns if name not in ("layer", "head", "kv_head")]
    column = column or ("combined" if "combined" in others or not others else others[0])
    _require(frame, column)
    shown = any_column(column, signals_of(frame), live.norm_mode if live else "zscore")
    return map_chart(_data(frame), HeadGrid.of(frame), shown, live)


def signal_maps(frame: Heads, ranking: Ranking | None = None, signals: Sequence[str] | None = None) -> alt.ConcatChart:
    """A layer × head map of each signal, as it is, and as the heads' ranks within their layers.

    Args:
        frame: layer, head, and the signals; with a ranking the top k are marked.
        ranking: as in `heatmap`.
        signals: which ones; if not given those that are weighted, or where nothing is, all.

    How to read: as `heatmap`; compare the maps to see which signal brings a head to the top. A signal that grows from layer to
    layer, as `out` does, hides what is within a layer; its ranks show that.
    """
    frame, live = _opened(frame, ranking)
    chosen = _chosen(frame, live, signals)
    columns = [*raw_columns(chosen), *layer_columns(chosen)]
    return maps_chart(_data(frame), HeadGrid.of(frame), columns, min(len(chosen), 4), live)


def entropy_and_task(frame: Heads, ranking: Ranking | None = None) -> alt.LayerChart:
    """Every head by the entropy of its attention and its mass on the task's tokens, the mass on the first token as colour.

    Args:
        frame: layer, head, ent, task; `sink`, the mass on the first token, is the colour; with a ranking the top k have rings.
        ranking: as in `heatmap`.

    How to read: up and to the left are heads that look at little else than the task; bright ones rest on the first token.
    """
    frame, live = _opened(frame, ranking)
    _require(frame, "ent", "task")
    return scatter_chart(_data(frame), HeadGrid.of(frame), SINK in frame.columns, live)


def layer_profiles(frame: Heads, ranking: Ranking | None = None, signals: Sequence[str] | None = None) -> alt.ConcatChart:
    """Each signal from the first layer to the last: mean and range of a layer's heads, and the top k heads as dots.

    Args:
        frame: layer, head, and the signals; with a ranking the top k are dots.
        ranking: as in `heatmap`.
        signals: as in `signal_maps`.

    How to read: a dot far above the line is a head that stands out in its layer.
    """
    frame, live = _opened(frame, ranking)
    columns = raw_columns(_chosen(frame, live, signals))
    return profiles_chart(_data(frame), HeadGrid.of(frame), columns, live)


def top_heads(frame: Heads, ranking: Ranking | None = None) -> alt.ConcatChart:
    """The top k heads, a line each: the combined score, and in a column of its own each signal as it is.

    Args:
        frame: layer, head, the signals that are weighted, their ranks and normalised values. A `Scores` says besides what
            random ranks and uniform attention would give, and with a bootstrap how far a score may move.
        ranking: as in `heatmap`, but needed for a frame that is not ranked by the default weights.

    How to read: bands are where the best and the k-th score would be if the signals' ranks were random; a dashed line is what
    uniform attention would give. Hollow dots, and `?`, are heads of which it is a coin toss whether they are among the top.
    """
    frame, live = _opened(frame, ranking)
    own = live or ranking or Ranking()
    _require(frame, *own.columns(), *own.weights)
    if live is None or not live.weights:
        raise InputError("a chart: the frame is not ranked by the default weights; give the result itself, or a ranking")
    return top_chart(_data(frame), HeadGrid.of(frame), live)


def _opened(heads: Heads, ranking: Ranking | None) -> tuple[pl.DataFrame, Ranking | None]:
    """The frame, and how its heads are ranked."""
    if isinstance(heads, Scores):
        return heads.heads, ranking or Ranking.of(heads)
    _require(heads)
    if ranking is not None:
        return heads, ranking if set(ranking.columns()) <= set(heads.columns) else None
    return heads, _told_by(heads)


def _told_by(frame: pl.DataFrame) -> Ranking | None:
    """The default ranking if it is the frame's, or else what stands there."""
    default, columns = Ranking(heads=len(frame), words=in_words(list(DEFAULT_WEIGHTS), {})), set(frame.columns)
    ranked = {"combined", "rank"} <= columns
    if set(default.columns()) <= columns:
        combined = frame.select(FUSIONS["rank"](default.weights, ())).to_series()
        if "combined" not in columns or combined.equals(frame["combined"]):
            return default
    return Ranking({}, heads=len(frame)) if ranked else None


def _chosen(frame: pl.DataFrame, live: Ranking | None, signals: Sequence[str] | None) -> list[str]:
    chosen = list(signals or (live.weights if live else ()) or signals_of(frame))
    _require(frame, *(chosen or ["out"]))
    return chosen


def _require(frame: pl.DataFrame, *columns: str) -> None:
    require_frame(frame)
    if missing := [name for name in ("layer", unit_of(frame), *columns) if name not in frame.columns]:
        raise InputError(f"a chart: the frame has no {', '.join(missing)}; the frame `heads` of a result has every column")
    if frame.is_empty():
        raise InputError("a chart: the frame has no lines")


def _data(frame: pl.DataFrame) -> alt.InlineData:
    return inline(frame)  # a frame would be refused from 5,000 lines on
