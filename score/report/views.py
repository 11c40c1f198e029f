"""The charts as views of data that is given, or named where a page or a file has it: what charts.py makes of frames.

A layered chart is made in one call, with all that it has: each change afterwards would have Altair copy all of it.
"""

import itertools
import json
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import altair as alt
import polars as pl

from ...data.settings import Unit
from .columns import Column, field, raw_columns, unit_of
from .marks import INK, MARK, PICKED_ONLY, TOP, Ranking, picked, ranked, top_only
from .texts import reading

SINK = "sink"
HIGHER = " (higher: driven more)"
FIRST_TOKEN = "mass on the first token"  # the signal `sink`, where it is a colour
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D31", "#5E4FA2")  # five of Okabe and Ito, two more
PLAIN = "#777777"  # of a signal that weighs nothing
_MANY = 1000  # heads from which on points are small
_WHOLE = alt.Axis(labelExpr="datum.value == floor(datum.value) ? format(datum.value, 'd') : ''")
_LAYERS = alt.X("layer:Q", title="layer", axis=_WHOLE, scale=alt.Scale(nice=False, zero=False, padding=6))
_TITLE_WIDTH = 72  # characters
_LEGEND_WIDTH = 40
_CHARACTER = 6.5  # pixels


@dataclass(frozen=True)
class Grid:
    """How many layers a map has, how many cells a layer at most, and whether these are heads or groups of them."""

    layers: int
    heads: int
    unit: Unit

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """That of a frame of heads."""
        unit = unit_of(frame)
        return cls(frame["layer"].n_unique(), frame[unit].n_unique(), unit)


def map_chart(
    data: Any,
    grid: Grid,
    column: Column,
    live: Ranking | None,
    fluid: bool = False,
    scale: alt.Scale | None = None,
    told: Sequence[Column] = (),
) -> alt.LayerChart:
    """`heatmap` of data that is given or named.

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
    legend = _legend(f"{column.label}{HIGHER if column.name == 'combined' else ''}")
    base = alt.Chart().encode(**place)
    cells = base.mark_rect(cursor="pointer").encode(
        color=alt.Color(f"{field(column.name)}:Q", scale=scale or alt.Scale(scheme="viridis"), legend=legend),
        tooltip=_tooltip([column, *told], live),
    )
    marks = [cells.add_params(picked(grid.unit))]
    if live:
        dot = {"shape": "circle", "filled": True, "fill": "white", "stroke": "black", "strokeWidth": 1, "opacity": 1}
        dot["size"] = alt.ExprRef(f"max(36, min(90, pow({cell} * 0.5, 2)))")
        marks.append(top_only(base).mark_point(**dot))
    outline = base.mark_rect(fill=None, stroke=MARK, strokeWidth=2.5)
    marks.append(outline.transform_filter(PICKED_ONLY))
    title: Any = alt.Undefined  # the legend says what it is
    if column.name == "combined":
        title = _title(*reading("combined", live))
    elif column.description:
        title = alt.Title(
            _lines(column.described(), wide * grid.heads / _CHARACTER), anchor="start", fontSize=11, fontWeight="normal"
        )
    size: dict[str, Any] = {"width": {"step": wide}, "height": {"step": high}}
    if fluid:
        size = {"width": "container", "height": grid.layers * high}
    return ranked(alt.layer(*marks, data=data, title=title, **size), live, grid.unit, [column.name])


def maps_chart(data: Any, grid: Grid, columns: Sequence[Column], across: int, live: Ranking | None) -> alt.ConcatChart:
    """`signal_maps` of data that is given or named; across: how many maps stand side by side."""
    maps = [map_chart(alt.Undefined, grid, column, live) for column in columns]
    title = _title(*reading("signal_maps", live))
    return beside(maps, columns=across, data=data, title=title).resolve_scale(color="independent")


def profiles_chart(data: Any, grid: Grid, columns: Sequence[Column], live: Ranking | None) -> alt.ConcatChart:
    """`layer_profiles` of data that is given or named."""
    charts: list[Any] = [
        profile_chart(alt.Undefined, grid, column, live, colour) for column, colour in zip(columns, colours(), strict=False)
    ]
    charts += [count_chart(alt.Undefined, grid, live)] if live else []
    return beside(charts, columns=2, data=data, title=_title(*reading("layer_profiles", live)))


def beside(charts: list[Any], **properties: Any) -> alt.ConcatChart:
    """Charts in one, in which a click on a head marks it in all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Automatically deduplicated")  # it is meant
        return alt.concat(*charts, **properties)


def scatter_chart(data: Any, grid: Grid, with_sink: bool, live: Ranking | None) -> alt.LayerChart:
    """`entropy_and_task` of data that is given or named."""
    entropy, task, sink = Column("entropy", "entropy (nats)"), Column("task", "task"), Column(SINK, FIRST_TOKEN)
    base = alt.Chart().encode(
        x=alt.X("entropy:Q", title="entropy of the attention in nats (left: focused)", scale=alt.Scale(zero=False)),
        y=alt.Y("task:Q", title="attention mass on the task's tokens", scale=alt.Scale(zero=False)),
        tooltip=_tooltip([entropy, task, *([sink] if with_sink else [])], live),
    )
    size, opacity = (45, 0.9) if live is None or live.heads < _MANY else (18, 0.6)  # rings must show among many points
    points = base.mark_circle(size=size, opacity=opacity, stroke=INK, strokeWidth=0.6, cursor="pointer")
    if with_sink:
        scale = alt.Scale(scheme="viridis", domain=[0, 1])
        points = points.encode(color=alt.Color(f"{SINK}:Q", scale=scale, legend=_legend(FIRST_TOKEN, gradientOpacity=1)))
    marks = [points.add_params(picked(grid.unit))]
    if live:
        marks.append(top_only(base).mark_point(size=90, stroke=INK, strokeWidth=1.5, cursor="pointer"))
    marks.append(base.transform_filter(PICKED_ONLY).mark_point(size=220, stroke=MARK, strokeWidth=3))
    turned = alt.CalculateTransform(calculate="-datum.ent", **{"as": "entropy"})
    title = _title(*reading("entropy_and_task", live))
    return ranked(alt.layer(*marks, data=data, title=title, transform=[turned], width=520, height=340), live, grid.unit)


