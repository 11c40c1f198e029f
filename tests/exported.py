"""A tiny model whose adapters of chosen heads have whole numbers for ranks, and a ranking of its heads."""

from pathlib import Path

import tiny
from transformers import LlamaConfig

import headscore

HEADS, KV_HEADS, WIDTH, MODEL_WIDTH, LAYERS = 4, 2, 8, 32, 3
SIZES = tiny.LLAMA_SIZES | {"hidden_size": MODEL_WIDTH}


def make(folder: Path) -> tuple[Path, Path]:
    """The folders of a model with 3 layers of 4 heads in 2 groups, and of a ranking of them."""
    model = tiny.save(tiny.build(LlamaConfig(**SIZES)), folder / "model")
    headscore.capture(folder / "cache", model=str(model), max_samples=12)
    headscore.score(folder / "cache", folder / "results")
    return model, folder / "results"
