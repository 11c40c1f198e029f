"""Reads outcomes off the logits of a batch, at the positions of answers and of prompts' ends."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..inputs.questions import Question

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """What a model gives for each of N questions; NaN where a question has nothing to be read off.

    Args:
        kl: Kullback-Leibler divergence of its next token from the intact model's at the last token of the prompt, in nats.
        nll: −log p of all tokens of the row's own answer, in nats.
        acc: 1 where the right choice is the likeliest, the first of equal ones counting, else 0.
        acc_norm: the same by log p over the characters of the choice.
    """

    kl: Values
    nll: Values
    acc: Values
    acc_norm: Values


@dataclass(frozen=True)
class Item:
    """A sequence to be run, by number: the set of heads that is taken out, the question, and which of its sequences this is."""

    set: int
    question: int
    sequence: int


@dataclass(frozen=True)
class Read:
    """A position that is read, of the item at `place` in its batch: for a token of an answer, or at the prompt's end."""

    item: Item
    place: int
    position: int
    answer: int | None = None
    token: int = 0


class ReadOff:
    """What is read off all questions: the divergences [N], and by question the log p of each of its answers."""

    def __init__(self, questions: Sequence[Question]):
        self._questions = questions
        self.kl = np.zeros(len(questions))
        self.likelihoods = [np.zeros(len(question.continuations)) for question in questions]

    def outcomes(self) -> Outcomes:
        """The outcomes, question by question."""
        nll, acc, acc_norm = np.full((3, len(self._questions)), math.nan)
        for number, (question, likely) in enumerate(zip(self._questions, self.likelihoods, strict=True)):
            answers = question.answers
            if answers.own is not None:
                nll[number] = -likely[answers.own]
            if answers.choices and answers.own is not None:
                among, lengths = likely[: answers.choices], np.array(answers.lengths[: answers.choices])
                acc[number] = among.argmax() == answers.own
                acc_norm[number] = (among / lengths).argmax() == answers.own
        return Outcomes(self.kl, nll, acc, acc_norm)


def divergences(expected: Tensor, found: Tensor) -> list[float]:
    """KL [R] of distributions given as log p [R,V] each; a token that was impossible adds nothing."""
    p = expected.exp()
    terms = torch.where(p > 0, p * (expected - found), 0)
    return terms.sum(-1, dtype=torch.float64).tolist()


@contextlib.contextmanager
def head_at(model: PreTrainedModel, rows: Tensor, positions: Tensor) -> Iterator[list[bool]]:
    """Within this context the language-modelling head sees no more than these positions, [1,R,M], as it takes most of a pass.

    What is yielded is true afterwards where that was so: some models have no such module, or do not call it.
    """
    gathered: list[bool] = []

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = inputs[0]
        if hidden.ndim != 3:
            return None
        gathered.append(True)
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)][None], *inputs[1:])

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(enter) if isinstance(head, nn.Module) else None
    try:
        yield gathered
    finally:
        if hook:
            hook.remove()
