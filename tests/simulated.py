"""A GPU that is only calculated: which passes a capture makes on it, and how busy they would keep it.

Assumptions, of which none is measured: Llama-3.2-1B in bf16 on one H100.

    compute     1.95 GFLOP a token at 350 TFLOP/s, so 5.6 µs; attention is small beside it for prompts of a few hundred tokens
    bandwidth   2.5 GB of weights are read at 3 TB/s in every pass, if that takes longer; each kernel takes 3 µs at least
    launch      82 kernels a layer with recording, 16 layers, 8 µs of Python and driver each: 10.5 ms a pass
    host        20 µs a prompt to mark and group it, which holds the interpreter, 5 µs to put it into a batch, and 1 GB/s to
                put what comes back, 1 KiB a token, into its shard
    spot check  one prompt of every shard by eager attention, 1,600 kernels; launched and waited for as `ShardMaker` does

The passes themselves are those of a real `Runner` with the profile of CUDA. By hand, over real prompts:

    python tests/simulated.py commonsense_17k.json
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from headscore.capture.model.device import PROFILES
from headscore.capture.recording.prefixes import Ids, prompt_groups
from headscore.capture.recording.runner import Runner, Work
from headscore.data.prompts.tokens import Tokens

TOKEN, LAUNCH, KERNEL, KERNELS, WEIGHTS = 5.6e-6, 8e-6, 3e-6, 82 * 16, 2.5e9 / 3e12
PROMPT, ROW, PUT, CHECK_KERNELS, SHARD = 20e-6, 5e-6, 1024 / 1e9, 1600, 256


@dataclass
class Gpu:
    """Runs one pass after the other, each as soon as the host has launched it."""

    host: float = 0.0
    free_at: float = 0.0
    busy: float = 0.0
    of_checks: float = 0.0
    passes: list[tuple[int, int, int]] = field(default_factory=list)  # prompts, padded tokens, prefix

    def launch(self, kernels: int, seconds: float) -> float:
        """When a pass of so many kernels is over, each of which is launched while those before it run."""
        took = max(seconds, kernels * KERNEL)
        start = max(self.host, self.free_at)
        self.host += kernels * LAUNCH
        self.free_at = max(start + took, self.host + KERNEL)
        self.busy += took
        return self.free_at

    def start(self, lengths: torch.Tensor, prefix: Any = None, *, will_be_prefix: bool = False) -> None:
        """As of a recorder."""
        self._prefix = prefix.tokens if prefix else 0

    def run(self, model: Any, *, input_ids: torch.Tensor, **_: Any) -> None:
        """As of a recorder."""
        prompts, tokens = input_ids.shape
        self.passes.append((prompts, tokens, self._prefix))
        self.host += prompts * ROW
        self._end = self.launch(KERNELS, max(WEIGHTS, prompts * tokens * TOKEN))

    def take_prefix(self, tokens: int, _: Any) -> Any:
        """As of a recorder."""
        return SimpleNamespace(tokens=tokens, kv_cache=None)

    def take(self) -> Any:
        """As of a recorder; who waits for it goes on when the pass is over."""
        return SimpleNamespace(finish=lambda end=self._end: self._wait(end))

    def _wait(self, end: float) -> Any:
        self.host = max(self.host, end)
        return SimpleNamespace(finite=np.ones(1 << 16, bool)[: self._size])

    _size = 0


def parts(prompts: Sequence[Ids], together: int) -> Iterator[list[Ids]]:
    """The prompts of the shards that are run together."""
    part: list[Ids] = []
    for start in range(0, len(prompts), SHARD):
        part += prompts[start : start + SHARD]
        if sum(map(len, part)) >= together or start + SHARD >= len(prompts):
            yield part
            part = []


def simulated(prompts: Sequence[Ids], *, share: bool = True, spot_checks: bool = True) -> Gpu:
    """A GPU after a capture of prompts."""
    profile, gpu = PROFILES["cuda"], Gpu()
    model: Any = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(model_type="simulated"))

    complete, waiting = 0, list[float]()

    def check(count: int) -> None:
        nonlocal complete, waiting
        due, waiting = waiting, []
        before = gpu.busy
        for _ in range(min(count, complete)):
            waiting.append(gpu.launch(CHECK_KERNELS, 0))
            complete -= 1
        gpu.of_checks += gpu.busy - before
        gpu.host = max(gpu.host, *due, 0)

    def check_all() -> None:
        while complete or waiting:
            check(complete)

    def work() -> Iterator[Work]:
        for part in parts(prompts, profile.together):
            check_all()
            gpu.host += len(part) * PROMPT
            yield Work([Tokens(i, ids) for i, ids in enumerate(part)], prompt_groups(part, share, profile.batch_overhead))

    with mock.patch.dict(PROFILES, {"cpu": replace(profile)}):
        runner = Runner(model, gpu, profile.enough_tokens)  # type: ignore[arg-type]
        real = runner._finished

        def finished(launched: Any) -> Any:
            gpu._size = len(launched.batch.index)
            return real(launched)

        with mock.patch.object(runner, "_finished", finished):
            left: dict[int, int] = {}
            for of, batch, _ in runner.run(work()):
                gpu.host += sum(len(of.samples[same[0]].ids) for same in batch.index) * PUT
                left[id(of)] = left.get(id(of), len(of.samples)) - sum(map(len, batch.index))
                if not left[id(of)]:
                    complete += -(-len(of.samples) // SHARD) if spot_checks else 0
                    del left[id(of)]  # which the next one may have, too
                check(profile.checked_ahead)
            check_all()
    gpu.host = max(gpu.host, gpu.free_at)
    return gpu


def described(prompts: Sequence[Ids], gpu: Gpu) -> str:
    """The figures in a line."""
    tokens = sum(map(len, prompts))
    run = sum(count * padded for count, padded, _ in gpu.passes)
    of_prefix = sum(prefix > 0 for _, _, prefix in gpu.passes)
    return (
        f"{len(prompts)} prompts, {tokens} tokens: {len(gpu.passes)} passes ({of_prefix} behind a prefix), {run / tokens:.2f} "
        f"of the tokens run, {run / len(gpu.passes):.0f} a pass; {gpu.host:.2f} s, {tokens / gpu.host:.0f} tokens/s, the GPU "
        f"{gpu.busy / gpu.host:.1%} busy, {gpu.of_checks / gpu.host:.1%} of it with spot checks"
    )


def main(path: str) -> None:
    from headscore.capture.inputs.tokenising import encode_shards, read_prompts
    from headscore.capture.model import models
    from headscore.capture.model.sources import resolve
    from headscore.data.options.settings import CaptureSettings

    settings = CaptureSettings(data=path, max_samples=1 << 30, max_skipped=1.0)
    shards = encode_shards(read_prompts(settings), models.load_tokenizer(resolve(settings.model)), settings)
    prompts = [prompt.ids for shard in shards for prompt in shard.prompts]
    for share in (True, False):
        for spot_checks in (True, False):
            gpu = simulated(prompts, share=share, spot_checks=spot_checks)
            print(f"share={share}, spot_checks={spot_checks}:", described(prompts, gpu))


if __name__ == "__main__":
    main(*sys.argv[1:])
