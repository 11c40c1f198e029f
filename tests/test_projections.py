"""What a cache says about the model's shape and modules is so: whoever changes what it names changes what it says."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from cli_runs import Cli
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconConfig, PreTrainedConfig, PreTrainedModel

import headscore
from headscore.data.cache.folder import open_cache
from headscore.data.cache.metadata import identity

KINDS: dict[str, PreTrainedConfig] = {name: architecture.config() for name, architecture in ARCHITECTURES.items()} | {
    "falcon, groups": FalconConfig(**tiny.SIZES, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                   new_decoder_architecture=True, num_kv_heads=2),
}  # fmt: skip
MORE_THAN_VALUES = ("qwen3_next", "mimo_v2_flash")  # gates that the query projection makes too, and sinks
# By architecture: kv_heads, head_dim, and the names of the projections of the first layer with attention, in their module.
EXPECTED: dict[str, tuple[int | None, int | None, list[str | None]]] = {
    "llama": (2, 8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "gpt2": (4, 8, ["c_attn", "c_attn", "c_attn", "c_proj"]),
    "phi3": (2, 8, ["qkv_proj", "qkv_proj", "qkv_proj", "o_proj"]),
    "gpt_neox": (4, 8, ["query_key_value", "query_key_value", "query_key_value", "dense"]),
    "gpt_bigcode": (1, 8, ["c_attn", "c_attn", "c_attn", "c_proj"]),
    "falcon": (1, 8, ["query_key_value", "query_key_value", "query_key_value", "dense"]),
    "falcon, ALiBi": (4, 8, ["query_key_value", "query_key_value", "query_key_value", "dense"]),
    "falcon, groups": (2, 8, ["query_key_value", "query_key_value", "query_key_value", "dense"]),
    "opt": (4, 8, ["q_proj", "k_proj", "v_proj", "out_proj"]),
    "mpt": (4, 8, ["Wqkv", "Wqkv", "Wqkv", "out_proj"]),
    "granitemoehybrid": (2, 8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "qwen3_next": (2, 8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "deepseek_v3": (4, 6, ["q_b_proj", "kv_b_proj", "kv_b_proj", "o_proj"]),
    "deepseek_v32": (4, 6, ["q_b_proj", "kv_b_proj", "kv_b_proj", "o_proj"]),
    "mimo_v2_flash": (None, 6, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "gemma4_text": (2, None, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "gemma3": (2, 8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "llama4": (2, 8, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "jetmoe": (4, 128, [None, "kv_proj", "kv_proj", None]),
}


Captured = tuple[str, Path, dict[str, Any]]


@pytest.fixture(scope="module", params=EXPECTED)
def captured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """An architecture's name, its tiny model, and what a cache of it says."""
    folder = tmp_path_factory.mktemp("projections")
    model = tiny.save(tiny.build(KINDS[request.param]), folder / "model")
    headscore.capture(folder / "c", model=str(model), max_samples=2, share_prefixes=False, spot_checks=False)
    yield request.param, model, open_cache(folder / "c").metadata
    shutil.rmtree(folder)


