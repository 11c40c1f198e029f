"""Tiny random models of many architectures, each captured by the command line and held against its own eager attention.

`python tests/architectures.py` goes through all of them and writes docs/architectures.md; with names, it prints their lines.
"""

import contextlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import tiny
import torch
import transformers
from eager import EagerModel
from parity import largest_differences, stored_samples
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from headscore import cli
from headscore.capture.checking.comparison import TOLERANCES
from headscore.capture.recording import buffers
from headscore.data.cache.folder import open_cache
from headscore.data.cache.shard import ARRAYS

DOCS = Path(__file__).parent.parent / "docs" / "architectures.md"
DTYPES = ("bf16", "fp16")
MOST = 1e-5  # difference from eager in fp32
MOST_SUM = 1e-3  # difference of a stored row's sum from 1
SAMPLES = 6

# Small values under every name that configurations have for them; each takes those that it knows.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "n_inner", "ffn_dim", "d_ff", "dff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "expansion_ratio", "mamba_expand"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "mamba_d_head"), 16),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "mamba_n_groups"), 1),
    **{"num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "vocab_size": 600, "vocab_size_per_layer_input": 600},
    **{"q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6},  # MLA
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"mamba_n_heads": 4, "mamba_d_state": 8, "hidden_size_per_layer_input": 8},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.15},
    **dict.fromkeys(("dropout", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
}


@dataclass(frozen=True)
class Architecture:
    """A kind of model: its `model_type`, what is special about its attention, and what its configuration needs beside sizes."""

    kind: str
    special: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> transformers.PreTrainedConfig:
        """A configuration of tiny sizes, for a model of text and images of both its parts."""
        made = CONFIG_MAPPING[self.kind]
        default = made()
        text = default.get_text_config()
        if text is default:
            return made(**_tiny(made) | self.options)
        parts = {name: type(vars(default)[name]) for name in made.sub_configs if vars(default).get(name) is not None}
        return made(**{name: _tiny(part) | (self.options if part is type(text) else {}) for name, part in parts.items()})


def _tiny(made: Any) -> dict[str, Any]:
    known = vars(made())
    return {name: value for name, value in _SIZES.items() if name in known and name not in made.attribute_map}


_WINDOW = {"sliding_window": 16}  # shorter than the prompts
_CALM = {"initializer_range": 0.05}  # else rounding alone changes which experts are taken, or which token is attended to
_LOCAL = {"attention_types": [[["global", "local", "global"], 1]], "window_size": 16}
_MLA = {"num_key_value_heads": 4, "head_dim": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
_SPARSE = _MLA | {"index_topk": 16, "index_n_heads": 2, "index_head_dim": 8}
SWITCH = 48  # tokens; some prompts are shorter, some longer


def _longrope(pairs: int, **more: Any) -> dict[str, Any]:
    """LongRoPE that switches its frequencies beyond SWITCH tokens; one factor for each pair of rotated values."""
    factors = {"short_factor": [1.0] * pairs, "long_factor": [8.0 + pair for pair in range(pairs)]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SWITCH, **factors, **more}
    own = {"original_max_position_embeddings": SWITCH}  # some configurations have it beside the RoPE, and believe it more
    return {"rope_parameters": rope, "max_position_embeddings": 8 * SWITCH, **own}


_DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "max_position_embeddings": SWITCH,
}

ARCHITECTURES = {
    name: Architecture(kind, special, options)
    for name, kind, special, options in [
        ("llama", "llama", "grouped-query attention", {}),
        ("llama, biases", "llama", "biased projections", {"attention_bias": True}),
        ("llama, tied", "llama", "tied embeddings", {"tie_word_embeddings": True}),
        ("afmoe", "afmoe", "gated heads, windows, mixture of experts", _WINDOW),
        ("apertus", "apertus", "QK-norm", {}),
        ("arcee", "arcee", "", {}),
        ("biogpt", "biogpt", "learned positions", {}),
        ("bitnet", "bitnet", "norm before W_O", {}),
        ("bloom", "bloom", "ALiBi", {}),
        ("codegen", "codegen", "parallel blocks", {}),
        ("cohere", "cohere", "parallel blocks", {}),
        ("cohere2", "cohere2", "windowed and full layers", _WINDOW),
        ("ctrl", "ctrl", "", {}),
        ("cwm", "cwm", "windowed and full layers", _WINDOW),
        ("deepseek_v2", "deepseek_v2", "MLA", _MLA),
        ("deepseek_v3", "deepseek_v3", "MLA, mixture of experts", _MLA),
        ("deepseek_v4", "deepseek_v4", "attends to compressed keys", {}),
        ("diffllama", "diffllama", "differential attention", {}),
        ("doge", "doge", "dynamic mask, attends to chosen keys", {"keep_window_size": 16}),
        ("dots1", "dots1", "QK-norm, mixture of experts", {}),
        ("ernie4_5", "ernie4_5", "", {}),
        ("ernie4_5_moe", "ernie4_5_moe", "mixture of experts", {}),
        ("exaone4", "exaone4", "QK-norm, windowed and full layers", _WINDOW),
        ("falcon", "falcon", "multi-query, parallel blocks", {}),
        ("falcon, ALiBi", "falcon", "ALiBi", {"alibi": True, "multi_query": False}),
        ("flex_olmo", "flex_olmo", "QK-norm, mixture of experts", {}),
        ("gemma", "gemma", "", {}),
        ("gemma2", "gemma2", "softcap, windowed and full layers", _WINDOW | {"attn_logit_softcapping": 1.0}),
        ("gemma3_text", "gemma3_text", "QK-norm, windowed and full layers", _WINDOW),
        ("gemma4_text", "gemma4_text", "windowed and full layers", _WINDOW | {"global_head_dim": 16}),
        ("glm", "glm", "partial rotary", {}),
        ("glm4", "glm4", "", {}),
        ("glm4_moe", "glm4_moe", "mixture of experts", {}),
        ("gpt2", "gpt2", "learned positions, biases, Conv1D", {}),
        ("gpt_bigcode", "gpt_bigcode", "multi-query", {}),
        ("gpt_neo", "gpt_neo", "windowed and full layers", _LOCAL),
        ("gpt_neox", "gpt_neox", "parallel blocks", {}),
        ("gpt_oss", "gpt_oss", "sinks, windowed and full layers", _WINDOW),
        ("gptj", "gptj", "parallel blocks", {}),
        ("granite", "granite", "its own scaling", {}),
        ("granite_swa", "granite_swa", "sinks that scale the output", _WINDOW),
        ("granitemoe", "granitemoe", "mixture of experts", {}),
        ("granitemoehybrid", "granitemoehybrid", "hybrid (Mamba 2)", {"layer_types": ["mamba", "attention", "attention"]}),
        ("helium", "helium", "", {}),
        ("hunyuan_v1_dense", "hunyuan_v1_dense", "QK-norm", {}),
        ("inkling_text", "inkling_text", "position bias by layer", {}),
        ("inkling2_text", "inkling2_text", "position bias, sinks by query", {}),
        ("jamba", "jamba", "hybrid (Mamba)", {"attn_layer_period": 2, "attn_layer_offset": 1}),
        ("jetmoe", "jetmoe", "mixture of attention heads", _CALM),
        ("lfm2", "lfm2", "hybrid (convolutions)", {"layer_types": ["conv", "full_attention", "full_attention"]}),
        ("llama4_text", "llama4_text", "chunked and full layers, mixture of experts", {"attention_chunk_size": 16}),
        ("mimo_v2_flash", "mimo_v2_flash", "sinks, windows", _WINDOW),
        ("minicpm3", "minicpm3", "MLA", _MLA),
        ("minimax", "minimax", "hybrid (lightning attention)", {}),
        ("mistral", "mistral", "window", _WINDOW),
        ("mixtral", "mixtral", "mixture of experts", {}),
        ("mpt", "mpt", "ALiBi", {}),
        ("nanochat", "nanochat", "QK-norm", {}),
        ("nemotron", "nemotron", "", {"num_key_value_heads": 2}),
        ("olmo", "olmo", "", {}),
        ("olmo2", "olmo2", "QK-norm", {}),
        ("olmo3", "olmo3", "QK-norm, windowed and full layers", _WINDOW),
        ("olmo_hybrid", "olmo_hybrid", "hybrid (gated delta net)", _HYBRID),
        ("olmoe", "olmoe", "QK-norm, mixture of experts", {}),
        ("openai-gpt", "openai-gpt", "learned positions, Conv1D", {}),
        ("opt", "opt", "learned positions, biases", {}),
        ("persimmon", "persimmon", "QK-norm, biases", {}),
        ("phi", "phi", "parallel blocks, biases", {}),
        ("phi3", "phi3", "fused q, k and v", {}),
        ("phimoe", "phimoe", "mixture of experts", {}),
        ("qwen2", "qwen2", "biases", {}),
        ("qwen2_moe", "qwen2_moe", "mixture of experts", {}),
        ("qwen3", "qwen3", "QK-norm", {}),
        ("qwen3_5_text", "qwen3_5_text", "hybrid, gated heads", _HYBRID),
        ("qwen3_moe", "qwen3_moe", "QK-norm, mixture of experts", {}),
        ("qwen3_next", "qwen3_next", "hybrid, gated heads", _HYBRID),
        ("recurrent_gemma", "recurrent_gemma", "hybrid (recurrent), window", {"attention_window_size": 16}),
        ("seed_oss", "seed_oss", "", {}),
        ("smollm3", "smollm3", "layers without positions", {}),
        ("stablelm", "stablelm", "partial rotary", {}),
        ("starcoder2", "starcoder2", "window, biases", _WINDOW),
        ("vaultgemma", "vaultgemma", "softcap, windows", _WINDOW | {"attn_logit_softcapping": 1.0}),
        ("xglm", "xglm", "learned positions, biases", {}),
        ("deepseek_v32", "deepseek_v32", "MLA, attends to chosen keys", _SPARSE),
        ("glm_moe_dsa", "glm_moe_dsa", "MLA, attends to chosen keys", _SPARSE),
        ("axk2", "axk2", "MLA, attends to chosen keys", _SPARSE),
        ("hy_v4", "hy_v4", "attends to chosen keys, sinks", _SPARSE),
        ("phi3, LongRoPE", "phi3", "frequencies that switch", _longrope(4)),
        ("phimoe, LongRoPE", "phimoe", "frequencies that switch", _CALM | _longrope(4, short_mscale=1.2, long_mscale=1.5)),
        ("minicpm3, LongRoPE", "minicpm3", "frequencies that switch", _MLA | _longrope(2)),
        ("llama, dynamic", "llama", "frequencies by length", _DYNAMIC),
        ("qwen2, dynamic", "qwen2", "frequencies by length", _DYNAMIC),
        ("hunyuan, dynamic", "hunyuan_v1_dense", "frequencies by length", _DYNAMIC),
        ("gemma3", "gemma3", "text and images: windowed and full layers", _WINDOW),
        ("gemma4", "gemma4", "text and images: windowed and full layers", _WINDOW | {"global_head_dim": 16}),
        ("llama4", "llama4", "text and images: chunked and full layers", {"attention_chunk_size": 16}),
        ("qwen3_5", "qwen3_5", "text and images: hybrid", _HYBRID),
        ("ministral3", "ministral3", "scaled queries", {}),
        ("axk1", "axk1", "MLA", _MLA),
        ("flint", "flint", "", {}),
        ("beam", "beam", "window", _WINDOW),
        ("hrm_text", "hrm_text", "layers that run more than once", {}),
        ("mamba", "mamba", "no attention", {}),
        ("rwkv", "rwkv", "no attention", {"attention_hidden_size": 32}),
    ]
}


@dataclass(frozen=True)
class Outcome:
    """What came of an architecture.

    refused: why, if it was. differences: the largest from eager by array, in fp32 before storage rounding. low: by dtype the
    largest total variation of a stored last-token row from eager's in fp32, and how far the sum of a row is from 1. shared:
    whether what the prompts begin with was run once. longest: tokens of the longest prompt.
    """

    way: str = ""
    shared: bool = False
    longest: int = 0
    refused: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    low: dict[str, tuple[float, float]] = field(default_factory=dict)

    def worst(self, ending: str) -> float | None:
        """The largest difference of the arrays of an ending; None where there are none."""
        return max((value for name, value in self.differences.items() if name.endswith(ending)), default=None)

    def line(self, name: str) -> str:
        """The architecture's line of the table."""
        special = ARCHITECTURES[name].special
        if self.refused:
            return f"| {name} | {special} | refused | | | | | | |"
        numbers = [self.worst(ending) for ending in ("attention", "output_norm", "result_norm")]
        shown = ["–" if number is None else f"{number:.0e}" for number in numbers]
        shown += [f"{self.low[dtype][0]:.3f}" if dtype in self.low else "" for dtype in DTYPES]
        return f"| {name} | {special} | {self.way} | {'yes' if self.shared else 'no'} | {' | '.join(shown)} |"


def outcome(name: str, folder: Path, dtypes: tuple[str, ...] = DTYPES) -> Outcome:
    """Build the architecture's model in `folder`, capture it there, and compare; the dtypes only where it is recorded."""
    model = tiny.save(tiny.build(ARCHITECTURES[name].config()), folder / "model")
    with stored_in_full():
        refused = _capture(model, folder / "fp32", "fp32")
        if refused:
            return Outcome(refused=refused)
        longest = max(len(ids) for ids, _ in stored_samples(folder / "fp32"))
        eager = EagerModel(model, fresh=True)
        differences = largest_differences(folder / "fp32", eager)
    metadata = open_cache(folder / "fp32").metadata
    way = metadata["attention"]["way"]
    low = {}
    for dtype in dtypes if way == "recorded" else ():
        refused = _capture(model, folder / dtype, dtype)
        assert not refused, (name, dtype, refused)
        assert open_cache(folder / dtype).metadata["attention"]["way"] == way, (name, dtype)
        low[dtype] = _rows_beside(folder / dtype, eager)
        assert low[dtype][0] <= TOLERANCES[dtype][0] and low[dtype][1] <= MOST_SUM, (name, dtype, low[dtype])
    return Outcome(way, metadata["self_check"]["shared_prefixes"], longest, "", differences, low)


def _capture(model: Path, out: Path, dtype: str) -> str:
    """Run `headscore capture`; the last line of what it says where it fails."""
    command = ["headscore", "capture", "--model", model, "--out", out, "--dtype", dtype, "--data", tiny.LLM_ADAPTERS]
    command += ["--queries", "all_tokens", "--max-samples", SAMPLES, "--shard-size", "4"]
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(part) for part in command])
        patch.setattr("sys.stderr.write", said.append, raising=False)
        try:
            cli.main()
        except SystemExit as end:
            return "".join(said).strip().splitlines()[-1] if end.code else ""
    return ""


