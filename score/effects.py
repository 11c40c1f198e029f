"""What each head does alone: the model without it, or the gradient of a gate that could close it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from ..data.errors import InputError
from .grids import Grid, grid_of
from .intervals import BOOTSTRAP, LEVEL, mean_intervals
from .means import Float

GATE_GRADIENT = "gate_gradient"


def effects_of(
    single: pl.DataFrame | None,
    gradient: pl.DataFrame | None,
    intact: pl.DataFrame,
    *,
    bootstrap: int = BOOTSTRAP,
    level: float = LEVEL,
    seed: int = 42,
) -> pl.DataFrame:
    """The effect of each head alone, over rows.

    Args:
        single: `layer`, `head` (or `kv_head`), `row`, and `kl` and `nll` of the model without this head, in nats.
        gradient: `layer`, `head` (or `kv_head`), `row`, `gradient`: ∂nll/∂gate, where the gate is a factor of the head's z.
        intact: `row` and `nll` of the intact model; of a table of outcomes only the lines of its set `intact` count.
        bootstrap: replicates.
        level: of the intervals, studentised (see `mean_intervals`).
        seed: of the replicates.

    Returns one line per layer, head and effect: `mean`, `low`, `high`, and `abs_mean`, the mean of the size in each row.
    Effects are `kl` and `nll`, changes from intact, and `gate_gradient`: to first order `nll` would be -1 times its mean. Rows
    without a value, as those without an answer have no `nll`, are left out.

    Raises InputError where tables are not whole, are no numbers, or have other rows than the intact model.
    """
    found: list[tuple[str, pl.DataFrame, Float]] = []
    if single is not None:
        grid, changes = single_changes(single, intact)
        found += [(name, grid.keys, values) for name, values in changes.items()]
    if gradient is not None:
        grid = grid_of("gradient", gradient, ("layer", unit_of("gradient", gradient)), ["gradient"])
        found.append((GATE_GRADIENT, grid.keys, _defined("gradient", "gradient", grid.values["gradient"])))
    found = [one for one in found if one[2].size]
    if not found:
        raise InputError("effects: there are no values of single heads, and no gradients")
    frames = [_effect(*one, {"replicates": bootstrap, "level": level, "seed": seed}) for one in found]
    return pl.concat(frames).sort(frames[0].columns[:2], maintain_order=True)


def single_changes(single: pl.DataFrame, intact: pl.DataFrame) -> tuple[Grid, dict[str, Float]]:
    """The grid of heads taken out alone, and the changes from intact of `kl` and `nll`, [heads, rows that have a value].

    Arguments and errors as `effects_of`; a metric without values is left out.
    """
    names = [name for name in ("kl", "nll") if name in getattr(single, "columns", ())]
    grid = grid_of("single", single, ("layer", unit_of("single", single)), names)
    changes = dict(grid.values)
    if "nll" in changes:
        changes["nll"] = changes["nll"] - _intact_loss(intact, grid)
    defined = {name: _defined("single", name, values) for name, values in changes.items()}
    return grid, {name: values for name, values in defined.items() if values.size}


def unit_of(name: str, frame: Any) -> str:
    """The column that says which head, or group of heads; InputError where a table has none, named for the message."""
    columns = frame.columns if isinstance(frame, pl.DataFrame) else ()
    for unit in ("head", "kv_head"):
        if unit in columns:
            return unit
    raise InputError(f"{name}: is not a table with a column head, or kv_head")


def _intact_loss(intact: pl.DataFrame, grid: Grid) -> Float:
    own = intact.filter(pl.col("set") == "intact") if "set" in intact.columns else intact
    loss = grid_of("intact", own.with_columns(model=pl.lit("intact")), ("model",), ["nll"])
    if not np.array_equal(loss.rows, grid.rows):
        raise InputError(f"single: its {len(grid.rows)} rows are not the {len(loss.rows)} of the intact model")
    return loss.values["nll"]


def _defined(name: str, column: str, values: Float) -> Float:
    """The rows that have a value, which must be so for all heads."""
    there = ~np.isnan(values)
    if (there != there[0]).any():
        raise InputError(f"{name}: '{column}' of some row is there for some heads only; run all of them")
    return values[:, there[0]]


def _effect(name: str, keys: pl.DataFrame, values: Float, how: Mapping[str, Any]) -> pl.DataFrame:
    low, high = mean_intervals(values.T, **how)
    numbers = {"mean": values.mean(axis=1), "low": low, "high": high, "abs_mean": np.abs(values).mean(axis=1)}
    columns = {column: pl.Series(one, nan_to_null=True) for column, one in numbers.items()}
    return keys.with_columns(effect=pl.lit(name), **columns)
