"""How scores show themselves in a notebook, without a network: a table, and the live map where the notebook draws Vega-Lite."""

import html
from typing import TYPE_CHECKING, Any

from ...data.metadata import model_name
from ..tables import rows
from .vega import missing_packages

if TYPE_CHECKING:
    from ..pipeline import Scores

_VEGALITE = "application/vnd.vegalite.v6+json"
_HEADS_SHOWN = 10


def top_table(scores: "Scores") -> str:
    """The first heads of all with their signals, as an HTML table."""
    raw = {(layer, head): signals for layer, head, *signals in rows(scores.tables["raw"])}
    titles = "".join(f"<th>{title}</th>" for title in ("rank", "head", "combined", "out", "ent", "task"))
    lines = ""
    for layer, head, combined, rank in list(rows(scores.tables["topk_global"]))[:_HEADS_SHOWN]:
        values = "".join(f"<td>{value:.4f}</td>" for value in raw[layer, head])
        lines += f"<tr><td>{rank}</td><td>L{layer}H{head}</td><td>{combined:.2f}</td>{values}</tr>"
    model = html.escape(model_name(scores.metadata["model"]))
    caption = f"{model}: {len(raw)} heads, {scores.samples} samples"
    return f"<table><caption>{caption}</caption><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def bundle(scores: "Scores") -> dict[str, Any]:
    """What a notebook may choose from, by MIME type."""
    shown: dict[str, Any] = {"text/plain": repr(scores), "text/html": top_table(scores)}
    if "altair" not in missing_packages():
        from .charts import heatmap
        from .marks import Ranking

        shown[_VEGALITE] = heatmap(scores.heads, ranking=Ranking.of(scores)).to_dict()
    return shown
