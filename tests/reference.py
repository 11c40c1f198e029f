"""DESIGN's score definitions in plain numpy and Python, written independently of the package."""

from typing import Any

import numpy as np


def average_ranks(values: np.ndarray) -> np.ndarray:
    """1 = lowest, ties averaged."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def zscore(values: np.ndarray) -> np.ndarray:
    return np.zeros_like(values) if np.ptp(values) == 0 else (values - values.mean()) / values.std()


def percentile(values: np.ndarray) -> np.ndarray:
    return np.full_like(values, 0.5) if len(values) == 1 else (average_ranks(values) - 1) / (len(values) - 1)


def ranking(raw: dict[str, np.ndarray], norm_mode: str, lambda_ent: float, lambda_task: float) -> dict[str, Any]:
    """raw: out, ent, task as [L,H]. Gives norm and combined as [L,H] and the heads in order."""
    normalise = zscore if norm_mode == "zscore" else percentile
    norm = {name: np.stack([normalise(layer) for layer in values]) for name, values in raw.items()}
    ranks = {name: np.stack([average_ranks(layer) for layer in values]) for name, values in raw.items()}

    def fuse(x: dict[str, np.ndarray]) -> np.ndarray:
        return x["out"] + lambda_ent * x["ent"] + lambda_task * x["task"]

    combined, tiebreak = fuse(ranks), fuse(norm)
    layers, heads = combined.shape
    order = sorted(
        ((layer, head) for layer in range(layers) for head in range(heads)),
        key=lambda lh: (-combined[lh], -tiebreak[lh], lh),
    )
    return {"norm": norm, "combined": combined, "order": order}
