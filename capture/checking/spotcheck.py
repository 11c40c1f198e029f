"""Runs some samples of every shard once more, alone and whole, before the shard is written.

Batches, padding, shared prefixes and the recording itself should change nothing. The self-check shows that for a few prompts;
this shows it for prompts of every shard, with what is about to be written.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.errors import RunError
from ...data.prompts.tokens import Tokens
from ..recording.attention import CannotRecordError
from ..recording.prefixes import Group
from ..recording.runner import Runner, Work
from .check_result import CheckedModel
from .comparison import checked_dtype, differences, tolerance
from .reference import LayerValues, OwnOutput, Reference, Values, checkable_tokens

logger = logging.getLogger("headscore")

# Factor on the self-check's tolerance: in half precision one head of many may be further off by rounding alone.
_LOW_PRECISION = 3

# A checked token costs about three of those that are captured, as each sample is run alone and whole by eager attention.
SHARE_OF_TOKENS = 0.009
FEW_PROMPTS = 32  # a capture of fewer takes so little time that its share does not matter


class SpotChecks:
    """Chooses samples of a shard, runs them again and compares.

    Args:
        checked: the model, to which its recorder listens.
        dtype: fp32, fp16 or bf16.
        seed: of the choice.
        prompts: all that this process captures.
    """

    def __init__(
        self,
        checked: CheckedModel,
        dtype: str,
        seed: int,
        prompts: Sequence[Tokens],
    ):
        self._model, self._recorder, self._check = checked.model, checked.recorder, checked.check
        self._dtype = checked_dtype(checked.model, dtype)
        self._seed = seed
        self._longest = max(prompts, key=lambda prompt: len(prompt.ids)).row if prompts else None
        self._share = SHARE_OF_TOKENS if len(prompts) >= FEW_PROMPTS else 1

    def choose(self, shard: int, samples: Sequence[Tokens], padding: Sequence[int]) -> list[int]:
        """Numbers of the samples of a shard to check, rising; none of a shard without samples.

        One is drawn by the seed and the shard's number, and one more from either side of each length at which passes begin to
        be computed in another way. These follow as far as all together stay within SHARE_OF_TOKENS of the shard's tokens
        (always, in a capture of fewer than FEW_PROMPTS): the one with the most `padding` tokens in its batch, in which longer
        prompts beside it would show first; the longest prompt of the capture; and one between any two limits of the model.
        """
        order = np.random.RandomState([self._seed, shard]).permutation(len(samples)).tolist()
        rules = self._check.rules
        switches = sorted({*rules.switches, *([rules.alone_beyond] if rules.alone_beyond else [])})
        chosen = {*order[:1], *_one_between(switches, order, samples)}
        most_padded = sorted(order, key=lambda number: -padding[number])[:1]
        longest = [number for number in order if samples[number].row == self._longest]
        left = self._share * sum(len(sample.ids) for sample in samples) - sum(len(samples[i].ids) for i in chosen)
        for number in (*most_padded, *longest, *_one_between(rules.limits, order, samples)):
            if number not in chosen and len(samples[number].ids) <= left:
                chosen.add(number)
                left -= len(samples[number].ids)
        return sorted(chosen)

    def launched(self, shard: int, sample: Tokens, stored: Mapping[str, Values]) -> Callable[[], dict[str, Any]]:
        """Run a sample again. What is returned compares it with what its shard holds, and gives its entry for the metadata.

        Args:
            shard: number of the shard.
            sample: one of its samples, T tokens.
            stored: by array [L,H,T] or [L,H].

        What is returned raises RunError, naming row, layer and array, where they differ by more than rounding. Only then is a
        GPU waited for.
        """
        with self._recorder.paused(self._model):
            expected = self._launched(sample)
        return lambda: self._compared(shard, sample, stored, *expected())

    def _compared(
        self, shard: int, sample: Tokens, stored: Mapping[str, Values], way: str, expected: LayerValues
    ) -> dict[str, Any]:
        found = self._differences(stored, expected)
        worst: dict[str, float] = {}
        rounding = False
        for layer, name, difference in found:
            worst[name] = max(worst.get(name, 0.0), difference)
            if not difference <= self._tolerance(name):  # catches NaN too
                rounding = rounding or (self._may_be_rounding(found) and self._is_as_alone(sample, stored))
                if not rounding:
                    raise RunError(
                        f"spot check failed: row {sample.row} ({len(sample.ids)} tokens), layer {layer}, {name} differs by "
                        f"{difference:.2g} (tolerance {self._tolerance(name):g}) from the same prompt run alone with the "
                        f"model's own attention; shard {shard} is not written; please report it (--no-share-prefixes or "
                        "--batch-size 1 may avoid it)"
                    )
        if rounding:
            logger.warning(
                "row %d: %s rounds so much that its own eager attention differs by up to %.2g from what is recorded; "
                "--dtype fp32 would not", sample.row, self._dtype, max(worst.values()),
            )  # fmt: skip
        if not worst:
            reason = "memory does not hold its eager attention, nor is there an output of its own attention to compare"
            logger.warning("row %d: its spot check compared nothing: %s", sample.row, reason)
        return {
            "row": sample.row,
            "tokens": len(sample.ids),
            "way": way if worst else "none",
            "largest_difference": dict(sorted(worst.items())),
        }

    def _differences(self, stored: Mapping[str, Values], expected: LayerValues) -> list[tuple[int, str, float]]:
        """Layer, array and largest difference of all that is stored of a sample from what is expected of it."""
        return [
            (layer, name, difference)
            for entry, layer in enumerate(self._check.layers)
            for name, difference in differences(
                {name: values[entry] for name, values in stored.items()}, expected.get(layer, {})
            ).items()
        ]

    def _may_be_rounding(self, found: Sequence[tuple[int, str, float]]) -> bool:
        """Whether the dtype may explain what differs: it hardly changes which tokens a mask hides, and nothing in fp32."""
        stray = [difference for _, name, difference in found if name.endswith("stray")]
        return self._dtype != "fp32" and all(difference <= self._tolerance("stray") for difference in stray)

    def _is_as_alone(self, sample: Tokens, stored: Mapping[str, Values]) -> bool:
        """Whether what is stored is what is recorded of the sample alone and whole, which an exact softmax confirms.

        In half precision some models amplify rounding so far that two right ways of computing their attention disagree. Then
        only what batches, padding, prefixes and storing have done can be told, and whether the recording is right in itself.
        """
        work = Work([sample], [Group(0, [[0]])])
        try:
            with self._recorder.compared_exactly():
                recorded = next(Runner(self._model, self._recorder, len(sample.ids)).run([work]))[2]
        except CannotRecordError:
            return False
        alone = {
            layer: {name: values[entry, 0] for name, values in recorded.arrays.items()}
            for entry, layer in enumerate(recorded.layers)
        }
        return all(difference <= self._tolerance(name) for _, name, difference in self._differences(stored, alone))

    def _launched(self, sample: Tokens) -> Callable[[], tuple[str, LayerValues]]:
        """What the model's own attention gives: eager if memory allows, else the norms of whatever attention it comes with."""
        if len(sample.ids) <= checkable_tokens(self._model, self._check.heads):
            try:
                eager = Reference(self._model, self._recorder.known, self._recorder.all_tokens).launched(sample.ids)
                return lambda: ("eager", eager())
            except MemoryError:
                logger.debug("row %d: memory does not hold its eager attention", sample.row)
        own = OwnOutput(self._model, self._recorder.known.projections)(sample.ids, self._check.heads)
        return lambda: ("own", own)

    def _tolerance(self, name: str) -> float:
        return tolerance(name, self._dtype) * (1 if self._dtype == "fp32" else _LOW_PRECISION)


def _one_between(limits: Sequence[int], order: Sequence[int], samples: Sequence[Tokens]) -> list[int]:
    """The first sample in order of those whose lengths lie between the same two of some rising limits, for any two."""
    found: dict[int, int] = {}
    for number in order:
        found.setdefault(bisect_left(limits, len(samples[number].ids)), number)
    return list(found.values())
