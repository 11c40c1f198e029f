"""The charts of a report as SVG and PNG files."""

import json
from pathlib import Path
from typing import Any

import altair as alt

from ...data.files import remove_leftovers, write_bytes, write_text
from ..outputs import CHARTS_FOLDER
from ..tables import Table, rows
from . import views
from .marks import Ranking
from .vega import converter

DATA = "heads"  # by this name a chart finds its data
_PNG_SCALE = 1.5  # pixels for each of the chart


def write_charts(folder: Path, heads: Table, ranking: Ranking) -> None:
    """Write each chart, as it stands for the scores' own weights, to charts/*.svg and *.png, each file whole or not at all.

    Raises RunError where a chart cannot be drawn, or the disk refuses.
    """
    remove_leftovers(folder / CHARTS_FOLDER)
    datasets = {DATA: [dict(zip(heads, line, strict=True)) for line in rows(heads)]}
    for name, chart in _charts(heads, ranking).items():
        spec = json.dumps({"background": "white", **chart.to_dict(validate=False), "datasets": datasets})
        with converter(f"the chart '{name}'") as convert:
            svg = convert.vegalite_to_svg(spec)
            png = convert.svg_to_png(svg, scale=_PNG_SCALE)
        write_text(folder / CHARTS_FOLDER / f"{name}.svg", svg)
        write_bytes(folder / CHARTS_FOLDER / f"{name}.png", png)


def shape(heads: Table) -> tuple[int, int]:
    """How many layers and heads a layer there are."""
    return len(set(heads["layer"].tolist())), int(heads["head"].max()) + 1


def _charts(heads: Table, ranking: Ranking) -> dict[str, Any]:
    data = alt.NamedData(DATA)
    return {
        "combined": views.map_chart(data, shape(heads), "combined", ranking),
        "top_heads": views.bars_chart(data, ranking),
        "signal_maps": views.maps_chart(data, shape(heads), list(heads), ranking),
        "entropy_and_task": views.scatter_chart(data, True, ranking),
        "layer_profiles": views.profiles_chart(data, list(heads), ranking),
    }
