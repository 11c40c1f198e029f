"""Groups samples into padded batches: sorted by length, within a token budget, with little padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.prompts.tokens import Ids, Tokens


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


def batch_counts(lengths: Sequence[int], batch_tokens: int, batch_size: int | None, overhead: int) -> list[int]:
    """How many samples make each batch, of `lengths` in falling order, so that all batches together cost the least.

    A batch has at most `batch_tokens` when padded and at most `batch_size` samples, but one at least. It costs its tokens,
    padding included, and `overhead` tokens more.
    """
    least = np.zeros(len(lengths) + 1)  # what the samples from a number on cost at least
    counts = [0] * len(lengths)
    for first in reversed(range(len(lengths))):
        most = min(max(1, batch_tokens // lengths[first]), batch_size or len(lengths), len(lengths) - first)
        costs = np.arange(1, most + 1) * lengths[first] + overhead + least[first + 1 : first + most + 1]
        counts[first] = int(costs.argmin()) + 1
        least[first] = costs.min()
    return list(_hops(counts))


def _hops(counts: Sequence[int]) -> Iterator[int]:
    """The counts met when each leads to the next."""
    first = 0
    while first < len(counts):
        yield counts[first]
        first += counts[first]


def pad(samples: Sequence[Tokens], index: list[list[int]], skip: int = 0, tokens: int = 0) -> Batch:
    """The batch of the samples in `index` without their first `skip` tokens; padded as `padded` says."""
    return Batch(index, *padded([samples[same[0]].ids[skip:] for same in index], tokens))


def padded(sequences: Sequence[Ids], tokens: int = 0) -> tuple[Tensor, Tensor]:
    """The ids [B,T] of several sequences, padded on the right to at least so many tokens, and their lengths [B].

    Padding is token 0: causal attention never lets a real token see it.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.zeros((len(sequences), max(tokens, int(lengths.max()))), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence)
    return ids, lengths
