"""Runs samples through the model in batches that fit into its memory."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from ..data.errors import RunError, one_line
from ..data.tokens import Sample
from .attention import Prefix, Recorded, Recorder
from .batches import Batch, batch_count, longest_first, pad
from .models import is_out_of_memory
from .prefixes import Group, Ids

logger = logging.getLogger("headscore")

BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
PREFIX_COST = 1 / 8  # what a token of a shared prefix takes of a batch, compared with one that is run


class ModelError(RunError):
    """The model failed, and not because memory ran out."""


class Runner:
    """Runs a model whose attention `recorder` hears; remembers the batch size that its memory allows.

    batch_tokens: padded tokens in a batch, by default BATCH_TOKENS of the device. batch_size: most samples in a batch.
    """

    def __init__(self, model: PreTrainedModel, recorder: Recorder, batch_tokens: int | None, batch_size: int | None):
        self._model = model
        self._recorder = recorder
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cpu"])
        self._batch_size = batch_size

    def run(self, samples: Sequence[Sample], groups: Sequence[Group]) -> Iterator[tuple[Batch, Recorded]]:
        """What is recorded of the samples of every group, batch by batch, the longest of each group first.

        Where memory runs out the batch is halved, down to one sample, and later batches are as small. A sample whose values are
        not finite comes once more in the end, alone, as the padding beside it may have been the cause. Raises RunError where
        one sample is too much, or the model fails.
        """
        for group in groups:
            prefix = self._prefix(samples[group.members[0][0]].ids[: group.prefix]) if group.prefix else None
            yield from self._run_group(samples, group.members, prefix)

    def _run_group(
        self, samples: Sequence[Sample], members: list[list[int]], prefix: Prefix | None
    ) -> Iterator[tuple[Batch, Recorded]]:
        skip = prefix.tokens if prefix else 0
        lengths = [len(samples[each[0]].ids) - skip for each in members]
        left = [members[i] for i in longest_first(lengths)]
        alone: list[list[int]] = []
        while todo := left or alone:
            longest = len(samples[todo[0][0]].ids) - skip
            cost = longest + int(skip * PREFIX_COST)
            count = batch_count(cost, self._batch_tokens, self._batch_size if todo is left else 1)
            batch = pad(samples, todo[:count], skip)
            recorded = self._run(batch, prefix)
            if recorded is None:
                self._batch_tokens = cost * len(batch.index) // 2
                logger.warning("out of memory with %d samples; going on with half as many", len(batch.index))
                continue
            del todo[:count]
            if len(batch.index) > 1:
                alone += [each for each, finite in zip(batch.index, recorded.finite, strict=True) if not finite]
            yield batch, recorded

    def _prefix(self, ids: Ids) -> Prefix:
        """The prefix of a group of prompts, run once."""
        kv_cache = DynamicCache()
        self._recorder.start(torch.tensor([len(ids)]))
        with self._failures(len(ids), 1):
            tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self._model.device)
            self._model(input_ids=tokens, past_key_values=kv_cache, use_cache=True)
            return self._recorder.take_prefix(kv_cache)

    def _run(self, batch: Batch, prefix: Prefix | None) -> Recorded | None:
        """What is recorded of a batch, or None where memory runs out and it can be halved."""
        options = {"past_key_values": prefix.kv_cache, "use_cache": True} if prefix else {"use_cache": False}
        try:
            with self._failures(int(batch.lengths.max()), len(batch.index)):
                self._recorder.start(batch.lengths, prefix)
                self._model(input_ids=batch.ids.to(self._model.device), **options)
                return self._recorder.take()
        except torch.OutOfMemoryError:
            pass
        self._recorder.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @contextlib.contextmanager
    def _failures(self, tokens: int, samples: int) -> Iterator[None]:
        """Tells a failed run as RunError, and one that is out of memory but can be halved as OutOfMemoryError."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise ModelError(
                    f"{self._model.config.model_type}: failed on {samples} samples: {one_line(error)[:300]}"
                ) from error
            if samples == 1:
                raise RunError(
                    f"out of memory on {self._model.device} with a single sample of {tokens} tokens; "
                    "lower --max-length, or use a smaller --dtype"
                ) from error
            raise torch.OutOfMemoryError from error
