"""Outcomes of a validation, made up."""

from typing import Any

import numpy as np
import polars as pl

SCHEMA = {"signal": pl.String, "k": pl.Int64, "set": pl.String, "draw": pl.Int64, "row": pl.Int64}
KEYS = list(SCHEMA)[:4]
INTACT = (None, 0, "intact", None)


def outcomes(sets: dict[tuple[Any, ...], dict[str, Any]]) -> pl.DataFrame:
    """The table of some sets, (signal, k, set, draw): the values of their metrics by row, which may be one number for all."""
    rows = max(np.size(values) for metrics in sets.values() for values in metrics.values())
    columns: dict[str, Any] = {name: [key[place] for key in sets for _ in range(rows)] for place, name in enumerate(KEYS)}
    columns["row"] = [*range(rows)] * len(sets)
    for metric in dict.fromkeys(name for metrics in sets.values() for name in metrics):
        every = [np.broadcast_to(np.array(metrics.get(metric, np.nan), float), rows) for metrics in sets.values()]
        columns[metric] = np.concatenate(every)
    return pl.DataFrame(columns, schema_overrides=SCHEMA, nan_to_null=True)


def trials(kl: np.ndarray, kinds: list[tuple[str, int | None]]) -> pl.DataFrame:
    """Outcomes in which every trial is a signal of its own: kl [trials, sets, rows], in the order of the kinds of sets."""
    count, sets, rows = kl.shape
    signals = [f"trial {number:04}" for number in range(count)]
    columns = {
        "signal": np.repeat(signals, sets * rows),
        "set": np.tile(np.repeat([kind for kind, _ in kinds], rows), count),
        "draw": pl.Series([draw for _, draw in kinds], dtype=pl.Int64).gather(np.tile(np.repeat(range(sets), rows), count)),
        "row": np.tile(range(rows), count * sets),
        "kl": kl.reshape(-1),
    }
    made = pl.DataFrame(columns).with_columns(k=pl.lit(1, pl.Int64))
    return pl.concat([made, outcomes({INTACT: {"kl": np.zeros(rows)}})], how="diagonal")
