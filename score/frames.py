"""Means of signals as frames with a line per head, and ranked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ..data.errors import OptionError
from ..data.options.settings import ScoreSettings, Unit
from .means import Float
from .ranking import rank
from .recipe import Recipe


def heads_frame(recipe: Recipe, means: Mapping[str, Float], settings: ScoreSettings) -> pl.DataFrame:
    """`Scores.heads`, from the mean of every signal, [L,H]."""
    frame = unit_frame(recipe, means, settings.by)
    places = frame.columns[: -len(means)]
    for name, weight in settings.weights.items():
        if weight and frame[name].has_nulls():
            layer, unit = frame.filter(pl.col(name).is_null()).select("layer", settings.by).row(0)
            where = f"layer {layer}, {settings.by} {unit}"
            raise OptionError(f"--weight {name}: the signal is undefined for every sample in {where}; leave it out")
    options = {"fusion": settings.fusion, "norm_mode": settings.norm_mode, "within": settings.within}
    ranked = rank(frame, settings.weights, unit=settings.by, **options)  # type: ignore[arg-type]
    signals = [column for name in means for column in (name, f"{name}_norm", f"{name}_rank")]
    return ranked.select(*places, *signals, "combined", "rank", "tied_rank", "layer_rank")


def unit_frame(recipe: Recipe, means: Mapping[str, Float], by: Unit) -> pl.DataFrame:
    """One line per layer and head, or group of heads, with the mean of every signal.

    Args:
        recipe: what the signals are.
        means: [L,H] of every signal, or [B,L,H] of B replicates; NaN where one is undefined.
        by: `head`, or `kv_head` for the mean of the query heads that share a key-value head.

    Returns `layer`, `head` and `kv_head` (or `kv_head` alone), then the signals, null where undefined; of replicates one
    table below the other, with their number as `replicate` before all.
    """
    values = {name: by_unit(recipe, value, by) for name, value in means.items()}
    shape = next(iter(values.values())).shape
    groups, units = recipe.kv_heads, shape[-1]
    replicates, layers = (shape[0] if len(shape) == 3 else 1), len(recipe.layers)
    numbers = np.tile(np.arange(units, dtype=np.int32), replicates * layers)
    places: dict[str, Any] = {"layer": np.tile(np.repeat(np.array(recipe.layers, np.int32), units), replicates), by: numbers}
    if len(shape) == 3:
        places = {"replicate": np.repeat(np.arange(replicates, dtype=np.int32), layers * units), **places}
    if by == "head":
        shared = numbers * groups // units if groups else pl.repeat(None, len(numbers), dtype=pl.Int32, eager=True)
        places["kv_head"] = shared
    return pl.DataFrame({**places, **{name: value.reshape(-1) for name, value in values.items()}}, nan_to_null=True)


def by_unit(recipe: Recipe, values: Float, by: Unit) -> Float:
    """Values of heads, […,H], as those of what is ranked: themselves, or the means of the heads that share a key-value head."""
    if by == "kv_head" and recipe.kv_heads:
        return np.asarray(values.reshape(*values.shape[:-1], recipe.kv_heads, -1).mean(axis=-1))
    return values
