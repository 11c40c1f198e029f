"""Runs samples through the model in batches that fit into its memory."""

import logging
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from ..data.errors import RunError, one_line
from ..data.tokens import Sample
from .attention import Recorded, Recorder
from .batches import Batch, batch_count, longest_first, pad
from .models import is_out_of_memory

logger = logging.getLogger("headscore")

BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}


class Runner:
    """Runs a model whose attention `recorder` hears; remembers the batch size that its memory allows.

    batch_tokens: padded tokens in a batch, by default BATCH_TOKENS of the device. batch_size: most samples in a batch.
    """

    def __init__(self, model: PreTrainedModel, recorder: Recorder, batch_tokens: int | None, batch_size: int | None):
        self._model = model
        self._recorder = recorder
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cpu"])
        self._batch_size = batch_size

    def run(self, samples: Sequence[Sample]) -> Iterator[tuple[Batch, Recorded]]:
        """What is recorded of every sample, batch by batch, the longest first.

        Where memory runs out the batch is halved, down to one sample, and later batches are as small. A sample whose values are
        not finite comes once more in the end, alone, as the padding beside it may have been the cause. Raises RunError where
        one sample is too much, or the model fails.
        """
        left = longest_first([len(sample.ids) for sample in samples])
        alone: list[int] = []
        while todo := left or alone:
            longest = len(samples[todo[0]].ids)
            count = batch_count(longest, self._batch_tokens, self._batch_size if todo is left else 1)
            batch = pad(samples, todo[:count])
            recorded = self._run(batch)
            if recorded is None:
                self._batch_tokens = batch.ids.numel() // 2
                logger.warning("out of memory with %d samples; going on with half as many", len(batch.index))
                continue
            del todo[:count]
            if len(batch.index) > 1:
                alone += [i for i, finite in zip(batch.index, recorded.finite, strict=True) if not finite]
            yield batch, recorded

    def _run(self, batch: Batch) -> Recorded | None:
        """What is recorded of a batch, or None where memory runs out and it can be halved."""
        try:
            self._recorder.start(batch.lengths)
            self._model(input_ids=batch.ids.to(self._model.device), use_cache=False)
            return self._recorder.take()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                about = f"{self._model.config.model_type}: failed on {len(batch.index)} samples"
                raise RunError(f"{about}: {one_line(error)[:300]}") from error
            if len(batch.index) == 1:
                raise RunError(
                    f"out of memory on {self._model.device} with a single sample of {batch.lengths.max()} tokens; "
                    "lower --max-length, or use a smaller --dtype"
                ) from error
        self._recorder.clear()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None
