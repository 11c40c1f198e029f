"""Plain lists of heads: CSV and Parquet, for a paper's appendix and whatever reads tables."""

import io

from ...data.text import json_text
from ..outputs import csv
from ..scores import heads_or_groups
from .chosen import Chosen
from .written import PROVENANCE_FILE, Content

_MEANING = "{count} of {all} {what}, best first: an order, not what the model needs; score has no unit"


def csv_list(chosen: Chosen) -> Content:
    """`layer`, `head` (or `kv_head`), `score`, `rank`, best first."""
    chosen.require_suffix(".csv")
    return Content(csv(chosen.top).encode(), _meaning(chosen))


def parquet_list(chosen: Chosen) -> Content:
    """The same as Parquet, which says in its own metadata what it is of."""
    chosen.require_suffix(".parquet")
    table = io.BytesIO()
    chosen.top.write_parquet(table, metadata={PROVENANCE_FILE: json_text(chosen.provenance)})
    return Content(table.getvalue(), _meaning(chosen), told_inside=True)


def _meaning(chosen: Chosen) -> str:
    what = heads_or_groups(chosen.unit)
    return _MEANING.format(count=len(chosen.top), all=len(chosen.heads), what=what)