def profile_chart(data: Any, grid: Grid, column: Column, live: Ranking | None, colour: str = PLAIN) -> alt.LayerChart:
    """One signal's part of `layer_profiles`, of data that is given or named."""
    name, base = field(column.name), alt.Chart().encode(x=_LAYERS)
    said = f"{column.label} by layer"  # or Vega-Lite writes the axis's title into an expression
    band = base.mark_area(opacity=0.25, color=colour, description=said).encode(
        y=alt.Y(f"min({name}):Q", title=_lines(column.label, _LEGEND_WIDTH), scale=alt.Scale(zero=False)),
        y2=alt.Y2(f"max({name}):Q"),
    )
    line = base.mark_line(color=colour, strokeWidth=2, description=said).encode(y=alt.Y(f"mean({name}):Q"))
    heads = base.encode(y=alt.Y(f"{name}:Q"), tooltip=_tooltip([column], live))
    marks = [band, line]
    if live:
        dots = top_only(heads).mark_point(
            filled=True, size=40, fill=colour, stroke=INK, strokeWidth=0.8, opacity=1, cursor="pointer"
        )
        marks.append(dots.add_params(picked(grid.unit)))
        marks.append(heads.transform_filter(PICKED_ONLY).mark_point(size=180, stroke=MARK, strokeWidth=3))
    return ranked(alt.layer(*marks, data=data, width=340, height=180), live, grid.unit, [column.name])


def count_chart(data: Any, grid: Grid, live: Ranking | None) -> alt.Chart:
    """How many of the top k each layer has: the last part of `layer_profiles`."""
    bars = alt.Chart(data).encode(
        x=_LAYERS,
        y=alt.Y("sum(is_top):Q", title=f"{grid.unit}s in the top k", axis=_WHOLE),
    )
    bars = bars.mark_bar(width=alt.ExprRef("3"), color="#888888").transform_calculate(is_top=f"{TOP} ? 1 : 0")
    return ranked(bars, live, grid.unit, first=True).properties(width=340, height=180)


def bars_chart(data: Any, grid: Grid, live: Ranking) -> alt.Chart:
    """`top_heads` of data that is given or named."""
    names = [column.label for column in raw_columns(list(live.weights))]
    shares = [f"share_{place}" for place in range(len(names))]
    legend = alt.Legend(orient="top", columns=3, labelLimit=0, symbolType="square")
    scale = alt.Scale(domain=names, range=list(itertools.islice(colours(), len(names))))
    base = alt.Chart().encode(
        y=alt.Y("name:N", title=None, sort=alt.SortField("rank"), axis=alt.Axis(ticks=False, labelLimit=0))
    )
    bars = (
        top_only(base)
        .transform_calculate(**dict(zip(shares, live.terms(), strict=True)))
        .transform_fold(shares, as_=["part_key", "share"])
        .transform_calculate(order=f"indexof({json.dumps(shares)}, datum.part_key)")
        .transform_calculate(part=f"{json.dumps(names)}[datum.order]")
        .mark_bar(cursor="pointer", strokeWidth=2.5)
        .encode(
            x=alt.X("sum(share):Q", title=f"combined score{HIGHER}"),
            color=alt.Color("part:N", title=None, sort=names, scale=scale, legend=legend),
            order=alt.Order("order:Q"),
            detail=[alt.Detail("layer:O"), alt.Detail(f"{grid.unit}:O"), alt.Detail("rank:Q"), alt.Detail("place:N")],
            stroke=alt.condition(PICKED_ONLY, alt.value(MARK), alt.value(None)),
            tooltip=[
                *(alt.Tooltip("name:N"), alt.Tooltip("place:N", title="rank"), alt.Tooltip("part:N")),
                alt.Tooltip("sum(share):Q", title="adds"),
            ],
        )
        .add_params(picked(grid.unit))
    )
    return ranked(bars, live, grid.unit, first=True).properties(
        data=data, title=_title(*reading("top_heads", live)), width=520, height={"step": 16}
    )


def colours() -> Iterator[str]:
    """The signals' colours, in the order of the weights."""
    return itertools.cycle(COLOURS)


def _step(count: int, most: int, largest: int) -> float:
    return max(4, min(largest, most // count))


def _legend(text: str, **more: Any) -> alt.Legend:
    return alt.Legend(title=_lines(text, _LEGEND_WIDTH), orient="top", titleLimit=0, gradientThickness=10, **more)


def _tooltip(columns: Iterable[Column], live: Ranking | None) -> list[Any]:
    shown = [alt.Tooltip(f"{field(column.name)}:Q", title=_key(column.label), format=".4f") for column in columns]
    rank = [alt.Tooltip("place:N", title="rank")] if live else []
    return [alt.Tooltip("name:N"), *shown, *rank]


def _key(text: str) -> str:
    """A tooltip's title: Vega-Lite writes it into an expression and escapes quotes, but not what escapes a quote."""
    return text.replace("\\", "\\\\")


def _title(title: str, text: str) -> alt.Title:
    return alt.Title(title, subtitle=_lines(text, _TITLE_WIDTH), anchor="start")


def _lines(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, max(24, int(width))) or [""]
