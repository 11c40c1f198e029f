"""The charts of a report as SVG and PNG files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from ...data.files.whole_file import remove_leftovers, write_bytes, write_text
from ..outputs import CHARTS_FOLDER
from ..recipe import BOOTSTRAP_COLUMNS
from . import maps, top_views, views
from .columns import any_column, finite, layer_columns, raw_columns, unit_of
from .marks import Ranking
from .vega import converter

_DIGITS = 6  # of what is shown
DATA = "heads"  # by this name a chart finds its data
_CONFIG = {"axis": {"gridColor": "#eeeeee", "domainColor": "#bbbbbb", "tickColor": "#bbbbbb"}, "view": {"stroke": None}}
_PNG_SCALE = 1.5  # pixels for each of the chart


def write_charts(folder: Path, heads: pl.DataFrame, ranking: Ranking) -> None:
    """Write each chart, as it stands for the scores' own weights, to charts/*.svg and *.png, each file whole or not at all.

    Raises RunError where a chart cannot be drawn, or the disk refuses.
    """
    values = {DATA: drawn(heads, ranking).to_dicts()}
    charts = _charts(maps.HeadGrid.of(heads), ranking).items()
    specs = {name: chart.to_dict(validate=False) for name, chart in charts}
    write_drawn(folder, {name: {**spec, "datasets": spec.get("datasets", {}) | values} for name, spec in specs.items()})


def write_drawn(folder: Path, specs: Mapping[str, dict[str, Any]]) -> None:
    """Write charts to charts/NAME.svg and .png, each file whole or not at all.

    Args:
        folder: is there.
        specs: by name what Vega-Lite draws, its data included.

    Raises RunError where a chart cannot be drawn, or the disk refuses.
    """
    remove_leftovers(folder / CHARTS_FOLDER)
    for name, spec in specs.items():
        with converter(f"the chart '{name}'") as convert:
            svg = convert.vegalite_to_svg(json.dumps({"background": "white", "config": _CONFIG, **spec}))
            png = convert.svg_to_png(svg, scale=_PNG_SCALE)
        write_text(folder / CHARTS_FOLDER / f"{name}.svg", svg)
        write_bytes(folder / CHARTS_FOLDER / f"{name}.png", png)


def drawn(heads: pl.DataFrame, ranking: Ranking, others: tuple[str, ...] = ()) -> pl.DataFrame:
    """The columns of `Scores.heads` that charts of the weighted signals, and of `others`, are made of.

    What the ranking is made of is exact; the rest has the digits that can be seen.
    """
    exact, stable = ranking.columns(), BOOTSTRAP_COLUMNS if ranking.stable else ()
    seen = [name for name in (*ranking.weights, "ent", "task", views.SINK, *others, *stable) if name not in exact]
    frame = finite(heads.select(list(dict.fromkeys(["layer", unit_of(heads), *exact, *seen]))))
    return rounded(frame, exact)


def rounded(frame: pl.DataFrame, exact: Sequence[str] = ()) -> pl.DataFrame:
    """The frame with no more digits than can be seen, but in the columns of `exact`."""
    names = [name for name in frame.columns if frame[name].dtype.is_float() and name not in exact]
    return frame.with_columns(pl.col(name).round_sig_figs(_DIGITS) for name in names)


def _charts(grid: maps.HeadGrid, ranking: Ranking) -> dict[str, Any]:
    data, signals = alt.NamedData(DATA), list(ranking.weights)
    raw = raw_columns(signals)
    columns, across = [*raw, *layer_columns(signals)], min(len(signals), 4)
    return {
        "combined": maps.map_chart(data, grid, any_column("combined", (), ranking.norm_mode), ranking),
        "top_heads": top_views.top_chart(data, grid, ranking),
        "signal_maps": maps.maps_chart(data, grid, columns, across, ranking),
        "entropy_and_task": views.scatter_chart(data, grid, True, ranking),
        "layer_profiles": views.profiles_chart(data, grid, raw, ranking),
    }
