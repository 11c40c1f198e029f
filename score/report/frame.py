"""The frame of a page: one file that opens offline, with its style, Vega, and charts in the page's colours."""

import importlib.resources
import json
import re
from collections.abc import Mapping
from typing import Any

from ... import __version__
from .marks import INK
from .sections import escaped
from .vega import vega_bundle


def framed(title: str, lead: str, sections: str, data: Mapping[str, Any], *, script: str, besides: str) -> str:
    """A page as HTML.

    Args:
        title: plain text.
        lead: HTML below the title, in which text from data is escaped already.
        sections: HTML likewise, with a `place` for each chart.
        data: what the script needs besides `config`, as JSON can hold it; charts are of `fitted`.
        script: the file beside this module that draws the charts.
        besides: plain text for readers whose browser runs no scripts: where else they find the content.

    Raises RunError where Vega's JavaScript cannot be made.
    """
    parts = {"title": escaped(title), "lead": lead, "sections": sections, "besides": escaped(besides), "version": __version__}
    parts |= {"css": _shipped("page.css"), "js": _shipped(script), "data": _json({"config": _config(), **data})}
    parts["vega"] = vega_bundle().replace("</script", "<\\/script")
    # filled in one pass, so that nothing in a text is taken for a placeholder
    return re.sub(r"@@(\w+)@@", lambda found: parts[found[1]], _shipped("page.html"))


def fitted(spec: dict[str, Any]) -> dict[str, Any]:
    """A chart's specification, changed to be as wide as its place."""
    spec.pop("title", None)  # the page has it as text, which wraps
    spec.pop("config", None)
    spec["width"] = "container"
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def section(title: str, reading: str, body: str) -> str:
    """A part of the page, as HTML of HTML."""
    return f"<h2>{title}</h2><p>{reading}</p>{body}"


def place(name: str) -> str:
    """Where the page's script draws the chart of this name."""
    return f'<div class="chart" id="{name}"></div>'


def _shipped(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def _json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its element, marks in the colour of the text."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace(json.dumps(INK), '"currentColor"').replace("<", "\\u003c")


def _config() -> dict[str, Any]:
    """Vega's colours and type: those of the page, in light and dark and on paper."""
    ink, line = "currentColor", "#8887"
    axis = {
        "labelColor": ink,
        "titleColor": ink,
        "gridColor": "#8882",
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
