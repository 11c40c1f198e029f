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


def ratio(values: np.ndarray) -> np.ndarray:
    return np.zeros_like(values) if not values.any() else values / abs(values.mean())


NORM_MODES = {"zscore": zscore, "percentile": percentile, "ratio": ratio, "none": lambda values: values}


def places(values: np.ndarray) -> np.ndarray:
    """1 = highest, ties averaged."""
    return average_ranks(-values)


def ranking(
    raw: dict[str, np.ndarray],
    weights: dict[str, float],
    norm_mode: str = "zscore",
    fusion: str = "rank",
    within: str = "layer",
) -> dict[str, Any]:
    """raw: each signal as [L,H]. Gives norm and rank of each and combined as [L,H], and the heads in order."""

    def each(function: Any, values: np.ndarray) -> np.ndarray:
        if within == "model":
            return function(values.reshape(-1)).reshape(values.shape)
        return np.stack([function(layer) for layer in values])

    norm = {name: each(NORM_MODES[norm_mode], values) for name, values in raw.items()}
    ranks = {name: each(average_ranks, values) for name, values in raw.items()}
    terms = {
        "rank": ranks,
        "rrf": {name: 1 / (60 + each(places, values)) for name, values in raw.items()},
        "sum": norm,
    }[fusion]
    combined = sum(weight * terms[name] for name, weight in weights.items() if weight)
    tiebreak = sum(weight * norm[name] for name, weight in weights.items() if weight)
    layers, heads = combined.shape
    order = sorted(
        ((layer, head) for layer in range(layers) for head in range(heads)),
        key=lambda lh: (-combined[lh], -tiebreak[lh], lh),
    )
    return {"norm": norm, "rank": ranks, "combined": combined, "order": order}
