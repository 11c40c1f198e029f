"""Makes the shards of a cache: batch by batch through the model, each shard written while the next is computed."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..data.cache import SKIPPED_FILE, Cache, shard_path
from ..data.errors import InputError, RunError
from ..data.files import remove
from ..data.kept_columns import as_stored, of_rows
from ..data.settings import CaptureSettings
from ..data.shard import Array, write_shard
from ..data.tokens import Skipped
from .check_result import CheckedModel
from .device import profile_of
from .interrupts import Interrupts
from .prefixes import prompt_groups
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
    checked: CheckedModel,
    settings: CaptureSettings,
    limit: SkipLimit,
    progress: Progress | None,
) -> int:
    """Make those of the shards (by number) that are not there whole, and return how many were made.

    check: what the self-check found, which says what may share a pass, and whether prompts that begin alike have their prefix
    run once.
    Those that are computed together (see `DeviceProfile`) are written while the next are, so that the arrays of three times as
    many at most, and the file of one, are in memory. Raises
    RunError where the disk refuses, the model fails, or a sample gives values that are not finite (with `--on-nan skip`: where
    that makes too many), and KeyboardInterrupt after a Ctrl-C; whole shards stay in any case.
    """
    model, recorder, check = checked.model, checked.recorder, checked.check
    runner = Runner(model, recorder, settings.batch_tokens or 1, settings.batch_size, rules=check.rules, longest=check.longest)
    profile = profile_of(model.device)
    parts = list(_run_together(shards, profile.together))
    prompts = [prompt for shard in shards.values() for prompt in shard.prompts]
    longest = max(prompts, key=lambda prompt: len(prompt.ids), default=None)
    dtype, seed = cache.metadata["settings"]["dtype"], settings.seed
    spot_checks = SpotChecks(checked, dtype, seed, prompts)
    done, made, stopped = 0, 0, False
    unfinished: dict[int, tuple[Work, UnfinishedShard]] = {}
    writing: deque[Future[None]] = deque()

    def prepared(numbers: Sequence[int]) -> tuple[list[Prepared], Work]:
        of = [_prepared(cache, shards, marker, number) for number in numbers]
        samples = [sample for part in of for sample in part.marked.samples]
        ids = [sample.ids for sample in samples]
        return of, Work(samples, prompt_groups(ids, check.shared_prefixes, profile.batch_overhead, check.rules))

    def work() -> Iterator[Work]:
        nonlocal done, stopped
        for shards_of, together in _one_ahead(preparer, prepared, parts):
            stopped = interrupts.asked_to_stop
            if stopped:
                return
            first = 0
            for part in shards_of:
                number, marked = part.number, part.marked
                left_out = [entry for entry in marked.skipped if entry not in shards[number].skipped]
                if part.stored is None:
                    limit.add(left_out)
                    unfinished[number] = together, UnfinishedShard(marked, cache.metadata, settings.on_nan, first)
                    first += len(marked.samples)
                    done += len(left_out)
                    if not marked.samples:
                        write(number)
                else:  # not reported, as it would make the samples/s look higher
                    limit.add([*left_out, *_faulty_before(marked, part.stored, settings.on_nan, cache, number)])
                    done += len(shards[number].prompts)
            yield together

    def write(number: int) -> None:
        nonlocal made
        _, shard = unfinished.pop(number)
        limit.add(list(shard.faulty.values()))
        own: dict[str, Any] = {"spot_checks": shard.spot_checked(number, spot_checks) if settings.spot_checks else []}
        arrays = shard.arrays()
        if kept := shards[number].kept:
            own["kept"] = as_stored(of_rows(kept, arrays["samples/row"].tolist()))
        while writing and (len(writing) >= max(map(len, parts)) or writing[0].done()):
            _finish(writing.popleft())
        writing.append(writer.submit(_write, cache, number, arrays, shard.skipped(), own))
        made += 1

    threads = contextlib.ExitStack()
    with Interrupts() as interrupts, threads, recorder.listening(model), torch.inference_mode():
        preparer, writer = (threads.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        if not settings.batch_tokens and longest:
            runner.fit(longest)
        for of, batch, recorded in runner.run(work()):
            of_this = {number: shard for number, (together, shard) in unfinished.items() if together is of}
            done += sum(shard.add(batch, recorded) for shard in of_this.values())
            if progress:
                progress(done, len(prompts))
            interrupts.tell()
            for number, shard in of_this.items():
                if shard.complete:
                    write(number)
        while writing:
            _finish(writing.popleft())
        if stopped:
            raise KeyboardInterrupt
        if progress:
            progress(done, len(prompts))
    return made


@dataclass(frozen=True)
class Prepared:
    """A shard that is to be made, or what a whole one that is `stored` leaves out; its samples are not needed then."""

    number: int
    marked: ShardSamples
    stored: list[Skipped] | None


def _run_together(shards: Mapping[int, EncodedShard], tokens: int) -> Iterator[list[int]]:
    """The numbers of the shards that are run together: one after the other until they have so many tokens."""
    numbers, so_far = list[int](), 0
    for number, shard in shards.items():
        numbers.append(number)
        so_far += sum(len(prompt.ids) for prompt in shard.prompts)
        if so_far >= tokens:
            yield numbers
            numbers, so_far = [], 0
    if numbers:
        yield numbers


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


def _prepared(cache: Cache, shards: Mapping[int, EncodedShard], marker: Marker, number: int) -> Prepared:
    shard, stored = shards[number], cache.skipped_in_whole(number)
    if stored is None:
        return Prepared(number, marker(shard), None)
    left_out = [Skipped(entry["row"], entry["reason"]) for entry in stored]
    known = {entry.row for entry in shard.skipped}
    marked = marker(shard).skipped if any(entry.row not in known for entry in left_out) else shard.skipped
    return Prepared(number, ShardSamples([], marked), left_out)


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


def _finish(writing: "Future[None]") -> None:
    try:
        writing.result()
    except RunError as error:
        raise RunError(f"{error.message}; whole shards are kept: make room, then run the same command again") from error
