"""The JSON of Retrieval_Head, which RetMask, HeadKV and KVCache-Factory read too."""

import json

import polars as pl

from .chosen import Chosen
from .written import Content


def retrieval_head(chosen: Chosen) -> Content:
    """One line of JSON, `{"layer-head": [score], …}`, with all heads, layer by layer, whose readers never look at the names.

    The score is the signal's mean where that is not negative and in the order of the ranking (`--within model`), else
    (n − place + ½) / n for the place among all n heads: readers divide by the sum, so no score may be negative.
    """
    chosen.require_all()
    chosen.require_query_heads()
    layers, units = chosen.matrix()
    count = len(chosen.heads)
    places = chosen.heads.with_columns(value=(count - pl.int_range(0, count) - 0.5) / count)
    own = _own_values(chosen)
    scored = (places if own is None else places.with_columns(value=own)).sort("layer", "head")
    scores = {f"{layer}-{head}": [value] for layer, head, value in scored.select("layer", "head", "value").iter_rows()}
    what = "its place among all in (0, 1)" if own is None else f"the mean of {chosen.signal}"
    meaning = (
        f"{layers} layers of {units} query heads, each with {what}: head-selective. RetMask takes heads out by it; HeadKV and "
        "KVCache-Factory share a KV budget out in proportion to it, by the mean over a group where caches are grouped"
    )
    return Content((json.dumps(scores) + "\n").encode(), meaning)


def _own_values(chosen: Chosen) -> pl.Series | None:
    """The signal's mean of each head, in the order of the ranking; None where it is negative or in another order."""
    if chosen.signal not in chosen.results.signals:
        return None
    means = chosen.results.heads.select(pl.col("layer", "head").cast(pl.Int64), value=pl.col(chosen.signal).cast(pl.Float64))
    values = chosen.heads.join(means, on=["layer", "head"], maintain_order="left")["value"]
    is_usable = not values.has_nulls() and bool(values.is_finite().all()) and values.min() >= 0  # type: ignore[operator]
    return values if is_usable and values.is_sorted(descending=True) else None
