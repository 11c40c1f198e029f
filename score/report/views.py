"""Charts of signals, as views of data that is given, or named where a page or a file has it.

A layered chart is made in one call, with all that it has: each change afterwards would have Altair copy all of it.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

from .columns import Column, field
from .maps import HeadGrid
from .marks import INK, MARK, PICKED_ONLY, Ranking, picked, ranked, top_only
from .parts import LEGEND_WIDTH, PLAIN, beside, colours, legend_of, title_of, tooltip_of, wrapped
from .texts import reading

SINK = "sink"
FIRST_TOKEN = "mass on the first token"  # the signal `sink`, where it is a colour
_MANY = 1000  # heads from which on points are small
_WHOLE = alt.Axis(labelExpr="datum.value == floor(datum.value) ? format(datum.value, 'd') : ''")
_LAYERS = alt.X("layer:Q", title="layer", axis=_WHOLE, scale=alt.Scale(nice=False, zero=False, padding=6))


def profiles_chart(data: Any, grid: HeadGrid, columns: Sequence[Column], live: Ranking | None) -> alt.ConcatChart:
    """`layer_profiles` of data that is given or named."""
    charts: list[Any] = [
        profile_chart(alt.Undefined, grid, column, live, colour) for column, colour in zip(columns, colours(), strict=False)
    ]
    return beside(charts, columns=2, data=data, title=title_of(*reading("layer_profiles", live)))


def scatter_chart(data: Any, grid: HeadGrid, with_sink: bool, live: Ranking | None) -> alt.LayerChart:
    """`entropy_and_task` of data that is given or named."""
    entropy, task, sink = Column("entropy", "entropy (nats)"), Column("task", "task"), Column(SINK, FIRST_TOKEN)
    base = alt.Chart().encode(
        x=alt.X("entropy:Q", title="entropy of the attention in nats (left: focused)", scale=alt.Scale(zero=False)),
        y=alt.Y("task:Q", title="attention mass on the task's tokens", scale=alt.Scale(zero=False)),
        tooltip=tooltip_of([entropy, task, *([sink] if with_sink else [])], live),
    )
    size, opacity = (45, 0.9) if live is None or live.heads < _MANY else (18, 0.6)  # rings must show among many points
    points = base.mark_circle(size=size, opacity=opacity, stroke=INK, strokeWidth=0.6, cursor="pointer")
    if with_sink:
        scale = alt.Scale(scheme="viridis", domain=[0, 1])
        points = points.encode(color=alt.Color(f"{SINK}:Q", scale=scale, legend=legend_of(FIRST_TOKEN, gradientOpacity=1)))
    marks = [points.add_params(picked(grid.unit))]
    if live:
        marks.append(top_only(base).mark_point(size=90, stroke=INK, strokeWidth=1.5, cursor="pointer"))
    marks.append(base.transform_filter(PICKED_ONLY).mark_point(size=220, stroke=MARK, strokeWidth=3))
    turned = alt.CalculateTransform(calculate="-datum.ent", **{"as": "entropy"})
    title = title_of(*reading("entropy_and_task", live))
    return ranked(alt.layer(*marks, data=data, title=title, transform=[turned], width=520, height=340), live, grid.unit)


def profile_chart(data: Any, grid: HeadGrid, column: Column, live: Ranking | None, colour: str = PLAIN) -> alt.LayerChart:
    """One signal's part of `layer_profiles`, of data that is given or named."""
    name, base = field(column.name), alt.Chart().encode(x=_LAYERS)
    said = f"{column.label} by layer"  # or Vega-Lite writes the axis's title into an expression
    band = base.mark_area(opacity=0.25, color=colour, description=said).encode(
        y=alt.Y(f"min({name}):Q", title=wrapped(column.label, LEGEND_WIDTH), scale=alt.Scale(zero=False)),
        y2=alt.Y2(f"max({name}):Q"),
    )
    line = base.mark_line(color=colour, strokeWidth=2, description=said).encode(y=alt.Y(f"mean({name}):Q"))
    heads = base.encode(y=alt.Y(f"{name}:Q"), tooltip=tooltip_of([column], live))
    marks = [band, line]
    if live:
        dots = top_only(heads).mark_point(
            filled=True, size=40, fill=colour, stroke=INK, strokeWidth=0.8, opacity=1, cursor="pointer"
        )
        marks.append(dots.add_params(picked(grid.unit)))
        marks.append(heads.transform_filter(PICKED_ONLY).mark_point(size=180, stroke=MARK, strokeWidth=3))
    return ranked(alt.layer(*marks, data=data, width=340, height=180), live, grid.unit, [column.name])
