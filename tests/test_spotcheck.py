"""Spot checks: faults that begin after the self-check, or that it was kept from seeing, never reach a shard."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from architectures import ARCHITECTURES, prompts
from hypothesis import given
from hypothesis import strategies as st
from tiny import BERT_SIZES
from transformers import BertConfig

import headscore
from headscore.capture import capturing
from headscore.capture.checking import reference
from headscore.capture.checking.check_result import CheckedModel, SelfCheck
from headscore.capture.checking.spotcheck import FEW_PROMPTS, SHARE_OF_TOKENS, SpotChecks
from headscore.capture.inputs.lengths import NO_RULES, LengthRules
from headscore.capture.model import device
from headscore.capture.recording import attention, reductions
from headscore.capture.recording.recorded import Recorded
from headscore.capture.writing.unfinished import UnfinishedShard
from headscore.data.cache.folder import open_cache, shard_files, shard_path
from headscore.data.cache.inspection import facts_text
from headscore.data.cache.reader import Shard
from headscore.data.errors import RunError
from headscore.data.prompts.tokens import Tokens


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    rows = [{"text": text, "spans": [{"name": "question", "start": 1, "end": len(text)}]} for text in prompts()]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def after_the_self_check(monkeypatch: pytest.MonkeyPatch, then: Callable[[SelfCheck], SelfCheck], most: int = 10**6) -> None:
    """Have the self-check see prompts of at most so many tokens only, and do something once it has passed."""
    real = capturing.checked_model

    def checked_model(model: Any, samples: Sequence[Tokens], *of: Any) -> CheckedModel:
        checked = real(model, [sample for sample in samples if len(sample.ids) <= most], *of)
        return replace(checked, check=then(checked.check))

    monkeypatch.setattr(capturing, "checked_model", checked_model)


def break_function(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Callable[..., Any]) -> None:
    monkeypatch.setattr(module, name, broken(getattr(module, name)))


def wrong_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes are shared and batches mixed as if the frequencies did not depend on the length of a pass."""
    after_the_self_check(monkeypatch, lambda check: replace(check, rules=NO_RULES, shared_prefixes=True))


def polluted(monkeypatch: pytest.MonkeyPatch) -> None:
    def then(check: SelfCheck) -> SelfCheck:
        monkeypatch.setattr("headscore.capture.recording.recorder.ModelState.restore", lambda state: None)
        return replace(check, rules=NO_RULES, shared_prefixes=True)

    after_the_self_check(monkeypatch, then)


