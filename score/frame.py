"""The cache as a polars LazyFrame."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from ..data.cache import open_cache
from ..data.reader import Block, Shard
from ..data.settings import HeadOutput, QueryMode, ScoreSettings
from .derived import Derived, open_derived
from .signals import SIGNALS, Signal, SignalChoice, block_signals, choose_signals

SCHEMA: dict[str, Any] = {
    "sample": pl.Int64,
    "row": pl.Int64,
    "tokens": pl.Int64,
    "layer": pl.Int32,
    "head": pl.Int32,
    "out": pl.Float64,
    "ent": pl.Float64,
    "task": pl.Float64,
}


def scan_cache(
    cache: str | Path,
    *,
    score_query_mode: QueryMode = "last_token",
    head_output: HeadOutput = "z",
    task_span: Sequence[str] = ("question",),
    partial: bool = False,
    fresh: bool = False,
) -> pl.LazyFrame:
    """A LazyFrame with one line per (sample, layer, head); a signal is computed only where a query asks for its column.

    cache: a cache folder or a shard file. The other options are as in `score`; with `partial` an unfinished cache is read as
    far as it goes, with `fresh` nothing that `score` has kept in `derived/` is used.
    Columns: `sample` (0-based in the cache), `row` (0-based in the data file), `tokens` (in the prompt), `layer`, `head`, and
    the signals `out`, `ent`, `task`. Shards are read one after the other in blocks, so memory is bounded.

    Raises InputError for a cache or span that does not exist, and while collecting for a damaged shard.
    """
    given: dict[str, Any] = {"score_query_mode": score_query_mode, "head_output": head_output, "task_span": task_span}
    opened = open_cache(Path(cache))
    choice = choose_signals(opened, ScoreSettings(**given), partial)
    derived = None if fresh else open_derived(opened)

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left, first = n_rows, 0
        columns = list(SCHEMA) if with_columns is None else with_columns
        needed = {*columns, *(predicate.meta.root_names() if predicate is not None else ())}
        yield pl.DataFrame(schema=SCHEMA).select(columns)  # a cache may have no samples
        for shard in opened.open_shards():
            signals = ShardSignals(shard, choice, derived, [name for name in SIGNALS if name in needed])
            for block in shard.blocks():
                if left is not None and left <= 0:
                    return
                lines = _block_lines(signals, block, first, needed)
                if predicate is not None:
                    lines = lines.filter(predicate)
                lines = lines.select(columns)
                first += len(block.offsets) - 1
                if left is not None:
                    lines = lines.head(left)
                    left -= len(lines)
                yield lines

    return register_io_source(source, schema=SCHEMA)


class ShardSignals:
    """The signals `names` of a shard, block by block: as they are kept in `derived`, or else computed."""

    def __init__(self, shard: Shard, choice: SignalChoice, derived: Derived | None, names: list[str]):
        self.shard, self._choice = shard, choice
        kept: dict[str, Signal] = {}
        for made_by, measures in choice.passes().items():
            if derived and not set(measures).isdisjoint(names):
                kept |= derived.read_values(shard.path, made_by, measures)
        self._kept = {name: kept[name] for name in names if name in kept}
        self._missing = [name for name in names if name not in kept]

    def of(self, block: Block) -> dict[str, Signal]:
        """Each float32 [L,H,b] for the b samples of a block. Raises InputError as `block_signals`."""
        kept = {name: values[:, :, block.samples] for name, values in self._kept.items()}
        return kept | block_signals(self.shard, self._choice, block, self._missing)


def _block_lines(signals: ShardSignals, block: Block, first: int, needed: set[str]) -> pl.DataFrame:
    """One block's lines, with just the columns that are needed."""
    shard = signals.shard
    samples, layers, heads = len(block.offsets) - 1, shard.layers, shard.heads
    per_sample = layers * heads
    made: dict[str, Any] = {
        "sample": lambda: np.repeat(np.arange(first, first + samples), per_sample),
        "row": lambda: np.repeat(shard.read("samples/row", block=block), per_sample),
        "tokens": lambda: np.repeat(np.diff(block.offsets), per_sample),
        "layer": lambda: np.tile(np.repeat(shard.read("layers/index"), heads), samples),
        "head": lambda: np.tile(np.arange(heads, dtype=np.int32), samples * layers),
    }
    made |= {name: lambda values=values: values.transpose(2, 0, 1).ravel() for name, values in signals.of(block).items()}
    return pl.DataFrame({name: made[name]() for name in SCHEMA if name in needed}, schema_overrides=SCHEMA)
