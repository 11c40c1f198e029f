"""Whether signals order heads as the cost of taking each out alone does."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from ..data.errors import InputError
from .effects import GATE_GRADIENT, unit_of
from .rank_correlation import kendall, spearman

_COSTS: dict[str, tuple[str, int]] = {  # the column of the effect, and its sign as a cost
    "kl": ("mean", 1),
    "nll": ("mean", 1),
    GATE_GRADIENT: ("mean", -1),  # to take a head out is to lower its gate
    f"abs_{GATE_GRADIENT}": ("abs_mean", 1),
}
_SCHEMA = {"effect": pl.String, "signal": pl.String, "spearman": pl.Float64, "kendall": pl.Float64}


def agreement(effects: pl.DataFrame, heads: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """How far the order of the heads by each signal agrees with that by the cost of taking each out alone.

    Costs are the means of `kl`, of `nll`, of minus `gate_gradient` (what the loss gains, to first order), and as
    `abs_gate_gradient` of the gradient's size in each row, which others call a head's importance. So agreement is positive
    where the signal is higher in heads that the model needs. With `costs_of(effects)` as heads it is that of costs with costs.

    Args:
        effects: of `effects_of`.
        heads: one line per `layer` and `head` (or `kv_head`), as `Scores.heads`.
        names: columns of `heads`, such as `combined`, `out`, or `out_rank` for the rank within the layer.

    Returns one line per cost and name: `effect`, `signal`, `spearman`, `kendall` (τ-b), over the heads that have a value; null
    where all values are equal.

    Raises InputError where a column is missing, a value is NaN, or the heads are not those of the effects.
    """
    costs, unit = costs_of(effects), unit_of("effects", effects)
    ordered = aligned(heads, costs.select("layer", unit), names)
    lines = []
    for effect in costs.columns[2:]:
        for name in names:
            pair = pl.DataFrame({"x": costs[effect], "y": ordered[name]}).drop_nulls()
            lines.append((effect, name, spearman(pair["x"], pair["y"]), kendall(pair["x"], pair["y"])))
    return pl.DataFrame(lines, schema=_SCHEMA, orient="row")


def aligned(heads: pl.DataFrame, keys: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """The named columns of `heads` in the order of `keys`, which are sorted; InputError where they are of other heads."""
    if missing := [name for name in (*keys.columns, *names) if name not in heads.columns]:
        raise InputError(f"heads: has no column {', '.join(missing)}")
    ordered = heads.sort(keys.columns)
    if not np.array_equal(ordered.select(keys.columns).to_numpy(), keys.to_numpy()):
        raise InputError(f"heads: its {len(heads)} heads are not the {len(keys)} that were taken out alone")
    return ordered.select(*keys.columns, *names)


def costs_of(effects: pl.DataFrame) -> pl.DataFrame:
    """One line per `layer` and `head` (or `kv_head`), sorted, with each cost of `agreement` that `effects` has."""
    keys = ["layer", unit_of("effects", effects)]
    made = effects.select(keys).unique().sort(keys)
    for cost, (column, sign) in _COSTS.items():
        own = effects.filter(pl.col("effect") == cost.removeprefix("abs_")).select(*keys, (sign * pl.col(column)).alias(cost))
        if len(own):
            made = made.join(own, on=keys, how="left", maintain_order="left")
    return made
