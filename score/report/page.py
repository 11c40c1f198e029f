"""Writes report.html, one file that opens offline, and its charts as PNG and SVG."""

import importlib.resources
import json
import logging
import re
from pathlib import Path
from typing import Any

import altair as alt
from altair.utils import schemapi

from ... import __version__
from ...data.cache import Cache
from ...data.files import write_text
from ..heads import heads_table
from ..outputs import REPORT_FILE
from ..pipeline import Scores
from ..signals import SIGNALS, SINK
from ..tables import Table
from . import views
from .attended import attended
from .drawing import DATA, shape, write_charts
from .marks import INK, Ranking
from .sections import captured, escaped, skipped_section, tokens_section
from .vega import vega_bundle

logger = logging.getLogger("headscore")

HEADS_WITH_TOKENS = 6
_TABLE_COLUMNS = {  # field: title and decimals; a column shows where the heads have it, as intervals will
    "rank": ("rank", None),
    "name": ("head", None),
    "combined": ("combined", 2),
    "combined_low": ("combined from", 2),
    "combined_high": ("to", 2),
    "topk_probability": ("P(top k)", 3),
    "out_raw": ("out", 4),
    "ent_raw": ("ent", 4),
    "task_raw": ("task", 4),
    SINK: ("first token", 4),
}
_ALWAYS = ("rank", "name")


def write_report(folder: Path, cache: Cache, scores: Scores) -> None:
    """Write report.html and charts/*.svg, *.png to `folder`, each whole or not at all.

    Raises InputError where a shard is damaged, RunError where a chart cannot be drawn or the disk refuses.
    """
    with schemapi.debug_mode(False):  # the tests validate these charts, with every option
        tokens, skipped = _counted(cache)
        heads, ranking = heads_table(scores), Ranking.of(scores)
        sections = _chart_sections(ranking, heads) | {"tokens": tokens_section(_attended(cache, scores))}
        sections["skipped"] = skipped_section(skipped)
        page = {
            "title": f"headscore: {scores.metadata['model'].get('name', '')}",
            "lead": captured(scores, tokens),
            "sections": "".join(sections.values()),
        }
        write_text(folder / REPORT_FILE, _page(page, _page_data(heads, ranking), vega_bundle()))
        write_charts(folder, heads, ranking)
    logger.info("%s: report written", folder / REPORT_FILE)


# --------------------------------------------------------------------------------------------------------------- the page


def _views(heads: Table, ranking: Ranking) -> dict[str, Any]:
    """The charts of the page by their ids: each as wide as its place, on the data that the page gives them."""
    data, size = alt.NamedData(DATA), shape(heads)
    maps = {f"map-{c}": views.map_chart(data, size, c, ranking, fluid=True) for c in views.map_columns(list(heads))}
    profiles = {f"profile-{name}": views.profile_chart(data, name, ranking) for name in SIGNALS}
    wide = {
        "top_heads": views.bars_chart(data, ranking),
        "entropy_and_task": views.scatter_chart(data, True, ranking),
        **profiles,
        "profile-count": views.count_chart(data, ranking),
    }
    return {
        "combined": views.map_chart(data, size, "combined", ranking, fluid=True),
        **maps,
        **wide,
    }


def _page_data(heads: Table, ranking: Ranking) -> str:
    """What the page's script needs, as JSON that cannot end its element."""
    specs = {name: _fitted(chart.to_dict(validate=False)) for name, chart in _views(heads, ranking).items()}
    for name, spec in specs.items():
        for parameter in spec["params"]:
            if "bind" in parameter and name == "combined":
                parameter["bind"]["element"] = "#sliders"
            else:
                parameter.pop("bind", None)
    columns = [
        {"field": field, "title": title, **({} if digits is None else {"digits": digits})}
        for field, (title, digits) in _TABLE_COLUMNS.items()
        if field in heads or field in _ALWAYS
    ]
    values = {name: column.tolist() for name, column in heads.items()}
    data = {"main": "combined", "heads": values, "columns": columns, "config": _config(), "charts": specs}
    return (
        json.dumps(data, allow_nan=False, separators=(",", ":"))
        .replace(json.dumps(INK), '"currentColor"')
        .replace("<", "\\u003c")
    )


def _fitted(spec: dict[str, Any]) -> dict[str, Any]:
    spec.pop("title", None)  # the page has it as text, which wraps
    spec.pop("config", None)
    spec["width"] = "container"
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def _config() -> dict[str, Any]:
    """Vega's colours and type: those of the page, in light and dark and on paper."""
    ink, line = "currentColor", "#8886"
    axis = {
        "labelColor": ink,
        "titleColor": ink,
        "gridColor": line,
        "domainColor": line,
        "tickColor": line,
        "labelFontSize": 11,
        "labelSeparation": 6,
    }
    legend = {"labelColor": ink, "titleColor": ink}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "axis": axis,
        "legend": legend,
        "view": {"stroke": None},
    }


def _chart_sections(ranking: Ranking, heads: Table) -> dict[str, str]:
    width = max(320, 46 * shape(heads)[1] + 60)
    maps = "".join(_place(f"map-{column}") for column in views.map_columns(list(heads)))
    profiles = "".join(_place(f"profile-{name}") for name in (*SIGNALS, "count"))
    map_ = f'<div style="flex: 1 1 {width}px; max-width:{width}px">{_place("combined")}</div>'
    table = '<div class="scroll"><table id="top-heads-table"><thead></thead><tbody></tbody></table></div>'
    top = (
        "<div><h3>Top heads</h3><p>A line is a head of the top k; click a column's name to sort by it, and a line to mark the "
        f"head in every chart.</p>{table}</div>"
    )
    return {
        "combined": _section("combined", f'<div id="sliders"></div><div class="beside">{map_}{top}</div>'),
        "top_heads": _section("top_heads", _place("top_heads")),
        "signal_maps": _section("signal_maps", f'<div class="maps">{maps}</div>'),
        "entropy_and_task": _section("entropy_and_task", _place("entropy_and_task")),
        "layer_profiles": _section("layer_profiles", f'<div class="profiles">{profiles}</div>'),
    }


def _section(name: str, body: str) -> str:
    title, reading = views.READING[name]
    return f"<h2>{title}</h2><p>{reading}</p>{body}"


def _place(name: str) -> str:
    return f'<div class="chart" id="{name}"></div>'


def _page(texts: dict[str, str], data: str, vega: str) -> str:
    """The template filled in one pass, so that nothing in a text is taken for a placeholder."""
    files = importlib.resources.files(__package__)
    parts = {**texts, "version": __version__, "data": data, "vega": vega.replace("</script", "<\\/script")}
    parts |= {name: (files / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    parts["title"] = escaped(texts["title"])
    return re.sub(r"@@(\w+)@@", lambda found: parts[found[1]], (files / "page.html").read_text(encoding="utf-8"))


def _counted(cache: Cache) -> tuple[int, list[dict[str, Any]]]:
    """The number of tokens of all prompts, and the skipped rows."""
    counted = [(shard.tokens, shard.skipped) for shard in cache.open_shards()]
    skipped = [entry for _, entries in counted for entry in entries]
    return sum(tokens for tokens, _ in counted), sorted(skipped, key=lambda entry: entry["row"])


def _attended(cache: Cache, scores: Scores) -> Table:
    """What the first heads of all attend to in the samples whose token texts the cache has."""
    top = scores.tables["topk_global"]
    heads = list(zip(top["layer"].tolist(), top["head"].tolist(), strict=True))[:HEADS_WITH_TOKENS]
    return attended(cache, heads)
