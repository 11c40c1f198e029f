"""The top heads, a line each, as small columns beside each other: the combined score, and each signal as it is."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from .columns import Column, field, raw_columns
from .maps import HeadGrid
from .marks import INK, MARK, PICKED_ONLY, TOP, Ranking, picked, ranked
from .parts import LEGEND_WIDTH, PLAIN, beside, colours, title_of, tooltip_of, wrapped
from .texts import reading

NULL_COLOURS = ("#8C6D31", PLAIN)  # of the best and of the k-th score of random ranks
UNIFORM = "uniform attention"
_LABEL = "datum.place + '  ' + datum.name + (datum.tossed ? ' ?' : '')"


def top_chart(data: Any, grid: HeadGrid, live: Ranking) -> alt.ConcatChart:
    """`top_heads` of data that is given or named."""
    columns = raw_columns(list(live.weights))
    charts: list[Any] = [combined_chart(alt.Undefined, grid, live, alone=True)]
    for column, colour in zip(columns, colours(), strict=False):
        charts.append(values_chart(alt.Undefined, grid, column, live, colour, alone=True))
    return beside(charts, columns=len(charts), data=data, title=title_of(*reading("top_heads", live)), spacing=14)


def combined_chart(data: Any, grid: HeadGrid, live: Ranking, alone: bool = False) -> alt.LayerChart:
    """The combined score of each of the top heads, its range in a bootstrap, and what random ranks would give.

    Args:
        data, grid, live: of what, and how it is ranked.
        alone: with a title and a legend of its own.
    """
    column = Column("combined", "combined score")
    marks: list[Any] = []
    if live.null:
        marks += _null_marks(live, alone)
    base = _row(True, column)
    if live.stable:
        ends = {"x": alt.X("low:Q", title=None), "x2": "high:Q"}
        shown = alt.condition(live.is_given(), alt.value(0.8), alt.value(0))
        marks.append(base.mark_rule(strokeWidth=2, color=INK).encode(**ends, opacity=shown))
    own = [Column("low", "5 % of replicates"), Column("high", "95 %"), Column("p_top", "p_top")] if live.stable else []
    marks.append(_dots(base, grid, [column, *own], live, INK))
    return _rows(marks, data, grid, live, column, 240 if alone else None)


def values_chart(
    data: Any, grid: HeadGrid, column: Column, live: Ranking, colour: str, named: bool = False, alone: bool = False
) -> alt.LayerChart:
    """The values of a signal in each of the top heads, and what uniform attention would give.

    Args:
        data, grid, column, live: of what, and how it is ranked.
        colour: of the dots.
        named: with the names of the heads.
        alone: with a title of its own.
    """
    base = _row(named, column)
    marks = [_dots(base, grid, [column], live, colour)]
    if column.name in live.uniform:
        level = alt.Chart(alt.InlineData(values=[{"uniform": live.uniform[column.name]}]))
        rule = level.mark_rule(strokeDash=[4, 3], strokeWidth=1.5, color=INK)
        marks.insert(
            0,
            rule.encode(
                x=alt.X("uniform:Q", title=None),
                tooltip=[alt.Tooltip("uniform:Q", title=UNIFORM, format=".4f")],
            ),
        )
    return _rows(marks, data, grid, live, column, 130 if alone else None)


def _row(named: bool, column: Column) -> alt.Chart:
    """A line for each head, in their order."""
    axis = alt.Axis(ticks=False, domain=False, labels=named, labelLimit=0, grid=True, gridDash=[1, 3])
    return alt.Chart().encode(
        y=alt.Y("label:N", title=None, sort=alt.EncodingSortField("rank", op="min", order="ascending"), axis=axis),
        x=alt.X(
            f"{field(column.name)}:Q",
            title=None,
            scale=alt.Scale(zero=False),
            axis=alt.Axis(tickCount=3, grid=False),
        ),
    )


def _dots(base: alt.Chart, grid: HeadGrid, columns: Sequence[Column], live: Ranking, colour: str) -> alt.Chart:
    dots = base.mark_point(filled=True, fill=colour, size=70, strokeWidth=2, opacity=1, cursor="pointer").encode(
        stroke=alt.condition(PICKED_ONLY, alt.value(MARK), alt.value(colour)),
        fillOpacity=alt.condition("datum.tossed", alt.value(0), alt.value(1)),
        tooltip=tooltip_of(columns, live),
    )
    return dots.add_params(picked(grid.unit))


def _rows(marks: list[Any], data: Any, grid: HeadGrid, live: Ranking, column: Column, width: int | None) -> alt.LayerChart:
    """The chart of such marks, of the top heads alone; with a width it has the column's name below it.

    That is no axis's title, which Vega-Lite would write into an expression.
    """
    own = [alt.FilterTransform(TOP), alt.CalculateTransform(calculate=_LABEL, **{"as": "label"})]
    size: dict[str, Any] = {"height": {"step": 16}}
    if width:
        name = wrapped(column.label, LEGEND_WIDTH // 2)
        size |= {"width": width, "title": alt.Title(name, orient="bottom", anchor="middle", fontSize=11)}
    return ranked(alt.layer(*marks, data=data, transform=own, **size), live, grid.unit, [column.name], first=True)


def _null_marks(live: Ranking, alone: bool) -> list[alt.Chart]:
    """Bands and lines where random ranks would have the best and the k-th score, while the sliders stand where they started."""
    levels = live.null_levels()
    ends = [{"null": name, "mean": level.mean, "from": level.low, "to": level.high} for name, level in levels.items()]
    title = ["random ranks would give:", "mean, and 5 to 95 %"]
    guide = alt.Legend(title=title, orient="top", labelLimit=0, columns=1) if alone else None
    scale = alt.Scale(domain=list(levels), range=list(NULL_COLOURS))
    base = alt.Chart(alt.InlineData(values=ends)).encode(color=alt.Color("null:N", scale=scale, legend=guide))
    faint, full = (alt.condition(live.is_given(), alt.value(opacity), alt.value(0)) for opacity in (0.25, 1))
    return [
        base.mark_rect().encode(x=alt.X("from:Q", title=None), x2="to:Q", opacity=faint),
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("mean:Q", title=None), opacity=full),
    ]
