"""Makes the shards of a cache: batch by batch through the model, each shard written while the next is computed."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ...data.cache.folder import Cache, shard_path
from ...data.cache.kept_columns import as_stored, of_rows
from ...data.errors import HeadscoreError, InputError
from ...data.options.settings import CaptureSettings
from ...data.prompts.tokens import Skipped
from ..checking.check_result import CheckedModel
from ..checking.spotcheck import SpotChecks
from ..inputs.tokenising import EncodedShard, Marker, ShardSamples, SkipLimit
from ..job.interrupts import Interrupts
from ..model.device import profile_of
from ..recording.batches import Batch
from ..recording.prefixes import prompt_groups
from ..recording.recorded import Recorded
from ..recording.runner import Runner, Work
from .shard_writer import ShardWriter
from .unfinished import UnfinishedShard

logger = logging.getLogger("headscore")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A shard with its spans marked. Where it is whole already, only the rows that it leaves out are known.

    Args:
        number: of the shard.
        marked: its samples, none where it is whole already; and its rows that are left out.
        stored: the rows that a whole shard says that it leaves out; None for a shard that is to be made.
    """

    number: int
    marked: ShardSamples
    stored: list[Skipped] | None


class ShardMaker:
    """Makes those shards of a cache that are not there whole.

    Shards that are run together (see `DeviceProfile`) are written while the next ones are computed. So the arrays of at most
    three times as many shards are in memory, and the file of one.

    Args:
        cache: to which the shards are added.
        shards: the tokenised prompts of each shard of this process, by the shard's number.
        marker: marks the spans of prompts.
        checked: the model, and what the self-check found: what may share a pass, and whether common prefixes are run once.
        settings: of the capture.
        limit: stops the capture where too many rows are left out.
    """

    def __init__(
        self,
        cache: Cache,
        shards: Mapping[int, EncodedShard],
        marker: Marker,
        checked: CheckedModel,
        settings: CaptureSettings,
        limit: SkipLimit,
    ):
        self._cache, self._shards, self._marker, self._checked = cache, shards, marker, checked
        self._settings, self._limit = settings, limit
        self._profile = profile_of(checked.model.device)
        self._prompts = [prompt for shard in shards.values() for prompt in shard.prompts]
        self._parts = list(_run_together(shards, self._profile.together))
        self._spot_checks = SpotChecks(checked, cache.metadata["settings"]["dtype"], settings.seed, self._prompts)
        self._writer = ShardWriter(cache, max(map(len, self._parts), default=1))
        self._unfinished: dict[int, tuple[Work, UnfinishedShard]] = {}
        self._complete = deque[int]()
        self._launched = deque[tuple[int, UnfinishedShard, list[Callable[[], dict[str, Any]]]]]()
        self._stopped = False
        self._done = 0  # prompts
        self._made = 0  # shards

    def run(self, progress: Progress | None) -> int:
        """Make the shards, and return how many were made.

        Args:
            progress: called with (prompts done, prompts in all) after each batch.

        Raises RunError where the disk refuses, the model fails, or a sample gives values that are not finite (with `--on-nan
        skip`: where too many do), and KeyboardInterrupt after a Ctrl-C. Whole shards stay in any case.
        """
        model, recorder, check = self._checked.model, self._checked.recorder, self._checked.check
        batch_tokens, batch_size = self._settings.batch_tokens, self._settings.batch_size
        runner = Runner(model, recorder, batch_tokens or 1, batch_size, rules=check.rules, longest=check.longest)
        with (
            Interrupts() as interrupts,
            ThreadPoolExecutor(1) as preparer,
            self._writer,
            recorder.listening(model),
            torch.inference_mode(),
        ):
            if not batch_tokens and self._prompts:
                runner.fit(max(self._prompts, key=lambda prompt: len(prompt.ids)))
            try:
                for work, batch, recorded in runner.run(self._work(preparer, interrupts)):
                    self._complete += self._add(work, batch, recorded)
                    if progress:
                        progress(self._done, len(self._prompts))
                    interrupts.tell()
                    if self._profile.checked_ahead:
                        self._check_some(self._profile.checked_ahead)
                    else:
                        self._check_all()
                self._check_all()
            except HeadscoreError:
                with contextlib.suppress(HeadscoreError):  # what is complete is kept; the first fault is the one to tell
                    self._check_all()
                raise
            self._writer.finish()
            if self._stopped:
                raise KeyboardInterrupt
            if progress:
                progress(self._done, len(self._prompts))
        return self._made

    def _work(self, preparer: ThreadPoolExecutor, interrupts: Interrupts) -> Iterator[Work]:
        """What is to be run, part by part, until a stop is asked for."""
        for shards, work in _one_ahead(preparer, self._prepared, self._parts):
            if interrupts.asked_to_stop:
                self._stopped = True
                return
            self._check_all()  # of the part before the last, so that no more arrays are in memory
            first = 0
            for shard in shards:
                self._begin(shard, work, first)
                first += len(shard.marked.samples)
            yield work

    def _prepared(self, numbers: Sequence[int]) -> tuple[list[Prepared], Work]:
        """The shards of a part, and the samples that are to be run of them."""
        shards = [self._prepared_shard(number) for number in numbers]
        samples = [sample for shard in shards for sample in shard.marked.samples]
        ids, check = [sample.ids for sample in samples], self._checked.check
        return shards, Work(samples, prompt_groups(ids, check.shared_prefixes, self._profile.batch_overhead, check.rules))

    def _prepared_shard(self, number: int) -> Prepared:
        shard, stored = self._shards[number], self._cache.skipped_in_whole(number)
        if stored is None:
            return Prepared(number, self._marker(shard), None)
        left_out = [Skipped(entry["row"], entry["reason"]) for entry in stored]
        known = {entry.row for entry in shard.skipped}
        marked = self._marker(shard).skipped if any(entry.row not in known for entry in left_out) else shard.skipped
        return Prepared(number, ShardSamples([], marked), left_out)

    def _begin(self, shard: Prepared, work: Work, first: int) -> None:
        """Begin a shard whose samples are in `work` from number `first` on, or count the rows of one that is whole already."""
        number, marked = shard.number, shard.marked
        left_out = [entry for entry in marked.skipped if entry not in self._shards[number].skipped]
        if shard.stored is not None:  # not reported, as it would make the samples/s look higher
            self._limit.add([*left_out, *self._faulty_before(shard, shard.stored)])
            self._done += len(self._shards[number].prompts)
            return
        self._limit.add(left_out)
        self._done += len(left_out)
        self._unfinished[number] = work, UnfinishedShard(marked, self._cache.metadata, self._settings.on_nan, first)
        if not marked.samples:
            self._complete.append(number)

    def _faulty_before(self, shard: Prepared, stored: Sequence[Skipped]) -> list[Skipped]:
        """The rows that a shard made before leaves out because their values were not finite."""
        known = {entry.row for entry in shard.marked.skipped}
        faulty = [entry for entry in stored if entry.row not in known]
        if faulty and self._settings.on_nan == "stop":
            raise InputError(
                f"{shard_path(self._cache.path, shard.number)}: was made with --on-nan skip and leaves out row {faulty[0].row} "
                f"({faulty[0].reason}); give --on-nan skip again, or remove the file"
            )
        return faulty

    def _add(self, work: Work, batch: Batch, recorded: Recorded) -> list[int]:
        """Put what was recorded of a batch into the shards that it is of; the numbers of those that are complete now."""
        shards = {number: shard for number, (together, shard) in self._unfinished.items() if together is work}
        self._done += sum(shard.add(batch, recorded) for shard in shards.values())
        return [number for number, shard in shards.items() if shard.complete]

    def _check_some(self, count: int) -> None:
        """Have the shards written whose spot checks were launched before, and launch those of up to `count` complete ones."""
        due = len(self._launched)
        for _ in range(min(count, len(self._complete))):
            number = self._complete.popleft()
            shard = self._unfinished.pop(number)[1]
            checks = shard.spot_checks(number, self._spot_checks) if self._settings.spot_checks else []
            self._launched.append((number, shard, checks))
        for _ in range(due):
            number, shard, checks = self._launched.popleft()
            self._write(number, shard, [check() for check in checks])

    def _check_all(self) -> None:
        while self._complete or self._launched:
            self._check_some(len(self._complete))

    def _write(self, number: int, shard: UnfinishedShard, found: Sequence[Mapping[str, Any]]) -> None:
        """Have a shard written, with what its spot checks found."""
        self._limit.add(list(shard.faulty.values()))
        own: dict[str, Any] = {"spot_checks": found}
        arrays = shard.arrays()
        if kept := self._shards[number].kept:
            own["kept"] = as_stored(of_rows(kept, arrays["samples/row"].tolist()))
        self._writer.write(number, arrays, shard.skipped(), own)
        self._made += 1


def _run_together(shards: Mapping[int, EncodedShard], tokens: int) -> Iterator[list[int]]:
    """The numbers of shards in parts that are run together; a part ends with the shard that brings it to `tokens`."""
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
    """`make` of each item. The next one is made in a thread while the caller uses one."""
    coming: deque[Future[Result]] = deque()
    for item in items:
        coming.append(thread.submit(make, item))
        if len(coming) > 1:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()
