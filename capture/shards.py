"""Makes the shards of a cache: batch by batch through the model, each shard written while the next is computed."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.cache import SKIPPED_FILE, Cache, shard_path
from ..data.errors import InputError, RunError
from ..data.metadata import Metadata
from ..data.settings import CaptureSettings
from ..data.shard import ARRAYS, Array, array_shapes, write_shard
from ..data.tokens import Sample, Skipped
from .attention import Recorder, recording
from .interrupts import Interrupts
from .prefixes import Group, prompt_groups
from .runner import Runner
from .samples import ShardSamples, SkipLimit

logger = logging.getLogger("headscore")

Progress = Callable[[int, int], None]


def capture_shards(
    cache: Cache,
    shards: Mapping[int, ShardSamples],
    model: PreTrainedModel,
    settings: CaptureSettings,
    limit: SkipLimit,
    progress: Progress | None,
    share: bool,
) -> int:
    """Make those of the shards (by number) that are not there whole, and return how many were made.

    share: whether prompts that begin alike have their prefix run once.
    One is written while the next is computed, so that the arrays of two at most, and the file of one, are in memory. Raises
    RunError where the disk refuses, the model fails, or a sample gives values that are not finite (with `--on-nan skip`: where
    that makes too many), and KeyboardInterrupt after a Ctrl-C; whole shards stay in any case.
    """
    recorder = Recorder(settings.queries == "all_tokens")
    runner = Runner(model, recorder, settings.batch_tokens, settings.batch_size)
    total, done, made = sum(len(shard.samples) for shard in shards.values()), 0, 0
    writing: Future[None] | None = None

    def report(samples: int) -> None:
        if progress:
            progress(done + samples, total)

    with Interrupts() as interrupts, ThreadPoolExecutor(1) as writer, recording(model, recorder), torch.inference_mode():
        for number, shard in shards.items():
            if interrupts.asked_to_stop:
                _finish(writing)
                raise KeyboardInterrupt
            stored = cache.skipped_in_whole(number)
            if stored is not None:
                limit.add(_faulty_before(shard, stored, settings.on_nan, cache, number))
            else:
                groups = prompt_groups([sample.ids for sample in shard.samples], share)
                arrays, faulty = _compute(runner, shard.samples, groups, cache.metadata, settings.on_nan, report, interrupts)
                limit.add(faulty)
                skipped = sorted((*shard.skipped, *faulty), key=lambda entry: entry.row)
                _finish(writing)
                writing = writer.submit(_write, cache, number, arrays, skipped)
                made += 1
            done += len(shard.samples)
            if stored is None:  # what was there is not reported, as it would make the samples/s look higher
                report(0)
        _finish(writing)
        report(0)
    return made


def _faulty_before(
    shard: ShardSamples, stored: Sequence[Mapping[str, Any]], on_nan: str, cache: Cache, number: int
) -> list[Skipped]:
    """The rows that a shard made before leaves out because their values were not finite."""
    known = {entry.row for entry in shard.skipped}
    faulty = [Skipped(entry["row"], entry["reason"]) for entry in stored if entry["row"] not in known]
    if faulty and on_nan == "stop":
        raise InputError(
            f"{shard_path(cache.path, number)}: was made with --on-nan skip and leaves out row {faulty[0].row} "
            f"({faulty[0].reason}); give --on-nan skip again, or remove the file"
        )
    return faulty


def _write(cache: Cache, number: int, arrays: Mapping[str, Array], skipped: Sequence[Skipped]) -> None:
    (cache.path / SKIPPED_FILE).unlink(missing_ok=True)  # written again once the cache is complete
    entries = [{"row": entry.row, "reason": entry.reason} for entry in skipped]
    write_shard(shard_path(cache.path, number), number, arrays, cache.metadata, entries)


def _finish(writing: "Future[None] | None") -> None:
    try:
        if writing:
            writing.result()
    except RunError as error:
        raise RunError(f"{error}; whole shards are kept: make room, then run the same command again") from error


def _compute(
    runner: Runner,
    samples: Sequence[Sample],
    groups: Sequence[Group],
    metadata: Metadata,
    on_nan: str,
    report: Callable[[int], None],
    interrupts: Interrupts,
) -> tuple[dict[str, Array], list[Skipped]]:
    """A shard's arrays, and the samples that were left out of them because their values are not finite."""
    arrays = _empty_arrays(samples, metadata)
    offsets = arrays["samples/offset"]
    faulty: dict[int, Skipped] = {}
    finished = 0
    for batch, recorded in runner.run(samples, groups):
        alone = len(batch.index) == 1
        for position, same in enumerate(batch.index):
            if recorded.finite[position]:
                for name, values in recorded.arrays.items():
                    for i in same:
                        if values.ndim == 4:
                            start, stop = offsets[i], offsets[i + 1]
                            arrays[name][:, :, start:stop] = values[:, position, :, : stop - start]
                        else:
                            arrays[name][:, :, i] = values[:, position]
            elif alone:  # else it is run again, alone
                faulty |= {i: Skipped(samples[i].row, recorded.first_fault(position)) for i in same}
                _tell_fault(samples, same[0], faulty[same[0]].reason, on_nan)
            finished += len(same) if recorded.finite[position] or alone else 0
        report(finished)
        interrupts.tell()
    return (_without(arrays, sorted(faulty)) if faulty else arrays), list(faulty.values())


def _tell_fault(samples: Sequence[Sample], number: int, reason: str, on_nan: str) -> None:
    if on_nan == "stop":
        raise RunError(
            f"row {samples[number].row} (sample {number} of its shard): {reason}; "
            "give a wider --dtype (bf16, fp32), or leave such rows out with --on-nan skip"
        )
    logger.warning("row %d is skipped: %s", samples[number].row, reason)


def _empty_arrays(samples: Sequence[Sample], metadata: Metadata) -> dict[str, Array]:
    """The shard's arrays: those known before the model runs filled, the others zero."""
    lengths = [len(sample.ids) for sample in samples]
    dims = metadata["dims"]
    shapes = array_shapes(metadata["settings"]["queries"], len(samples), sum(lengths), dims["layers"], dims["heads"])
    arrays: dict[str, Array] = {name: np.zeros(shape, ARRAYS[name][0]) for name, shape in shapes.items()}
    arrays["layers/index"][:] = metadata["layers"]
    arrays["samples/offset"][1:] = np.cumsum(lengths)
    arrays["samples/row"][:] = [sample.row for sample in samples]
    if samples:
        arrays["tokens/id"][:] = np.concatenate([sample.ids for sample in samples])
        arrays["tokens/span"][:] = np.concatenate([sample.span for sample in samples])
    return arrays


def _without(arrays: dict[str, Array], left_out: list[int]) -> dict[str, Array]:
    """A shard's arrays without some of its samples."""
    lengths = np.diff(arrays["samples/offset"])
    tokens = np.repeat(np.isin(np.arange(len(lengths)), left_out), lengths)
    kept = dict(arrays)
    for name, values in arrays.items():
        axis = ARRAYS[name][1][-1]
        if axis in ("n", "t"):
            kept[name] = np.delete(values, left_out if axis == "n" else tokens, axis=-1)
    kept["samples/offset"] = np.cumsum([0, *np.delete(lengths, left_out)])
    return kept
