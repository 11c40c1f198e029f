"""The self-check: what models hand to attention functions, what is not causal, and faults that low precision hides."""

import ast
import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from architectures import ARCHITECTURES
from eager import EagerModel
from hypothesis import given
from hypothesis import strategies as st
from parity import assert_parity
from tiny import BERT_SIZES
from torch import nn
from transformers import BertConfig, GPT2Config, LlamaConfig, RobertaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import headscore
from headscore.capture.checking import check_prompts, reference
from headscore.capture.checking.check_prompts import prompt_pairs
from headscore.capture.inputs.lengths import ALL_APART, LengthRules, length_rules
from headscore.capture.model.model_state import ModelState, unchanged
from headscore.capture.model.projections import output_weight, projection_error
from headscore.capture.recording import attention, recorder
from headscore.capture.recording.prefixes import prompt_groups
from headscore.capture.recording.reductions import last_token_patterns
from headscore.data.cache.folder import open_cache
from headscore.data.errors import InputError, RunError
from headscore.data.prompts.tokens import Tokens

# What attention functions of transformers are given that recording does not take: a model that does goes by eager attention.
NOT_TAKEN = {
    "indices", "block_indices",  # the keys that a sparse indexer has chosen
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",  # packed sequences
    "cache", "deterministic",  # paged generation, training
}  # fmt: skip
INPUTS = {"module", "query", "key", "value", "attention_mask", "kwargs"}


def arguments_of_calls() -> set[str]:
    """The names of the arguments that any model of transformers hands to its attention function."""
    names: set[str] = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "attention_interface(" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attention_interface":
                names |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return names


def arguments_of_functions() -> set[str]:
    """The names of the parameters of transformers' own attention functions."""
    functions = [ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS.keys()]  # noqa: SIM118 - no plain dict
    return {name for function in functions for name in inspect.signature(function).parameters}


def test_every_argument_of_transformers_attention_functions_is_known() -> None:
    """Fails when a version of transformers has a new one: decide whether recording understands it."""
    known = {*attention.UNDERSTOOD, *attention.WITHOUT_EFFECT, *NOT_TAKEN, *INPUTS}
    of_calls = arguments_of_calls()
    found = of_calls | arguments_of_functions()
    assert len(of_calls) > 10 and found <= known, found - known
    assert not {*attention.UNDERSTOOD, *attention.WITHOUT_EFFECT} & NOT_TAKEN


@pytest.mark.parametrize("option", [{"indices": torch.zeros(1)}, {"made_up": False}])
def test_an_argument_that_is_not_understood_ends_the_recording(
    option: dict[str, Any], llama: Path, llama_eager: EagerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from transformers.models.llama.modeling_llama import LlamaAttention

    real = LlamaAttention.forward
    monkeypatch.setattr(LlamaAttention, "forward", lambda self, *of, **more: real(self, *of, **more, **option))
    with caplog.at_level(logging.WARNING, "headscore"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=4)
    told = [record.message for record in caplog.records if "its own eager attention is used instead" in record.message]
    assert len(told) == 1 and f"takes '{next(iter(option))}'" in told[0]
    assert open_cache(tmp_path / "c").metadata["attention"]["way"] == "eager"
    assert_parity(tmp_path / "c", llama_eager)


@pytest.mark.parametrize(
    ("options", "said"), [({"dropout": 0.1}, "drops weights at random"), ({"sliding_window": 16}, "gives no mask for 20")]
)
def test_arguments_that_would_be_missed_end_the_recording(options: dict[str, Any], said: str) -> None:
    module = tiny.build(tiny.CONFIGS["llama"]()).model.layers[0].self_attn
    key = torch.zeros(1, 2, 20, 8)
    with pytest.raises(attention.CannotRecordError, match=said):
        attention._require_understood(module, key, None, options)
    attention._require_understood(module, key[:, :, :16], None, {"dropout": 0.0, "sliding_window": 16, "indices": None})


@pytest.mark.parametrize("kind", ["none", "boolean", "added"])
def test_a_position_bias_adds_to_whatever_mask_there_is(kind: str) -> None:
    torch.manual_seed(0)
    query, key, bias = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 6)
    boolean, added = torch.arange(6) >= 2, torch.randn(1, 1, 6, 6)
    mask = {"none": None, "boolean": boolean.expand(1, 1, 6, 6), "added": added}[kind]
    logits = query @ key.transpose(2, 3) * 4**-0.5 + bias
    logits = {"none": logits, "boolean": logits.masked_fill(~boolean, -torch.inf), "added": logits + added}[kind]
    softmax = attention._softmax(query, mask, {"position_bias": bias})
    found = last_token_patterns(query, key, torch.tensor([6]), softmax)
    torch.testing.assert_close(found, logits[:, :, -1].softmax(-1))


