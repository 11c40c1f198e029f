"""What only a GPU can show. Skipped without one; `make gpu-check` runs these and a short benchmark."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from parity import arrays_of, assert_parity, assert_same

import headscore
from headscore.capture.model import device, memory
from headscore.capture.recording import recorder, reductions
from headscore.capture.recording.recorded import Recorded, Recording

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False here"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
OPTIONS = {"max_samples": 24, "shard_size": 10, "queries": "all_tokens", "seed": 7}


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_gpu_gives_what_eager_attention_gives_on_the_cpu(name: str, tmp_path: Path) -> None:
    from eager import EagerModel

    folder = tiny.save(tiny.build(tiny.CONFIGS[name]()), tmp_path / "m")
    headscore.capture(tmp_path / "c", model=str(folder), device="cuda", dtype="fp32", **OPTIONS)
    assert_parity(tmp_path / "c", EagerModel(folder))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("fp16", 0.02), ("bf16", 0.2)])
def test_dtypes_agree_with_the_cpu(llama: Path, tmp_path: Path, dtype: str, tolerance: float) -> None:
    """In half precision single values may be further off, so the mean difference is what counts."""
    found = []
    for place in ("cpu", "cuda"):
        headscore.capture(tmp_path / place, model=str(llama), device=place, dtype=dtype, **OPTIONS)
        found.append(arrays_of(tmp_path / place))
    for name, on_cpu in found[0].items():
        difference = abs(on_cpu.astype(float) - found[1][name]).mean()
        assert difference <= tolerance * max(1e-6, abs(on_cpu.astype(float)).mean()), name


def test_the_next_batch_is_launched_while_one_runs(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing within a batch waits for the device, which torch would refuse here."""
    events: list[str] = []
    real_run, real_finish = recorder.Recorder.run, Recording.finish

    def run(self: recorder.Recorder, *given: object, **inputs: object) -> None:
        events.append("launch")
        if self._known:  # not in the first passes, which make what is kept
            torch.cuda.set_sync_debug_mode("error")
        try:
            real_run(self, *given, **inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def finish(self: Recording) -> Recorded:
        events.append("finish")
        return real_finish(self)

    options = {**OPTIONS, "share_prefixes": False, "batch_size": 4, "device": "cuda", "spot_checks": False}
    headscore.capture(tmp_path / "first", model=str(llama), **options)
    monkeypatch.setattr(recorder.Recorder, "run", run)
    monkeypatch.setattr(Recording, "finish", finish)
    headscore.capture(tmp_path / "c", model=str(llama), batch_tokens=4000, **options)
    assert events[-2:] == ["finish"] * 2, "the last but one is waited for once the last is launched"


def test_running_out_of_memory_halves_batches(llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A batch whose blocks would not fit is halved until it does."""
    rows = [{"question": f"Why {i}? " + "Because of that. " * 200} for i in range(64)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.txt").write_text("{question}")
    options = {"data": str(tmp_path / "d.jsonl"), "template": tmp_path / "t.txt", "max_length": 4096, "dtype": "fp32"}
    options |= {"model": str(llama), "device": "cuda", "queries": "all_tokens", "share_prefixes": False}
    headscore.capture(tmp_path / "small", batch_size=4, **options)
    held = torch.cuda.memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(held + (400 << 20) / torch.cuda.get_device_properties(0).total_memory)
    try:
        headscore.capture(tmp_path / "c", batch_tokens=1 << 20, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with" in caplog.text
    assert_same(arrays_of(tmp_path / "small"), arrays_of(tmp_path / "c"), exactly=False)


def test_compiled_blocks_are_the_same(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headscore.capture(tmp_path / "plain", model=str(llama), device="cuda", dtype="fp32", **OPTIONS)
    monkeypatch.setitem(device.PROFILES, "cuda", replace(device.PROFILES["cuda"], compile_from=0))
    headscore.capture(tmp_path / "compiled", model=str(llama), device="cuda", dtype="fp32", **OPTIONS)
    assert not reductions._faults, "torch.compile works here"
    assert_same(arrays_of(tmp_path / "plain"), arrays_of(tmp_path / "compiled"), exactly=False)


def test_small_blocks_are_the_same(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headscore.capture(tmp_path / "large", model=str(llama), device="cuda", dtype="fp32", **OPTIONS)
    monkeypatch.setitem(device.PROFILES, "cuda", replace(device.PROFILES["cuda"], block_bytes=1 << 16))
    headscore.capture(tmp_path / "small", model=str(llama), device="cuda", dtype="fp32", **OPTIONS)
    assert_same(arrays_of(tmp_path / "large"), arrays_of(tmp_path / "small"), exactly=False)


@two_gpus
def test_a_model_on_two_gpus_and_two_processes_give_the_same(llama: Path, tmp_path: Path) -> None:
    headscore.capture(tmp_path / "one", model=str(llama), device="cuda", dtype="fp32", **OPTIONS)
    headscore.capture(tmp_path / "spread", model=str(llama), device_map="auto", dtype="fp32", **OPTIONS)
    assert_same(arrays_of(tmp_path / "one"), arrays_of(tmp_path / "spread"), exactly=False)
    flags = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "headscore", "capture"]
    command = [*launcher, "--model", str(llama), "--out", str(tmp_path / "ranks"), "--dtype", "fp32", *flags]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert_same(arrays_of(tmp_path / "one"), arrays_of(tmp_path / "ranks"), exactly=False)


def test_the_current_device_is_that_of_the_capture_and_given_back() -> None:
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    before = torch.cuda.current_device()
    with device.computing_on(last):
        assert torch.cuda.current_device() == last.index
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert torch.cuda.current_device() == before and memory.free_bytes(last) > 0


def test_half_a_minute_of_throughput(tmp_path: Path) -> None:
    """The default model over the shipped questions for 30 s, again and again: how many tokens a second; no bound is set."""
    started, tokens, rounds = time.monotonic(), 0, 0
    while time.monotonic() - started < 30:
        frame = headscore.capture(tmp_path / str(rounds), device="cuda", dtype="auto")
        tokens, rounds = tokens + int(frame["tokens"].sum()), rounds + 1
    print(f"throughput with loading and self-check: {tokens / (time.monotonic() - started):.0f} tokens/s in {rounds} captures")
    assert tokens
