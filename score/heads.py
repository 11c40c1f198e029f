"""One table with all that charts and the report show of a head."""

from typing import TYPE_CHECKING

import numpy as np

from .normalize import rank_in_layer
from .signals import SIGNALS, SINK
from .tables import Table

if TYPE_CHECKING:
    from .pipeline import Scores


def heads_table(scores: "Scores") -> Table:
    """A line per head, sorted by layer and head: out_raw, out_z and rank_out, the same for ent and task, sink, and combined.

    rank_out, rank_ent, rank_task: the ranks within the layer that the combined score is made of, 1 = lowest, ties averaged.
    Together with the normalised values they are what a chart needs to rank the heads anew with other weights. sink: the mean
    over samples of the attention to the first token, 0 to 1, which takes no part in the ranking.
    """
    raw, norm, combined = (scores.tables[name] for name in ("raw", "norm", "combined"))
    own = {SINK: scores.tables[SINK][SINK], "combined": combined["combined"]}
    layers = len(np.unique(raw["layer"]))
    ranks = {f"rank_{name}": rank_in_layer(raw[f"{name}_raw"].reshape(layers, -1)).ravel() for name in SIGNALS}
    return {**raw, **{f"{name}_z": norm[f"{name}_z"] for name in SIGNALS}, **ranks, **own}
