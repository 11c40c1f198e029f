"""Writes validation.html, one file that opens offline: verdicts, curves over the share of heads, maps of the effects, and how
far signals agree with them; and the charts as files."""

import functools
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
from altair.utils import schemapi

from ...data.files import write_text
from ..effects import GATE_GRADIENT
from ..results import COMBINED
from ..validated import REPORT_FILE, Validation
from .columns import Column, finite
from .drawing import write_drawn
from .frame import fitted, framed, place, section
from .maps import Grid, map_chart
from .marks import INK
from .parts import COLOURS, PLAIN, beside
from .sections import escaped

logger = logging.getLogger("headscore")

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
_FACTS = ("model", "data", "rows", "ablation", "answer", "draws", "noise_floor")


def write_report(folder: Path, found: Validation, level: float) -> None:
    """Write validation.html and charts/*.svg, *.png to `folder`, each whole or not at all.

    Args:
        folder: is there.
        found: what a validation found.
        level: of the intervals that it was made with.

    Raises RunError where the page cannot be made, a chart cannot be drawn, or the disk refuses.
    """
    with schemapi.debug_mode(False):  # the tests validate these charts
        specs = {name: fitted(chart.to_dict(validate=False)) for name, chart in charts(found).items()}
        files = {name: chart.to_dict(validate=False) for name, chart in drawings(found).items()}
    page = framed(
        f"headscore: validation of {found.measured.facts.get('model', '')}",
        _lead(found),
        _curves(found, level) + _effects(found, level) + _agreement(found),
        {"charts": specs},
        script="validation_page.js",
        besides="They are also in charts/ as PNG and SVG, and the numbers in validation.csv and effects.csv.",
    )
    write_text(folder / REPORT_FILE, page)
    write_drawn(folder, files)
    logger.info("%s: report written", folder / REPORT_FILE)


def charts(found: Validation) -> dict[str, alt.LayerChart]:
    """The charts of the page by the ids of their places."""
    units, curves = found.measured.facts["units"], {}
    for signal, metric in itertools.product(_signals(found), _metrics(found)):
        of_metric = found.table.filter(metric=metric)
        curves[_curve_id(found, signal, metric)] = curve_chart(of_metric, signal, units)
    return curves | {_map_id(effect): effect_chart(found.effects, effect) for effect in _found_effects(found)}


def drawings(found: Validation) -> dict[str, alt.VConcatChart | alt.ConcatChart]:
    """The charts that are written to files: `curves`, a row per signal and a column per metric, and `effects`, a map each."""
    units = found.measured.facts["units"]
    tables = [found.table.filter(metric=metric) for metric in _metrics(found)]
    rows = [
        alt.hconcat(*(curve_chart(table, signal, units) for table in tables), title=_called_signal(signal))
        for signal in _signals(found)
    ]
    made: dict[str, Any] = {"curves": alt.vconcat(*rows)}
    if names := _found_effects(found):
        maps = [effect_chart(found.effects, name, fluid=False) for name in names]
        made["effects"] = beside(maps).resolve_scale(color="independent")
    return made


def curve_chart(table: pl.DataFrame, signal: str, units: int) -> alt.LayerChart:
    """The mean change of one metric against the share of heads that are taken out, by one signal's order.

    Args:
        table: the lines of `validation_table` of the metric; the scales have room for those of all signals.
        signal: whose lines are drawn.
        units: how many heads, or groups of them, the model has.
    """
    table = finite(table).with_columns(share=100 * pl.col("k") / units)
    lines = table.filter(signal=signal)
    title = [METRICS[lines["metric"][0]]]
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
    values = alt.InlineData(values=lines.select(*_TOLD).to_dicts())
    return alt.LayerChart(layer=marks, data=values, width=340, height=220)


def _called(chart: alt.Chart, name: str) -> alt.Chart:
    """A mark in the colour that the legend has for a name of `_LINES`."""
    scale = alt.Scale(domain=list(_LINES), range=list(_LINES.values()))
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3)
    return chart.transform_calculate(line=f"'{name}'").encode(color=alt.Color("line:N", scale=scale, legend=legend))


def effect_chart(effects: Any, effect: str, fluid: bool = True) -> alt.LayerChart:
    """A layer × head map of one effect of `effects_of`: of signed ones 0 is the middle, and orange is a head that is needed."""
    column, lines = EFFECTS[effect], finite(effects.filter(effect=effect))
    scale = None
    if column.middle is not None:
        most = max(map(abs, _reach(lines, "mean")))
        scale = alt.Scale(scheme="blueorange", domain=[-most, most], domainMid=0, reverse=effect == GATE_GRADIENT)
    grid, data = Grid.of(lines), alt.InlineData(values=lines.drop("effect").to_dicts())
    return map_chart(data, grid, column, None, fluid=fluid, scale=scale, told=_INTERVAL)


