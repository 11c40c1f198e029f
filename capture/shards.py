"""Makes the shards of a cache: batch by batch through the model, each shard written while the next is computed."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.cache import SKIPPED_FILE, Cache, shard_path
from ..data.errors import InputError, RunError
from ..data.files import remove
from ..data.metadata import Metadata
from ..data.settings import CaptureSettings
from ..data.shard import ARRAYS, Array, array_shapes, stored_arrays, write_shard
from ..data.tokens import Sample, Skipped
from .batches import Batch
from .interrupts import Interrupts
from .prefixes import prompt_groups
from .recorded import Recorded
from .recorder import Recorder
from .runner import Runner, Work
from .samples import EncodedShard, Marker, ShardSamples, SkipLimit

logger = logging.getLogger("headscore")

Progress = Callable[[int, int], None]


def capture_shards(
    cache: Cache,
    shards: Mapping[int, EncodedShard],
    marker: Marker,
    model: PreTrainedModel,
    recorder: Recorder,
    settings: CaptureSettings,
    limit: SkipLimit,
    progress: Progress | None,
    share: bool,
) -> int:
    """Make those of the shards (by number) that are not there whole, and return how many were made.

    share: whether prompts that begin alike have their prefix run once.
    One is written while the next is computed, so that the arrays of three at most, and the file of one, are in memory. Raises
    RunError where the disk refuses, the model fails, or a sample gives values that are not finite (with `--on-nan skip`: where
    that makes too many), and KeyboardInterrupt after a Ctrl-C; whole shards stay in any case.
    """
    runner = Runner(model, recorder, settings.batch_tokens or 1, settings.batch_size)
    prompts = [prompt for shard in shards.values() for prompt in shard.prompts]
    done, made, stopped = 0, 0, False
    unfinished: dict[int, _Unfinished] = {}
    writing: Future[None] | None = None

    def work() -> Iterator[Work]:
        nonlocal done, stopped
        for number, marked, stored in _one_ahead(preparer, lambda number: _prepared(cache, shards, marker, number), shards):
            stopped = interrupts.asked_to_stop
            if stopped:
                return
            left_out = [entry for entry in marked.skipped if entry not in shards[number].skipped]
            if stored is None:
                limit.add(left_out)
                unfinished[number] = _Unfinished(marked, cache.metadata, settings.on_nan)
                done += len(left_out)
                yield Work(number, marked.samples, prompt_groups([sample.ids for sample in marked.samples], share))
                if not marked.samples:
                    write(number)
            else:  # not reported, as it would make the samples/s look higher
                limit.add([*left_out, *_faulty_before(marked, stored, settings.on_nan, cache, number)])
                done += len(shards[number].prompts)

    def write(number: int) -> None:
        nonlocal made, writing
        shard = unfinished.pop(number)
        limit.add(list(shard.faulty.values()))
        _finish(writing)
        writing = writer.submit(_write, cache, number, shard.arrays(), shard.skipped())
        made += 1

    threads = contextlib.ExitStack()
    with Interrupts() as interrupts, threads, recorder.listening(model), torch.inference_mode():
        preparer, writer = (threads.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        if not settings.batch_tokens and prompts:
            runner.fit(max(prompts, key=lambda prompt: len(prompt.ids)))
        for number, batch, recorded in runner.run(work()):
            done += unfinished[number].add(batch, recorded)
            if progress:
                progress(done, len(prompts))
            interrupts.tell()
            if unfinished[number].complete:
                write(number)
        _finish(writing)
        if stopped:
            raise KeyboardInterrupt
        if progress:
            progress(done, len(prompts))
    return made


Item = TypeVar("Item")
Result = TypeVar("Result")


def _one_ahead(thread: ThreadPoolExecutor, make: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What is made of each item, the next being made in a thread of its own while the caller uses one."""
    coming: deque[Future[Result]] = deque()
    for item in items:
        coming.append(thread.submit(make, item))
        if len(coming) > 1:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _prepared(
    cache: Cache, shards: Mapping[int, EncodedShard], marker: Marker, number: int
) -> tuple[int, ShardSamples, list[Skipped] | None]:
    """A shard's samples, and what it left out where it is there whole; its samples are not needed then."""
    shard, stored = shards[number], cache.skipped_in_whole(number)
    if stored is None:
        return number, marker(shard), None
    left_out = [Skipped(entry["row"], entry["reason"]) for entry in stored]
    known = {entry.row for entry in shard.skipped}
    marked = marker(shard).skipped if any(entry.row not in known for entry in left_out) else shard.skipped
    return number, ShardSamples([], marked), left_out