@pytest.mark.parametrize("made", [BertConfig, RobertaConfig])
def test_a_model_that_is_not_causal_is_refused_by_name(made: Any, tmp_path: Path) -> None:
    config = made(**BERT_SIZES, num_attention_heads=4, max_position_embeddings=600, is_decoder=False)
    folder = tiny.save(tiny.build(config), tmp_path / "m")
    with pytest.raises(InputError, match=rf"{config.model_type}: is not a causal language model: in layer \d"):
        headscore.capture(tmp_path / "c", model=str(folder), max_samples=6)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("made", [BertConfig, RobertaConfig])
def test_as_a_decoder_it_is_captured(made: Any, tmp_path: Path) -> None:
    config = made(**BERT_SIZES, num_attention_heads=4, max_position_embeddings=600, is_decoder=True)
    headscore.capture(tmp_path / "c", model=str(tiny.save(tiny.build(config), tmp_path / "m")), max_samples=6)


def test_prompts_of_one_length_show_a_model_that_is_not_causal_too(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "is it so", "spans": []}\n' * 3)
    config = BertConfig(**BERT_SIZES, num_attention_heads=4, max_position_embeddings=600)
    with pytest.raises(InputError, match="is not a causal language model"):
        folder = tiny.save(tiny.build(config), tmp_path / "m")
        headscore.capture(tmp_path / "c", model=str(folder), data=str(tmp_path / "d.jsonl"))


