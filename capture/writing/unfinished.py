"""A shard that is filled batch by batch, until it can be checked and written."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...data.cache.metadata import Metadata
from ...data.cache.shard import ARRAYS, Array, array_shapes, stored_arrays
from ...data.errors import RunError
from ...data.prompts.tokens import Sample, Skipped
from ..checking.spotcheck import SpotChecks
from ..inputs.tokenising import ShardSamples
from ..recording.batches import Batch
from ..recording.recorded import Recorded, wider_dtype

logger = logging.getLogger("headscore")


class UnfinishedShard:
    """A shard that is filled batch by batch. Its attribute `faulty` has the samples whose values are not finite, by number.

    Args:
        shard: its samples, and its rows that are left out.
        metadata: of the cache.
        on_nan: `stop` or `skip`.
        first: the number of its first sample in the work that it is run with.
    """

    def __init__(self, shard: ShardSamples, metadata: Metadata, on_nan: str, first: int = 0):
        self._first = first
        self._samples, self._skipped, self._on_nan = shard.samples, shard.skipped, on_nan
        self._dtype = metadata["settings"]["dtype"]
        self._arrays = _empty_arrays(shard.samples, metadata)
        self._left = len(shard.samples)
        self._padding = [0] * len(shard.samples)
        self.faulty: dict[int, Skipped] = {}

    @property
    def complete(self) -> bool:
        """Whether no sample is to come any more."""
        return self._left == 0

    def add(self, batch: Batch, recorded: Recorded) -> int:
        """Take what was recorded of a batch, as far as it is of this shard; how many of its samples are done with that.

        Raises RunError where a fault stops the run.
        """
        before, alone = self._left, len(batch.index) == 1
        for position, numbers in enumerate(batch.index):
            same = [number - self._first for number in numbers if 0 <= number - self._first < len(self._samples)]
            if not same:
                continue
            if recorded.finite[position]:
                for number in same:
                    self._put(number, recorded, position)
                    self._padding[number] = int(batch.ids.shape[1] - batch.lengths[position])
            elif alone:
                self.faulty |= {i: Skipped(self._samples[i].row, recorded.first_fault(position)) for i in same}
                self._tell_fault(same[0])
            else:  # it is run again, alone
                continue
            self._left -= len(same)
        return before - self._left

    def _tell_fault(self, number: int) -> None:
        """Say that a sample is left out, or raise RunError for it if `--on-nan` says stop."""
        row, reason = self.faulty[number].row, self.faulty[number].reason
        if self._on_nan == "stop":
            raise RunError(
                f"row {row} (sample {number} of its shard): {reason}; "
                f"{wider_dtype(self._dtype)}leave such rows out with --on-nan skip"
            )
        logger.warning("row %d is skipped: %s", row, reason)

    def arrays(self) -> dict[str, Array]:
        """The shard's arrays, without the samples that are left out."""
        return _without(self._arrays, sorted(self.faulty)) if self.faulty else self._arrays

    def spot_checks(self, number: int, checks: SpotChecks) -> list[Callable[[], dict[str, Any]]]:
        """Spot checks of the shard, whose number is given, launched; each says what it found when it is called."""
        sound = [i for i in range(len(self._samples)) if i not in self.faulty]
        chosen = checks.choose(number, [self._samples[i] for i in sound], [self._padding[i] for i in sound])
        return [checks.launched(number, self._samples[sound[i]], self._of_sample(sound[i])) for i in chosen]

    def _of_sample(self, number: int) -> dict[str, Array]:
        """What is stored of a sample per head: [L,H,T] or [L,H] by array."""
        start, stop = self._arrays["samples/offset"][number : number + 2]
        per_head = {name: values for name, values in self._arrays.items() if values.ndim == 3}
        return {name: v[:, :, start:stop] if name.endswith("attention") else v[:, :, number] for name, v in per_head.items()}

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
