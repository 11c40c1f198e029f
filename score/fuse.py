"""Rank fusion of the signals, and the order of heads that follows from it."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .normalize import rank_in_layer
from .rows import Float


def fused(signals: Mapping[str, Float], lambda_ent: float, lambda_task: float) -> Float:
    """out + λ_ent · ent + λ_task · task: arrays of one shape, of ranks or of normalised values."""
    return signals["out"] + lambda_ent * signals["ent"] + lambda_task * signals["task"]


def combined_ranks(raw: Mapping[str, Float], lambda_ent: float, lambda_task: float) -> Float:
    """The fused score: the weighted sum of a head's ranks within its layer. raw: out, ent, task [..., L, H] -> [..., L, H]."""
    return fused({name: rank_in_layer(values) for name, values in raw.items()}, lambda_ent, lambda_task)


def order_of_heads(combined: Float, tiebreak: Float) -> npt.NDArray[np.intp]:
    """Heads from the most to the least driven, as places in the flattened [L,H] -> [L·H].

    Ordered by combined, then by tiebreak (the same weighted sum of the normalised signals), then by layer and head: never by
    chance.
    """
    return np.lexsort((-tiebreak.ravel(), -combined.ravel()))
