"""How far a head's attention to the task follows how long the task's span is, and what uniform attention would give."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from ...data.options.settings import QueryMode
from ..means import Float
from ..recipe import Recipe, Signal

Value = TypeVar("Value")

_SQUARED, _BY_LENGTH = "task mass squared", "task mass by tokens"  # unlike any signal's name, which has no blanks
_MASS = pl.col("task_mass")
_SUMS = (
    Signal(_SQUARED, _MASS * _MASS, "the square of the task's mass"),
    Signal(_BY_LENGTH, _MASS * pl.col("task_tokens"), "the task's mass times the number of its tokens"),
)
_ROUNDING = 1e-10  # what rounding leaves of no variance


@dataclass(frozen=True)
class TaskTokens:
    """How many tokens the task has in some samples; `a + b` is for both.

    Args:
        samples: how many there are.
        without: how many of them have none.
        total: how many tokens all have.
        squares: the sum of their squares.
        entropies: the sum, in nats, of the entropies that uniform attention would have in the samples.
    """

    samples: int
    without: int
    total: int
    squares: int
    entropies: float

    @classmethod
    def of(cls, counts: npt.NDArray[np.integer], tokens: npt.NDArray[np.integer], mode: QueryMode) -> Self:
        """From each sample's count of task tokens and its number of tokens, for pattern rows of `mode`."""
        each = counts.astype(np.int64)
        entropies = math.fsum(_uniform_entropy(count, mode) for count in tokens.tolist())
        return cls(len(each), int((each == 0).sum()), int(each.sum()), int((each**2).sum()), entropies)

    def __add__(self, other: "TaskTokens") -> "TaskTokens":
        return TaskTokens(
            self.samples + other.samples,
            self.without + other.without,
            self.total + other.total,
            self.squares + other.squares,
            self.entropies + other.entropies,
        )


def with_length_sums(recipe: Recipe) -> Recipe:
    """The recipe with what must be summed up for `length_correlations`; it is kept like the sums of signals."""
    return dataclasses.replace(recipe, signals={**recipe.signals, **{signal.name: signal for signal in _SUMS}})


def without_length_sums(found: Mapping[str, Value]) -> dict[str, Value]:
    """What there is of each signal, without what `with_length_sums` added."""
    return {name: value for name, value in found.items() if name not in (_SQUARED, _BY_LENGTH)}


def length_correlations(means: Mapping[str, Float], tokens: TaskTokens) -> Float:
    """Pearson's correlation over samples of a head's task mass with the number of the task's tokens, [L,H].

    A sample without such tokens counts with mass 0 and length 0. NaN where all masses, or all lengths, are equal.

    Args:
        means: of the recipe's signals, [L,H] each.
        tokens: how many the task has in the samples.
    """
    mass, length = means["task"], tokens.total / tokens.samples
    of_length = tokens.squares / tokens.samples - length**2
    of_mass = means[_SQUARED] - mass**2
    shared = means[_BY_LENGTH] - mass * length
    varies = (of_mass > _ROUNDING * means[_SQUARED]) & (of_length > _ROUNDING * length**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(varies, np.clip(shared / np.sqrt(of_mass * of_length), -1, 1), np.nan)


def uniform_levels(heads: pl.DataFrame, tokens: TaskTokens, mode: QueryMode) -> dict[str, float]:
    """What signals would be on average if every head attended to all tokens alike, for those of which that is known.

    Args:
        heads: `Scores.heads`.
        tokens: of the samples.
        mode: whose pattern rows the signals are of.
    """
    share = heads.select(pl.col("task") - pl.col("excess")).to_series()[0]
    known = {"ent": -tokens.entropies / tokens.samples, "task": share, "lift": 1.0, "excess": 0.0}
    return known if mode == "all_tokens" else known | {"focus": -1.0}


def _uniform_entropy(tokens: int, mode: QueryMode) -> float:
    """ln T; of all rows the mean of ln 1, …, ln T."""
    return math.lgamma(tokens + 1) / tokens if mode == "all_tokens" else math.log(tokens)