def _reach(table: pl.DataFrame, *names: str) -> list[float]:
    """The smallest and the largest value of some columns, and 0; where all are 0, some range that a scale can have."""
    values = [0.0, *table.select(names).unpivot()["value"].drop_nulls()]
    low, high = min(values), max(values)
    return [low, high] if low < high else [-1.0, 1.0]


def _signals(found: Validation) -> list[str]:
    return found.table["signal"].unique(maintain_order=True).to_list()


def _metrics(found: Validation) -> list[str]:
    return [metric for metric in METRICS if metric in found.table["metric"]]


def _found_effects(found: Validation) -> list[str]:
    return [] if found.effects is None else [effect for effect in EFFECTS if effect in found.effects["effect"]]


def _called_signal(signal: str) -> str:
    return "combined score" if signal == COMBINED else signal


def _curve_id(found: Validation, signal: str, metric: str) -> str:
    return f"curve-{_signals(found).index(signal)}-{metric}"  # by number, as a signal may have any name


def _map_id(effect: str) -> str:
    return f"map-{effect}"


def _lead(found: Validation) -> str:
    """The verdicts, and what was run."""
    cautions = [line for line in found.verdicts if line.startswith("CAUTION")]
    warned = "".join(f'<p class="warning">{escaped(line)}</p>' for line in cautions)
    verdicts = "".join(f"<li>{escaped(line)}</li>" for line in found.verdicts if line not in cautions)
    facts = {name: found.measured.facts[name] for name in _FACTS if name in found.measured.facts}
    if isinstance(floors := facts.get("noise_floor"), dict):
        facts["noise_floor"] = ", ".join(f"{name} {floor:.2g}" for name, floor in floors.items())
    run = "".join(f"<dt>{escaped(name.replace('_', ' '))}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items())
    return f"{warned}<ul>{verdicts}</ul><dl>{run}</dl>"


def _curves(found: Validation, level: float) -> str:
    kind = "maps" if len(_metrics(found)) > 2 else "profiles"  # three beside each other, or two
    body = ""
    for signal in _signals(found):
        places = "".join(place(_curve_id(found, signal, metric)) for metric in _metrics(found))
        body += f'<h3>{escaped(_called_signal(signal))}</h3><div class="{kind}">{places}</div>'
    reading = (
        f"The mean change over the rows, by the share of heads that are taken out: the top with its {100 * level:g} % "
        "interval, the bottom, and random heads of the top's layers, of which the band has all draws and the line is their "
        "mean. The intact model is at 0. Charts of the same metric have the same scales."
    )
    return section("What the model loses without the heads", reading, body)


def _effects(found: Validation, level: float) -> str:
    if not (names := _found_effects(found)):
        return ""
    captions = {name: f'<p class="caption"><b>{escaped(name)}</b> {EFFECTS[name].description}</p>' for name in names}
    body = "".join(f"<div>{captions[name]}{place(_map_id(name))}</div>" for name in names)
    reading = (
        f"A cell is a head, its colour the mean over the rows; a click marks it, and its tooltip has the {100 * level:g} % "
        "interval. The more orange, or for KL the brighter, the more the model needs the head."
    )
    return section("What each head does alone", reading, f'<div class="maps">{body}</div>')


def _agreement(found: Validation) -> str:
    """How far each signal orders heads as the effects do; with the weights that were fitted, where they were."""
    if found.agreement is None:
        return ""
    effects = found.agreement["effect"].unique(maintain_order=True).to_list()
    wide = found.agreement.pivot("effect", index="signal", values="spearman", maintain_order=True)
    head = _table_row("th", ["signal", *effects])
    lines = "".join(
        _table_row("td", [_called_signal(signal), *("–" if rho is None else f"{rho:+.2f}" for rho in values)])
        for signal, *values in wide.rows()
    )
    reading = (
        "Spearman's ρ over all heads of each signal with what it costs to take one head out: positive where the signal is "
        "higher in heads that the model needs. abs_gate_gradient is the gradient's mean size over rows."
    )
    return section("Which signals agree with that", reading, f'<table class="numbers">{head}{lines}</table>')


def _table_row(tag: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escaped(text)}</{tag}>" for text in texts) + "</tr>"
