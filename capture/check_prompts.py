"""Chooses the prompts of the self-check, by the lengths at which a model may begin to do something else.

Copies of a prompt that are cut to a length will do, as what a causal model makes of a token does not depend on later ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..data.errors import RunError
from ..data.tokens import Tokens
from .recorder import Recorder
from .reference import LayerValues, Reference, checkable_tokens

MIN_CHECKED = 16  # tokens; where memory does not hold eager attention over so few, nothing can be done


@dataclass(frozen=True)
class CheckPrompts:
    """Prompts to check, and what the model's own eager attention gives for them.

    Args:
        pairs: of prompts of different lengths, or a single one.
        expected: the values of each of `copies`.
        reference: what has run them.
    """

    pairs: list[list[Tokens]]
    expected: list[LayerValues]
    reference: Reference

    @property
    def copies(self) -> list[Tokens]:
        """The prompts of all pairs, one after the other."""
        return [copy for pair in self.pairs for copy in pair]


def check_prompts(
    model: PreTrainedModel, recorder: Recorder, shortest: Tokens, longest: Tokens, limits: Sequence[int]
) -> CheckPrompts:
    """The pairs of `prompt_pairs` that memory allows, and what is expected of each.

    Raises RunError where memory does not hold eager attention over any of them, and CannotRecordError as `Reference`.
    """
    most = checkable_tokens(model, recorder.heads)
    while True:
        pairs = prompt_pairs(shortest, longest, limits, max(most, MIN_CHECKED))
        reference = Reference(model, recorder, thorough=True)
        try:
            return CheckPrompts(pairs, [reference(copy.ids) for pair in pairs for copy in pair], reference)
        except MemoryError:
            tried = max(len(copy.ids) for pair in pairs for copy in pair)
        if tried <= MIN_CHECKED:
            raise RunError(
                f"out of memory on {model.device} in the self-check's eager attention over {tried} tokens; "
                "use a smaller --dtype"
            )
        most = tried // 2


def prompt_pairs(shortest: Tokens, longest: Tokens, limits: Sequence[int], most: int) -> list[list[Tokens]]:
    """The shortest and the longest prompt, and copies of the longest from either side of every limit between their lengths.

    The two of a pair differ in length, so that one of them is padded in their batch. A single prompt is paired with its first
    half, and one of a single token stays alone.

    Args:
        shortest: may be the longest.
        longest: cut to `most` tokens where it has more, as is the shortest.
        limits: numbers of tokens beyond which something begins.
        most: tokens that can be checked.
    """
    top, bottom = min(len(longest.ids), most), min(len(shortest.ids), most)
    if bottom == top:
        shortest, bottom = longest, top // 2
    pairs = [[_cut(shortest, bottom), _cut(longest, top)]] if bottom else [[_cut(longest, top)]]
    between = [limit for limit in limits if bottom <= limit < top]
    return pairs + [[_cut(longest, limit), _cut(longest, limit + 1)] for limit in between]


def _cut(sample: Tokens, tokens: int) -> Tokens:
    return Tokens(sample.row, sample.ids[:tokens])
