"""A validation that was made without a model."""

from typing import Any

import numpy as np
import polars as pl
from made_outcomes import INTACT, outcomes

from headscore.score.validated import Measured


def made(signals: tuple[str, ...] = ("combined", "out"), ks: tuple[int, ...] = (2, 4), draws: int = 3) -> Measured:
    """A validation of 3 layers of 4 heads in 12 rows, single heads and gradients with it."""
    chance, rows = np.random.default_rng(0), 12
    answered = {"nll": chance.gamma(2, 1, rows), "acc": chance.random(rows) < 0.8, "choices": 4}
    sets: dict[Any, Any] = {INTACT: {"kl": 0, **answered}}
    for signal in signals:
        for k in ks:
            for kind, draw in [("top", None), ("bottom", None), *(("draw", draw) for draw in range(draws))]:
                values = {"kl": chance.gamma(1, k, rows), "nll": chance.gamma(3, 1, rows), "acc": chance.random(rows) < 0.5}
                sets[signal, k, kind, draw] = {**values, "choices": 4}
    heads = pl.DataFrame({"layer": np.repeat(range(3), 4), "head": np.tile(range(4), 3), "combined": np.linspace(0, 1, 12)})
    every = heads.select("layer", "head").join(pl.DataFrame({"row": range(rows)}), how="cross")
    values = {name: chance.normal(1, 2, len(every)) for name in ("nll", "gradient")} | {"kl": chance.gamma(1, 1, len(every))}
    every = every.with_columns(**values)
    facts = {"unit": "head", "units": 12, "noise_floor": {"kl": 1e-6}, "signals": [], "unseen": False, "other_model": False}
    facts |= {"overlapping_draws": 0, "ranking": {}, "model": "tiny", "rows": rows, "draws": draws}
    single, gradient = every.drop("gradient"), every.drop("kl", "nll")
    return Measured(outcomes(sets), pl.DataFrame({"signal": signals}), heads, single, gradient, facts)
