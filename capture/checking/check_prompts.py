"""Chooses the prompts of the self-check, by the lengths at which a model may begin to do something else.

Copies of a prompt that are cut to a length will do, as what a causal model makes of a token does not depend on later ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ...data.errors import RunError
from ...data.prompts.tokens import Tokens
from ..recording.recorder import Recorder
from .reference import LayerValues, Reference, checkable_tokens

MIN_CHECKED = 16  # tokens; where memory does not hold eager attention over so few, nothing can be done


@dataclass(frozen=True)
class CheckPrompts:
    """Prompts to check, and what the model's own eager attention gives for them.

    Args:
        pairs: of two different prompts, or a single one.
        reference: has run them.
        values: what eager attention gave, by row and number of tokens.
    """

    pairs: list[list[Tokens]]
    reference: Reference
    values: dict[tuple[int, int], LayerValues]

    def expected(self, prompt: Tokens) -> LayerValues:
        """What is expected of one of the prompts."""
        return self.values[_key(prompt)]

    @property
    def prompts(self) -> list[Tokens]:
        """The prompts of all pairs, each once."""
        return list({_key(prompt): prompt for pair in self.pairs for prompt in pair}.values())


def check_prompts(
    model: PreTrainedModel, recorder: Recorder, shortest: Tokens, longest: Tokens, limits: Sequence[int]
) -> CheckPrompts:
    """The pairs of `prompt_pairs` that memory allows, and what is expected of each.

    Raises RunError where memory does not hold eager attention over any of them, and CannotRecordError as `Reference`.
    """
    max_tokens = checkable_tokens(model, recorder.known.heads)
    while True:
        pairs = prompt_pairs(shortest, longest, limits, max(max_tokens, MIN_CHECKED))
        reference = Reference(model, recorder.known, recorder.all_tokens, thorough=True)
        try:
            found = CheckPrompts(pairs, reference, {})
            found.values.update({_key(prompt): reference(prompt.ids) for prompt in found.prompts})
            return found
        except MemoryError:
            tried = max(len(prompt.ids) for prompt in found.prompts)
        if tried <= MIN_CHECKED:
            raise RunError(
                f"out of memory on {model.device} in the self-check's eager attention over {tried} tokens; "
                "use a smaller --dtype"
            )
        max_tokens = tried // 2


def prompt_pairs(shortest: Tokens, longest: Tokens, limits: Sequence[int], max_tokens: int) -> list[list[Tokens]]:
    """Pairs of prompts to run alone and in one batch.

    The shortest is paired with the longest, with a copy of it of middle length, and with one of its own length; each limit
    between them, with copies of the longest from either side of it. So in most pairs one prompt has padding, and a change shows
    that comes only between two lengths, or only beside another prompt. A single prompt is paired with its first half, and one
    of a single token stays alone.

    Args:
        shortest: may be the longest.
        longest: cut to `max_tokens` where it has more, as is the shortest.
        limits: numbers of tokens beyond which something begins.
        max_tokens: of a prompt that can be checked.
    """
    top, bottom = min(len(longest.ids), max_tokens), min(len(shortest.ids), max_tokens)
    if bottom == top:
        shortest, bottom = (shortest, bottom) if shortest.row != longest.row else (longest, top // 2)
    if not bottom:
        return [[_cut(longest, top)]]
    first = _cut(shortest, bottom)
    others = [_cut(longest, length) for length in dict.fromkeys((top, (top + bottom) // 2, bottom))]
    pairs = [[first, other] for other in others if _key(other) != _key(first)]
    between = [limit for limit in limits if bottom <= limit < top]
    return pairs + [[_cut(longest, limit), _cut(longest, limit + 1)] for limit in between]


def _cut(sample: Tokens, tokens: int) -> Tokens:
    return Tokens(sample.row, sample.ids[:tokens])


def _key(prompt: Tokens) -> tuple[int, int]:
    return prompt.row, len(prompt.ids)
