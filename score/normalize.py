"""Normalisation of a signal within each layer."""

import polars as pl


def zscore(signal: str) -> pl.Expr:
    """(x − mean) / standard deviation over the layer's heads (ddof 0); 0 where all heads of the layer are equal."""
    x = pl.col(signal)
    constant = x.max() == x.min()  # asked exactly: the rounded mean of equal values may differ from them
    return pl.when(constant).then(0.0).otherwise((x - x.mean()) / x.std(ddof=0)).over("layer")


def percentile(signal: str) -> pl.Expr:
    """(rank − 1) / (H − 1) over the layer's heads, between 0 and 1, ties averaged; 0.5 in a layer of one head."""
    x = pl.col(signal)
    return pl.when(x.len() == 1).then(0.5).otherwise((x.rank("average") - 1) / (x.len() - 1)).over("layer")


NORM_MODES = {"zscore": zscore, "percentile": percentile}
