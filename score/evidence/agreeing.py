"""How far two rankings of the same model's heads agree, in all and layer by layer, and which heads and signals moved."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from ...data.errors import InputError, OptionError
from ..rank_correlation import kendall, spearman
from .overlap import chance_overlap, overlap, rbo
from .rankings import Ranking

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DEFAULT_TOP_K = 20
PAIRS_SCHEMA = {
    "a": pl.String,
    "b": pl.String,
    "heads": pl.Int64,
    "k": pl.Int64,
    "shared": pl.Int64,
    "share": pl.Float64,
    "chance": pl.Float64,
    "kendall": pl.Float64,
    "spearman": pl.Float64,
    "rbo": pl.Float64,
    "kendall_in_layers": pl.Float64,
    "spearman_in_layers": pl.Float64,
}
LAYERS_SCHEMA = {
    "a": pl.String,
    "b": pl.String,
    "layer": pl.Int32,
    "heads": pl.Int64,
    "top_a": pl.Int64,
    "top_b": pl.Int64,
    "shared": pl.Int64,
    "kendall": pl.Float64,
    "spearman": pl.Float64,
}


def require_same_shape(rankings: Sequence[Ranking]) -> None:
    """Raises InputError where rankings are not of the same kind of unit, or not of the same layers and heads."""
    first = rankings[0]
    for other in rankings[1:]:
        if other.unit != first.unit:
            heads, groups = (first, other) if first.unit == "head" else (other, first)
            raise InputError(
                f"{heads.name}: ranks heads, and {groups.name} groups of heads that share a key-value head; "
                "score both with the same --by"
            )
    model = next((ranking for ranking in rankings if ranking.whole and ranking.kind != "list"), None)
    model = model or max((ranking for ranking in rankings if ranking.whole), key=len, default=None)
    if model is None:
        return
    keys = set(_keys(model))
    for other in rankings:
        own = set(_keys(other))
        if own - keys or (len(own) != len(keys) and other.whole and other.kind != "list"):
            raise InputError(
                f"{other.name}: has {_shape(other)}, and {model.name} {_shape(model)}; compare models of the same shape"
            )


def model_heads(rankings: Sequence[Ranking]) -> int | None:
    """How many heads the model has; None where no ranking has all."""
    return max((len(ranking) for ranking in rankings if ranking.whole), default=None)


def wide_table(rankings: Sequence[Ranking]) -> pl.DataFrame:
    """One line per head that any ranking has, sorted.

    It has `layer`, `head` (or `kv_head`), of each ranking `rank_A` and `score_A`, and `moved`, the largest less the smallest
    rank.
    """
    keys = ["layer", rankings[0].unit]
    found: pl.DataFrame | None = None
    for label, ranking in zip(LABELS, rankings, strict=False):
        own = ranking.heads.select(*keys, pl.col("rank").alias(f"rank_{label}"), pl.col("score").alias(f"score_{label}"))
        found = own if found is None else found.join(own, on=keys, how="full", coalesce=True)
    table = pl.DataFrame() if found is None else found
    ranks = [f"rank_{label}" for label in LABELS[: len(rankings)]]
    return table.sort(keys).with_columns(moved=pl.max_horizontal(ranks) - pl.min_horizontal(ranks))


def pair_tables(table: pl.DataFrame, rankings: Sequence[Ranking], top_k: int | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What each two rankings have in common, in all and by layer.

    Args:
        table: of `wide_table`.
        rankings: the same.
        top_k: how many heads are the top; if not given 20, or as many as the shorter list has.

    Returns PAIRS_SCHEMA: correlations over the heads that both have, null where all are tied; `rbo` over all that either has;
    `chance` is the mean number that two random orders share, null where no ranking has all heads; those `_in_layers` are
    means over layers. And LAYERS_SCHEMA: how many of each top are in the layer, and correlations within it.
    """
    heads = model_heads(rankings)
    pairs: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for one, other in combinations(range(len(rankings)), 2):
        shortest = min(rankings[one], rankings[other], key=len)
        k = min(DEFAULT_TOP_K, len(shortest)) if top_k is None else top_k
        if k > len(shortest):
            raise OptionError(f"--top-k: {k} is more than the {len(shortest)} heads that {shortest.name} lists")
        a, b = LABELS[one], LABELS[other]
        of_pair = [
            {"a": a, "b": b, "layer": key[0], **_layer(part, a, b, k)}
            for key, part in table.group_by("layer", maintain_order=True)
        ]
        layers += of_pair
        pairs.append({"a": a, "b": b, **_pair(table, a, b, k, heads), **_means(of_pair)})
    return pl.DataFrame(pairs, schema=PAIRS_SCHEMA), pl.DataFrame(layers, schema=LAYERS_SCHEMA)


