"""Groups samples into padded batches: sorted by length, within a token budget, with little padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data.prompts.tokens import Ids, Tokens


@dataclass(frozen=True)
class Batch:
    """Samples that are run together.

    Args:
        index: for each row of the batch the numbers of its samples in their shard: several where prompts are identical.
        ids: [B,T], padded on the right.
        lengths: [B], the real tokens.
    """

    index: list[list[int]]
    ids: Tensor
    lengths: Tensor


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Sample numbers in the order they are run: the longest first, so that running out of memory shows at once."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def batch_counts(lengths: Sequence[int], batch_tokens: int, batch_size: int | None, overhead: int) -> list[int]:
    """How many samples make each batch, so that all batches together cost the minimum.

    A batch costs its tokens, padding included, and `overhead` tokens more.

    Args:
        lengths: of the samples, in falling order.
        batch_tokens: maximum of tokens in a batch, padding included. A single sample may have more.
        batch_size: maximum of samples in a batch, None for no maximum.
        overhead: what a batch costs however small it is, in tokens.
    """
    minimum = np.zeros(len(lengths) + 1)  # cost of all samples from each number on
    counts = [0] * len(lengths)
    for first in reversed(range(len(lengths))):
        largest = min(max(1, batch_tokens // lengths[first]), batch_size or len(lengths), len(lengths) - first)
        costs = np.arange(1, largest + 1) * lengths[first] + overhead + minimum[first + 1 : first + largest + 1]
        counts[first] = int(costs.argmin()) + 1
        minimum[first] = costs.min()
    return list(_hops(counts))


def _hops(counts: Sequence[int]) -> Iterator[int]:
    """The counts met when each leads to the next."""
    first = 0
    while first < len(counts):
        yield counts[first]
        first += counts[first]


def pad(samples: Sequence[Tokens], index: list[list[int]], skip: int = 0, tokens: int = 0) -> Batch:
    """The batch of the samples in `index` without their first `skip` tokens, padded as `padded` says."""
    return Batch(index, *padded([samples[same[0]].ids[skip:] for same in index], tokens))


def padded(sequences: Sequence[Ids], tokens: int = 0) -> tuple[Tensor, Tensor]:
    """The ids [B,T] of several sequences, padded on the right, and their lengths [B].

    Padding is token 0: causal attention never lets a real token see it.

    Args:
        sequences: the token ids of each.
        tokens: minimum of T.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.zeros((len(sequences), max(tokens, int(lengths.max()))), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.from_numpy(sequence)
    return ids, lengths
