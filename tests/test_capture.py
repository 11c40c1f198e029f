import itertools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from eager import EagerModel
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import arrays_of, assert_parity, assert_same
from transformers import LlamaConfig

import headscore
from headscore.capture import capturing
from headscore.capture.inputs.lengths import LengthRules
from headscore.capture.inputs.tokenising import EncodedShard
from headscore.capture.model import device, models
from headscore.capture.recording import attention, prefixes, recorder, reductions
from headscore.capture.recording.batches import batch_counts, longest_first
from headscore.capture.recording.recorded import Recorded
from headscore.capture.recording.runner import Runner
from headscore.capture.writing import shards, space
from headscore.capture.writing.space import require_space
from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard
from headscore.data.cache.shard import ARRAYS
from headscore.data.errors import InputError, RunError
from headscore.data.options.settings import CaptureSettings


@pytest.fixture(scope="module", params=list(tiny.CONFIGS))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.build(tiny.CONFIGS[request.param]()), tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("share", [True, False])
def test_every_stored_array_equals_the_models_own_eager_attention(model_folder: Path, tmp_path: Path, share: bool) -> None:
    options = {"max_samples": 12, "queries": "all_tokens", "shard_size": 8, "share_prefixes": share}
    headscore.capture(tmp_path / "c", model=str(model_folder), **options)
    assert open_cache(tmp_path / "c").metadata["self_check"]["shared_prefixes"] == share
    worst = assert_parity(tmp_path / "c", EagerModel(model_folder))
    assert set(worst) == {name for name in ARRAYS if name.split("/")[0] in ("last_token", "all_tokens")}


@settings(max_examples=8)
@given(
    batch_tokens=st.sampled_from([1, 300, 5000]),
    batch_size=st.sampled_from([None, 1, 3]),
    shard_size=st.sampled_from([1, 5, 24]),
)
def test_batching_padding_and_sharding_change_nothing(
    llama: Path,
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
    batch_tokens: int,
    batch_size: int | None,
    shard_size: int,
) -> None:
    out = tmp_path_factory.mktemp("other") / "c"
    options = {"batch_tokens": batch_tokens, "batch_size": batch_size, "shard_size": shard_size}
    headscore.capture(out, model=str(llama), max_samples=24, queries="all_tokens", seed=7, **options)
    assert_same(arrays_of(cache), arrays_of(out), exactly=False)