def _faulty_before(shard: ShardSamples, stored: Sequence[Skipped], on_nan: str, cache: Cache, number: int) -> list[Skipped]:
    """The rows that a shard made before leaves out because their values were not finite."""
    known = {entry.row for entry in shard.skipped}
    faulty = [entry for entry in stored if entry.row not in known]
    if faulty and on_nan == "stop":
        raise InputError(
            f"{shard_path(cache.path, number)}: was made with --on-nan skip and leaves out row {faulty[0].row} "
            f"({faulty[0].reason}); give --on-nan skip again, or remove the file"
        )
    return faulty


def _write(cache: Cache, number: int, arrays: Mapping[str, Array], skipped: Sequence[Skipped]) -> None:
    remove(cache.path / SKIPPED_FILE)  # written again once the cache is complete
    entries = [{"row": entry.row, "reason": entry.reason} for entry in skipped]
    write_shard(shard_path(cache.path, number), number, arrays, cache.metadata, entries)


def _finish(writing: "Future[None] | None") -> None:
    try:
        if writing:
            writing.result()
    except RunError as error:
        raise RunError(f"{error}; whole shards are kept: make room, then run the same command again") from error


class _Unfinished:
    """A shard that is filled batch by batch; `faulty` are the samples left out as their values are not finite."""

    def __init__(self, shard: ShardSamples, metadata: Metadata, on_nan: str):
        self._samples, self._skipped, self._on_nan = shard.samples, shard.skipped, on_nan
        self._arrays = _empty_arrays(shard.samples, metadata)
        self._left = len(shard.samples)
        self.faulty: dict[int, Skipped] = {}

    @property
    def complete(self) -> bool:
        """Whether no sample is to come any more."""
        return self._left == 0

    def add(self, batch: Batch, recorded: Recorded) -> int:
        """Take what was recorded of a batch; how many samples are done with that. RunError where a fault stops the run."""
        before, alone = self._left, len(batch.index) == 1
        for position, same in enumerate(batch.index):
            if recorded.finite[position]:
                for number in same:
                    self._put(number, recorded, position)
            elif alone:
                self.faulty |= {i: Skipped(self._samples[i].row, recorded.first_fault(position)) for i in same}
                _tell_fault(self._samples, same[0], self.faulty[same[0]].reason, self._on_nan)
            else:  # it is run again, alone
                continue
            self._left -= len(same)
        return before - self._left

    def arrays(self) -> dict[str, Array]:
        """The shard's arrays, without the samples that are left out."""
        return _without(self._arrays, sorted(self.faulty)) if self.faulty else self._arrays

    def skipped(self) -> list[Skipped]:
        """All rows of the shard that are left out."""
        return sorted((*self._skipped, *self.faulty.values()), key=lambda entry: entry.row)

    def _put(self, number: int, recorded: Recorded, position: int) -> None:
        start, stop = self._arrays["samples/offset"][number : number + 2]
        for name, values in recorded.arrays.items():
            if values.ndim == 4:
                self._arrays[name][:, :, start:stop] = values[:, position, :, : stop - start]
            else:
                self._arrays[name][:, :, number] = values[:, position]


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
    shapes = array_shapes(stored_arrays(metadata), len(samples), sum(lengths), dims["layers"], dims["heads"])
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
