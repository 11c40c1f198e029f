"""Whatever is linear in a pattern row, Σⱼ aⱼ wⱼ: w of each such measure as a polars expression over the tokens of a sample."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ..data.cache.reader import Block, Shard
from ..data.errors import OptionError
from .expressions import columns_of, names_of, read_expressions, require_line_by_line, require_same_in_parts

TOKENS: dict[str, Any] = {"position": pl.Float64, "tokens": pl.Float64, "id": pl.Int64}
DATA = "data_"  # how the names of columns of the data file begin
BUILT_IN = {  # of every sample: attention to the first token (the sink), to all others, and the mean distance in tokens
    "sink": pl.col("position") == 0,
    "rest": pl.col("position") > 0,
    "distance": pl.col("tokens") - 1 - pl.col("position"),
}


@dataclass(frozen=True)
class LinearMeasures:
    """The measures of a pass over the rows of a cache that are linear in a row, each with its column w over the tokens.

    Args:
        span_names: the spans of the cache, in the order of their bits.
        unions: groups of spans that count as one, by their name, which is that of the spans with + between.
        own: what the user adds, by name.
    """

    span_names: tuple[str, ...]
    unions: Mapping[str, tuple[str, ...]]
    own: Mapping[str, pl.Expr]

    def spans(self) -> dict[str, tuple[str, ...]]:
        """Each span by itself, and each union."""
        return {**{name: (name,) for name in self.span_names}, **self.unions}

    def expressions(self) -> dict[str, pl.Expr]:
        """w of every measure that is linear in a pattern row, by the measure's name."""
        masses = {f"mass_{name}": self.membership(name) for name in self.spans()}
        return {**BUILT_IN, **masses, **self.own}

    def membership(self, span: str) -> pl.Expr:
        """Whether a token is in a span or union."""
        return pl.any_horizontal([pl.col(_bit(self.span_names.index(name))) for name in self.spans()[span]])

    def schema(self) -> dict[str, Any]:
        """The columns of the token table that a measure may be made of, and their dtypes."""
        return {**TOKENS, **dict.fromkeys(token_columns(self.span_names), pl.Boolean)}

    def weights(self, shard: Shard, block: Block, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """w of the named measures for each token of a block, float64 [t,K].

        Raises InputError where one that the user brings is not finite, saying for which token.
        """
        expressions = {name: self.expressions()[name] for name in names}
        if not names:
            return np.empty((block.tokens.stop - block.tokens.start, 0))
        with_ids = any("id" in columns_of(expression, TOKENS) for expression in expressions.values())
        table = self._table(shard, block, with_ids)
        found = table.select(expression.cast(pl.Float64).alias(name) for name, expression in expressions.items())
        for name in [name for name in names if name in self.own]:
            wrong = found[name].is_null() | ~found[name].is_finite()
            if wrong.any():
                place = table["position"][int(wrong.arg_max() or 0)]
                raise OptionError(f"--measure {name}: is not a number for a token at position {place:.0f} in {shard.path}")
            require_same_in_parts(expressions[name], table, found[name], f"--measure {name}", "token")
        weights = np.empty(found.shape)
        for place, column in enumerate(found):  # not all at once, as that takes their memory twice more
            weights[:, place] = column.to_numpy()
        return weights

    def bits(self, shard: Shard, block: Block | None = None) -> npt.NDArray[np.uint8]:
        """The spans of each token of a shard, or of a block of it: bit i for the i-th span, uint8 [t]."""
        return shard.read("tokens/span", block=block)

    def _table(self, shard: Shard, block: Block, with_ids: bool) -> pl.DataFrame:
        """The token table of a block: `position` (0-based), `tokens` (how many its sample has), `id`, and a column per span."""
        lengths = np.diff(block.offsets)
        starts = np.repeat(block.offsets[:-1], lengths)
        bits = self.bits(shard, block)
        table: dict[str, Any] = {
            "position": np.arange(len(bits), dtype=np.float64) - starts,
            "tokens": np.repeat(lengths, lengths).astype(np.float64),
        }
        if with_ids:
            table["id"] = shard.read("tokens/id", block=block).astype(np.int64)
        inside = [(bits >> bit) & 1 == 1 for bit in range(len(self.span_names))]
        table |= {_bit(bit): values for bit, values in enumerate(inside)}
        return pl.DataFrame(table | dict(zip(token_columns(self.span_names), inside, strict=True)))


def choose_linear_measures(
    span_names: Sequence[str], task_span: Sequence[str], measure: Mapping[str, object], taken: Sequence[str]
) -> LinearMeasures:
    """The linear measures that a ranking needs of a cache with such spans.

    Args:
        span_names: the spans of the cache.
        task_span: those that count as the task's tokens; several are a union.
        measure: what the user adds, as SQL text or polars expressions.
        taken: names that a user's measure cannot have.

    Raises InputError for a measure that cannot be computed, or whose name is taken.
    """
    chosen = tuple(sorted(set(task_span)))
    unions = {union_name(task_span, span_names): chosen} if len(chosen) > 1 else {}
    linear = LinearMeasures(tuple(span_names), unions, {})
    taken = (*taken, *linear.expressions())
    own = read_expressions(measure, "--measure")
    schema = linear.schema()
    for name, expression in own.items():
        if name in taken:
            raise OptionError(f"--measure {name}: there already is a measure of this name")
        if len(names_of(expression, schema, f"--measure {name}")) != 1:
            raise OptionError(f"--measure {name}: gives several columns; give one")
        require_line_by_line(expression, schema, f"--measure {name}", "token")
    return LinearMeasures(linear.span_names, linear.unions, own)


def union_name(spans: Sequence[str], known: Sequence[str]) -> str:
    """What the union of some spans is called: their names in alphabetic order with + between, unlike any span's own name."""
    name = "+".join(sorted(set(spans)))
    while len(set(spans)) > 1 and name in known:
        name += "+"
    return name


def token_columns(span_names: Sequence[str]) -> list[str]:
    """The names of the spans' columns in the token table: their own, or with `span_` before it where that is taken."""
    found: list[str] = []
    for name in span_names:
        column = f"span_{name}" if name in TOKENS else name
        while column in TOKENS or column in found or (column != name and column in span_names):
            column = f"span_{column}"
        found.append(column)
    return found


def _bit(number: int) -> str:
    """The name by which measures of our own find a span's column, whatever the span is called."""
    return f"\0{number}"


def sample_columns(linear: LinearMeasures, shard: Shard) -> dict[str, npt.NDArray[Any]]:
    """What is known of each sample of a shard from its tokens alone: arrays [n].

    `row`; `tokens`; for each span or union `tokens_<span>`, how many of them it has, and `starts_<span>`, whether the first
    token is in it; and `data_<column>`, what is kept of the data file, as text. Raises DamagedShardError where the token arrays
    of the shard cannot be.
    """
    offsets = shard.offsets()
    bits = linear.bits(shard)
    rows = shard.read("samples/row")
    found: dict[str, npt.NDArray[Any]] = {"row": rows, "tokens": np.diff(offsets)}
    for name, members in linear.spans().items():
        mask = sum(1 << linear.span_names.index(member) for member in members)
        inside = (bits & mask) > 0
        counted = np.cumsum(inside, dtype=np.int32)
        found[f"tokens_{name}"] = np.diff(counted[offsets[1:] - 1].astype(np.int64), prepend=0)
        found[f"starts_{name}"] = inside[offsets[:-1]]
    for column, values in shard.kept.items():
        texts = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
        found[f"{DATA}{column}"] = np.array(texts, object)
    return found
