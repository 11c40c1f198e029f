"""Charts of how rankings agree: the stability of one by the number of samples, and the ranks of heads in two of them."""

import altair as alt
import polars as pl

from ...data.errors import InputError
from .columns import UNITS, finite, unit_of
from .marks import INK, PICKED_ONLY, picked
from .parts import COLOURS, PLAIN

_SIZE = 300
_ENOUGH = 0.9
_CURVE = ("samples", "k", "overlap", "low", "high", "fitted", "chance")


def stability_chart(frame: pl.DataFrame) -> alt.LayerChart:
    """The share of the top k that two captures have in common, against how many samples each has.

    Args:
        frame: the `curve` of a `StabilityCurve`, or stability.csv.

    How to read: dots are what was measured, the line is smoothed, and the band holds 90 % of the pairs that were compared; the
    dashed line is what chance would give, the dotted one 0.9.

    Raises InputError for a frame without lines, or one that lacks a column.
    """
    _require(frame, *_CURVE)
    scale = alt.Scale(domain=[0, 1])
    title = f"share of the top {frame['k'][0]} in common"
    base = alt.Chart().encode(
        x=alt.X("samples:Q", title="samples of each capture", scale=alt.Scale(type="log", nice=False)),
        tooltip=[alt.Tooltip(f"{name}:Q", format=".3~g") for name in _CURVE],
    )
    points = base.mark_point(filled=True, size=45, opacity=1, color=COLOURS[0])
    layers = [
        base.mark_area(opacity=0.25, color=PLAIN).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_line(strokeDash=[6, 4], color=INK).encode(y=alt.Y("chance:Q", title=title, scale=scale)),
        base.mark_line(strokeWidth=2, color=COLOURS[0]).encode(y=alt.Y("fitted:Q", title=title, scale=scale)),
        points.encode(y=alt.Y("overlap:Q", title=title, scale=scale)),
        alt.Chart(alt.InlineData(values=[{}])).mark_rule(strokeDash=[1, 3], color=INK).encode(y=alt.datum(_ENOUGH)),
    ]
    data = alt.InlineData(values=finite(frame.select(_CURVE)).to_dicts())
    return alt.LayerChart(layer=layers, data=data, width=_SIZE, height=_SIZE * 2 // 3)


def compare_chart(frame: pl.DataFrame, a: str = "A", b: str = "B", k: int = 20) -> alt.LayerChart:
    """Every head by its rank in two rankings, with the first k of either in colour.

    Args:
        frame: `heads` of a `Comparison`, or compare_heads.parquet.
        a: the ranking across.
        b: the ranking up.
        k: how many heads are the top.

    How to read: heads on the diagonal have the same place in both; those in the corner at the lower left are first in both. A
    click marks a head. Heads that a list does not have are left out.

    Raises InputError for a frame without lines, or one that lacks a column.
    """
    unit, ranks = unit_of(frame), [f"rank_{label}" for label in (a, b)]
    _require(frame, "layer", unit, *ranks)
    first, second = (pl.col(name) <= k for name in ranks)
    names = ["both", f"{a} alone", f"{b} alone", "neither"]
    top = pl.when(first & second).then(pl.lit(names[0])).when(first).then(pl.lit(names[1])).when(second).then(pl.lit(names[2]))
    shown = frame.drop_nulls(ranks).select(
        "layer",
        unit,
        *(pl.col(rank).alias(name) for rank, name in zip(ranks, ("first", "second"), strict=True)),
        name=pl.format(f"L{{}}{UNITS[unit]}{{}}", "layer", unit),
        top=top.otherwise(pl.lit(names[3])),
    )
    colours = alt.Scale(domain=names, range=[COLOURS[2], COLOURS[0], COLOURS[1], PLAIN])
    base = alt.Chart().encode(
        x=alt.X("first:Q", title=f"rank in {a}", scale=alt.Scale(zero=False)),
        y=alt.Y("second:Q", title=f"rank in {b}", scale=alt.Scale(zero=False)),
        tooltip=[
            "name:N",
            alt.Tooltip("first:Q", title=f"rank in {a}"),
            alt.Tooltip("second:Q", title=f"rank in {b}"),
        ],
    )
    points = base.mark_point(filled=True, size=30, opacity=0.8).encode(
        color=alt.Color(
            "top:N", scale=colours, title=f"among the first {k} of", legend=alt.Legend(orient="top", columns=2, titleLimit=0)
        )
    )
    rings = base.mark_point(size=160, strokeWidth=2, color=INK).transform_filter(PICKED_ONLY)
    edge = alt.Chart(alt.InlineData(values=[{}])).mark_rule(strokeDash=[1, 3], color=INK)
    layers = [points.add_params(picked(unit)), rings, edge.encode(x=alt.datum(k + 0.5)), edge.encode(y=alt.datum(k + 0.5))]
    return alt.LayerChart(layer=layers, data=alt.InlineData(values=shown.to_dicts()), width=_SIZE, height=_SIZE)


def _require(frame: pl.DataFrame, *columns: str) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise InputError(f"a chart: the frame has no {', '.join(missing)}; it has {', '.join(frame.columns)}")
    if frame.is_empty():
        raise InputError("a chart: the frame has no lines")
