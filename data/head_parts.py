"""Which rows and columns of an attention's projections belong to which heads, where these lie one after the other."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Groups = Literal["whole", "any"]
Mask = npt.NDArray[np.bool_]


def of_heads(heads: Iterable[int], count: int, width: int) -> Mask:
    """Which rows of W_Q, or columns of W_O, are those of some of `count` heads of a `width` each: bool [count·width]."""
    chosen = np.zeros(count, bool)
    chosen[list(heads)] = True
    return chosen.repeat(width)


def groups_among(heads: Sequence[int], count: int, kv_heads: int, which: Groups = "whole") -> list[int]:
    """The groups of heads that share a key and a value, of which all heads are among these, or any is.

    Args:
        heads: numbers of query heads of a layer.
        count: how many it has.
        kv_heads: into how many groups they fall.
        which: `whole`: groups all of whose heads are among these, so that no other head uses their key and value.
            `any`: groups with at least one.
    """
    size = count // kv_heads
    there = [sum(head // size == group for head in set(heads)) for group in range(kv_heads)]
    return [group for group, members in enumerate(there) if members >= (size if which == "whole" else 1)]
