"""Adapters: what is captured is what the adapted model attends to, and nothing of an adapter is left out unsaid."""

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapters
import peft
import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from eager import EagerModel
from parity import arrays_of, assert_parity, assert_same
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

import headscore
from headscore.capture.model import models
from headscore.capture.model.sources import resolve
from headscore.data.cache.folder import open_cache
from headscore.data.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters.save(tmp_path_factory.mktemp("lora"), llama)


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


@pytest.fixture
def beside(llama: Path, adapter: Path, tmp_path: Path) -> Path:
    """A folder with a model's weights and an adapter."""
    folder = Path(shutil.copytree(llama, tmp_path / "beside"))
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    return folder


def captured(out: Path, **options: Any) -> Path:
    headscore.capture(out, **{"max_samples": 6, "queries": "all_tokens"} | options)
    return out


def model_of(cache: Path) -> dict[str, Any]:
    return dict(open_cache(cache).metadata["model"])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------------------------------------------------- right numbers

KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LoRA": adapters.lora,
    "LoRA of all": lambda: adapters.lora(target_modules="all-linear", bias="all"),
    "rsLoRA": lambda: adapters.lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
    "DoRA": lambda: adapters.lora(use_dora=True),
    "PiSSA": lambda: adapters.lora(init_lora_weights="pissa"),
    "whole modules": lambda: adapters.lora(modules_to_save=["embed_tokens", "norm"]),
    "LoRA of embeddings": lambda: adapters.lora(target_modules=["embed_tokens", "k_proj"]),
    "tokens": lambda: adapters.lora(trainable_token_indices={"embed_tokens": [5, 40]}),
    "some layers": lambda: adapters.lora(layers_to_transform=[1]),
    "AdaLoRA": lambda: peft.AdaLoraConfig(total_step=10, init_r=4, target_r=2, target_modules=adapters.TARGETS),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=adapters.TARGETS),
    "LoKr": lambda: peft.LoKrConfig(r=2, target_modules=adapters.TARGETS),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "VeRA": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "VB-LoRA": lambda: peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=4, topk=2, target_modules=["q_proj", "v_proj"]),
    "norms": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM"),
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=["q_proj"]),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=20, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_capture_is_that_of_the_adapted_model(kind: str, llama: Path, llama_eager: EagerModel, tmp_path: Path) -> None:
    adapter = adapters.save(tmp_path / "adapter", llama, KINDS[kind](), size=0.1)
    ids = torch.arange(3, 43)[None]
    loaded = models.load_model(resolve(str(llama), adapter=str(adapter)), "fp32", CPU)
    loaded.set_attn_implementation("eager")
    with torch.inference_mode():
        found = torch.stack(loaded(ids, output_attentions=True).attentions)
        for wanted in (adapters.merged(llama, adapter), adapters.unmerged(llama, adapter)):
            expected = torch.stack(wanted(ids, output_attentions=True).attentions)
            assert float((found - expected).abs().sum(-1).max() / 2) <= 1e-5
        plain = torch.stack(llama_eager.model(ids, output_attentions=True).attentions)
    assert float((found - plain).abs().sum(-1).max() / 2) > 0.01, "the adapter says something"


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_what_is_stored_is_what_the_adapted_model_gives(name: str, tmp_path: Path) -> None:
    base = tiny.save(tiny.build(tiny.CONFIGS[name]()), tmp_path / "base")
    adapter = adapters.save(tmp_path / "adapter", base, adapters.lora(target_modules="all-linear"), size=0.1)
    cache = captured(tmp_path / "c", model=str(base), adapter=str(adapter))
    assert_parity(cache, EagerModel(adapters.merged(base, adapter)))
    assert max(open_cache(cache).metadata["self_check"]["largest_difference"].values()) < 1e-3
    with pytest.raises(AssertionError):
        assert_parity(cache, EagerModel(base))


