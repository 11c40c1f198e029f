"""Charts of evidence, a function each: a frame that a command found in, an Altair chart out."""

import altair as alt
import polars as pl

from ...data.errors import InputError
from .columns import UNITS, Column, field, inline, require_columns, require_count, require_text, unit_of
from .maps import HeadGrid, map_chart
from .marks import INK, PICKED_ONLY, picked
from .parts import COLOURS, PLAIN

SWEEP_VALUES = {"spearman": "Spearman's ρ with the reference", "shared": "heads shared with the reference's top"}
_SIZE = 300
_ENOUGH = 0.9
_CURVE = ("samples", "k", "overlap", "low", "high", "fitted", "chance")
_WEIGHT = "weight_"


def stability_chart(frame: pl.DataFrame) -> alt.LayerChart:
    """The share of the top k that two captures have in common, against how many samples each has.

    Args:
        frame: the `curve` of a `StabilityCurve`, or stability.csv.

    How to read: dots are what was measured, the line is smoothed, and the band holds 90 % of the pairs that were compared; the
    dashed line is what chance would give, the dotted one 0.9.

    Raises InputError for a frame without lines, or one that lacks a column.
    """
    require_columns(frame, *_CURVE, numbers=_CURVE)
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
    data = inline(frame.select(_CURVE))
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
    require_text("compare_chart", a=a, b=b)
    require_count("compare_chart", k=k)
    require_columns(frame)
    unit, ranks = unit_of(frame), [f"rank_{label}" for label in (a, b)]
    require_columns(frame, "layer", unit, *ranks, numbers=("layer", unit, *ranks))
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
    return alt.LayerChart(layer=layers, data=inline(shown), width=_SIZE, height=_SIZE)


def control_map(frame: pl.DataFrame, signal: str = "task", fluid: bool = False) -> alt.LayerChart:
    """A layer × head map of one signal less what it is in the control.

    Args:
        frame: `heads` of a `Control`, or control.csv.
        signal: one that was weighted, and that the control says something of.
        fluid: as wide as its place on a page.

    How to read: orange heads are above the control, blue ones below it; a cell's tooltip has the control's value and q.

    Raises InputError for a frame without lines, or one that lacks a column.
    """
    require_text("control_map", signal=signal)
    require_columns(frame)
    unit, names = unit_of(frame), [f"{signal}_{kind}" for kind in ("controlled", "control", "q")]
    require_columns(frame, "layer", unit, *names, numbers=("layer", unit, *names))
    shown = Column(names[0], f"{signal} less that of the control", middle=0)
    told = [Column(names[1], "control"), Column(names[2], "q")]
    data = inline(frame.select("layer", unit, *names))
    return map_chart(data, HeadGrid.of(frame), shown, None, fluid=fluid, told=told)


def sweep_map(settings: pl.DataFrame, value: str = "spearman", signals: tuple[str, str] | None = None) -> alt.Chart:
    """The agreement of each setting of a sweep with its reference, over the weights of two signals.

    Args:
        settings: `Sweep.settings`.
        value: `spearman` or `shared`.
        signals: whose weights are across and up; the first two that have several if not given. Where several settings have the
            same two weights, the best of them is shown.

    Raises InputError where the frame is not of a sweep, or does not have two weights that change.
    """
    require_columns(settings)
    require_text("sweep_map", value=value)
    weights = [name.removeprefix(_WEIGHT) for name in settings.columns if name.startswith(_WEIGHT)]
    varied = [name for name in weights if settings[f"{_WEIGHT}{name}"].n_unique() > 1]
    if value not in SWEEP_VALUES or value not in settings.columns:
        raise InputError(
            f"sweep_map: value={value!r:.80} is not one of {', '.join(SWEEP_VALUES)}, or the frame is not of a sweep"
        )
    if signals is not None and not (isinstance(signals, tuple | list) and len(signals) == 2):
        raise InputError(f"sweep_map: signals={signals!r:.80} are not two signals")
    across, up = signals or (*varied[:2], *["", ""][len(varied[:2]) :])
    if across not in weights or up not in weights or across == up:
        raise InputError(f"sweep_map: needs the weights of two signals; those with several are {', '.join(varied) or 'none'}")
    x, y = f"{_WEIGHT}{across}", f"{_WEIGHT}{up}"
    require_columns(settings, x, y, value, numbers=(x, y, value))
    best = settings.group_by(x, y).agg(pl.col(value).max()).sort(x, y)
    steps = [best[name].n_unique() for name in (x, y)]
    data = inline(best.rename({name: field(name) for name in (x, y)}))
    x, y = field(x), field(y)
    scale = alt.Scale(scheme="blueorange", domainMid=0) if value == "spearman" else alt.Scale(scheme="viridis")
    axis = alt.Axis(labelOverlap=True, labelAngle=0, format="~g")
    return (
        alt.Chart(data, width=max(120, min(420, 20 * steps[0])), height=max(80, min(420, 20 * steps[1])))
        .mark_rect()
        .encode(
            x=alt.X(f"{x}:O", title=f"weight of {across}", axis=axis),
            y=alt.Y(f"{y}:O", title=f"weight of {up}", axis=axis, sort="descending"),
            color=alt.Color(
                f"{value}:Q", title=SWEEP_VALUES[value], scale=scale, legend=alt.Legend(orient="top", titleLimit=0)
            ),
            tooltip=[
                alt.Tooltip(f"{name}:Q", title=title, format=".4~g")
                for name, title in ((x, f"weight of {across}"), (y, f"weight of {up}"), (value, value))
            ],
        )
    )
