"""Runs samples through the model in batches that fit into its memory."""

import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ...data.errors import HeadscoreError, RunError, one_line
from ...data.prompts.tokens import Tokens
from ..inputs.lengths import ALL_APART, LengthRules
from ..model.device import profile_of, sent_to
from ..model.memory import fitting_tokens
from ..model.out_of_memory import is_out_of_memory
from .batches import Batch, batch_counts, longest_first, pad
from .prefixes import PREFIX_COST, Group, Ids, Prefix
from .recorded import Recorded, Recording
from .recorder import Recorder

logger = logging.getLogger("headscore")


class ModelError(RunError):
    """The model failed, and not because memory ran out."""


class NoMemoryError(RunError):
    """Memory does not hold the model's pass over a single sample."""


@dataclass(frozen=True)
class Work:
    """Samples of one shard or several that are run together, in groups by their prefixes."""

    samples: Sequence[Tokens]
    groups: Sequence[Group]


@dataclass(frozen=True)
class _Launched:
    work: Work
    prefix: Prefix | None
    batch: Batch
    recording: Recording


class Runner:
    """Runs samples through a model in batches, and remembers the batch size that its memory allows.

    Args:
        model: as loaded.
        recorder: listens to the model.
        batch_tokens: maximum of tokens in a batch, padding included.
        batch_size: maximum of samples in a batch, None for no maximum.
        overhead: what a batch costs besides its tokens, in tokens; None for the device's.
        rules: which lengths may share a pass.
        longest: the model takes prompts of this length. So shorter ones may be padded up to it, by the device's `pad_to`, where
            the rules allow it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recorder: Recorder,
        batch_tokens: int,
        batch_size: int | None = None,
        overhead: int | None = None,
        *,
        rules: LengthRules = ALL_APART,
        longest: int = 0,
    ):
        self._model = model
        self._recorder = recorder
        self._batch_tokens = batch_tokens
        self._batch_size = batch_size
        self._profile = profile_of(model.device)
        self._overhead = self._profile.batch_overhead if overhead is None else overhead
        self._rules, self._longest = rules, longest

    def run(self, work: Iterable[Work]) -> Iterator[tuple[Work, Batch, Recorded]]:
        """What is recorded of all samples, batch by batch, with the work and the batch; the longest of a group first.

        Where memory runs out a batch's tokens are halved, down to one sample, for later batches too. A sample whose values are
        not finite comes once more, alone, as the padding beside it may have been the cause. On a GPU the next batch is launched
        before one is handed out, so that the device works while the caller does. Raises RunError where one sample is too much,
        or the model fails.
        """
        launched: deque[_Launched] = deque()
        for each in self._launches(work):
            launched.append(each)
            if len(launched) > self._profile.ahead:
                yield from self._finished(launched.popleft())
        while launched:
            yield from self._finished(launched.popleft())

    def fit(self, longest: Tokens) -> None:
        """Choose the tokens of a batch by the memory that is free beside the model."""

        def run(count: int) -> None:
            launched = self._launch(Work([longest], []), None, [[0]] * count)
            if not launched:
                raise torch.OutOfMemoryError
            launched.recording.finish()

        devices = {parameter.device for parameter in self._model.parameters()}
        self._batch_tokens = fitting_tokens(run, len(longest.ids), devices)

    def _launches(self, work: Iterable[Work]) -> Iterator["_Launched"]:
        for part in work:
            for group in part.groups:
                prefix = self._prefix(part.samples[group.members[0][0]].ids[: group.prefix]) if group.prefix else None
                lengths = [len(part.samples[same[0]].ids) - group.prefix for same in group.members]
                left = [group.members[i] for i in longest_first(lengths)]
                while left:
                    tokens = [self._padded(len(part.samples[i].ids) - group.prefix, group.prefix) for i, *_ in left]
                    costs = [count + int(group.prefix * PREFIX_COST) for count in tokens]
                    for count in batch_counts(costs, self._batch_tokens, self._batch_size, self._overhead):
                        launched = self._launch(part, prefix, left[:count])
                        if not launched:
                            self._batch_tokens = costs[-len(left)] * count // 2
                            logger.warning("out of memory with %d samples; going on with smaller batches", count)
                            break
                        del left[:count]
                        yield launched

    def _finished(self, launched: "_Launched") -> Iterator[tuple[Work, Batch, Recorded]]:
        """What was recorded of a batch, and of each sample in it that has to be run again."""
        recorded = launched.recording.finish()
        yield launched.work, launched.batch, recorded
        if len(launched.batch.index) > 1:
            for same, finite in zip(launched.batch.index, recorded.finite, strict=True):
                again = None if finite else self._launch(launched.work, launched.prefix, [same])
                if again:
                    yield again.work, again.batch, again.recording.finish()

    def _prefix(self, ids: Ids) -> Prefix:
        """The prefix of a group of prompts, run once."""
        kv_cache = DynamicCache()
        with self._failures(len(ids), 1):
            self._recorder.start(self._sent(torch.tensor([len(ids)])), will_be_prefix=True)
            tokens = self._sent(torch.from_numpy(ids.astype(np.int64))[None])
            self._recorder.run(self._model, input_ids=tokens, past_key_values=kv_cache, use_cache=True)
            return self._recorder.take_prefix(len(ids), kv_cache)

    def _sent(self, values: Tensor) -> Tensor:
        return sent_to(self._model.device, values)

    def _padded(self, tokens: int, prefix: int) -> int:
        """How many tokens a batch is padded to whose longest sample has `tokens` after a prefix."""
        padded = min(-(-tokens // self._profile.pad_to) * self._profile.pad_to, self._longest - prefix)
        return padded if padded > tokens and self._rules.way(prefix + padded) == self._rules.way(prefix + tokens) else tokens

    def _launch(self, work: Work, prefix: Prefix | None, index: list[list[int]]) -> "_Launched | None":
        """Run a batch, or return None where memory runs out and it can be halved."""
        skip = prefix.tokens if prefix else 0
        longest = max(len(work.samples[i].ids) for i, *_ in index)
        batch = pad(work.samples, index, skip, self._padded(longest - skip, skip))
        options = {"past_key_values": prefix.kv_cache, "use_cache": True} if prefix else {"use_cache": False}
        try:
            with self._failures(int(batch.lengths.max()), len(index)):
                self._recorder.start(self._sent(batch.lengths), prefix)
                self._recorder.run(self._model, input_ids=self._sent(batch.ids), **options)
                return _Launched(work, prefix, batch, self._recorder.take())
        except torch.OutOfMemoryError:
            pass
        self._recorder.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @contextlib.contextmanager
    def _failures(self, tokens: int, samples: int) -> Iterator[None]:
        """Raises RunError for a failed run, and OutOfMemoryError where memory runs out and the batch can be halved."""
        try:
            yield
        except HeadscoreError:
            raise
        except Exception as error:  # whatever an architecture's code raises
            if not is_out_of_memory(error):
                raise ModelError(
                    f"{self._model.config.model_type}: failed on {samples} samples: {one_line(error)[:300]}"
                ) from error
            if samples == 1:
                raise NoMemoryError(
                    f"out of memory on {self._model.device} with a single sample of {tokens} tokens; "
                    "lower --max-length, or use a smaller --dtype"
                ) from error
            raise torch.OutOfMemoryError from error