def test_a_cache_made_twice_is_identical_file_by_file(llama: Path, cache: Path, tmp_path: Path) -> None:
    headscore.capture(tmp_path, model=str(llama), max_samples=24, shard_size=10, queries="all_tokens", seed=7)
    assert_same(arrays_of(cache), arrays_of(tmp_path), exactly=True)
    names = sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.parent.name != "derived")
    assert names == ["cache.json", "shards/00000.h5", "shards/00001.h5", "shards/00002.h5", "skipped.jsonl"]
    for name in names:
        assert (cache / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_rest_of_the_sample_changes_nothing_for_a_row(llama: Path, cache: Path, tmp_path: Path) -> None:
    headscore.capture(tmp_path, model=str(llama), max_samples=9, queries="all_tokens", seed=7)
    few, many = arrays_of(tmp_path), arrays_of(cache)
    places = np.flatnonzero(np.isin(many["samples/row"], few["samples/row"]))
    assert len(places) == 9, "a smaller sample is part of a larger one"
    for name in ("last_token/output_norm", "all_tokens/entropy"):
        np.testing.assert_allclose(few[name], many[name][:, :, places], rtol=1e-4, atol=1e-5)


def test_spans_and_rows_stored_are_those_of_the_data(cache: Path) -> None:
    rows = tiny.arc_rows()
    stored = []
    for path in open_cache(cache).shards:
        with Shard(path) as shard:
            ids, span, offsets = (shard.read(name) for name in ("tokens/id", "tokens/span", "samples/offset"))
            for row, start, stop in zip(shard.read("samples/row"), offsets[:-1], offsets[1:], strict=True):
                members = np.flatnonzero(span[start:stop] & 1)
                text = tiny.tokenizer().decode(ids[start:stop][members[0] : members[-1] + 1])
                assert text.strip() == rows[row]["question"]
                stored.append(int(row))
    assert stored == sorted(stored) and len(set(stored)) == 24


def test_capture_returns_one_line_per_sample(llama: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    frame = headscore.capture(
        tmp_path, model=str(llama), max_samples=7, shard_size=3, progress=lambda done, total: seen.append((done, total))
    )
    assert frame.columns == ["sample", "row", "tokens", "shard"]
    assert frame["sample"].to_list() == list(range(7)) and frame["shard"].to_list() == [0, 0, 0, 1, 1, 1, 2]
    assert frame["tokens"].sum() == sum(Shard(path).tokens for path in open_cache(tmp_path).shards)
    assert seen[-1] == (7, 7) and seen == sorted(seen)


def test_skipped_rows_are_listed_with_their_reason(llama: Path, tmp_path: Path) -> None:
    rows = tiny.arc_rows()[:20]
    rows[3]["question"] = "why? " * 400
    rows[11]["question"] = "  "
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"model": str(llama), "data": str(tmp_path / "d.jsonl"), "shard_size": 8}
    with pytest.raises(InputError, match=r"2 of 20 rows would be skipped and max_skipped allows 0; the first is row 3"):
        headscore.capture(tmp_path / "c", **options)
    assert not (tmp_path / "c").exists(), "a refused capture leaves nothing behind"
    headscore.capture(tmp_path / "c", max_skipped=0.1, **options)
    listed = [json.loads(line) for line in (tmp_path / "c" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in listed] == [3, 11]
    assert "--max-length 512" in listed[0]["reason"] and "no question" in listed[1]["reason"]
    assert headscore.inspect(tmp_path / "c")["skipped"] == listed
    assert not {3, 11} & set(arrays_of(tmp_path / "c")["samples/row"].tolist())
    with pytest.raises(InputError, match="none is left"):
        headscore.capture(tmp_path / "d", max_length=1, max_skipped=1.0, **options)


def test_a_shard_may_have_no_samples_left(llama: Path, tmp_path: Path) -> None:
    rows = tiny.arc_rows()[:6]
    for row in rows[2:4]:
        row["question"] = ""
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    headscore.capture(tmp_path / "c", model=str(llama), data=str(tmp_path / "d.jsonl"), shard_size=2, max_skipped=0.5)
    assert headscore.inspect(tmp_path / "c", verify=True)["damaged"] == []
    assert headscore.score(tmp_path / "c").samples == 4
    assert headscore.scan_cache(tmp_path / "c").collect()["row"].unique().sort().to_list() == [0, 1, 4, 5]


@pytest.mark.parametrize(("dtype", "variation", "relative"), [("fp16", 0.005, 0.005), ("bf16", 0.05, 0.05)])
def test_half_precision_models_are_recorded_in_float32(
    llama: Path, cache: Path, tmp_path: Path, dtype: str, variation: float, relative: float
) -> None:
    """Rows are near the fp32 model's, as near as the dtype allows, and sum to 1 within storage rounding."""
    headscore.capture(tmp_path, model=str(llama), max_samples=24, shard_size=10, queries="all_tokens", seed=7, dtype=dtype)
    found, full = arrays_of(tmp_path), arrays_of(cache)
    starts = np.cumsum([0, *found["lengths"][:-1]])
    for name in ("last_token/attention", "all_tokens/attention"):
        half, single = found[name].astype(np.float64), full[name].astype(np.float64)
        np.testing.assert_allclose(np.add.reduceat(half, starts, axis=2), 1, atol=1e-3)
        assert np.quantile(np.add.reduceat(np.abs(half - single), starts, axis=2) / 2, 0.95) < variation
    for name in ("last_token/output_norm", "last_token/result_norm", "all_tokens/output_norm"):
        assert np.quantile(np.abs(found[name] / full[name] - 1), 0.95) < relative


def test_running_out_of_memory_halves_the_batch(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_start = recorder.Recorder.start

    def start(self: recorder.Recorder, lengths: torch.Tensor, *prefix: prefixes.Prefix | None, **options: bool) -> None:
        if len(lengths) > 2:
            raise torch.OutOfMemoryError("no memory")
        real_start(self, lengths, *prefix, **options)

    monkeypatch.setattr(recorder.Recorder, "start", start)
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=24, shard_size=10, queries="all_tokens", seed=7)
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=False)


def test_out_of_memory_with_one_sample_says_what_to_lower(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def forward_runs_out(self: recorder.Recorder, lengths: torch.Tensor, *prefix: prefixes.Prefix | None) -> None:
        tried.append(len(lengths))
        raise torch.OutOfMemoryError("no memory")

    class ShardMaker(shards.ShardMaker):
        def run(self, *of: Any) -> int:  # the self-check has passed
            monkeypatch.setattr(recorder.Recorder, "start", forward_runs_out)
            return super().run(*of)

    monkeypatch.setattr(capturing, "ShardMaker", ShardMaker)
    monkeypatch.setitem(device.PROFILES, "cpu", replace(device.PROFILES["cpu"], batch_overhead=5000))  # all in one batch
    with pytest.raises(RunError, match="lower max_length"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=4, share_prefixes=False, batch_tokens=5000)
    assert tried[0] == 4 and tried[-1] == 1 and len(set(tried)) == len(tried), "each smaller than the one before"
    assert not list((tmp_path / "c").rglob("*.h5"))


def test_a_batch_launched_ahead_changes_nothing(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where what a batch gives is waited for while the next is under way, also over the end of a shard."""
    monkeypatch.setitem(device.PROFILES, "cpu", replace(device.PROFILES["cpu"], ahead=1))
    options = {"max_samples": 24, "shard_size": 10, "queries": "all_tokens", "seed": 7, "batch_size": 4}
    headscore.capture(tmp_path / "c", model=str(llama), **options)
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=False)


def scaled(factor: float) -> Callable[..., Any]:
    return lambda real: lambda q, k, n, softmax: real(q, k, n, replace(softmax, scaling=softmax.scaling * factor))


FAULTS: dict[str, tuple[str, Callable[..., Any], str]] = {  # what is broken, and in which array the self-check finds it
    "a wrong scale": ("last_token_patterns", scaled(1.5), "last_token/attention"),
    "uniform rows": ("last_token_patterns", scaled(0), "last_token/attention"),
    "padding taken for real": (
        "last_token_patterns",
        lambda real: lambda q, k, n, softmax: real(q, k, torch.full_like(n, q.shape[2]), softmax),
        "last_token/attention",
    ),
    "a wrong mean": ("all_token_patterns", lambda real: lambda *of: (real(*of)[0] / 2, *real(*of)[1:]), "all_tokens/attention"),
    "a wrong entropy": (
        "all_token_patterns",
        lambda real: lambda *of: (real(*of)[0], real(*of)[1] * 2, real(*of)[2]),
        "all_tokens/entropy",
    ),
    "a wrong z": ("all_token_patterns", lambda real: lambda *of: (*real(*of)[:2], 2 * real(*of)[2]), "output"),
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_self_check_catches_a_wrong_recording_and_eager_attention_takes_its_place(
    llama: Path, llama_eager: EagerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, dtype: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    name, broken, array = FAULTS[fault]
    monkeypatch.setattr(reductions, name, broken(getattr(reductions, name)))
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=4, dtype=dtype, queries="all_tokens")
    assert f"self-check failed for llama: layer 0, {array} differs" in caplog.text
    assert open_cache(tmp_path / "c").metadata["attention"]["way"] == "eager"
    if dtype == "fp32":
        assert_parity(tmp_path / "c", llama_eager)


NORM_FAULTS = {  # of what both ways need
    "a wrong projection": ("result_factors", lambda real: lambda *of: real(*of) * 1.5, "result_norm"),
    "wrong norms": ("output_norms", lambda real: lambda *of: real(*of) * 2, "output_norm"),
}


@pytest.mark.parametrize("fault", NORM_FAULTS)
def test_the_self_check_stops_what_is_wrong_either_way(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    name, broken, array = NORM_FAULTS[fault]
    monkeypatch.setattr(reductions, name, broken(getattr(reductions, name)))
    with pytest.raises(RunError, match=f"self-check failed for llama: layer 0, [a-z_]*/{array} differs"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=4)
    assert not (tmp_path / "c").exists()


def without(**changes: Any) -> Callable[..., Any]:
    return lambda real: lambda *of: replace(real(*of), **changes)


@pytest.mark.parametrize(
    ("model", "module", "name", "broken"),
    [
        (
            "mistral_window",
            attention,
            "sdpa_attention_forward",
            lambda real: lambda m, q, k, v, mask, **options: real(m, q, k, v, None, **options),
        ),
        ("mistral_window", attention, "_softmax", without(mask=None)),
        ("gemma2", attention, "_softmax", without(softcap=1e6)),  # with None SDPA itself refuses
        ("gpt_oss", attention, "_softmax", without(sinks=None)),
    ],
)
def test_the_self_check_catches_a_dropped_window_softcap_or_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, module: Any, name: str, broken: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = tiny.save(tiny.build(tiny.CONFIGS[model]()), tmp_path / "model")
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    headscore.capture(tmp_path / "c", model=str(folder), max_samples=4)
    assert "self-check failed for" in caplog.text
    assert open_cache(tmp_path / "c").metadata["attention"]["way"] == "eager"
    assert_parity(tmp_path / "c", EagerModel(folder))


def test_recording_leaves_no_trace(llama: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = AutoModelForCausalLM.from_pretrained(llama).get_decoder()
    ids = torch.arange(2, 12)[None]
    before = model(ids).last_hidden_state
    listener = recorder.Recorder(all_tokens=False)
    with pytest.raises(ZeroDivisionError), attention.recording(model, listener):
        listener.start(torch.tensor([10]))
        assert torch.equal(model(ids, use_cache=False).last_hidden_state, before), "the model's own output is untouched"
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"
    assert attention.NAME not in ALL_ATTENTION_FUNCTIONS and attention.NAME not in ALL_MASK_ATTENTION_FUNCTIONS


def test_what_follows_the_last_attention_is_run_once_and_never_again(llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama).get_decoder()
    ran: list[int] = []
    for number, layer in enumerate(model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    listener, layers = recorder.Recorder(all_tokens=True), list(range(len(model.layers)))
    first, second = (torch.arange(start, start + 10)[None] for start in (2, 30))
    found = []
    with torch.inference_mode(), listener.listening(model):
        for ids in (first, second, first):
            listener.start(torch.tensor([10]))
            listener.run(model, input_ids=ids, use_cache=False)
            found.append(listener.take().finish())
    assert ran == layers + 2 * layers[:-1]
    assert all(recorded.layers == layers for recorded in found)
    for name, values in found[0].arrays.items():
        np.testing.assert_array_equal(values, found[2].arrays[name])
        assert not np.array_equal(values, found[1].arrays[name])


def one_pass(listener: recorder.Recorder, model: Any) -> Recorded:
    listener.start(torch.tensor([10]))
    listener.run(model, input_ids=torch.arange(2, 12)[None], use_cache=False)
    return listener.take().finish()


def test_a_layer_that_has_attention_in_some_passes_only_is_refused() -> None:
    model = tiny.build(tiny.CONFIGS["llama"]()).get_decoder()
    first, second, third = model.layers
    listener = recorder.Recorder(all_tokens=False)
    with torch.inference_mode(), listener.listening(model):
        model.layers = torch.nn.ModuleList([first, second])
        assert one_pass(listener, model).layers == list(listener.known.layers) == [0, 1]
        model.layers = torch.nn.ModuleList([first, third])
        with pytest.raises(attention.UnsupportedModelError, match="layer 2: has attention in some passes only"):
            one_pass(listener, model)


def test_one_layer_without_output_projection_leaves_no_result_norms_in_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build(tiny.CONFIGS["llama"]()).get_decoder()
    real = attention.output_projection
    last_has_none = lambda module, width: None if module.layer_idx == 2 else real(module, width)  # noqa: E731
    monkeypatch.setattr(attention, "output_projection", last_has_none)
    listener = recorder.Recorder(all_tokens=True)
    with torch.inference_mode(), listener.listening(model):
        passes = [one_pass(listener, model).arrays for _ in range(2)]
    assert not listener.known.results
    assert passes[0].keys() == passes[1].keys() and not any("result_norm" in name for name in passes[0])


@pytest.mark.parametrize(("name", "expected"), [("llama", {False}), ("mistral_window", {True})])
def test_masks_are_passed_only_where_they_are_needed(name: str, expected: set[bool]) -> None:
    """Full causal layers get no mask, so that SDPA takes its fastest kernels; windowed layers get theirs."""
    model = tiny.build(tiny.CONFIGS[name]()).get_decoder()
    masked = set()

    class Listener:
        def attend(self, call: attention.AttentionCall) -> torch.Tensor:
            masked.add(call.softmax.mask is not None)
            return call.sdpa()

        def project(self, z: torch.Tensor) -> None:
            pass

    with attention.recording(model, Listener()):
        model(torch.arange(2, 40)[None].repeat(2, 1), use_cache=False)
    assert masked == expected


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 200), st.none() | st.integers(1, 5), st.integers(0, 50)
)
def test_no_batches_within_the_budget_cost_less(lengths: list[int], tokens: int, size: int | None, overhead: int) -> None:
    order = longest_first(lengths)
    assert sorted(order) == list(range(len(lengths)))
    falling = [lengths[i] for i in order]
    assert falling == sorted(lengths, reverse=True), "the longest goes first"

    def cost(counts: Sequence[int]) -> int | None:
        total, first = 0, 0
        for count in counts:
            if (count > 1 and count * falling[first] > tokens) or count > (size or count):
                return None
            total += count * falling[first] + overhead
            first += count
        return total

    counts = batch_counts(falling, tokens, size, overhead)
    assert sum(counts) == len(lengths) and min(counts) >= 1
    ways = (
        split for parts in range(1, len(lengths) + 1) for split in itertools.combinations(range(1, len(lengths)), parts - 1)
    )
    costs = [cost(np.diff([0, *split, len(lengths)]).tolist()) for split in ways]
    assert cost(counts) == min(value for value in costs if value is not None)


class Heterogeneous(LlamaConfig):
    """A configuration of which a number differs between layers: transformers refuses to tell one of them."""

    def __getattribute__(self, name: str) -> Any:
        if name == "num_attention_heads" and super().__getattribute__("__dict__").get("refuses"):
            raise RuntimeError("'num_attention_heads' is a per-layer attribute")
        return super().__getattribute__(name)


def test_a_configuration_that_tells_no_number_of_heads_leaves_the_space_unchecked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Heterogeneous()
    config.refuses = True
    with caplog.at_level(logging.INFO, "headscore"):
        require_space(tmp_path, {0: EncodedShard([], [])}, set(), CaptureSettings(model="m"), config)
    assert "1 shards to make" in caplog.text and "does not tell their size" in caplog.text


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window"])
def test_shards_that_fill_batches_together_and_padding_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: batches cross shards, are padded to multiples of 8 and launched ahead, and a NaN stays in its shard."""
    folder = tiny.save(tiny.build(tiny.CONFIGS[name]()), tmp_path / "m")
    options = {"max_samples": 24, "shard_size": 5, "queries": "all_tokens", "model": str(folder)}
    headscore.capture(tmp_path / "one", **options)
    as_gpu = replace(device.PROFILES["cpu"], ahead=1, pad_to=8, together=1000, enough_tokens=1500, checked_ahead=1)
    monkeypatch.setitem(device.PROFILES, "cpu", as_gpu)
    widths: set[int] = set()
    real = recorder.Recorder.run
    spy = lambda self, model, **inputs: (widths.add(inputs["input_ids"].shape[1] % 8), real(self, model, **inputs))[1]  # noqa: E731
    monkeypatch.setattr(recorder.Recorder, "run", spy)
    headscore.capture(tmp_path / "c", share_prefixes=False, **options)
    assert 0 in widths
    assert_same(arrays_of(tmp_path / "one"), arrays_of(tmp_path / "c"), exactly=False)
    headscore.capture(tmp_path / "shared", **options)
    assert_same(arrays_of(tmp_path / "one"), arrays_of(tmp_path / "shared"), exactly=False)


def test_no_batch_is_padded_to_where_the_model_computes_in_another_way() -> None:
    rules = LengthRules(switches=(20,), alone_beyond=30)
    runner = Runner(tiny.build(tiny.CONFIGS["llama"]()), recorder.Recorder(False), 100, rules=rules, longest=29)
    runner._profile = replace(runner._profile, pad_to=8)
    assert [runner._padded(tokens, 0) for tokens in (1, 8, 15, 18, 21, 28, 29, 31)] == [8, 8, 16, 18, 24, 29, 29, 31]
    assert runner._padded(1, 8) == 8 and runner._padded(9, 8) == 9, "with the prefix before it"


def test_shards_that_memory_does_not_hold_are_refused_before_the_model_is_loaded(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda device: 200_000)
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(InputError, match=r"shard_size: the shards in hand need about .* of main memory.*give shard_size=\d+"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=24)
    monkeypatch.setattr(space, "free_bytes", lambda device: 2_000)
    with pytest.raises(InputError, match=r"are free for this process; give a smaller max_length$"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=24, shard_size=1)
    assert not (tmp_path / "c").exists()
