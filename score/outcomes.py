"""What a model lost without some heads, as arrays that are whole: every set in the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ..data.errors import InputError
from .grids import Grid, grid_of, told
from .means import Float

METRICS = {"kl": 1, "nll": 1, "acc": -1, "acc_norm": -1}  # 1 where higher is worse, -1 where lower is
ACCURACIES = ("acc", "acc_norm")
SETS = ("top", "bottom", "draw")
_KEYS = ("signal", "k", "set", "draw")


@dataclass(frozen=True)
class Group:
    """The sets of one k of a signal, by their places among all sets."""

    signal: str
    k: int
    top: int
    bottom: int | None
    draws: Sequence[int]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcomes of some sets.

    Args:
        intact: the place of the intact model among the sets.
        groups: the others, by signal and k.
        metrics: float64 [sets, n] of each metric that some row has; NaN where a row has none, which is so in all sets.
        choices: how many answers each row can be given, float64 [n]; NaN where that is not known.
    """

    intact: int
    groups: Sequence[Group]
    metrics: Mapping[str, Float]
    choices: Float


def outcomes_of(frame: Any) -> Outcomes:
    """The outcomes in a table (see `validation_table`), the same whatever the order of its lines.

    Raises InputError where sets or values are missing, are no numbers, or were not made in the same rows.
    """
    columns = frame.columns if isinstance(frame, pl.DataFrame) else ()
    names = [name for name in (*METRICS, "choices") if name in columns]
    grid = grid_of("outcomes", frame, _KEYS, names)
    intact, groups = _groups(grid.keys)
    metrics = {name: grid.values[name] for name in METRICS if name in names and not np.isnan(grid.values[name]).all()}
    if not metrics:
        raise InputError(f"outcomes: no row has a value of {', '.join(METRICS)}")
    for name in metrics:
        _require_same_rows(grid, name, intact)
    choices = grid.values["choices"][intact] if "choices" in names else np.full(len(grid.rows), np.nan)
    return Outcomes(intact, groups, metrics, choices)


def _groups(keys: pl.DataFrame) -> tuple[int, list[Group]]:
    """The place of the intact model, and the sets of every signal and k."""
    places: dict[tuple[str, int], dict[str, list[int]]] = {}
    intact = []
    for place, (signal, k, kind, _) in enumerate(keys.iter_rows()):
        if kind == "intact":
            intact.append(place)
        elif kind not in SETS or signal is None or k is None:
            raise InputError(f"outcomes: a set '{kind}' of signal {signal}, k {k}; sets are {', '.join(SETS)} and intact")
        else:
            places.setdefault((signal, k), {name: [] for name in SETS})[kind].append(place)
    if len(intact) != 1:
        raise InputError(f"outcomes: hold {len(intact)} runs of the intact model, not one")
    if not places:
        raise InputError("outcomes: hold the intact model alone, and no set of heads")
    return intact[0], [_group(*key, *(sets[name] for name in SETS)) for key, sets in places.items()]


def _group(signal: str, k: int, top: list[int], bottom: list[int], draw: list[int]) -> Group:
    if len(top) != 1 or len(bottom) > 1:
        raise InputError(f"outcomes: signal {signal}, k {k} has {len(top)} sets 'top' and {len(bottom)} 'bottom', not one")
    return Group(signal, k, top[0], bottom[0] if bottom else None, draw)


def _require_same_rows(grid: Grid, metric: str, intact: int) -> None:
    values = grid.values[metric]
    there = ~np.isnan(values[intact])
    for line, row in np.argwhere(np.isnan(values) == there):
        where = told({**grid.keys.row(int(line), named=True), "row": grid.rows[row]})
        what = "has no value" if there[row] else "has a value, but the intact model has none,"
        raise InputError(f"outcomes: '{metric}' {what} in {where}")
    if metric in ACCURACIES and not np.isin(values[:, there], (0, 1)).all():
        raise InputError(f"outcomes: '{metric}' has values other than 0 and 1")