def dropped_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropped(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda module, query, key, value, mask, **more: real(
            module, query, key, value, None if key.shape[2] > 60 else mask, **more
        )

    def unmasked(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda query, mask, options: real(query, None if query.shape[2] > 60 else mask, options)

    def then(check: SelfCheck) -> SelfCheck:
        break_function(monkeypatch, attention, "sdpa_attention_forward", dropped)
        break_function(monkeypatch, attention, "_softmax", unmasked)
        return replace(check, shared_prefixes=False)

    after_the_self_check(monkeypatch, then)


def ignored_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WITHOUT_EFFECT", (*attention.WITHOUT_EFFECT, "indices"))
    after_the_self_check(monkeypatch, lambda check: replace(check, rules=NO_RULES), most=16)


def swapped_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def then(check: SelfCheck) -> SelfCheck:
        swap = lambda real: lambda *of: real(*of)[:, [0, 2, 1, 3]]  # noqa: E731
        break_function(monkeypatch, reductions, "last_token_patterns", swap)
        return check

    after_the_self_check(monkeypatch, then)


FAULTS = [
    ("phi3, LongRoPE", wrong_rope),
    ("llama, dynamic", wrong_rope),
    ("qwen2, dynamic", polluted),
    ("mistral", dropped_mask),
    ("deepseek_v32", ignored_indices),
    ("llama", swapped_rows),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_fault_that_the_self_check_did_not_see_ends_the_capture(
    name: str, fault: Callable[..., None], data: Path, tmp_path: Path
) -> None:
    folder = tiny.save(tiny.build(ARCHITECTURES[name].config()), tmp_path / "model")
    options = {"model": str(folder), "data": str(data), "batch_tokens": 2000}
    said = r"spot check failed: row \d+ \(\d+ tokens\), layer \d, .* shard 0 is not written"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match=said):
        fault(patch)
        headscore.capture(tmp_path / "c", **options)
    assert not list((tmp_path / "c").rglob("*.h5"))
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        headscore.capture(tmp_path / "unchecked", **options, spot_checks=False)  # so it was the spot check that stopped it


def test_what_is_stored_wrongly_is_found_too(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything up to the shard's arrays is under the check: here samples change places on their way there."""
    real = UnfinishedShard._put
    monkeypatch.setattr(UnfinishedShard, "_put", lambda self, number, *of: real(self, number ^ 1, *of))
    rows = [{"text": f"w{i} is", "spans": []} for i in range(4)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RunError, match="spot check failed"):
        headscore.capture(tmp_path / "c", model=str(llama), data=str(tmp_path / "d.jsonl"))


def test_what_was_checked_is_in_the_shard_and_in_inspect(llama: Path, tmp_path: Path) -> None:
    headscore.capture(tmp_path / "c", model=str(llama), max_samples=24, shard_size=10, seed=3)
    cache = open_cache(tmp_path / "c")
    for path in cache.shards:
        with Shard(path) as shard:
            rows = shard.read("samples/row").tolist()
            lengths = dict(zip(rows, np.diff(shard.offsets()).tolist(), strict=True))
            checks = shard.metadata["spot_checks"]
        assert 1 <= len(checks) <= 3
        for entry in checks:
            assert entry["tokens"] == lengths[entry["row"]] and entry["way"] == "eager"
            assert 0 < entry["largest_difference"]["last_token/attention"] < 1e-3
    facts = headscore.inspect(tmp_path / "c")
    assert facts["spot_checks"]["samples"] in range(3, 8) and 0 < facts["spot_checks"]["largest_difference"] < 1e-3
    assert facts["self_check"]["checked_tokens"] == facts["self_check"]["longest_tokens"]


def test_where_memory_does_not_hold_eager_attention_the_models_own_output_is_compared(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reference, "free_bytes", lambda device: 2 * 16 * 4 * 40**2)  # enough for 40 tokens of 4 heads
    with caplog.at_level(logging.WARNING, "headscore"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=6)
    check = open_cache(tmp_path / "c").metadata["self_check"]
    assert check["checked_tokens"] == 40 < check["longest_tokens"]
    assert f"the longest prompt has {check['longest_tokens']} tokens" in caplog.text
    with Shard(tmp_path / "c" / "shards" / "00000.h5") as shard:
        assert {entry["way"] for entry in shard.metadata["spot_checks"]} == {"own"}
    break_function(monkeypatch, reductions, "output_norms", lambda real: lambda z: real(z) * (1 if z.shape[1] <= 40 else 1.1))
    with pytest.raises(RunError, match=r"spot check failed: .* last_token/output_norm differs by 0\.1"):
        headscore.capture(tmp_path / "d", model=str(llama), max_samples=6)


def test_a_spot_check_that_compared_nothing_says_so(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where memory holds neither eager attention nor the model's own, and where there is no output projection to listen to."""
    monkeypatch.setattr(reference, "free_bytes", lambda device: 2 * 16 * 4 * 16**2)
    real, error = reference.OwnOutput.__call__, torch.OutOfMemoryError("out of memory")

    def call(self: reference.OwnOutput, ids: np.ndarray, heads: int) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._model, "forward", fail)
            return real(self, ids, heads)

    bert = BertConfig(**BERT_SIZES, num_attention_heads=4, max_position_embeddings=600, is_decoder=True)
    without = tiny.save(tiny.build(bert), tmp_path / "bert")
    headscore.capture(tmp_path / "a", model=str(without), max_samples=4)
    monkeypatch.setattr(reference.OwnOutput, "__call__", call)
    headscore.capture(tmp_path / "b", model=str(llama), max_samples=4)
    for cache in (tmp_path / "a", tmp_path / "b"):
        facts = headscore.inspect(cache)
        assert facts["spot_checks"]["ways"] == ["none"] and facts["spot_checks"]["largest_difference"] is None
        assert "alone, without a comparison" in facts_text(facts)
    assert caplog.text.count("its spot check compared nothing") >= 2
    error = RuntimeError("no such kernel")
    with pytest.raises(RunError, match="llama: fails: RuntimeError: no such kernel"):
        headscore.capture(tmp_path / "c", model=str(llama), max_samples=4)


def noisy_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager attention whose norms are far from what is recorded, once the self-check has passed."""

    def noisy(real: Callable[..., Any]) -> Callable[..., Any]:
        def launched(self: reference.Reference, ids: np.ndarray) -> Callable[[], Any]:
            values = real(self, ids)
            return lambda: {
                layer: {name: value * 1.9 if name.endswith("output_norm") else value for name, value in of_layer.items()}
                for layer, of_layer in values().items()
            }

        return launched

    def then(check: SelfCheck) -> SelfCheck:
        break_function(monkeypatch, reference.Reference, "launched", noisy)
        return check

    after_the_self_check(monkeypatch, then)


def test_what_rounding_alone_does_in_half_precision_ends_no_capture(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where eager attention is far from what is stored, which is what is recorded of the prompt alone."""
    for dtype in ("bf16", "fp32"):
        options = {"model": str(llama), "max_samples": 6, "dtype": dtype}
        if dtype == "bf16":
            with pytest.MonkeyPatch.context() as patch:
                noisy_eager(patch)
                headscore.capture(tmp_path / dtype, **options)
            assert "bf16 rounds so much" in caplog.text
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match="spot check failed"):
            noisy_eager(patch)
            if dtype == "bf16":  # what is stored is not what the prompt gives alone
                break_function(patch, UnfinishedShard, "_put", lambda real: lambda self, i, *of: real(self, i ^ 1, *of))
            headscore.capture(tmp_path / f"{dtype}, wrong", **options)


@pytest.mark.parametrize("checked_ahead", [0, 1, 2])
def test_a_shard_whose_spot_check_fails_is_not_written_and_those_beside_it_are(
    checked_ahead: int, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the shards of a part are complete at once and are checked while the next part runs."""
    as_gpu = replace(device.PROFILES["cpu"], ahead=1, together=1600, enough_tokens=1500, checked_ahead=checked_ahead)
    monkeypatch.setitem(device.PROFILES, "cpu", as_gpu)
    real, places, wrong = UnfinishedShard._put, set[int](), -1

    def put(self: UnfinishedShard, number: int, recorded: Recorded, position: int) -> None:
        places.add(self._first)
        if self._samples[0].row == wrong:
            recorded = replace(recorded, arrays={name: 2 * values for name, values in recorded.arrays.items()})
        real(self, number, recorded, position)

    monkeypatch.setattr(UnfinishedShard, "_put", put)
    options: dict[str, Any] = {"model": str(llama), "max_samples": 24, "shard_size": 4, "share_prefixes": False}
    rows = headscore.capture(tmp_path / "right", **options)
    assert len(places) > 1, "several shards are run together"
    wrong = rows.filter(shard=1)["row"][0]
    with pytest.raises(RunError, match=r"spot check failed: .* shard 1 is not written"):
        headscore.capture(tmp_path / "c", **options)
    made = shard_files(tmp_path / "c")
    assert shard_path(tmp_path / "c", 0) in made and shard_path(tmp_path / "c", 1) not in made
    assert len(made) > 1 or not checked_ahead, "what was complete is checked and kept"
    wrong = -1
    assert headscore.capture(tmp_path / "c", **options).equals(rows)
    for path in shard_files(tmp_path / "right"):
        with Shard(path) as one, Shard(shard_path(tmp_path / "c", int(path.stem))) as other:
            for name in one.names:
                np.testing.assert_allclose(one.read(name), other.read(name), rtol=1e-3, atol=1e-3, err_msg=name)


CHECK = SelfCheck([0], 1, 1, 1, "recorded", True, True, True, NO_RULES, [0], [1], 1)


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=60),
    st.sets(st.integers(1, 90)),
    st.sets(st.integers(1, 90), max_size=2),
    st.integers(0, 5),
    st.randoms(),
)
def test_samples_are_chosen_by_the_seed_and_by_what_is_likely_to_go_wrong(
    lengths: list[int], limits: set[int], switches: set[int], seed: int, random: Random
) -> None:
    rising = tuple(sorted(limits | switches))
    check = replace(CHECK, rules=LengthRules(tuple(sorted(switches)), None, rising))
    samples = [Tokens(row, np.zeros(length, np.int32)) for row, length in enumerate(lengths)]
    checks = SpotChecks(CheckedModel(torch.nn.Linear(1, 1), None, check), "fp32", seed, samples)  # type: ignore[arg-type]
    padding = [random.randrange(9) for _ in samples]
    chosen = checks.choose(0, samples, padding)
    assert chosen and chosen == sorted(set(chosen)) == checks.choose(0, samples, padding)

    def between(bounds: tuple[int, ...], numbers: Sequence[int]) -> set[int]:
        return {int(np.searchsorted(bounds, lengths[number])) for number in numbers}

    everything = range(len(lengths))
    assert between(tuple(sorted(switches)), chosen) == between(tuple(sorted(switches)), everything)
    if len(lengths) < FEW_PROMPTS:
        assert between(rising, chosen) == between(rising, everything) and int(np.argmax(lengths)) in chosen
        assert max(padding[i] for i in chosen) == max(padding)
    elif sum(lengths[i] for i in chosen) > SHARE_OF_TOKENS * sum(lengths):
        assert len(chosen) <= 1 + len(switches) + 1, "no more than what is checked in any case"


def test_a_shard_without_samples_has_nothing_to_check() -> None:
    checks = SpotChecks(CheckedModel(torch.nn.Linear(1, 1), None, CHECK), "fp32", 0, [])  # type: ignore[arg-type]
    assert checks.choose(0, [], []) == []