def loaded(model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()


def entering(whole: PreTrainedModel, paths: list[str], heads: int) -> list[Tensor]:
    """What enters each of the modules for a prompt, by head: [H,T,D]."""
    entered: list[Tensor] = []
    keep = lambda _, inputs: entered.append(inputs[0][0].unflatten(-1, (heads, -1)).transpose(0, 1).clone())  # noqa: E731
    hooks = [whole.get_submodule(path).register_forward_pre_hook(keep) for path in paths]
    with torch.inference_mode():
        whole(input_ids=torch.arange(2, 30)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return entered


def silence(module: nn.Module, rows: slice = slice(None)) -> None:
    for parameter in module.parameters():
        parameter.data[rows] = 0


def test_the_cache_says_what_the_model_has(captured: Captured) -> None:
    name, _, metadata = captured
    kv_heads, head_dim, names = EXPECTED[name]
    dims, first = metadata["dims"], metadata["projections"][0]
    assert dims.get("kv_heads") == kv_heads and dims.get("head_dim") == head_dim and dims["hidden_size"] == 32
    assert [path and path.rpartition(".")[2] for path in first.values()] == names
    assert list(first) == ["query", "key", "value", "output"] and len(metadata["projections"]) == len(metadata["layers"])


def test_paths_are_those_of_the_whole_model(captured: Captured) -> None:
    _, model, metadata = captured
    whole, dims = loaded(model), metadata["dims"]
    names = set(whole.state_dict())
    for layer, paths in zip(metadata["layers"], metadata["projections"], strict=True):
        for part, path in paths.items():
            if path is None:
                continue
            assert f"{path}.weight" in names and f".{layer}." in path, path
            weight = whole.get_submodule(path).weight
            if part == "output" and "head_dim" in dims:
                shape = (dims["hidden_size"], dims["heads"] * dims["head_dim"])
                assert tuple(weight.shape) in (shape, shape[::-1])


def test_each_path_leads_to_what_it_is_called(captured: Captured) -> None:
    """Without its values a layer's z is 0; without queries or keys all that a token sees counts the same, so z is another."""
    name, model, metadata = captured
    if name == "jetmoe":
        pytest.skip("nothing takes the z of all heads")
    heads, projections = metadata["dims"]["heads"], metadata["projections"]
    outputs = [paths["output"] for paths in projections]
    right = entering(loaded(model), outputs, heads)
    for part in ("query", "key", "value"):
        whole = loaded(model)
        silence(whole.get_submodule(projections[-1][part]))  # the last layer's, so that the others stay
        found = entering(whole, outputs, heads)
        for before, after in zip(right[:-1], found[:-1], strict=True):
            torch.testing.assert_close(before, after)
        fused = projections[-1][part] == projections[-1]["value"]
        assert bool((found[-1] == 0).all()) == fused, part
        assert not torch.allclose(found[-1][:, 1:], right[-1][:, 1:], atol=1e-5), part
        if name not in MORE_THAN_VALUES:  # the first token sees itself alone
            torch.testing.assert_close(found[-1][:, 0], right[-1][:, 0] * (not fused))


@pytest.mark.parametrize("name", ["llama", "granitemoehybrid", "phi", "starcoder2"])
def test_heads_share_the_values_of_their_kv_head_and_no_others(name: str, tmp_path: Path) -> None:
    model = tiny.save(tiny.build(KINDS[name]), tmp_path / "model")
    headscore.capture(tmp_path / "c", model=str(model), max_samples=2)
    metadata = open_cache(tmp_path / "c").metadata
    heads, kv_heads, width = (metadata["dims"][key] for key in ("heads", "kv_heads", "head_dim"))
    last = metadata["projections"][-1]
    assert 1 < kv_heads < heads
    for group in range(kv_heads):
        whole = loaded(model)
        silence(whole.get_submodule(last["value"]), slice(group * width, (group + 1) * width))
        silent = (entering(whole, [last["output"]], heads)[0] == 0).all(-1).all(-1)
        assert silent.tolist() == [head * kv_heads // heads == group for head in range(heads)]


def test_an_adapter_changes_no_path(llama: Path, tmp_path: Path) -> None:
    adapters = pytest.importorskip("adapters")
    adapter = adapters.save(tmp_path / "lora", llama)
    headscore.capture(tmp_path / "c", model=str(llama), adapter=str(adapter), max_samples=2)
    first = open_cache(tmp_path / "c").metadata["projections"][0]
    assert first == {part: f"model.layers.0.self_attn.{part[0]}_proj" for part in ("query", "key", "value", "output")}


def test_they_decide_nothing_and_need_not_be_there(cache: Path, tmp_path: Path, run_cli: Cli) -> None:
    """As in a cache that is older than they are."""
    copy = shutil.copytree(cache, tmp_path / "copy")
    metadata = json.loads((copy / "cache.json").read_text())
    assert json.loads(run_cli("inspect", cache, "--json")[1])["projections"] == metadata["projections"]
    assert "3 layers of 4 heads, 2 kv heads, head dim 8\n" in run_cli("inspect", cache)[1]
    older = {key: value for key, value in metadata.items() if key != "projections"} | {"dims": {"layers": 3, "heads": 4}}
    assert identity(older) == identity(metadata)
    (copy / "cache.json").write_text(json.dumps(older))
    assert headscore.inspect(copy, verify=True)["damaged"] == []
    status, shown, _ = run_cli("inspect", copy)
    assert status == 0 and "3 layers of 4 heads\n" in shown
    assert headscore.inspect(copy)["projections"] is None
