"""Groups samples into padded batches: sorted by length, filled to a token budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.tokens import Sample


@dataclass(frozen=True)
class Batch:
    """Samples run together: `index` is where each stands in its shard, `ids` [B,T] is padded on the right, `lengths` [B]."""

    index: list[int]
    ids: Tensor
    lengths: Tensor


def plan_batches(lengths: Sequence[int], batch_tokens: int, batch_size: int | None) -> list[list[int]]:
    """Sample numbers by batch, the longest samples first, so that running out of memory shows at once.

    A batch's padded size (its count times its longest length) is at most `batch_tokens`, unless a single sample is longer.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    while order:
        count = max(1, batch_tokens // lengths[order[0]])
        count = min(count, batch_size or count)
        batches.append(order[:count])
        order = order[count:]
    return batches


def pad(samples: Sequence[Sample], index: list[int]) -> Batch:
    """The batch of `samples[i] for i in index`. Padding is token 0: causal attention never lets a real token see it."""
    lengths = torch.tensor([len(samples[i].ids) for i in index])
    ids = torch.zeros((len(index), int(lengths.max())), dtype=torch.long)
    for row, i in enumerate(index):
        ids[row, : lengths[row]] = torch.from_numpy(samples[i].ids)
    return Batch(index, ids, lengths)
