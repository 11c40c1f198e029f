"""The cache as a polars LazyFrame."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from ..data.cache import Cache, open_cache
from ..data.errors import InputError
from ..data.reader import Block, Shard
from ..data.settings import HeadOutput, QueryMode, ScoreSettings
from .signals import SIGNALS, SignalChoice, block_signals

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
) -> pl.LazyFrame:
    """A LazyFrame with one line per (sample, layer, head); a signal is computed only where a query asks for its column.

    cache: a cache folder or a shard file. The other options are as in `score`; with `partial` an unfinished cache is read as
    far as it goes.
    Columns: `sample` (0-based in the cache), `row` (0-based in the data file), `tokens` (in the prompt), `layer`, `head`, and
    the signals `out`, `ent`, `task`. Shards are read one after the other in blocks, so memory is bounded.

    Raises InputError for a cache or span that does not exist, and while collecting for a damaged shard.
    """
    given: dict[str, Any] = {"score_query_mode": score_query_mode, "head_output": head_output, "task_span": task_span}
    opened = open_cache(Path(cache))
    choice = choose_signals(opened, ScoreSettings(**given), partial)

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left, first = n_rows, 0
        columns = list(SCHEMA) if with_columns is None else with_columns
        yield pl.DataFrame(schema=SCHEMA).select(columns)  # a cache may have no samples
        for shard in opened.open_shards():
            for block in shard.blocks():
                if left is not None and left <= 0:
                    return
                lines = _block_lines(shard, choice, block, first, columns, predicate)
                first += len(block.offsets) - 1
                if left is not None:
                    lines = lines.head(left)
                    left -= len(lines)
                yield lines

    return register_io_source(source, schema=SCHEMA)


def choose_signals(cache: Cache, settings: ScoreSettings, partial: bool) -> SignalChoice:
    """The signals that `settings` ask for; InputError where the cache cannot give them, or is incomplete but not `partial`."""
    if not partial:
        cache.require_complete()
    if settings.score_query_mode == "all_tokens" and cache.metadata["settings"]["queries"] != "all_tokens":
        raise InputError(
            f"--score-query-mode all_tokens: {cache.path} was captured with --queries last_token; "
            "capture it again with --queries all_tokens"
        )
    return SignalChoice(settings.score_query_mode, settings.head_output, cache.require_spans(settings.task_span))


def _block_lines(
    shard: Shard, choice: SignalChoice, block: Block, first: int, columns: list[str], predicate: pl.Expr | None
) -> pl.DataFrame:
    """One block's lines, with just the columns asked for and the lines that the predicate keeps."""
    needed = {*columns, *(predicate.meta.root_names() if predicate is not None else ())}
    samples, layers, heads = len(block.offsets) - 1, shard.layers, shard.heads
    per_sample = layers * heads
    made: dict[str, Any] = {
        "sample": lambda: np.repeat(np.arange(first, first + samples), per_sample),
        "row": lambda: np.repeat(shard.read("samples/row", block=block), per_sample),
        "tokens": lambda: np.repeat(np.diff(block.offsets), per_sample),
        "layer": lambda: np.tile(np.repeat(shard.read("layers/index"), heads), samples),
        "head": lambda: np.tile(np.arange(heads, dtype=np.int32), samples * layers),
    }
    signals = block_signals(shard, choice, block, [name for name in SIGNALS if name in needed])
    made |= {name: lambda values=values: values.transpose(2, 0, 1).ravel() for name, values in signals.items()}
    frame = pl.DataFrame({name: made[name]() for name in SCHEMA if name in needed}, schema_overrides=SCHEMA)
    if predicate is not None:
        frame = frame.filter(predicate)
    return frame.select(columns)
