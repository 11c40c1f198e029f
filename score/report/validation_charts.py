"""Charts of a validation: what a model loses without the heads of a ranking, and without each head alone."""

import functools
from typing import Any

import altair as alt
import polars as pl

from ...data.errors import InputError
from ..effects import GATE_GRADIENT
from ..results import COMBINED
from .columns import Column, finite, inline, require_columns, require_count, require_text
from .maps import HeadGrid, map_chart
from .marks import INK
from .parts import COLOURS, PLAIN

METRICS = {"kl": "KL from the intact model (nats)", "nll": "change of NLL (nats)", "acc": "change of accuracy"}
EFFECTS = {
    "kl": Column("mean", "KL without the head (nats)", "How far the next token's distribution moves without this head."),
    "nll": Column(
        "mean", "change of NLL without the head (nats)", "What taking this head out adds to the NLL of the answer.", 0
    ),
    GATE_GRADIENT: Column(
        "mean",
        "∂NLL/∂gate (nats)",
        "The gradient of a gate on this head: to first order, taking it out adds minus this to the NLL.",
        0,
    ),
}
_INTERVAL = [Column("low", "low"), Column("high", "high")]
_LINES = {"top": COLOURS[0], "bottom": COLOURS[1], "draws": PLAIN, "intact": INK}
_DRAWN = ("top", "top_low", "top_high", "bottom", "draws", "draws_min", "draws_max")
_TOLD = ("k", "share", "intact", *_DRAWN, "p", "p_holm")


def validation_chart(table: pl.DataFrame, units: int, signal: str = COMBINED, metric: str = "kl") -> alt.LayerChart:
    """The mean change of one metric against the share of heads that are taken out, by one signal's order.

    Args:
        table: `Validation.table`, or validation.csv; the scales have room for the metric's lines of all signals.
        units: how many heads, or groups of them, the model has: `Validation.measured.facts["units"]`.
        signal: whose lines are drawn.
        metric: `kl`, `nll` or `acc`.

    How to read: the top is blue, with its interval, the bottom orange, and random heads of the same layers are grey: a line for
    their mean and a band for all of them. The intact model is at 0.

    Raises InputError for a frame that lacks a column or has no lines of the signal and metric.
    """
    numbers = [name for name in _TOLD if name != "share"]
    require_columns(table, "signal", "metric", "above_chance", *numbers, numbers=numbers)
    require_count("validation_chart", units=units)
    require_text("validation_chart", signal=signal, metric=metric)
    table = finite(table.filter(metric=metric)).with_columns(share=100 * pl.col("k") / units)
    lines = table.filter(signal=signal)
    if metric not in METRICS or lines.is_empty():
        raise InputError(
            f"a chart: the frame has no lines of signal={signal!r:.80} and metric={metric!r:.80}, of {', '.join(METRICS)}"
        )
    title = [METRICS[metric]]
    if lines["above_chance"].eq(False).any():
        title.append("(the intact model is not above chance)")
    scale = alt.Scale(domain=_reach(table, *_DRAWN), nice=True)
    y = functools.partial(alt.Y, type="quantitative", title=title, scale=scale)
    base = alt.Chart().encode(
        x=alt.X("share:Q", title="heads taken out (%)", scale=alt.Scale(domain=_reach(table, "share"), nice=True)),
        tooltip=[alt.Tooltip(f"{name}:Q", format=".4~g") for name in _TOLD],
    )
    draws, top = (base.transform_filter(f"isValid(datum.{name})") for name in ("draws_min", "top_low"))
    faint: dict[str, Any] = {"opacity": 0.25, "color": PLAIN}
    # an area of one point cannot be seen, and a bar would have the axis begin below 0
    band = draws.mark_area(**faint) if len(lines) > 1 else draws.mark_rule(strokeWidth=16, **faint)
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=45))
    intact = alt.Chart(alt.InlineData(values=[{}])).mark_rule(strokeDash=[5, 4])
    marks = [
        band.encode(y=y("draws_min"), y2="draws_max:Q"),
        _called(intact.encode(y=alt.YDatum(0, scale=scale, title=title)), "intact"),
        *(_called(line.encode(y=y(name)), name) for name in ("draws", "bottom", "top")),
        _called(top.mark_rule(strokeWidth=2).encode(y=y("top_low"), y2="top_high:Q"), "top"),
    ]
    values = inline(lines.select(*_TOLD))
    return alt.LayerChart(layer=marks, data=values, width=340, height=220)


def _called(chart: alt.Chart, name: str) -> alt.Chart:
    """A mark in the colour that the legend has for a name of `_LINES`."""
    scale = alt.Scale(domain=list(_LINES), range=list(_LINES.values()))
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3)
    return chart.transform_calculate(line=f"'{name}'").encode(color=alt.Color("line:N", scale=scale, legend=legend))


def effect_map(effects: pl.DataFrame, effect: str = "kl", fluid: bool = False) -> alt.LayerChart:
    """A layer × head map of what taking each head out does by itself.

    Args:
        effects: `Validation.effects`, or effects.parquet.
        effect: `kl`, `nll` or `gate_gradient`.
        fluid: as wide as its place on a page.

    How to read: of signed effects 0 is the middle, and orange is a head that is needed; of KL, brighter ones.

    Raises InputError for a frame that lacks a column or has no lines of the effect.
    """
    require_columns(effects, "layer", "effect", "mean", "low", "high", numbers=("layer", "mean", "low", "high"))
    require_text("effect_map", effect=effect)
    lines = finite(effects.filter(effect=effect))
    if effect not in EFFECTS or lines.is_empty():
        raise InputError(f"a chart: the frame has no lines of effect={effect!r:.80} (of {', '.join(EFFECTS)})")
    column = EFFECTS[effect]
    scale = None
    if column.middle is not None:
        most = max(map(abs, _reach(lines, "mean")))
        scale = alt.Scale(scheme="blueorange", domain=[-most, most], domainMid=0, reverse=effect == GATE_GRADIENT)
    grid, data = HeadGrid.of(lines), inline(lines.drop("effect"))
    return map_chart(data, grid, column, None, fluid=fluid, scale=scale, told=_INTERVAL)


def _reach(table: pl.DataFrame, *names: str) -> list[float]:
    """The smallest and the largest value of some columns, and 0; where all are 0, some range that a scale can have."""
    values = [0.0, *table.select(names).unpivot()["value"].drop_nulls()]
    low, high = min(values), max(values)
    return [low, high] if low < high else [-1.0, 1.0]
