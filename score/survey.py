"""What a report tells of a cache beside its scores, in one pass over the shards: first-token mass, tokens, skipped rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.cache import Cache
from ..data.settings import QueryMode
from .rows import Float


@dataclass(frozen=True)
class Survey:
    """sink: the mean over samples of a head's attention to the first token [L,H]. tokens: of all prompts together."""

    sink: Float
    tokens: int
    skipped: list[dict[str, Any]]


def survey(cache: Cache, query_mode: QueryMode) -> Survey:
    """Read the cache block by block, so that memory is bounded. Raises InputError where a shard is damaged."""
    dims, samples, tokens = cache.metadata["dims"], 0, 0
    sink = np.zeros((dims["layers"], dims["heads"]))
    skipped: list[dict[str, Any]] = []
    for shard in cache.open_shards():
        samples, tokens = samples + shard.samples, tokens + shard.tokens
        skipped += shard.skipped
        for block in shard.blocks():
            for layer in range(shard.layers):
                rows = shard.read(f"{query_mode}/attention", layer, block)
                sink[layer] += rows[:, block.offsets[:-1]].sum(axis=1, dtype=np.float64)
    return Survey(sink / max(samples, 1), tokens, sorted(skipped, key=lambda entry: entry["row"]))
