"""The cache as tables of one's own: its measures and signals as a LazyFrame, and the pattern rows themselves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.io.plugins import register_io_source

from ..data.cache.folder import Cache, open_cache
from ..data.cache.reader import Block, Shard
from ..data.cache.value_checks import require_row_sums
from ..data.errors import InputError
from ..data.files.whole_file import given_path
from ..data.options.settings import HeadOutput, QueryMode, ScoreSettings
from ..data.options.signatures import library_call
from ..data.text import ranges
from .kept import open_store
from .listing import with_a_task_span
from .recipe import Recipe, choose_recipe
from .shard_source import ShardSource


@library_call()
def scan_cache(
    cache: str | Path,
    *,
    score_query_mode: QueryMode = "last_token",
    head_output: HeadOutput = "z",
    task_span: Sequence[str] = ("question",),
    measure: Mapping[str, str | pl.Expr] | None = None,
    signal: Mapping[str, str | pl.Expr] | None = None,
    signals: str | Path | None = None,
    partial: bool = False,
    fresh: bool = False,
) -> pl.LazyFrame:
    """The measures and signals of a cache as a LazyFrame with one line per layer, head and sample.

    Lines come shard by shard, in blocks of samples, so memory is bounded; a block is ordered by layer, head, sample.
    A measure is computed only where a query asks for it or for a signal made of it; layers that a filter leaves out are not
    read.

    Args:
        cache: a cache folder or a shard file.
        score_query_mode: as in `score`, and so are the others; with `partial` an unfinished cache is read as far as it goes,
            with `fresh` nothing is used that `score` has kept. Where the cache has no span `question` and `task_span` names no
            other, the first of its template counts as the task's, and the log says so.

    Columns: `sample` (0-based in the cache), `row` (0-based in the data file), `tokens` (in the prompt), `tokens_<span>`,
    `data_<column>` (what `capture --keep` kept), `layer`, `head`, `kv_head`, the measures, and the signals (docs/signals.md).

    Raises InputError for a cache, span, measure or signal that cannot be used, and while collecting for a damaged shard.
    """
    given: dict[str, Any] = {
        "score_query_mode": score_query_mode,
        "head_output": head_output,
        "task_span": task_span,
        "measure": measure or (),
        "signal": signal or (),
        "signals": signals,
    }
    opened = open_cache(given_path("cache", cache))
    recipe = choose_recipe(opened, with_a_task_span(opened, ScoreSettings(**given), tell=True), partial)
    schema = recipe.scanned

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left = n_rows
        columns = list(schema) if with_columns is None else with_columns
        needed = [
            name for name in schema if name in {*columns, *(predicate.meta.root_names() if predicate is not None else ())}
        ]
        yield pl.DataFrame(schema={name: schema[name] for name in columns})  # a cache may have no samples
        for lines in _lines(opened, recipe, None if fresh else open_store(opened, recipe.mode), needed, predicate):
            found = lines.filter(predicate) if predicate is not None else lines
            found = found.select(columns) if left is None else found.select(columns).head(left)
            left = None if left is None else left - len(found)
            yield found
            if left == 0:  # before another shard is opened
                return

    return register_io_source(source, schema=schema)


def _lines(
    cache: Cache, recipe: Recipe, store: Any, needed: Sequence[str], predicate: pl.Expr | None
) -> Iterator[pl.DataFrame]:
    """Lines with the needed columns, of the layers that the predicate may let pass."""
    layers = layers_asked(predicate, recipe.layers)
    signals = [name for name in needed if name not in recipe.schema]
    plain = [name for name in needed if name in recipe.schema]
    schema, first = recipe.scanned, 0
    for path in cache.shards:
        with ShardSource(cache, recipe, store, path) as source:
            for table in source.tables([*plain, *recipe.needs(signals)], layers, first):
                made = [table.frame(plain)] if plain or not signals else []
                made += [table.signals(signals)] if signals else []
                yield pl.concat(made, how="horizontal").cast({name: schema[name] for name in needed})
            first += len(source.samples["row"])


def layers_asked(predicate: pl.Expr | None, layers: Sequence[int]) -> list[int]:
    """The places of the layers that a predicate may let pass, as far as parts of it ask for `layer` alone."""
    frame = pl.DataFrame({"layer": layers, "place": range(len(layers))}, schema={"layer": pl.Int32, "place": pl.Int64})
    for part in _conjuncts(predicate) if predicate is not None else ():
        if set(part.meta.root_names()) == {"layer"}:
            frame = frame.filter(part)
    return frame["place"].to_list()


def _conjuncts(predicate: pl.Expr) -> Iterator[pl.Expr]:
    """The parts of `a & b & …`; anything else is one part."""
    inputs = predicate.meta.pop()
    if len(inputs) == 2 and predicate.meta == inputs[1] & inputs[0]:
        yield from _conjuncts(inputs[1])
        yield from _conjuncts(inputs[0])
    else:
        yield predicate


@dataclass(frozen=True, eq=False)
class PatternRows:
    """The pattern rows of a sample, for one head or all heads of a layer.

    Args:
        sample: 0-based in the cache.
        row: 0-based in the data file.
        ids: the tokens' ids, int32 [T].
        spans: whether each token is in a span, bool [T] by the span's name.
        weights: the pattern rows, float32 [T] of one head, or [H,T] of all.
    """

    sample: int
    row: int
    ids: npt.NDArray[np.int32]
    spans: Mapping[str, npt.NDArray[np.bool_]]
    weights: npt.NDArray[np.float32]


@library_call()
def rows(
    cache: str | Path, *, layer: int, head: int | None = None, score_query_mode: QueryMode = "last_token", partial: bool = False
) -> Iterator[PatternRows]:
    """The pattern rows of a layer, sample by sample, with the tokens' ids and spans: for what no measure says.

    Args:
        cache: a cache folder or a shard file.
        layer: the model's number of the layer.
        head: one head, or None for all of them.
        score_query_mode: the last token's rows, or the mean over all query positions.
        partial: read an unfinished cache as far as it goes.

    Raises InputError for a layer or head that is no whole number or not in the cache, and for a damaged shard.
    """
    opened = open_cache(given_path("cache", cache))
    settings = ScoreSettings(score_query_mode=score_query_mode, task_span=tuple(opened.metadata["span_names"][:1]))
    choose_recipe(opened, settings, partial)
    for name, number in (("layer", layer), ("head", 0 if head is None else head)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise InputError(f"rows: {name}={number!r:.80} is not a whole number")
    layers, heads = opened.metadata["layers"], opened.metadata["dims"]["heads"]
    if layer not in layers or (head is not None and not 0 <= head < heads):
        name = f"layer {layer}" if head is None or layer not in layers else f"head {head} in layer {layer}"
        raise InputError(f"{opened.path}: has no {name}; it has {heads} heads in each of layers {ranges(layers)}")
    return _pattern_rows(opened, layers.index(layer), head, f"{settings.score_query_mode}/attention")


def _pattern_rows(cache: Cache, layer: int, head: int | None, array: str) -> Iterator[PatternRows]:
    first = 0
    for shard in cache.open_shards():
        for block in shard.blocks():
            yield from _block_rows(shard, block, first, layer, head, array)
        first += shard.samples


def _block_rows(shard: Shard, block: Block, first: int, layer: int, head: int | None, array: str) -> Iterator[PatternRows]:
    values = shard.read(array, layer, block)
    require_row_sums(shard.path, array, values, block.offsets, shard.metadata["attention"]["full_rows"])
    values = values.astype(np.float32)
    numbers, ids, bits = (shard.read(name, block=block) for name in ("samples/row", "tokens/id", "tokens/span"))
    names = shard.metadata["span_names"]
    chosen = values if head is None else values[head]
    for place, row in enumerate(numbers.tolist()):
        part = slice(*block.offsets[place : place + 2])
        spans = {name: (bits[part] >> bit) & 1 == 1 for bit, name in enumerate(names)}
        yield PatternRows(first + block.samples.start + place, row, ids[part], spans, chosen[..., part])
