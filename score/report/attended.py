"""What chosen heads attend to in the samples whose tokens the cache has as texts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...data.cache.folder import Cache
from ...data.cache.metadata import ExampleTokens
from ...data.cache.reader import Block, Shard
from ...data.errors import InputError

Line = dict[str, Any]


def attended(cache: Cache, heads: Sequence[tuple[int, int]], most: int = 3, group: int = 1) -> list[Line]:
    """How much the last token of up to `most` example samples attends to each of their tokens, in the given heads.

    Args:
        cache: an opened cache.
        heads: pairs of the model's layer number and the head, or the group of heads.
        most: how many samples.
        group: query heads in a group, whose mean is taken.

    Returns one line per token of a sample and head: `sample` (0-based in its shard), `row` (0-based in the data file),
    `position` and `token` (its text), `spans` (a list of their names), `layer`, `head`, `weight` (of the last token's pattern
    row), ordered by sample, then as in `heads`, then by position. There are no lines where the cache keeps no examples, or they
    are not in a shard that is there. `token` and `spans` are text from the cache, so it may be a stranger's.

    Raises InputError for a head that the model lacks, for examples that contradict their shard, and for a damaged shard.
    """
    layers, count = cache.metadata["layers"], cache.metadata["dims"]["heads"] // group
    for layer, head in heads:
        if layer not in layers or not 0 <= head < count:
            raise InputError(
                f"{cache.path}: has no {'head' if group == 1 else 'group of heads'} L{layer}{'H' if group == 1 else 'G'}{head}"
            )
    return [line for shard, sample, example in _examples(cache, most) for line in _lines(shard, sample, example, heads, group)]


def _examples(cache: Cache, most: int) -> Iterator[tuple[Shard, int, ExampleTokens]]:
    """The examples that are there: the open shard, the sample's number in it, and what the metadata has of it."""
    wanted = {example["row"]: example for example in cache.metadata.get("examples", [])[:most]}
    if not wanted:
        return
    for shard in cache.open_shards():
        rows = shard.read("samples/row")
        for sample, row in sorted((int(np.argmax(rows == row)), row) for row in wanted if (rows == row).any()):
            yield shard, sample, wanted.pop(row)
        if not wanted or rows.max(initial=-1) > max(wanted):  # rows rise from shard to shard
            return


def _lines(shard: Shard, sample: int, example: ExampleTokens, heads: Sequence[tuple[int, int]], group: int) -> Iterator[Line]:
    """The lines of one sample."""
    offsets, tokens = shard.offsets()[sample : sample + 2], example["tokens"]
    length = int(offsets[1] - offsets[0])
    if len(tokens) != length:
        raise InputError(
            f"{shard.path}: row {example['row']} has {length} tokens, but {len(tokens)} in the metadata's 'examples': "
            "the cache is damaged"
        )
    block = Block(slice(sample, sample + 1), slice(int(offsets[0]), int(offsets[1])), offsets - offsets[0])
    names = shard.metadata["span_names"]
    marks = shard.read("tokens/span", block=block).tolist()
    spans = [[name for bit, name in enumerate(names) if mark >> bit & 1] for mark in marks]
    order = shard.metadata["layers"]
    rows = {layer: shard.read("last_token/attention", order.index(layer), block) for layer in {layer for layer, _ in heads}}
    for layer, head in heads:
        weights = rows[layer][head * group : (head + 1) * group].astype(np.float32).mean(axis=0)
        if not np.isfinite(weights).all() or weights.min(initial=0) < 0:
            raise InputError(
                f"{shard.path}: 'last_token/attention' holds values that are negative or not finite: it is damaged"
            )
        for position, (token, within, weight) in enumerate(zip(tokens, spans, weights.tolist(), strict=True)):
            place = {"sample": sample, "row": example["row"], "position": position, "token": token, "spans": within}
            yield {**place, "layer": layer, "head": head, "weight": weight}
