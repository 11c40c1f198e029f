"""The charts of a report as SVG and PNG files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from ...data.files import remove_leftovers, write_bytes, write_text
from ..outputs import CHARTS_FOLDER
from . import views
from .columns import any_column, finite, norm_columns, raw_columns, unit_of
from .marks import Ranking
from .vega import converter

DATA = "heads"  # by this name a chart finds its data
_PNG_SCALE = 1.5  # pixels for each of the chart


def write_charts(folder: Path, heads: pl.DataFrame, ranking: Ranking) -> None:
    """Write each chart, as it stands for the scores' own weights, to charts/*.svg and *.png, each file whole or not at all.

    Raises RunError where a chart cannot be drawn, or the disk refuses.
    """
    datasets = {DATA: drawn(heads, ranking).to_dicts()}
    charts = _charts(views.Grid.of(heads), ranking).items()
    write_drawn(folder, {name: {**chart.to_dict(validate=False), "datasets": datasets} for name, chart in charts})


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
            svg = convert.vegalite_to_svg(json.dumps({"background": "white", **spec}))
            png = convert.svg_to_png(svg, scale=_PNG_SCALE)
        write_text(folder / CHARTS_FOLDER / f"{name}.svg", svg)
        write_bytes(folder / CHARTS_FOLDER / f"{name}.png", png)


def drawn(heads: pl.DataFrame, ranking: Ranking, others: tuple[str, ...] = ()) -> pl.DataFrame:
    """The columns of `Scores.heads` that charts of the weighted signals, and of `others`, are made of."""
    weighted = [name for signal in ranking.weights for name in (signal, f"{signal}_norm", f"{signal}_rank")]
    names = ["layer", unit_of(heads), *weighted, "ent", "task", views.SINK, *others, "combined"]
    return finite(heads.select(list(dict.fromkeys(names))))


def _charts(grid: views.Grid, ranking: Ranking) -> dict[str, Any]:
    data, signals = alt.NamedData(DATA), list(ranking.weights)
    raw = raw_columns(signals)
    maps, across = [*raw, *norm_columns(signals, ranking.norm_mode)], max(2, min(len(signals), 4))
    return {
        "combined": views.map_chart(data, grid, any_column("combined", (), ranking.norm_mode), ranking),
        "top_heads": views.bars_chart(data, grid, ranking),
        "signal_maps": views.maps_chart(data, grid, maps, across, ranking),
        "entropy_and_task": views.scatter_chart(data, grid, True, ranking),
        "layer_profiles": views.profiles_chart(data, grid, raw, ranking),
    }