def moved_signals(rankings: Sequence[Ranking]) -> pl.DataFrame | None:
    """How the means of signals differ between rankings of the same rows; None where no two are of the same rows.

    Returns one line per pair, head and signal: `a`, `b`, `layer`, `head` (or `kv_head`), `signal`, `mean_a`, `mean_b`,
    `change`, and `relative`, the change in standard deviations over the heads of the layer (the root mean square of both
    rankings'); null where the heads are all alike.
    """
    frames = []
    for one, other in combinations(range(len(rankings)), 2):
        first, second = rankings[one], rankings[other]
        if first.means is None or second.means is None or first.source is None or first.source != second.source:
            continue
        keys = ["layer", first.unit]
        names = [name for name in first.means.columns if name in second.means.columns and name not in keys]
        tall = [
            ranking.means.unpivot(names, index=keys, variable_name="signal", value_name=mean)  # type: ignore[union-attr]
            for ranking, mean in ((first, "mean_a"), (second, "mean_b"))
        ]
        both = tall[0].join(tall[1], on=[*keys, "signal"], maintain_order="left")
        spread = ((pl.col("mean_a").var(ddof=0) + pl.col("mean_b").var(ddof=0)) / 2).sqrt().over("layer", "signal")
        change = pl.col("mean_b") - pl.col("mean_a")
        frames.append(
            both.with_columns(change=change, relative=pl.when(spread > 0).then(change / spread)).select(
                pl.lit(LABELS[one]).alias("a"), pl.lit(LABELS[other]).alias("b"), pl.all()
            )
        )
    return pl.concat(frames) if frames else None


def _keys(ranking: Ranking) -> list[tuple[int, ...]]:
    return list(ranking.heads.select("layer", ranking.unit).iter_rows())


def _shape(ranking: Ranking) -> str:
    unit = "heads" if ranking.unit == "head" else "groups of heads"
    if ranking.kind == "list":
        layer, last = ranking.heads.select(pl.col("layer", ranking.unit).max()).row(0)
        return f"{len(ranking)} {unit}, in layers up to {layer} and numbered up to {last}"
    layers = ranking.heads["layer"].n_unique()
    return f"{layers} layers of {len(ranking) // layers} {unit}"


def _pair(table: pl.DataFrame, a: str, b: str, k: int, heads: int | None) -> dict[str, Any]:
    shared = overlap(_numbers(table[f"rank_{a}"]), _numbers(table[f"rank_{b}"]), k)
    return {
        "k": k,
        "shared": shared,
        "share": shared / k,
        "chance": chance_overlap(k, heads) if heads else None,
        "rbo": rbo(_numbers(table[f"score_{a}"]), _numbers(table[f"score_{b}"])),
        **_correlations(table, a, b),
    }


def _layer(part: pl.DataFrame, a: str, b: str, k: int) -> dict[str, Any]:
    first, second = (_numbers(part[f"rank_{label}"]) <= k for label in (a, b))
    counts = {"top_a": int(first.sum()), "top_b": int(second.sum()), "shared": int((first & second).sum())}
    return {**counts, **_correlations(part, a, b)}


def _correlations(table: pl.DataFrame, a: str, b: str) -> dict[str, Any]:
    both = table.select(f"score_{a}", f"score_{b}").drop_nulls()
    x, y = both.to_numpy().T if len(both) else (np.empty(0), np.empty(0))
    return {"heads": len(both), "kendall": kendall(x, y), "spearman": spearman(x, y)}


def _numbers(values: pl.Series) -> Any:
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _means(layers: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    found = {}
    for name in ("kendall", "spearman"):
        values = [line[name] for line in layers if line[name] is not None]
        found[f"{name}_in_layers"] = sum(values) / len(values) if values else None
    return found
