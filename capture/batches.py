"""Groups samples into padded batches: sorted by length, filled to a token budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.tokens import Tokens


@dataclass(frozen=True)
class Batch:
    """Samples run together: `ids` [B,T] is padded on the right, `lengths` [B] are the real tokens.

    index: the numbers of the samples of each row in their shard, several where they are the same.
    """

    index: list[list[int]]
    ids: Tensor
    lengths: Tensor


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Sample numbers in the order they are run: the longest first, so that running out of memory shows at once."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def batch_count(longest: int, batch_tokens: int, batch_size: int | None) -> int:
    """How many samples of at most `longest` tokens make a batch of at most `batch_tokens` when padded; 1 at least."""
    count = max(1, batch_tokens // longest)
    return min(count, batch_size or count)


def pad(samples: Sequence[Tokens], index: list[list[int]], skip: int = 0) -> Batch:
    """The batch of the samples in `index` without their first `skip` tokens.

    Padding is token 0: causal attention never lets a real token see it.
    """
    lengths = torch.tensor([len(samples[same[0]].ids) - skip for same in index])
    ids = torch.zeros((len(index), int(lengths.max())), dtype=torch.long)
    for row, same in enumerate(index):
        ids[row, : lengths[row]] = torch.from_numpy(samples[same[0]].ids[skip:])
    return Batch(index, ids, lengths)
