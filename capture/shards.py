"""Makes the shards of a cache: batch by batch through the model, each shard written while the next is computed."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from ..data.cache import SKIPPED_FILE, Cache, shard_path
from ..data.errors import InputError, RunError
from ..data.files import remove
from ..data.kept_columns import as_stored, of_rows
from ..data.settings import CaptureSettings
from ..data.shard import Array, write_shard
from ..data.tokens import Skipped
from .check_result import SelfCheck
from .interrupts import Interrupts
from .prefixes import prompt_groups
from .recorder import Recorder
from .resume import require_ours
from .runner import Runner, Work
from .samples import EncodedShard, Marker, ShardSamples, SkipLimit
from .spotcheck import SpotChecks
from .unfinished import UnfinishedShard

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
    check: SelfCheck,
) -> int:
    """Make those of the shards (by number) that are not there whole, and return how many were made.

    check: what the self-check found, which says what may share a pass, and whether prompts that begin alike have their prefix
    run once.
    One is written while the next is computed, so that the arrays of three at most, and the file of one, are in memory. Raises
    RunError where the disk refuses, the model fails, or a sample gives values that are not finite (with `--on-nan skip`: where
    that makes too many), and KeyboardInterrupt after a Ctrl-C; whole shards stay in any case.
    """
    runner = Runner(model, recorder, settings.batch_tokens or 1, settings.batch_size)
    prompts = [prompt for shard in shards.values() for prompt in shard.prompts]
    longest = max(prompts, key=lambda prompt: len(prompt.ids), default=None)
    dtype, seed = cache.metadata["settings"]["dtype"], settings.seed
    spot_checks = SpotChecks(model, recorder, check, dtype, seed, prompts)
    done, made, stopped = 0, 0, False
    unfinished: dict[int, UnfinishedShard] = {}
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
                unfinished[number] = UnfinishedShard(marked, cache.metadata, settings.on_nan)
                done += len(left_out)
                ids = [sample.ids for sample in marked.samples]
                yield Work(number, marked.samples, prompt_groups(ids, check.shared_prefixes, check.rules))
                if not marked.samples:
                    write(number)
            else:  # not reported, as it would make the samples/s look higher
                limit.add([*left_out, *_faulty_before(marked, stored, settings.on_nan, cache, number)])
                done += len(shards[number].prompts)

    def write(number: int) -> None:
        nonlocal made, writing
        shard = unfinished.pop(number)
        limit.add(list(shard.faulty.values()))
        own: dict[str, Any] = {"spot_checks": shard.spot_checked(number, spot_checks) if settings.spot_checks else []}
        arrays = shard.arrays()
        if kept := shards[number].kept:
            own["kept"] = as_stored(of_rows(kept, arrays["samples/row"].tolist()))
        _finish(writing)
        writing = writer.submit(_write, cache, number, arrays, shard.skipped(), own)
        made += 1

    threads = contextlib.ExitStack()
    with Interrupts() as interrupts, threads, recorder.listening(model), torch.inference_mode():
        preparer, writer = (threads.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        if not settings.batch_tokens and longest:
            runner.fit(longest)
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


def _write(cache: Cache, number: int, arrays: Mapping[str, Array], skipped: Sequence[Skipped], own: Mapping[str, Any]) -> None:
    """Write a shard with the cache's metadata and its `own`; InputError where the folder is another capture's by now."""
    require_ours(cache)
    remove(cache.path / SKIPPED_FILE)  # written again once the cache is complete
    entries = [{"row": entry.row, "reason": entry.reason} for entry in skipped]
    write_shard(shard_path(cache.path, number), number, arrays, {**cache.metadata, **own}, entries)


def _finish(writing: "Future[None] | None") -> None:
    try:
        if writing:
            writing.result()
    except RunError as error:
        raise RunError(f"{error.message}; whole shards are kept: make room, then run the same command again") from error
