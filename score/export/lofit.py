"""The heads that LoFiT finetunes."""

import io

import numpy as np

from .chosen import Chosen
from .written import Content


def lofit(chosen: Chosen) -> Content:
    """An int64 array [k, 2] of (layer, head), best first, of which its trainer takes the first rows."""
    chosen.require_suffix(".npy")  # by which its trainer knows a file
    chosen.require_query_heads()
    array = io.BytesIO()
    np.save(array, np.array(chosen.pairs, np.int64))
    meaning = (
        f"{len(chosen.top)} query heads, best first: head-selective; the trainer adds vectors to their z and takes as many as "
        "its own number of heads says"
    )
    return Content(array.getvalue(), meaning)