def test_every_way_to_name_an_adapter_gives_the_same_bits(
    llama: Path, adapter: Path, copy: Path, beside: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wanted = captured(tmp_path / "given", model=str(llama), adapter=str(adapter))
    ways: dict[str, dict[str, str]] = {
        "elsewhere": {"model": str(llama), "adapter": str(copy)},
        "alone": {"model": str(adapter)},
        "beside": {"model": str(beside)},
        "twice": {"model": str(beside), "adapter": str(beside)},
    }
    for name, options in ways.items():
        found = captured(tmp_path / f"cache_{name}", **options)
        assert_same(arrays_of(wanted), arrays_of(found), exactly=True)
        for key in ("fingerprint", "tokenizer_fingerprint"):
            assert model_of(found)[key] == model_of(wanted)[key]
    assert f"--model {adapter}: is an adapter; it is merged into its base, {llama}" in caplog.text
    assert f"--model {beside}: the adapter beside its weights is merged into them" in caplog.text


def test_the_cache_says_which_adapter(llama: Path, adapter: Path, beside: Path, tmp_path: Path) -> None:
    given = model_of(captured(tmp_path / "given", model=str(llama), adapter=str(adapter)))
    assert given["name"] == str(llama) and given["revision"] is None and given["commit"] is None
    assert given["adapter"] == {"name": str(adapter), "type": "LORA", "base": None, "sha256": given["adapter"]["sha256"]}
    alone = model_of(captured(tmp_path / "alone", model=str(adapter)))
    assert (alone["name"], alone["adapter"]["base"]) == (str(adapter), str(llama))
    assert len(alone["adapter"]["sha256"]) == 64 and alone["adapter"]["sha256"] == given["adapter"]["sha256"]
    assert model_of(captured(tmp_path / "plain", model=str(llama)))["adapter"] is None
    assert f"model     {llama} with the LORA adapter {adapter} (llama" in report(tmp_path / "given")
    assert f"model     {adapter} with the LORA adapter of {llama} (llama" in report(tmp_path / "alone")


def report(cache: Path) -> str:
    from headscore.data.cache.inspection import facts_text

    return facts_text(headscore.inspect(cache))


def test_no_change_of_an_adapter_is_too_small_for_the_fingerprint(llama: Path, adapter: Path, tmp_path: Path) -> None:
    """The model's own fingerprint looks at some values of each parameter only."""
    prints = {model_of(captured(tmp_path / "base", model=str(llama)))["fingerprint"]}
    weights = load_file(adapter / "adapter_model.safetensors")
    for size in (0.0, 1e-12):
        folder = Path(shutil.copytree(adapter, tmp_path / f"adapter{size}"))
        small = {name: size * values for name, values in weights.items()}
        small[sorted(small)[0]][0, 0] += size
        save_file(small, folder / "adapter_model.safetensors", {"format": "pt"})
        prints.add(model_of(captured(tmp_path / f"c{size}", model=str(llama), adapter=str(folder)))["fingerprint"])
    assert len(prints) == 3


def test_a_capture_of_an_adapter_does_not_go_on_in_the_cache_of_its_base(llama: Path, adapter: Path, tmp_path: Path) -> None:
    captured(tmp_path / "c", model=str(llama))
    with pytest.raises(InputError, match="holds another capture: model was"):
        captured(tmp_path / "c", model=str(llama), adapter=str(adapter))


TIED: list[dict[str, Any]] = [
    {"target_modules": ["lm_head"]},
    {"target_modules": ["lm_head", "embed_tokens"]},
    {"target_modules": ["lm_head"], "ensure_weight_tying": True},
    {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    {"modules_to_save": ["lm_head"]},
]


@pytest.mark.parametrize("options", TIED)
def test_what_is_merged_into_a_tied_head_leaves_the_embeddings_alone(options: dict[str, Any], tmp_path: Path) -> None:
    config = LlamaConfig(**tiny.LLAMA_SIZES, tie_word_embeddings=True)
    model = tiny.save(tiny.build(config), tmp_path / "model")
    adapter = adapters.save(tmp_path / "adapter", model, adapters.lora(**options))
    captured(tmp_path / "c", model=str(model), adapter=str(adapter))
    assert_parity(tmp_path / "c", EagerModel(adapters.unmerged(model, adapter)))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_an_adapter_is_merged_in_the_dtype_of_the_capture(dtype: str, llama: Path, tmp_path: Path) -> None:
    adapter = adapters.save(tmp_path / "adapter", llama, adapters.lora(modules_to_save=["embed_tokens", "norm"]))
    model = models.load_model(resolve(str(llama), adapter=str(adapter)), dtype, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {models.DTYPES[dtype]}
    plain = models.load_model(resolve(str(llama)), dtype, CPU)
    assert {n: b.dtype for n, b in model.named_buffers()} == {n: b.dtype for n, b in plain.named_buffers()}
    captured(tmp_path / "c", model=str(llama), adapter=str(adapter), dtype=dtype)


@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens", "q_proj"]])
def test_tokens_that_were_added_before_training_are_captured(targets: list[str], llama: Path, tmp_path: Path) -> None:
    model, tokenizer = adapters.base(llama), tiny.tokenizer()
    tokenizer = type(tokenizer).from_pretrained(llama)
    tokenizer.add_tokens([" which", " the"])
    model.resize_token_embeddings(len(tokenizer))
    whole = [] if "embed_tokens" in targets else ["embed_tokens", "lm_head"]
    adapted = adapters.trained(model, adapters.lora(target_modules=targets, modules_to_save=whole))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    cache = captured(tmp_path / "c", model=str(llama), adapter=str(tmp_path / "adapter"))
    assert max(arrays_of(cache)["tokens/id"]) >= 600, "tokens that the base has not"
    wanted = adapted.merge_and_unload()
    wanted.set_attn_implementation("eager")
    assert_parity(cache, EagerModel(wanted))


def test_tokens_that_were_added_to_a_tied_head_are_captured(tmp_path: Path) -> None:
    """The file then has the head's weights alone, which are the embeddings too."""
    folder = tiny.save(tiny.build(ARCHITECTURES["llama, tied"].config()), tmp_path / "model")
    model = adapters.base(folder)
    model.resize_token_embeddings(610)
    adapted = adapters.trained(model, adapters.lora(target_modules=["lm_head", "up_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    cache = captured(tmp_path / "c", model=str(folder), adapter=str(tmp_path / "adapter"))
    plain = adapters.base(folder)
    plain.resize_token_embeddings(610)
    whole = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval().get_base_model()
    whole.set_attn_implementation("eager")
    assert_parity(cache, EagerModel(whole))


def test_a_base_of_a_relative_path_is_found_from_here(
    llama: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llama, tmp_path / "here" / "base")
    edit(copy / "adapter_config.json", base_model_name_or_path="here/base")
    monkeypatch.chdir(tmp_path)
    captured(tmp_path / "c", model=str(copy))
    assert model_of(tmp_path / "c")["adapter"]["base"] == "here/base"


# -------------------------------------------------------------------------------------------------------- what is refused


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def change_weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    path = "adapter_model.safetensors"
    return lambda folder: save_file(change(load_file(folder / path)), folder / path, {"format": "pt"})


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "adapter_config.json", **changes)


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def only_checkpoints(folder: Path) -> None:
    for step in (50, 1000, 200):
        shutil.copytree(folder, folder.with_name("trainer") / f"checkpoint-{step}")
    shutil.rmtree(folder)
    folder.with_name("trainer").rename(folder)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (without("adapter_model.safetensors"), "has no adapter_model.safetensors"),
    "pickled weights": (pickled, "adapter_model.bin is pickled, which may run code: save it as safetensors"),
    "weights cut short": (lambda folder: os_truncate(folder / "adapter_model.safetensors"), "cannot be read: SafetensorError"),
    "no configuration": (without("adapter_config.json"), "is not an adapter folder: it has no adapter_config.json"),
    "not JSON": (written("adapter_config.json", "{"), "its adapter_config.json cannot be read: JSONDecodeError"),
    "deep JSON": (written("adapter_config.json", "[" * 100_000), "cannot be read: ValueError: it is nested too deeply"),
    "no object": (written("adapter_config.json", "[1]"), "its adapter_config.json holds no JSON object"),
    "no kind": (configured(peft_type=None), "has a peft_type that peft"),
    "unknown kind": (configured(peft_type="MAGIC"), "does not know: 'MAGIC'"),
    "kind a list": (configured(peft_type=["LORA"]), "does not know: ['LORA']"),
    "wrong types": (configured(target_modules=7), "cannot be merged into the model"),
    "unknown task": (configured(task_type="DANCE"), "its adapter_config.json cannot be read: ValueError: Invalid task type"),
    "layers replicated": (configured(layer_replication=[[0, 2], [1, 3]]), "replicates layers of its base"),
    "Megatron": (configured(megatron_config={"a": 1}, megatron_core="this"), "is an adapter for Megatron's layers"),
    "modules of another model": (configured(target_modules=["c_attn"]), "Target modules {'c_attn'} not found"),
    "another rank": (configured(r=8), "cannot be merged into the model: RuntimeError: Error(s) in loading"),
    "a layer missing": (
        change_weights(lambda weights: {name: v for name, v in weights.items() if ".layers.1." not in name}),
        "6 of its weights are not in adapter_model.safetensors, such as base_model.model.model.layers.1.",
    ),
    "a layer too many": (
        change_weights(lambda weights: weights | {n.replace(".2.", ".3."): v + 0 for n, v in weights.items() if ".2." in n}),
        "6 of its weights have no place in the model, such as base_model.model.model.layers.3.",
    ),
    "whole modules missing": (configured(modules_to_save=["norm"]), "its files lack the weights"),
    "its tokenizer broken": (written("tokenizer_config.json", "["), "its tokenizer cannot be loaded"),
    "only checkpoints": (only_checkpoints, "checkpoint-1000, "),
}  # fmt: skip


def os_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_told_in_one_line(name: str, llama: Path, copy: Path, tmp_path: Path) -> None:
    break_it, message = BROKEN[name]
    break_it(copy)
    with pytest.raises(InputError) as raised:
        captured(tmp_path / "c", model=str(llama), adapter=str(copy))
    told = str(raised.value)
    assert told.startswith(f"adapter {copy}: ") and message in told, told
    assert "\n" not in told and len(told) < 600
    assert not (tmp_path / "c" / "shards").exists()


PROMPTS: dict[str, Callable[[], peft.PeftConfig]] = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "P_TUNING": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_adapters_that_are_no_weights_are_refused_by_name(kind: str, llama: Path, tmp_path: Path) -> None:
    adapter = adapters.save(tmp_path / "adapter", llama, PROMPTS[kind]())
    with pytest.raises(InputError, match=f"is a {kind} adapter, which is no change of weights and cannot be merged"):
        captured(tmp_path / "c", model=str(llama), adapter=str(adapter))


def test_adapters_that_act_on_some_tokens_only_are_refused(llama: Path, tmp_path: Path) -> None:
    adapter = adapters.save(tmp_path / "adapter", llama, adapters.lora(alora_invocation_tokens=[5, 6]))
    with pytest.raises(
        InputError, match="cannot be merged into the model: NotImplementedError: aLoRA does not support merging"
    ):
        captured(tmp_path / "c", model=str(llama), adapter=str(adapter))


def test_an_adapter_of_a_model_of_another_size_is_refused(llama: Path, adapter: Path, tmp_path: Path) -> None:
    other = tiny.save(tiny.build(tiny.CONFIGS["llama"]().__class__(**tiny.LLAMA_SIZES | {"hidden_size": 32})), tmp_path / "m")
    with pytest.raises(InputError, match="size mismatch for base_model"):
        captured(tmp_path / "c", model=str(other), adapter=str(adapter))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "is an adapter that does not say of which model; "),
        ("", "is an adapter that does not say of which model; "),
        ("/nowhere/at/all", "is an adapter, and its base /nowhere/at/all: no such model"),
        ("no-such/model", "is an adapter, and its base no-such/model: there is no such folder, and the hub's cache"),
    ],
)
def test_where_the_base_is_not_found_it_says_what_to_give(base: str | None, message: str, copy: Path, tmp_path: Path) -> None:
    edit(copy / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(InputError) as raised:
        captured(tmp_path / "c", model=str(copy))
    told = str(raised.value)
    assert told.startswith(f"model {copy}: {message}") and told.endswith(f"give the base as model and {copy} as adapter"), told


def test_a_base_that_is_an_adapter_is_refused(adapter: Path, copy: Path, tmp_path: Path) -> None:
    edit(copy / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(InputError, match="is not a model; give the base as model"):
        captured(tmp_path / "c", model=str(copy))


def test_two_adapters_are_refused(beside: Path, adapter: Path, tmp_path: Path) -> None:
    for model in (beside, adapter):
        other = Path(shutil.copytree(adapter, tmp_path / f"other{model.name}"))
        with pytest.raises(InputError, match="holds an adapter already; give the model without it"):
            captured(tmp_path / "c", model=str(model), adapter=str(other))


def test_a_trainers_folder_names_its_checkpoints_the_latest_first(llama: Path, copy: Path, tmp_path: Path) -> None:
    only_checkpoints(copy)
    latest = [str(copy / f"checkpoint-{step}") for step in (1000, 200, 50)]
    with pytest.raises(InputError, match=", ".join(latest)):
        captured(tmp_path / "c", model=str(copy))
    captured(tmp_path / "c", model=latest[0])


@pytest.mark.parametrize("way", ["given", "alone", "beside"])
def test_without_peft_it_says_how_to_install_it(
    way: str, llama: Path, adapter: Path, beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def no_peft(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_peft)
    options = {"given": {"model": llama, "adapter": adapter}, "alone": {"model": adapter}, "beside": {"model": beside}}[way]
    with pytest.raises(InputError, match=r"peft is needed: pip install 'headscore\[peft\]'"):
        captured(tmp_path / "c", **options)


def test_a_quantised_model_takes_no_adapter(llama: Path, adapter: Path) -> None:
    with pytest.raises(InputError, match="cannot be merged into a quantised model; give one that is not as model"):
        models.load_model(resolve(str(llama), adapter=str(adapter)), "fp32", CPU, quantised=True)
