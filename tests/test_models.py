"""What a folder says about its model must not decide what headscore does with it, and what is wrong with it is named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from eager import EagerModel
from parity import arrays_of, assert_parity, assert_same
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, LlavaConfig, Mistral3Config, Qwen2_5_VLConfig

import headscore
from headscore.capture.model import models
from headscore.capture.model.sources import resolve
from headscore.data.cache.folder import open_cache
from headscore.data.errors import InputError


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flash_attention_3", "flex_attention", "kernels-community/flash-attn2", "x"]
)
def test_the_attention_that_a_configuration_asks_for_is_not_needed(key: str, name: str, llama: Path, tmp_path: Path) -> None:
    folder = edit(tiny.save(tiny.build(tiny.CONFIGS["llama"]()), tmp_path / "m"), **{key: name})
    headscore.capture(tmp_path / "c", model=str(folder), max_samples=4)
    headscore.capture(tmp_path / "plain", model=str(llama), max_samples=4)
    assert_same(arrays_of(tmp_path / "c"), arrays_of(tmp_path / "plain"), exactly=True)
    found, wanted = (open_cache(tmp_path / name).metadata for name in ("c", "plain"))
    assert found["attention"] == wanted["attention"] and found["model"]["fingerprint"] == wanted["model"]["fingerprint"]


@pytest.mark.parametrize("given", [{"_attn_implementation": "eager", "output_attentions": True}, {"output_attentions": True}])
def test_a_configuration_may_ask_for_patterns(given: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.save(tiny.build(tiny.CONFIGS["llama"]()), tmp_path / "m")
    headscore.capture(tmp_path / "c", model=str(edit(folder, **given)), max_samples=4, queries="all_tokens")
    assert_parity(tmp_path / "c", EagerModel(edit(folder, output_attentions=False)))


def test_the_parts_of_a_configuration_may_ask_for_one_too(tmp_path: Path) -> None:
    sizes = tiny.LLAMA_SIZES | {"sliding_window": 16}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = Gemma3Config(text_config=sizes, vision_config=small | {"patch_size": 14}, mm_tokens_per_image=4)
    folder = tiny.save(tiny.build(config), tmp_path / "m")
    told = json.loads((folder / "config.json").read_text())
    parts = {name: told[name] | {"_attn_implementation": "flash_attention_2"} for name in ("text_config", "vision_config")}
    headscore.capture(tmp_path / "c", model=str(edit(folder, _attn_implementation="flash_attention_2", **parts)), max_samples=4)
    assert open_cache(tmp_path / "c").metadata["attention"]["way"] == "recorded"


@pytest.mark.parametrize("config", [LlavaConfig, Mistral3Config, Qwen2_5_VLConfig], ids=lambda config: config.model_type)
def test_a_vision_language_model_is_called_one(config: Any, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    message = f"{config.model_type} is a vision-language model, not a causal language model"
    with pytest.raises(InputError, match=message):
        headscore.capture(tmp_path / "c", model=str(tmp_path / "m"), max_samples=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_weight_that_is_not_finite_is_named(value: float, llama: Path, tmp_path: Path) -> None:
    folder = tiny.save(tiny.build(tiny.CONFIGS["llama"]()), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.2.mlp.up_proj.weight"):
        weights[name][3, 5] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load = lambda folder: models.load_model(resolve(str(folder)), "fp32", torch.device("cpu"))  # noqa: E731
    assert models.first_not_finite(load(folder)) == "layers.1.self_attn.k_proj.weight"
    assert models.first_not_finite(load(llama)) is None


def test_a_mask_that_a_model_keeps_is_no_fault(llama: Path) -> None:
    model = models.load_model(resolve(str(llama)), "fp32", torch.device("cpu"))
    model.register_buffer("mask", torch.full((3, 3), -float("inf")))
    assert models.first_not_finite(model) is None
    model.register_buffer("bias", torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))
    assert models.first_not_finite(model) == "bias"


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_where_the_default_model_cannot_be_kept_it_says_where_and_what_moves_it(variable: str, tmp_path: Path) -> None:
    """A file in place of the folder stops root, too."""
    (tmp_path / "home").write_text("")
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-m", "headscore", "capture", "--out", str(tmp_path / "c"), "--max-samples", "3"]
    done = subprocess.run(command, env={**kept, variable: str(tmp_path / "home")}, capture_output=True, text=True)
    told = done.stderr.strip()
    assert done.returncode == 2 and "\n" not in told, told
    assert f" is kept as safetensors in {tmp_path / 'home'}" in told and told.endswith(
        "set XDG_CACHE_HOME to a folder that can"
    )


@pytest.mark.parametrize("name", ["revision", "adapter_kwargs", "attn_implementation"])
def test_what_has_an_option_of_its_own_is_no_model_argument(name: str, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"model_kwargs: {name} is "):
        headscore.capture(tmp_path / "c", model=str(llama), model_kwargs={name: "x"})
