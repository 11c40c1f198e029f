"""Adapters of tiny models with weights of some size, as a trainer would leave them: nothing is trained."""

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

TARGETS = ["q_proj", "v_proj", "down_proj"]


def base(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def lora(**options: Any) -> peft.PeftConfig:
    return peft.LoraConfig(**{"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | options)


def trained(model: PreTrainedModel, config: peft.PeftConfig, size: float = 0.3, seed: int = 1) -> peft.PeftModel:
    """The model with an adapter whose every weight has moved by about `size`."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn_like(parameter)
    return adapted.eval()


def save(folder: Path, model: Path, config: peft.PeftConfig | None = None, size: float = 0.3) -> Path:
    """A folder with such an adapter for the model in another folder."""
    trained(base(model), config or lora(), size).save_pretrained(folder)
    return folder


def unmerged(model: Path, adapter: Path) -> PreTrainedModel:
    """The model with the adapter beside its weights, as peft runs it, with eager attention."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(plain, adapter).eval().get_base_model()


def merged(model: Path, adapter: Path) -> PreTrainedModel:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(plain, adapter).merge_and_unload().eval()