@contextlib.contextmanager
def stored_in_full() -> Iterator[None]:
    """Pattern rows are stored in float32 here, so that what is measured is not the rounding of the file format."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "PATTERN_DTYPE", torch.float32)
        for name, (_, axes) in ARRAYS.items():
            if name.endswith("attention"):
                patch.setitem(ARRAYS, name, ("float32", axes))
        yield


def _rows_beside(cache: Path, eager: EagerModel) -> tuple[float, float]:
    """Of stored last-token rows, the largest total variation from eager's, and the largest difference of their sums."""
    variation = sums = 0.0
    for ids, arrays in stored_samples(cache):
        expected = eager(ids).patterns[:, :, -1]
        found = arrays["last_token/attention"].astype(np.float64)
        variation = max(variation, float(np.abs(found - expected).sum(-1).max()) / 2)
        if open_cache(cache).metadata["attention"]["full_rows"]:
            sums = max(sums, float(np.abs(found.sum(-1) - 1).max()))
    return variation, sums


HEADER = """# Architectures

What `headscore capture` does with tiny random models of {count} architectures: each was saved as a folder with a tokenizer,
captured by the command line over {samples} questions of up to {longest} tokens, of which the first 119 are the same, and held
against the model's own eager attention, one sample at a time and unpadded. `python tests/architectures.py` makes this page
({machine}, torch {torch}, transformers {transformers}).

- **way**: *recorded* by the attention function, at the speed of SDPA; *eager*: the model's own eager attention, for
  architectures that do not go through transformers' attention interface, or whose self-check fails otherwise; *refused*: no
  cache is made, and the error says why.
- **shared**: whether what the prompts have in common at their start is run once. Models with recurrent layers, or with a
  kv_cache of their own kind, cannot continue from a prefix; the self-check finds that, and each prompt is run whole. The same
  goes for models in which what a pass computes depends on its length (dynamic NTK, chosen keys).
- **rows, z, result**: the largest difference from eager in fp32, before pattern rows are rounded to half precision for the
  file: of any attention weight (last token and mean over all tokens), and the relative difference of the norms of z and of
  W_O z.
  "–": the output projection cannot be split by heads, so the cache has no result norms (`--head-output result` says so).
- **bf16, fp16**: the largest total variation (½ Σ|a − b|) of a stored last-token row of the model run in that precision from
  the fp32 eager row; it is what the precision does to a random model; not measured where the way is *eager*. Every stored row
  sums to 1 within {sums:.1e}, except in models with sinks.

| architecture | special | way | shared | rows | z | result | bf16 | fp16 |
|---|---|---|---|---|---|---|---|---|
"""


