"""GGUF files of several quantisations, written here from a tiny llama: what is captured is what the file's own values give."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import torch
from eager import EagerModel
from gguf import GGMLQuantizationType as Kind
from parity import assert_parity
from transformers import LlamaConfig, PreTrainedModel

import headscore
from headscore.capture.model.gguf import converted

SIZES = tiny.LLAMA_SIZES | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # blocks are 32 values long

NAMES = {  # llama.cpp's names of a layer's tensors
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """q and k as llama.cpp keeps them: the two halves of each head's rotary dims interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: PreTrainedModel, path: Path, kind: Kind) -> None:
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    bpe = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().astype(np.float32)
        if name.startswith("model.layers."):
            _, _, layer, *part, _ = name.split(".")
            stored = f"blk.{layer}.{NAMES['.'.join(part)]}.weight"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stored.split(".")[2])
            values = permuted(values, heads) if heads else values
        else:
            stored = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                name[:-7]
            ] + ".weight"
        if values.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("kind", "off"), [(Kind.F32, 0.0), (Kind.F16, 1e-3), (Kind.Q8_0, 0.01), (Kind.Q5_1, 0.1), (Kind.Q4_0, 0.2)]
)
def test_a_gguf_file_is_captured_with_the_weights_that_its_quantisation_left(
    kind: Kind, off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    model = tiny.build(LlamaConfig(**SIZES))
    write_gguf(model, tmp_path / "tiny.gguf", kind)
    headscore.capture(tmp_path / "c", model=str(tmp_path / "tiny.gguf"), max_samples=4, queries="all_tokens")
    eager = EagerModel(converted(tmp_path / "tiny.gguf"))
    assert_parity(tmp_path / "c", eager)
    wanted, found = model.state_dict(), eager.model.state_dict()
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.2.self_attn.o_proj.weight"):
        difference = (found[name] - wanted[name]).abs().max() / wanted[name].abs().max()
        assert difference <= off, (name, difference)
        assert (difference == 0) == (kind == Kind.F32)
    assert torch.equal(found["model.norm.weight"], wanted["model.norm.weight"])
