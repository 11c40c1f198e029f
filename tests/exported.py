"""A tiny model whose adapters of chosen heads have whole numbers for ranks, and a ranking of its heads."""

from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import headscore

HEADS, KV_HEADS, WIDTH, MODEL_WIDTH, LAYERS = 4, 2, 8, 32, 3
SIZES = tiny.LLAMA_SIZES | {"hidden_size": MODEL_WIDTH}


def make(folder: Path) -> tuple[Path, Path]:
    """The folders of a model with 3 layers of 4 heads in 2 groups, and of a ranking of them."""
    model = tiny.save(tiny.build(LlamaConfig(**SIZES)), folder / "model")
    headscore.capture(folder / "cache", model=str(model), max_samples=12)
    headscore.score(folder / "cache", folder / "results")
    return model, folder / "results"


IDS = torch.arange(2, 42)[None]


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def step(model: Any, times: int = 1, **options: Any) -> None:
    """Optimiser steps, with weight decay, on the next-token loss."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1, **options)
    for _ in range(times):
        optimiser.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits
