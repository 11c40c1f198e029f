"""Ranks and normalisation of a signal within each layer: functions of arrays [..., H] whose last axis is a layer's heads."""

import numpy as np

from .rows import Float


def rank_in_layer(x: Float) -> Float:
    """A head's rank within its layer, 1 for the lowest value, ties averaged: [..., H] -> [..., H], between 1 and H."""
    order = np.argsort(x, axis=-1, kind="stable")
    ascending = np.take_along_axis(x, order, axis=-1)
    starts = np.ones(x.shape, bool)  # of a run of equal values
    starts[..., 1:] = ascending[..., 1:] != ascending[..., :-1]
    place = np.broadcast_to(np.arange(x.shape[-1]), x.shape)
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=-1)
    ends = np.roll(starts, -1, axis=-1)
    last = np.flip(np.minimum.accumulate(np.flip(np.where(ends, place, x.shape[-1]), axis=-1), axis=-1), axis=-1)
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def zscore(x: Float) -> Float:
    """(x − mean) / standard deviation over the layer's heads (ddof 0); 0 where all heads of the layer are equal."""
    constant = x.max(axis=-1, keepdims=True) == x.min(axis=-1, keepdims=True)  # the rounded mean may differ from equal values
    return np.where(constant, 0.0, x - x.mean(axis=-1, keepdims=True)) / np.where(constant, 1.0, x.std(axis=-1, keepdims=True))


def percentile(x: Float) -> Float:
    """(rank − 1) / (H − 1) over the layer's heads, between 0 and 1, ties averaged; 0.5 in a layer of one head."""
    heads = x.shape[-1]
    return np.full(x.shape, 0.5) if heads == 1 else (rank_in_layer(x) - 1) / (heads - 1)


NORM_MODES = {"zscore": zscore, "percentile": percentile}
