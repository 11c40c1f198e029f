"""Which heads are taken out together: the top and bottom of a ranking, and random heads of the same layers."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..data.errors import OptionError

Head = tuple[int, int]

_COUNT = re.compile(r"([0-9]{1,9})(?:(\.[0-9]{1,9})?\s*(%))?")


@dataclass(frozen=True)
class HeadSet:
    """Some heads, or groups of heads, of a model.

    Args:
        signal: whose order they are of: `combined` or a signal's name.
        k: how many they are.
        set: `top`, `bottom` or `draw`.
        draw: the number of a draw, from 0; None for others.
        units: (layer, head) of each, sorted; (layer, kv_head) where groups are ranked.
        shared: how many of a bottom's or a draw's are also in the top k: 0 unless there are too few others.
    """

    signal: str
    k: int
    set: str
    draw: int | None
    units: tuple[Head, ...]
    shared: int = 0


def counts_of(texts: Sequence[str], units: int) -> list[int]:
    """How many heads are meant, each number once, ascending.

    Args:
        texts: such as `5%`, which is rounded, half up, and at least 1; or `27`.
        units: how many heads, or groups of them, the model has.

    Raises InputError for what is no such number, for 0, and where no head would be left.
    """
    return sorted({_count(text, units) for text in texts})


def _count(text: str, units: int) -> int:
    found = _COUNT.fullmatch(text.strip())
    number = Fraction(found[1] + (found[2] or "")) if found else Fraction(0)
    if not found or not number:
        raise OptionError(f"--k: {text!r:.40} is not a number of heads such as 27, or a share of them such as 10%")
    count = max(1, math.floor(number * units / 100 + Fraction(1, 2))) if found[3] else int(number)
    if count >= units:
        raise OptionError(f"--k: {text!r:.40} leaves none of the {units} heads; give at most {units - 1}")
    return count


def head_sets(order: Sequence[Head], signal: str, counts: Sequence[int], draws: int, seed: int) -> list[HeadSet]:
    """The top k, the bottom k, and draws of as many heads in each layer as the top k has there, for each k.

    One seed gives the same sets. A draw takes, for any k and any signal, the first heads of one random order of each layer that
    are not in the top: so draws of the same number are alike wherever the layers' counts are, and need not be run twice.

    Args:
        order: (layer, head) of all heads, driven most first.
        signal: whose order it is.
        counts: the k, each from 1 to one less than all.
        draws: how many; 0 for none.
        seed: of the draws, 0 or more.

    Returns for each k the top, the bottom, and the draws by number. Where a layer has too few others, a draw takes heads of the
    top last, and `shared` says how many; so does a bottom where k is more than half of all.
    """
    heads = [(int(layer), int(head)) for layer, head in order]
    orders = [_random_orders(heads, [seed, draw]) for draw in range(draws)]
    made = []
    for k in counts:
        top, bottom = frozenset(heads[:k]), heads[-k:]
        made.append(_head_set(signal, k, "top", None, top, 0))
        made.append(_head_set(signal, k, "bottom", None, bottom, len(top.intersection(bottom))))
        for draw, layers in enumerate(orders):
            drawn = _drawn(top, layers)
            made.append(_head_set(signal, k, "draw", draw, drawn, len(top.intersection(drawn))))
    return made


def _head_set(signal: str, k: int, kind: str, draw: int | None, units: Iterable[Head], shared: int) -> HeadSet:
    return HeadSet(signal, k, kind, draw, tuple(sorted(units)), shared)


def _random_orders(heads: Sequence[Head], seed: list[int]) -> dict[int, list[Head]]:
    """The heads of each layer in a random order, which does not depend on how they are ranked."""
    generator = np.random.default_rng(seed)
    layers: dict[int, list[Head]] = {}
    for head in sorted(heads):
        layers.setdefault(head[0], []).append(head)
    return {layer: [own[place] for place in generator.permutation(len(own))] for layer, own in layers.items()}


def _drawn(top: frozenset[Head], orders: Mapping[int, Sequence[Head]]) -> list[Head]:
    """As many of each layer as the top has there, those of the top last."""
    counts = Counter(layer for layer, _ in top)
    return [head for layer, count in counts.items() for head in sorted(orders[layer], key=top.__contains__)[:count]]
