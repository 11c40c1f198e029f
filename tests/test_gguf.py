"""GGUF files of several quantisations, written here from a tiny llama: what is captured is what the file's own values give."""

from pathlib import Path

import pytest
import tiny
import torch
from eager import EagerModel
from gguf import GGMLQuantizationType as Kind
from gguf_files import SIZES, write_gguf
from parity import assert_parity
from transformers import LlamaConfig

import headscore
from headscore.capture.model.gguf import converted


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