def shifted(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask whose window is off by one: the key before the first that is attended is attended too."""
    if mask is None:
        return None
    seen = mask if mask.dtype == torch.bool else mask == 0
    return seen | torch.nn.functional.pad(seen[..., 1:], (0, 1)) & torch.ones_like(seen).tril(seen.shape[-1] - seen.shape[-2])


LOW_PRECISION_FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "a window off by one": ("mistral_window", lambda real: lambda q, mask, options: real(q, shifted(mask), options)),
    "a lost sink": ("gpt_oss", lambda real: lambda q, mask, options: real(q, mask, {**options, "s_aux": options["s_aux"] - 3})),
    "a scale 2 % off": (
        "llama",
        lambda real: lambda q, mask, options: real(q, mask, {**options, "scaling": options["scaling"] * 1.02}),
    ),
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("fault", LOW_PRECISION_FAULTS)
def test_small_faults_are_caught_in_every_dtype(
    fault: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, broken = LOW_PRECISION_FAULTS[fault]
    folder = tiny.save(tiny.build(tiny.CONFIGS[model]()), tmp_path / "model")
    monkeypatch.setattr(attention, "_softmax", broken(attention._softmax))
    headscore.capture(tmp_path / "c", model=str(folder), max_samples=4, dtype=dtype)
    assert "from an exact softmax of the same queries and keys; its own eager" in caplog.text
    assert open_cache(tmp_path / "c").metadata["attention"]["way"] == "eager"


def test_a_window_that_the_model_is_given_wrongly_is_caught_in_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then queries, keys and mask agree with what is recorded, but not with the tokens that the model itself attends to."""
    folder = tiny.save(tiny.build(tiny.CONFIGS["mistral_window"]()), tmp_path / "model")
    real = attention.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(attention.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", lambda **of: shifted(real(**of)))
    headscore.capture(tmp_path / "c", model=str(folder), max_samples=4, dtype="bf16")
    assert "last_token/stray differs" in caplog.text or "last_token/attention differs" in caplog.text
    assert open_cache(tmp_path / "c").metadata["attention"]["way"] == "eager"


class ScaledFloat8(nn.Linear):
    """A linear layer of 8-bit floats whose scales stand beside them, as fp8 checkpoints have them."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight_scale_inv = nn.Parameter(layer.weight.detach().abs().amax(1, keepdim=True) / 448)
        self.weight = nn.Parameter((layer.weight.detach() / self.weight_scale_inv).to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(values.dtype) * self.weight_scale_inv.to(values.dtype)
        return nn.functional.linear(values, weight, self.bias)


def test_weights_of_8_bit_floats_are_taken_with_their_scales() -> None:
    layer = ScaledFloat8(nn.Linear(32, 24))
    expected = layer.weight.float() * layer.weight_scale_inv
    torch.testing.assert_close(output_weight(layer, torch.float32), expected.detach(), atol=1e-6, rtol=0)
    assert projection_error(layer, torch.randn(5, 4, 8)) < 1e-5


def test_a_model_of_8_bit_floats_has_result_norms(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headscore.capture.model import models

    real = models.load_model

    def quantised(*of: Any, **options: Any) -> Any:
        model = real(*of, **options)
        for layer in model.layers:
            layer.self_attn.o_proj = ScaledFloat8(layer.self_attn.o_proj)
        return model

    monkeypatch.setattr(models, "load_model", quantised)
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=4)
    assert open_cache(tmp_path / "c").metadata["attention"]["result_norms"] is True


def test_a_kind_of_rope_that_nobody_knows_is_run_apart(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Frequencies that depend on the length of a pass, and a memory of it, of which the configuration says nothing."""
    real = LlamaRotaryEmbedding.forward

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        self.longest = max(getattr(self, "longest", 0), int(position_ids.max()))
        return real(self, x, position_ids * (1 + self.longest / 100))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", forward)
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=12, queries="all_tokens")
    assert "prompts of different lengths are run apart" in caplog.text
    metadata = open_cache(tmp_path / "c").metadata
    assert metadata["attention"]["way"] == "recorded" and metadata["self_check"]["length_rules"]["alone_beyond"] == 0
    assert metadata["self_check"]["shared_prefixes"] is False
    assert_parity(tmp_path / "c", EagerModel(llama, fresh=True))


class Longest:
    """Something that is no module, and keeps the longest pass so far."""

    def __init__(self) -> None:
        self.tokens = 0


MEMORIES: dict[str, Callable[[Any], Any]] = {
    "list": lambda rotary: rotary.__dict__.setdefault("memory", [0]),
    "dict": lambda rotary: rotary.__dict__.setdefault("memory", {0: 0}),
    "object": lambda rotary: vars(rotary.__dict__.setdefault("memory", Longest())),
    "class": lambda rotary: vars(CLASS_MEMORY),
    "config": lambda rotary: rotary.config.__dict__.setdefault("memory", {0: 0}),
}
CLASS_MEMORY = Longest()


@pytest.mark.parametrize("place", MEMORIES)
def test_what_a_model_remembers_is_undone_or_the_model_refused(
    place: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frequencies that depend on the longest pass so far, which is kept where plain attributes and buffers are not."""
    real, init = LlamaRotaryEmbedding.forward, LlamaRotaryEmbedding.__init__

    def made(self: Any, *of: Any, **more: Any) -> None:
        init(self, *of, **more)
        MEMORIES[place](self)

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        memory = MEMORIES[place](self)
        key = next(iter(memory)) if isinstance(memory, dict) else 0
        memory[key] = max(memory[key], int(position_ids.max()))
        return real(self, x, position_ids * (1 + memory[key] / 100))

    monkeypatch.setattr(LlamaRotaryEmbedding, "__init__", made)
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", forward)
    monkeypatch.setattr(CLASS_MEMORY, "tokens", 0)
    try:
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=12, queries="all_tokens")
    except InputError as error:
        assert place in ("object", "class", "config")
        assert re.search(r"llama: gives row \d+ other values once another prompt was run", str(error))
    else:
        assert place in ("list", "dict")
        assert_parity(tmp_path / "c", EagerModel(llama, fresh=True))


def test_what_changes_between_two_lengths_only_is_found(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = LlamaRotaryEmbedding.forward

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return real(self, x, position_ids * (2 if 75 < int(position_ids.max()) <= 110 else 1))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", forward)
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=12)
    assert "prompts of different lengths are run apart" in caplog.text
    assert_parity(tmp_path / "c", EagerModel(llama))


def test_where_memory_runs_out_shorter_copies_are_checked(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, tried = reference.Reference.__call__, []

    def call(self: reference.Reference, ids: np.ndarray) -> Any:
        tried.append(len(ids))
        if len(ids) > most:
            raise MemoryError
        return real(self, ids)

    monkeypatch.setattr(reference.Reference, "__call__", call)
    most = 30
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=6, spot_checks=False)
    check = open_cache(tmp_path / "c").metadata["self_check"]
    assert check["checked_tokens"] <= 30 < max(tried) <= check["longest_tokens"]
    assert "what begins beyond that is not checked" in caplog.text
    most = 1
    with pytest.raises(RunError, match=r"out of memory on cpu in the self-check's eager attention over \d+ tokens"):
        headscore.capture(tmp_path / "d", model=str(llama), max_samples=6)
    assert min(tried) <= check_prompts.MIN_CHECKED


lengths = st.integers(1, 60)


@given(lengths, lengths, st.sets(st.integers(1, 80)), st.integers(1, 80), st.booleans())
def test_prompts_from_both_sides_of_every_limit_are_checked(
    one: int, other: int, limits: set[int], most: int, single: bool
) -> None:
    ids = np.arange(60, dtype=np.int32)
    shortest, longest = Tokens(0, ids[: min(one, other)]), Tokens(1, ids[: max(one, other)])
    shortest = longest if single else shortest
    pairs = prompt_pairs(shortest, longest, sorted(limits), most)
    found = {len(prompt.ids) for pair in pairs for prompt in pair}
    top, bottom = min(len(longest.ids), most), min(len(shortest.ids), most)
    assert max(found) == top and all(np.array_equal(prompt.ids, ids[: len(prompt.ids)]) for pair in pairs for prompt in pair)
    for limit in limits:
        if bottom <= limit < top:
            assert {limit, limit + 1} <= found
    keys = [[(prompt.row, len(prompt.ids)) for prompt in pair] for pair in pairs]
    assert all(len(set(pair)) == len(pair) for pair in keys), "a prompt is no company for itself"
    if not single:
        assert [(0, bottom), (1, bottom)] in keys, "two prompts of one length"
    if top > bottom or (single and top > 1):
        assert any(len({length for _, length in pair}) == 2 for pair in keys), "one is padded"


@given(
    st.lists(st.tuples(st.integers(0, 3), lengths), min_size=1, max_size=20),
    st.sets(lengths, max_size=3),
    st.none() | st.integers(0, 40),
    st.booleans(),
)
def test_no_group_mixes_ways(prompts: list[tuple[int, int]], switches: set[int], alone: int | None, share: bool) -> None:
    rules = LengthRules(tuple(sorted(switches)), alone)
    ids = [np.full(length, kind, np.int32) for kind, length in prompts]
    groups = prompt_groups(ids, share, 0, rules)
    assert sorted(i for group in groups for same in group.members for i in same) == list(range(len(ids)))
    for group in groups:
        ways = {rules.way(len(ids[same[0]])) for same in group.members}
        assert len(ways) == 1 and (not group.prefix or ways == {rules.way(group.prefix)})
        assert (
            len({len(ids[i]) for same in group.members for i in same}) == 1
            or alone is None
            or max(len(ids[i]) for same in group.members for i in same) <= alone
        )


@given(lengths, lengths, st.sets(lengths, max_size=3), st.none() | st.integers(0, 70))
def test_ways_differ_exactly_where_the_rules_say(one: int, other: int, switches: set[int], alone: int | None) -> None:
    rules = LengthRules(tuple(sorted(switches)), alone)
    beyond = alone is not None and max(one, other) > alone
    same = one == other if beyond else all((one <= switch) == (other <= switch) for switch in switches)
    assert (rules.way(one) == rules.way(other)) == same
    assert ALL_APART.way(one) != ALL_APART.way(one + 1)


@pytest.mark.filterwarnings("ignore:.*rope_scaling.* is deprecated")
def test_the_rules_are_read_from_every_form_of_a_configuration() -> None:
    plain = LlamaConfig()
    assert (length_rules(plain).switches, length_rules(plain).alone_beyond) == ((), None)
    old = GPT2Config()  # remote code has its own names
    old.rope_scaling = {"type": "dynamic", "factor": 2.0}
    old.max_position_embeddings = 700
    assert length_rules(old).alone_beyond == 700
    old.rope_scaling = {"type": "su", "long_factor": [1.0], "short_factor": [1.0], "original_max_position_embeddings": 300}
    assert length_rules(old).switches == (300,) and length_rules(old).alone_beyond is None
    unsaid = LlamaConfig(max_position_embeddings=0)
    unsaid.rope_parameters = {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
    assert length_rules(unsaid).alone_beyond == 0, "where it switches is not said"
    old.rope_scaling = {"type": "made-up", "factor": 2.0}
    assert length_rules(old).alone_beyond == 700, "what is not known to be static is taken to depend on the length"
    layered = ARCHITECTURES["gemma3_text"].config()
    layered.rope_parameters["full_attention"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1.0}
    assert length_rules(layered).alone_beyond == layered.max_position_embeddings
    assert 16 in length_rules(layered).limits


class Remembering(nn.Module):
    """A module that a pass changes in every way that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("replaced", torch.ones(3))
        self.register_buffer("written", torch.ones(3))
        self.register_buffer("emptied", torch.ones(3), persistent=False)
        self.count, self.table, self.flag = 0, torch.zeros(2), False
        self.listed, self.named, self.seen = [0], {"a": 1}, {1}

    def forward(self) -> None:
        self.replaced = self.replaced * 2
        self.written.mul_(2)
        self.emptied = None
        self.count, self.table, self.flag, self.new = self.count + 1, self.table + 1, True, torch.ones(1)
        self.listed[0] += 1
        self.listed.append(self.count)
        self.named |= {"a": self.count, "b": 2}
        self.seen = {*self.seen, self.count + 5}


def state(module: Remembering) -> list[Any]:
    buffers = [None if buffer is None else buffer.tolist() for _, buffer in module._buffers.items()]
    held = [list(module.listed), dict(module.named), set(module.seen)]
    return [buffers, module.count, module.table.tolist(), module.flag, hasattr(module, "new"), *held]


@pytest.mark.parametrize("inference", [True, False])
def test_whatever_a_pass_changes_is_put_back(inference: bool) -> None:
    module = Remembering()
    model = nn.ModuleList([nn.Linear(2, 2), module])
    before = state(module)
    snapshot = ModelState(model)
    for _ in range(3):
        with torch.inference_mode(inference):
            module()
            assert state(module) != before
            snapshot.restore()
        assert state(module) == before
    with pytest.raises(ZeroDivisionError), unchanged(model):
        module()
        raise ZeroDivisionError
    assert state(module) == before


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_weights_that_are_no_numbers_are_named(dtype: str, tmp_path: Path) -> None:
    model = tiny.build(tiny.CONFIGS["llama"]())
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e30 if dtype == "fp16" else float("nan")
    folder = tiny.save(model, tmp_path / "m")
    said = "beyond fp16: give dtype='bf16' or fp32" if dtype == "fp16" else "its weights hold NaN or infinite values"
    for on_nan in ("stop", "skip"):
        with pytest.raises(InputError, match=rf"llama: .*{said}") as raised:
            headscore.capture(tmp_path / "c", model=str(folder), max_samples=4, dtype=dtype, on_nan=on_nan)
        assert "layers.1.mlp.up_proj.weight" in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("no memory for a buffer"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_running_out_is_never_taken_for_a_model_that_cannot_share(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    real = recorder.Recorder.start

    def start(self: recorder.Recorder, lengths: torch.Tensor, prefix: Any = None, *, will_be_prefix: bool = False) -> None:
        if will_be_prefix:
            raise error
        real(self, lengths, prefix)

    monkeypatch.setattr(recorder.Recorder, "start", start)
    with pytest.raises((RunError, InputError), match=r"out of memory|illegal memory access"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=4)
    assert "what prompts share is run again" not in caplog.text