LENGTHS = (3, 15, 16, 17, 33, 47, SWITCH, 49, 70, 96)  # on both sides of 16, and of the switch at 48
SHARED = 40  # tokens that some prompts have in common at their start


def prompts() -> list[str]:
    """Texts of as many tokens as LENGTHS says, the first being <s>; half of those that are long enough begin alike."""
    words = ["is", " question", " the", " answer", " of", " a", " to", " what", " in", " and"]
    ids = tiny.tokenizer()(words, add_special_tokens=False)["input_ids"]
    single = [word for word, found in zip(words, ids, strict=True) if len(found) == 1 and word != "is"]
    draw = np.random.default_rng(5)
    common = draw.choice(single, SHARED).tolist()
    texts = []
    for number, length in enumerate(LENGTHS):
        start = common[: length - 2] if number % 2 else []
        texts.append("".join([*start, *draw.choice(single, length - 1 - len(start)).tolist()]))
    return texts


def main() -> None:
    """Go through the architectures that are named, or all of them and write the page."""
    named = sys.argv[1:]
    outcomes: dict[str, Outcome] = {}
    for name in named or ARCHITECTURES:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = outcomes[name] = outcome(name, Path(folder))
        print(found.line(name), found.refused, f"{time.monotonic() - started:.0f} s", flush=True)
    if named:
        return
    sums = max(sum_error for found in outcomes.values() for _, sum_error in found.low.values())
    longest = max(found.longest for found in outcomes.values())
    head = HEADER.format(
        count=len({a.kind for a in ARCHITECTURES.values()}), samples=SAMPLES, longest=longest, sums=sums,
        machine=f"{platform.system()}, CPU", torch=torch.__version__, transformers=transformers.__version__,
    )  # fmt: skip
    refused = [f"- {name}: {found.refused}" for name, found in outcomes.items() if found.refused]
    lines = [found.line(name) for name, found in outcomes.items()]
    DOCS.write_text(head + "\n".join(lines) + "\n\nRefused, in headscore's words:\n\n" + "\n".join(refused) + "\n")


if __name__ == "__main__":
    main()
