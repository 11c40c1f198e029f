"""Finds the token prefixes that prompts share, so that each is run once: prompts made by one template begin alike."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .lengths import NO_RULES, LengthRules

Ids = npt.NDArray[np.int32]

LEAST_PREFIX = 8  # tokens; what is shorter is not worth a run of its own
MOST_NESTED = 100  # prefixes within prefixes that are looked at


@dataclass(frozen=True)
class Group:
    """Prompts whose first `prefix` tokens are the same; each has at least one token more.

    members: the prompts' numbers, those of identical prompts together.
    """

    prefix: int
    members: list[list[int]]


def prompt_groups(prompts: Sequence[Ids], share: bool, rules: LengthRules = NO_RULES) -> list[Group]:
    """Divide prompts into groups so that running each group's prefix once saves the most tokens.

    What shares nothing worth it, or with `share=False` everything, is in groups with a prefix of 0. All of a group is computed
    in the same way by the model's `rules`: its prompts together, and its prefix alone. The group with the longest prompt comes
    first. No prompts give no groups.
    """
    same: dict[bytes, list[int]] = {}
    for number, prompt in enumerate(prompts):
        same.setdefault(prompt.tobytes(), []).append(number)
    ways: dict[int, list[list[int]]] = {}
    for members in sorted(same.values(), key=lambda numbers: prompts[numbers[0]].tolist()):
        ways.setdefault(rules.way(len(prompts[members[0]])), []).append(members)
    groups = [group for way, members in ways.items() for group in _groups_of(prompts, members, share, way, rules)]
    return sorted(groups, key=lambda group: -max(len(prompts[numbers[0]]) for numbers in group.members))


def _groups_of(prompts: Sequence[Ids], members: list[list[int]], share: bool, way: int, rules: LengthRules) -> Iterator[Group]:
    """The groups of sorted prompts that may be run together."""
    shared = [_shared(prompts[one[0]], prompts[other[0]]) for one, other in itertools.pairwise(members)]
    found = _best(members, shared, MOST_NESTED)[1] if share else [Group(0, members)]
    kept = [group for group in found if group.prefix >= LEAST_PREFIX and rules.way(group.prefix) == way]
    yield from kept
    rest = sorted(numbers for group in found if group not in kept for numbers in group.members)
    if rest:
        yield Group(0, rest)


def _best(members: list[list[int]], shared: list[int], depth: int) -> tuple[int, list[Group]]:
    """The tokens saved and the groups of sorted prompts, `shared[k]` being what number k and k + 1 of them share."""
    if len(members) < 2:
        return 0, [Group(0, members)]
    least = min(shared)
    together = (least * (len(members) - 1), [Group(least, members)])
    if max(shared) == least or not depth:
        return together
    ends = [k + 1 for k, tokens in enumerate(shared) if tokens == least]
    parts = [
        _best(members[start:stop], shared[start : stop - 1], depth - 1)
        for start, stop in zip([0, *ends], [*ends, len(members)], strict=True)
    ]
    saved = sum(part[0] for part in parts)
    return (saved, [group for part in parts for group in part[1]]) if saved > together[0] else together


def _shared(one: Ids, other: Ids) -> int:
    """How many tokens two prompts have in common at their start, leaving at least one of each."""
    most = min(len(one), len(other)) - 1
    different = np.flatnonzero(one[:most] != other[:most])
    return int(different[0]) if len(different) else most


class SharedPrefix(Cache):
    """A kv_cache that puts the keys and values of one prefix before those of every prompt, and keeps nothing more."""

    def __init__(self, layers: Sequence[Any]):
        super().__init__(layers=[_PrefixLayer(layer.keys, layer.values) for layer in layers])


@dataclass(frozen=True)
class Prefix:
    """A prefix that was run once for many prompts: its tokens, its keys and values, and its sums by layer and array name."""

    tokens: int
    kv_cache: SharedPrefix
    sums: dict[int, dict[str, Tensor]]


class _PrefixLayer(DynamicLayer):
    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._prefix = keys, values  # [1,G,P,D]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[B,G,T,D] each -> [B,G,P+T,D]; a layer's are let go as soon as it is done with them."""
        keys, values = self._prefix
        return _before(keys, key_states), _before(values, value_states)


def _before(prefix: Tensor, states: Tensor) -> Tensor:
    return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=2)
