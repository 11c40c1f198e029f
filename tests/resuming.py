"""Captures that are stopped, and go on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import arrays_of

import headscore
from headscore.capture.recording import prefixes, recorder, reductions

OPTIONS: dict[str, Any] = {"max_samples": 24, "shard_size": 10, "queries": "all_tokens", "seed": 7}  # as the cache fixture


def again(llama: Path, out: Path, **options: Any) -> None:
    headscore.capture(out, model=str(llama), **{**OPTIONS, **options})


def files_of(cache: Path) -> dict[str, tuple[int, int]]:
    """Which file each shard is: inodes alone may be used again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (cache / "shards").iterdir()}


def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int], only_beside_others: bool = False) -> None:
    """Let the samples of `bad` lengths give NaN, as a model does that overflows."""
    real = reductions.output_norms

    def output_norms(z: torch.Tensor) -> torch.Tensor:
        return real(z) if only_beside_others and len(z) == 1 else torch.where(marked[:, None, None], torch.nan, real(z))

    start = recorder.Recorder.start

    def remember(self: recorder.Recorder, lengths: torch.Tensor, prefix: prefixes.Prefix | None = None) -> None:
        nonlocal marked
        marked = torch.tensor([int(n) + (prefix.tokens if prefix else 0) in bad for n in lengths])
        start(self, lengths, prefix)

    marked = torch.zeros(0)
    monkeypatch.setattr(reductions, "output_norms", output_norms)
    monkeypatch.setattr(recorder.Recorder, "start", remember)


def length_of_one_sample(cache: Path) -> tuple[int, int]:
    """(length, row) of a sample whose length no other has, and which is neither the shortest nor the longest."""
    found = arrays_of(cache)
    lengths = found["lengths"].tolist()
    middle = sorted(n for n in lengths if lengths.count(n) == 1)[3]
    return middle, int(found["samples/row"][lengths.index(middle)])


def as_rank(monkeypatch: pytest.MonkeyPatch, index: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(index))
    monkeypatch.setenv("WORLD_SIZE", str(world))
