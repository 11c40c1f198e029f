"""Maps of layers × heads, as views of data that is given, or named where a page or a file has it.

A layered chart is made in one call, with all that it has: each change afterwards would have Altair copy all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import altair as alt
import polars as pl

from ...data.options.settings import Unit
from .columns import Column, field, unit_of
from .marks import INK, MARK, PICKED_ONLY, TOP, Ranking, picked, ranked
from .parts import beside, legend_of, title_of, tooltip_of, wrapped
from .texts import reading

IN_LAYER = "in_layer"
HIGHER = " (higher: driven more)"
_MARGIN = 44  # pixels
_CHARACTER = 6.5


@dataclass(frozen=True)
class HeadGrid:
    """How many layers a map has, how many cells a layer at most, whether these are heads or groups of them, and which heads are
    the first of those that share a key-value head; none where each has its own, or that is not known.
    """

    layers: int
    heads: int
    unit: Unit
    first: tuple[int, ...] = ()

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """That of a frame of heads."""
        unit = unit_of(frame)
        size, first = frame[unit].n_unique(), ()
        if {"head", "kv_head"} <= set(frame.columns) and not frame["kv_head"].has_nulls():
            heads = frame.group_by("kv_head").agg(pl.col("head").min())["head"].sort().to_list()
            first = tuple(heads[1:]) if len(heads) < size else ()
        return cls(frame["layer"].n_unique(), size, unit, first)


def map_chart(
    data: Any,
    grid: HeadGrid,
    column: Column,
    live: Ranking | None,
    fluid: bool = False,
    scale: alt.Scale | None = None,
    told: Sequence[Column] = (),
) -> alt.LayerChart:
    """`heatmap` of data that is given or named; that of the combined score counts the top heads of each layer in its margin.

    Args:
        data, grid, column, live: of what, and how it is ranked.
        fluid: as wide as its place on a page.
        scale: of the colours; if not given, the one that suits the column.
        told: further columns that a cell's tooltip has.
    """
    wide, high = _step(grid.heads, 520, 24), _step(grid.layers, 480, 16)
    cell = f"min(width / {grid.heads}, {high})" if fluid else f"{min(wide, high)}"
    across = "head" if grid.unit == "head" else "group of heads that share a key-value head"
    place: dict[str, Any] = {
        "x": alt.X(
            f"{grid.unit}:O", title=across, axis=alt.Axis(labelOverlap=True, labelSeparation=4, labelAngle=0, ticks=False)
        ),
        "y": alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, ticks=False)),
    }
    if scale is None and column.middle is not None:
        scale = alt.Scale(scheme="blueorange", domainMid=column.middle)
    is_main = column.name == "combined" and live is not None
    named = [f"{column.label}{HIGHER}", *_null_line(live)] if column.name == "combined" else [column.label]
    legend = legend_of(*named, *(["as ranks in the layer"] if column.in_layer else []))
    base = alt.Chart().encode(**place)
    shown = IN_LAYER if column.in_layer else field(column.name)
    in_layer = [alt.Tooltip(f"{IN_LAYER}:Q", title="rank in its layer")] if column.in_layer else []
    cells = base.mark_rect(cursor="pointer").encode(
        color=alt.Color(f"{shown}:Q", scale=scale or alt.Scale(scheme="viridis"), legend=legend),
        tooltip=[*tooltip_of([column, *told], live), *in_layer],
    )
    marks = [cells.add_params(picked(grid.unit))]
    if live:
        dot: dict[str, Any] = {"shape": "circle", "filled": True, "fill": "white", "strokeWidth": 1, "opacity": 1}
        dot["size"] = alt.ExprRef(f"max(30, min(90, pow({cell} * 0.5, 2)))")
        dot["fillOpacity"] = alt.ExprRef("datum.tossed ? 0 : 1")
        dot["stroke"] = alt.ExprRef("datum.tossed ? 'white' : 'black'")
        marks.append(base.transform_filter(f"{TOP} || datum.tossed").mark_point(**dot))
    outline = base.mark_rect(fill=None, stroke=MARK, strokeWidth=2.5)
    marks.append(outline.transform_filter(PICKED_ONLY))
    if grid.first:
        thick = alt.ExprRef(f"width > {12 * grid.heads} ? 2 : 1")
        borders = alt.Chart(alt.InlineData(values=[{str(grid.unit): head} for head in grid.first]))
        marks.append(borders.mark_rule(color="white", strokeWidth=thick).encode(x=alt.X(f"{grid.unit}:O", bandPosition=0)))
    marks += _margin(place["y"]) if is_main else []
    title: Any = alt.Undefined  # the legend says what it is
    if column.name == "combined":
        title = title_of(*reading("combined", live))
    elif column.description:
        title = alt.Title(
            wrapped(column.described(), wide * grid.heads / _CHARACTER), anchor="start", fontSize=11, fontWeight="normal"
        )
    size: dict[str, Any] = {"width": {"step": wide}, "height": {"step": high}}
    if fluid:
        size = {"width": "container", "height": grid.layers * high}
    chart = ranked(alt.layer(*marks, data=data, title=title, **size), live, grid.unit, [column.name])
    if column.in_layer:
        chart.transform = [*chart.transform, *_in_layer(field(column.name))]
    return chart


def _margin(y: alt.Y) -> list[alt.Chart]:
    """Bars to the right of a map: how many of the top heads each layer has."""
    count = alt.Chart().transform_filter(TOP).transform_aggregate(top="count()", groupby=["layer"])
    bars = count.transform_joinaggregate(most="max(top)").mark_bar(orient="horizontal", color="#888888", height={"band": 0.7})
    end = f"width + 8 + {_MARGIN} * datum.top / datum.most"
    title = alt.Chart(alt.InlineData(values=[{}])).mark_text(
        text="top heads", align="left", baseline="bottom", fontSize=10, color=INK
    )
    place = {"x": alt.value(alt.ExprRef("width + 8")), "x2": alt.value(alt.ExprRef(end))}
    tooltip = [alt.Tooltip("layer:O"), alt.Tooltip("top:Q", title="heads of the top k")]
    return [bars.encode(y=y, tooltip=tooltip, **place), title.encode(x=place["x"], y=alt.value(-2))]


def _in_layer(name: str) -> list[Any]:
    """The transforms that find the rank of each head within its layer, 1 = lowest; none for one without a value."""
    window: Any = [{"op": "rank", "as": "below"}]
    sort = [alt.SortField(name, order="ascending")]
    found = alt.CalculateTransform(calculate=f"isValid(datum.{name}) ? datum.below : null", **{"as": IN_LAYER})
    return [alt.WindowTransform(window=window, sort=sort, groupby=["layer"]), found]


def maps_chart(data: Any, grid: HeadGrid, columns: Sequence[Column], across: int, live: Ranking | None) -> alt.ConcatChart:
    """`signal_maps` of data that is given or named; across: how many maps stand side by side."""
    maps = [map_chart(alt.Undefined, grid, column, live) for column in columns]
    title = title_of(*reading("signal_maps", live))
    return beside(maps, columns=across, data=data, title=title).resolve_scale(color="independent")


def _null_line(live: Ranking | None) -> list[str]:
    """The same as a line of a legend."""
    levels = live.null_levels() if live else {}
    return [f"random ranks: {', '.join(levels)}"] if levels else []


def _step(count: int, most: int, largest: int) -> float:
    return max(4, min(largest, most // count))
