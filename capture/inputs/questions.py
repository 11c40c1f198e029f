"""Prompts with the answers that may follow them, as the fewest token sequences from which all of them can be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.prompts.answers import Answers
from ...data.prompts.templates import Prompt
from ...data.prompts.tokens import Encoded, Ids, Skipped, encode

_NO_LIMIT = 1 << 31


@dataclass(frozen=True)
class Continuation:
    """An answer in tokens.

    Args:
        sequence: which of the question's sequences it can be read from: the prompt and all of the answer but its last token are
            the beginning of it.
        ids: int32 [n], the answer's tokens.
    """

    sequence: int
    ids: Ids


@dataclass(frozen=True)
class Question:
    """A prompt with its answers.

    Args:
        row: of the data file.
        prompt: tokens of the prompt, at the last of which an answer begins.
        sequences: what is run: int32 [T] each, the prompt and whatever follows it.
        answers: as `answers_of` found them; none where a token of one could not be told from the prompt's.
        continuations: of each answer.
    """

    row: int
    prompt: int
    sequences: list[Ids]
    answers: Answers
    continuations: list[Continuation]

    @property
    def own(self) -> Continuation:
        """The row's own answer; there must be one."""
        if self.answers.own is None:
            raise LookupError("the question has no answer of its own")
        return self.continuations[self.answers.own]


def questions_of(
    prompts: Sequence[Encoded], answers: Sequence[Answers], tokenizer: Any, *, add_special: bool
) -> list[Question]:
    """A question for each tokenised prompt. Raises InputError, naming the row, where the tokenizer fails.

    An answer's tokens are those that come after the prompt's when both are tokenised as one text, as evaluation harnesses do;
    where the prompt's own tokens change by that, the answer is tokenised alone.
    """
    made: list[list[Ids]] = [[] for _ in prompts]
    for together in (True, False):
        wanted = [
            (place, text)
            for place, (ids, answer) in enumerate(zip(made, answers, strict=True))
            if not ids
            for text in answer.texts
        ]
        before = [prompt.prompt.text if together else "" for prompt in prompts]
        texts = [(prompts[place].row, Prompt(before[place] + text, ())) for place, text in wanted]
        encoded = encode(texts, tokenizer, _NO_LIMIT, False, add_special=add_special and together)
        for (place, _), outcome in zip(wanted, encoded, strict=True):
            made[place].append(_following(prompts[place].ids if together else prompts[place].ids[:0], outcome))
        made = [ids if all(map(len, ids)) else [] for ids in made]
    return [_question(prompt, answer, ids) for prompt, answer, ids in zip(prompts, answers, made, strict=True)]


def _following(prompt: Ids, whole: Encoded | Skipped) -> Ids:
    """What comes after the prompt's tokens; nothing where they are not the beginning of the whole."""
    return whole.ids[len(prompt) :] if isinstance(whole, Encoded) and _begins(whole.ids, prompt) else prompt[:0]


def _question(prompt: Encoded, answers: Answers, following: Sequence[Ids]) -> Question:
    inputs = [np.concatenate([prompt.ids, ids[:-1]]) for ids in following] or [prompt.ids]
    sequences: list[Ids] = []
    for ids in sorted(inputs, key=len, reverse=True):
        if not any(_begins(other, ids) for other in sequences):
            sequences.append(ids)
    places = [next(i for i, other in enumerate(sequences) if _begins(other, ids)) for ids in inputs[: len(following)]]
    found = [Continuation(place, ids) for place, ids in zip(places, following, strict=True)]
    return Question(prompt.row, len(prompt.ids), sequences, answers if following else Answers(), found)


def _begins(whole: Ids, beginning: Ids) -> bool:
    return len(beginning) <= len(whole) and bool(np.array_equal(whole[: len(beginning)], beginning))
