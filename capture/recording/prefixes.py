"""Finds the token prefixes that prompts share, so that each is run once: prompts made by one template begin alike."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ..inputs.lengths import NO_RULES, LengthRules

Ids = npt.NDArray[np.int32]

MIN_PREFIX = 8  # tokens; what is shorter is not worth the mask that attention to it needs
PREFIX_COST = 1 / 8  # what a token of a shared prefix takes of a batch, compared with one that is run
MAX_NESTED = 100  # prefixes within prefixes that are looked at


@dataclass(frozen=True)
class Group:
    """Prompts with the same first tokens.

    Args:
        prefix: how many tokens they share; each prompt has at least one token more.
        members: the prompts' numbers, those of identical prompts together.
    """

    prefix: int
    members: list[list[int]]


def prompt_groups(prompts: Sequence[Ids], share: bool, overhead: int, rules: LengthRules = NO_RULES) -> list[Group]:
    """Divide prompts into groups so that running each group's prefix once saves the most.

    A group costs its prefix and two passes more: that of the prefix, and a batch that is not full. Prompts for which none pays,
    or with `share=False` all, are in groups with a prefix of 0.

    Args:
        prompts: the token ids of each, int32 [T].
        share: whether prefixes may be run apart.
        overhead: what a pass costs besides its tokens, in tokens.
        rules: of the model. All of a group is computed in the same way by them: its prompts together, and its prefix alone.

    Returns the groups, the one with the longest prompt first; no prompts give none.
    """
    same: dict[bytes, list[int]] = {}
    for number, prompt in enumerate(prompts):
        same.setdefault(prompt.tobytes(), []).append(number)
    ways: dict[int, list[list[int]]] = {}
    for members in sorted(same.values(), key=lambda numbers: prompts[numbers[0]].tolist()):
        ways.setdefault(rules.way(len(prompts[members[0]])), []).append(members)
    groups: list[Group] = []
    for way, of_way in ways.items():
        apart, whole = _Tree(prompts, of_way, overhead, partial(_is_way, rules, way)).best(share)
        groups += [*apart, *([Group(0, sorted(whole))] if whole else [])]
    return sorted(groups, key=lambda group: -max(len(prompts[numbers[0]]) for numbers in group.members))


def _is_way(rules: LengthRules, way: int, tokens: int) -> bool:
    return rules.way(tokens) == way


_Found = tuple[float, list[Group], list[list[int]]]  # tokens saved, groups, and prompts in no group


class _Tree:
    """Sorted prompts as a tree: what all of a stretch of them share is the minimum of what neighbours share.

    Args:
        prompts: the token ids of each.
        members: numbers of the prompts of the tree, sorted by their ids, those of identical prompts together.
        overhead: what a pass costs besides its tokens, in tokens.
        allowed: whether a prefix of a number of tokens may be run apart.
    """

    def __init__(self, prompts: Sequence[Ids], members: list[list[int]], overhead: int, allowed: Callable[[int], bool]):
        self._members, self._overhead, self._allowed = members, overhead, allowed
        self._shared = [_shared(prompts[one[0]], prompts[other[0]]) for one, other in itertools.pairwise(members)]
        self._known: dict[tuple[int, int, int], _Found] = {}

    def best(self, share: bool) -> tuple[list[Group], list[list[int]]]:
        """The groups that save the most, and the prompts that are in none."""
        return self._best(0, len(self._members), 0, MAX_NESTED)[1:] if share else ([], self._members)

    def _best(self, start: int, stop: int, outer: int, depth: int) -> _Found:
        """Of the prompts from `start` to `stop`, those in no group being in one with a prefix of `outer` tokens."""
        shared = self._shared[start : stop - 1]
        if not shared or not depth or self._saved(stop - start, max(shared), outer) <= 0:
            return 0, [], self._members[start:stop]
        key = start, stop, outer
        if key not in self._known:
            common = min(shared)
            found = self._of_parts(start, stop, outer, depth)
            if common >= MIN_PREFIX and self._allowed(common) and self._saved(stop - start, common, outer) > 0:
                saved, groups, members = self._of_parts(start, stop, common, depth)
                saved += self._saved(stop - start, common, outer)
                if saved > found[0]:
                    found = saved, [*groups, Group(common, members)], []
            self._known[key] = found
        return self._known[key]

    def _of_parts(self, start: int, stop: int, outer: int, depth: int) -> _Found:
        """The best of each part, where the stretch is divided after what all of it shares."""
        common = min(self._shared[start : stop - 1])
        ends = [k + 1 for k in range(start, stop - 1) if self._shared[k] == common]
        edges = itertools.pairwise([start, *ends, stop])
        found = [self._best(begin, end, outer, depth - 1) for begin, end in edges]
        saved, groups, members = zip(*found, strict=True)
        return sum(saved), list(itertools.chain(*groups)), list(itertools.chain(*members))

    def _saved(self, count: int, prefix: int, outer: int) -> float:
        """The tokens that `count` prompts save with a group of their own, instead of one with a prefix of `outer` tokens."""
        return (prefix - outer) * count * (1 - PREFIX_COST) - prefix - 2 * self._overhead


def _shared(one: Ids, other: Ids) -> int:
    """How many tokens two prompts have in common at their start, leaving at least one of each."""
    longest = min(len(one), len(other)) - 1
    different = np.flatnonzero(one[:longest] != other[:longest])
    return int(different[0]) if len(different) else longest


class SharedPrefix(Cache):
    """A kv_cache that puts the keys and values of one prefix before those of every prompt, and keeps nothing more."""

    def __init__(self, layers: Sequence[Any]):
        super().__init__(layers=[_PrefixLayer(layer.keys, layer.values) for layer in layers])


@dataclass(frozen=True)
class Prefix:
    """A prefix that was run once for many prompts.

    Args:
        tokens: its length.
        kv_cache: its keys and values.
        sums: what was summed over its tokens, by layer and array name.
    """

    tokens: int
    kv_cache: SharedPrefix
    sums: dict[int, dict[str, Tensor]]


class _PrefixLayer(DynamicLayer):
    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._prefix = keys, values  # [1,G,P,D]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """[B,G,T,D] each -> [B,G,P+T,D]. They are not kept, so that a layer's memory is free when it is done."""
        keys, values = self._prefix
        return _before(keys, key_states), _before(values, value_states)


def _before(prefix: Tensor, states: Tensor) -> Tensor:
    return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=2)
