"""Rank fusion of the signals, and the order of heads that follows from it."""

import polars as pl


def rank_in_layer(signal: str) -> pl.Expr:
    """A head's rank within its layer: 1 for the lowest value, ties averaged."""
    return pl.col(signal).rank("average").over("layer")


def ranked(scores: pl.DataFrame, lambda_ent: float, lambda_task: float) -> pl.DataFrame:
    """Heads from the most to the least driven, with `combined` and `rank` (1 = first).

    scores: columns layer, head, {out,ent,task}_raw and _z. Ordered by combined, then by the same weighted sum of the
    normalised signals, then by layer and head: never by chance.
    """

    def fused(out: pl.Expr, ent: pl.Expr, task: pl.Expr) -> pl.Expr:
        return out + lambda_ent * ent + lambda_task * task

    combined = fused(rank_in_layer("out_raw"), rank_in_layer("ent_raw"), rank_in_layer("task_raw"))
    tiebreak = fused(pl.col("out_z"), pl.col("ent_z"), pl.col("task_z"))
    return (
        scores.with_columns(combined=combined, tiebreak=tiebreak)
        .sort("combined", "tiebreak", "layer", "head", descending=[True, True, False, False])
        .drop("tiebreak")
        .with_columns(rank=pl.int_range(1, pl.len() + 1))
    )
