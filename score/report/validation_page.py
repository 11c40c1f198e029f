"""Writes validation.html, one file that opens offline: verdicts, curves over the share of heads, maps of the effects, and how
far signals agree with them; and the charts as files."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
from altair.utils import schemapi

from ...data.files.whole_file import write_text
from ..results import COMBINED
from ..validated import Validation
from ..validation_files import REPORT_FILE
from .drawing import write_drawn
from .frame import fitted, framed, place, section
from .parts import beside
from .sections import escaped
from .validation_charts import EFFECTS, METRICS, effect_map, validation_chart

logger = logging.getLogger("headscore")

_FACTS = ("model", "data", "rows", "ablation", "answer", "draws", "noise_floor")


def write_validation_page(folder: Path, found: Validation, level: float) -> None:
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
        curves[_curve_id(found, signal, metric)] = validation_chart(found.table, units, signal, metric)
    return curves | {_map_id(name): effect_map(effects, name, fluid=True) for name, effects in _found_effects(found)}


def drawings(found: Validation) -> dict[str, alt.VConcatChart | alt.ConcatChart]:
    """The charts that are written to files: `curves`, a row per signal and a column per metric, and `effects`, a map each."""
    units = found.measured.facts["units"]
    rows = [
        alt.hconcat(
            *(validation_chart(found.table, units, signal, metric) for metric in _metrics(found)), title=_called_signal(signal)
        )
        for signal in _signals(found)
    ]
    made: dict[str, Any] = {"curves": alt.vconcat(*rows)}
    if maps := [effect_map(effects, name) for name, effects in _found_effects(found)]:
        made["effects"] = beside(maps).resolve_scale(color="independent")
    return made


def _signals(found: Validation) -> list[str]:
    return found.table["signal"].unique(maintain_order=True).to_list()


def _metrics(found: Validation) -> list[str]:
    return [metric for metric in METRICS if metric in found.table["metric"]]


def _found_effects(found: Validation) -> list[tuple[str, pl.DataFrame]]:
    """The effects that have a map, each with the frame of all."""
    effects = found.effects
    return [] if effects is None else [(effect, effects) for effect in EFFECTS if effect in effects["effect"]]


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
    if not (names := [name for name, _ in _found_effects(found)]):
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
