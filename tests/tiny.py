"""Tiny models and a small real tokenizer, built from configs and trained on the shipped questions: nothing is downloaded."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

import headscore.data

SAMPLES = Path(headscore.data.__file__).parent / "samples"
ARC = SAMPLES / "commonsense_arc.jsonl"
LLM_ADAPTERS = SAMPLES / "commonsense_llm_adapters.json"


def arc_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ARC.read_text().splitlines()]


@cache
def tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 600 tokens, with or without a leading <s>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([json.dumps(row) for row in arc_rows()], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


SIZES: dict[str, Any] = {"vocab_size": 600, "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
LLAMA_SIZES: dict[str, Any] = SIZES | {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # not hidden_size / heads
    "max_position_embeddings": 4096,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**LLAMA_SIZES),
    "qwen3": lambda: Qwen3Config(**LLAMA_SIZES),  # QK-norm
    "mistral_window": lambda: MistralConfig(**LLAMA_SIZES, sliding_window=16),  # shorter than the prompts
    "gemma2": lambda: Gemma2Config(  # softcap, windowed and full layers
        **LLAMA_SIZES, sliding_window=16, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "gpt_oss": lambda: GptOssConfig(**LLAMA_SIZES, sliding_window=16, num_local_experts=2, num_experts_per_tok=1),  # sinks
    "gpt2": lambda: GPT2Config(**SIZES, n_embd=24, n_layer=3, n_head=4, n_positions=1024),  # absolute positions, Conv1D, biases
}


def build(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save(model: PreTrainedModel, folder: Path, bos: bool = True) -> Path:
    model.save_pretrained(folder)
    tokenizer(bos).save_pretrained(folder)
    return folder


BERT_SIZES: dict[str, Any] = {"vocab_size": 600, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
