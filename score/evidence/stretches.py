"""The task's span moved to a random stretch of other text in the same prompt."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...data.cache.reader import Block, Shard
from ..linear_measures import LinearMeasures, token_columns
from ..recipe import Recipe


@dataclass(frozen=True)
class MovedSpan(LinearMeasures):
    """The linear measures of a cache as if the tokens of its task stood elsewhere: in a random stretch of other text.

    A sample has m tokens in the task's span. The stretch is m tokens in a row, none of which is in that span, the prompt's
    first token or a special one; of all such places each is as likely, and the seed and the number of the row decide. A sample
    without such a place has no tokens of the task.

    Args:
        task: the spans that count as the task's tokens.
        seed: of the places.
    """

    task: tuple[str, ...]
    seed: int

    def bits(self, shard: Shard, block: Block | None = None) -> npt.NDArray[np.uint8]:
        """The spans of each token, where those of the task are moved."""
        bits = super().bits(shard, block)
        offsets = block.offsets if block else shard.offsets()
        rows = shard.read("samples/row", block=block)
        inside = (bits & _mask(self.span_names, self.task)) > 0
        free = ~inside & ((bits & _mask(self.span_names, ("special",))) == 0)
        free[offsets[:-1]] = False
        moved = bits & np.uint8(0xFF ^ _mask(self.span_names, self.task))
        first = np.uint8(_mask(self.span_names, self.task[:1]))
        for row, start, stop in zip(rows.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            length = int(inside[start:stop].sum())
            if (place := random_place(free[start:stop], length, f"{self.seed} {row}")) is not None:
                moved[start + place : start + place + length] |= first
        return moved


def random_place(free: npt.NDArray[np.bool_], length: int, key: str) -> int | None:
    """Where a stretch of so many free tokens begins, each place as likely; None where there is none, or no length.

    key: what decides it, by a hash, which is the same on every machine.
    """
    if not length or length > len(free):
        return None
    until = np.concatenate([[0], np.cumsum(free)])
    places = np.flatnonzero(until[length:] - until[:-length] == length)
    if not len(places):
        return None
    return int(places[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % len(places)])


def with_moved_span(recipe: Recipe, task: tuple[str, ...], seed: int) -> Recipe:
    """The same measures and signals where the tokens of the task stand in a random stretch."""
    linear = recipe.linear
    return replace(recipe, linear=MovedSpan(linear.span_names, linear.unions, linear.own, tuple(sorted(set(task))), seed))


def signals_of_span(recipe: Recipe, task: tuple[str, ...], names: list[str]) -> list[str]:
    """Those of some signals that depend on where the tokens of the task stand."""
    linear = recipe.linear
    bits = {name for member in task for name in linear.membership(member).meta.root_names()}
    tokens = {dict(zip(linear.span_names, token_columns(linear.span_names), strict=True))[member] for member in task}
    of_span = {name for name, made in linear.expressions().items() if {*made.meta.root_names()} & (bits | tokens)}
    counts = {f"tokens_{name}" for name, members in linear.spans().items() if {*members} & {*task}}
    moved = {*of_span, *counts, "task_rest"}
    return [name for name in names if {recipe.aliases.get(need, need) for need in recipe.needs([name])} & moved]


def _mask(span_names: tuple[str, ...], members: tuple[str, ...]) -> int:
    return sum(1 << span_names.index(name) for name in set(members) if name in span_names)
