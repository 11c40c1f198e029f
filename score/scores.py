"""The result of scoring a cache: one wide frame of heads, and the five basic tables as selections of it."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from ..data.cache.metadata import Metadata, model_name
from ..data.errors import InputError, OptionError
from ..data.options.settings import ScoreSettings, Unit
from .evidence.checks import Check, stability_line
from .evidence.null import Null

DEFAULT_TOP_K = 20
DEFAULT_TOP_K_PER_LAYER = 3
DEFAULT_SIGNALS = ("out", "ent", "task")
_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Scores:
    """The heads of a model by how much a task drives them.

    Args:
        heads: one line per head, sorted by layer and head: `layer`, `head`, `kv_head`, every signal as the mean over samples,
            its normalised value `<signal>_norm` and its rank `<signal>_rank` (1 = lowest, ties averaged), `combined`, `rank`
            (1 = driven most), `tied_rank` (the first rank of all heads with the same combined score), `layer_rank` and
            `task_length_r` (how far the task's mass follows the length of its span). With a bootstrap also `low`, `high`,
            `rank_low`, `rank_high`, `p_top`, and of each weighted signal `<signal>_rank_low` and `<signal>_rank_high`. With
            `by="kv_head"` one line per group of heads: `layer`, `kv_head`.
        samples: how many samples the means are over.
        undefined: for how many samples each signal is undefined and left out of its mean, in the head that has most of them.
        missing_shards: the numbers of those that an unfinished capture has not made, as in '0-2, 7'; empty if none.
        settings: what the ranking is made of.
        metadata: what the cache says about itself.
        null: what combined scores random ranks would give; None where fewer than two signals are weighted.
        checks: what the ranking should be read with; none where nothing was found.
        uniform: what signals would be on average if every head attended to all tokens alike, where that is known.
    """

    heads: pl.DataFrame
    samples: int
    undefined: Mapping[str, int]
    missing_shards: str
    settings: ScoreSettings
    metadata: Metadata
    null: Null | None = None
    checks: tuple[Check, ...] = ()
    uniform: Mapping[str, float] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same heads, values and settings."""
        if not isinstance(other, Scores):
            return NotImplemented
        same = (self.samples, self.missing_shards, self.metadata) == (other.samples, other.missing_shards, other.metadata)
        return same and _told(self.settings) == _told(other.settings) and self.heads.equals(other.heads)

    __hash__ = None  # type: ignore[assignment]

    @property
    def unit(self) -> Unit:
        """What is ranked, and the name of its column: `head` or `kv_head`."""
        return self.settings.by

    @property
    def signals(self) -> list[str]:
        """The names of all signals in `heads`."""
        return [
            name.removesuffix("_rank")
            for name in self.heads.columns
            if f"{name.removesuffix('_rank')}_norm" in self.heads.columns and name.endswith("_rank")
        ]

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are not 0, by signal."""
        return {name: weight for name, weight in self.settings.weights.items() if weight}

    def top(self, n: int | None = None, per: Literal["layer"] | None = None) -> pl.DataFrame:
        """The first heads of all, or the first of each layer.

        Args:
            n: how many; if not given, as many as `top_k` or `top_k_per_layer` say.
            per: `layer` for as many in each layer, ordered by layer; None for the first of all, ordered by rank.

        Raises InputError where n is not between 1 and the number of heads.
        """
        if per not in (None, "layer"):
            raise InputError(f"top: per={per!r} is not 'layer' or None")
        default = self.top_k_per_layer if per else self.top_k
        count = default if n is None else n
        most = self._heads_per_layer if per else len(self.heads)
        if not 1 <= count <= most:
            raise InputError(f"top: n={count} is not between 1 and the {most} heads there are")
        column, order = ("layer_rank", ["layer", "layer_rank"]) if per else ("rank", ["rank"])
        return self.heads.filter(pl.col(column) <= count).sort(order)

    @property
    def top_k(self) -> int:
        """How many heads are the top of all."""
        return _limited("--top-k", self.settings.top_k, DEFAULT_TOP_K, len(self.heads))

    @property
    def top_k_per_layer(self) -> int:
        """How many heads are the top of each layer."""
        return _limited("--top-k-per-layer", self.settings.top_k_per_layer, DEFAULT_TOP_K_PER_LAYER, self._heads_per_layer)

    @property
    def told(self) -> list[str]:
        """How far to trust the ranking, in plain lines: the checks, its stability, and what random ranks would give."""
        lines = [check.line for check in self.checks]
        lines.append(stability_line(self.heads, self.unit, self.samples, self.top_k))
        lines.append(self.null.line if self.null else "")
        return [line for line in lines if line]

    @property
    def _heads_per_layer(self) -> int:
        return int(self.heads["layer_rank"].max() or 0)  # type: ignore[arg-type]

    @property
    def combined_digits(self) -> int:
        """How many decimals of the combined score are worth showing."""
        return 2 if self.settings.fusion == "rank" else 4

    @property
    def raw(self) -> pl.DataFrame:
        """The means of the default signals: layer, head, out_raw, ent_raw, task_raw."""
        return self.heads.select("layer", self.unit, *(pl.col(name).alias(f"{name}_raw") for name in DEFAULT_SIGNALS))

    @property
    def norm(self) -> pl.DataFrame:
        """The default signals, normalised: layer, head, out_z, ent_z, task_z."""
        return self.heads.select("layer", self.unit, *(pl.col(f"{name}_norm").alias(f"{name}_z") for name in DEFAULT_SIGNALS))

    @property
    def combined(self) -> pl.DataFrame:
        """The fused score: layer, head, combined."""
        return self.heads.select("layer", self.unit, "combined")

    @property
    def topk_global(self) -> pl.DataFrame:
        """The first heads of all: layer, head, combined, rank."""
        return self.top().select("layer", self.unit, "combined", "rank")

    @property
    def topk_per_layer(self) -> pl.DataFrame:
        """The first heads of each layer: layer, head, combined, rank (within the layer)."""
        return self.top(per="layer").select("layer", self.unit, "combined", pl.col("layer_rank").alias("rank"))

    def __repr__(self) -> str:
        """The top heads, as a console shows this object."""
        return f"{len(self.heads)} {heads_or_groups(self.unit)}, {self.samples} samples\n{self.topk_global}"

    def _repr_html_(self) -> str:
        """The top heads with the signals that are weighted, which is how a notebook shows this object."""
        titles = "".join(f"<th>{html.escape(title)}</th>" for title in ("rank", "head", "combined", *self.weights))
        lines = ""
        for line in self.top(min(_SHOWN, len(self.heads))).iter_rows(named=True):
            values = "".join(f"<td>{line[name]:.4f}</td>" for name in self.weights)
            place = f"<td>{shown_rank(self, line)}</td><td>{head_name(line, self.unit)}</td>"
            lines += f"<tr>{place}<td>{line['combined']:.{self.combined_digits}f}</td>{values}</tr>"
        counted = f"{len(self.heads)} {heads_or_groups(self.unit)}, {self.samples} samples"
        caption = f"{html.escape(model_name(self.metadata['model']))}: {counted}"
        return f"<table><caption>{caption}</caption><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"


def heads_or_groups(unit: str) -> str:
    """What people call several of what a ranking ranks: heads, or groups of heads."""
    return "heads" if unit == "head" else "groups of heads"


def head_name(line: Mapping[str, Any], unit: str) -> str:
    """What people call a head or group of heads: L3H7, or L3G1."""
    return f"L{line['layer']}{'H' if unit == 'head' else 'G'}{line[unit]}"


def shown_rank(scores: Scores, line: Mapping[str, Any]) -> str:
    """The rank of a head, or where others have the same combined score, the first of theirs and `=`."""
    tied = scores.heads.filter(pl.col("tied_rank") == line["tied_rank"]).height > 1
    return f"{line['tied_rank']}=" if tied else str(line["rank"])


def _told(settings: ScoreSettings) -> dict[str, Any]:
    """Settings that can be compared: polars expressions are so by their text alone."""
    values = vars(settings).items()
    return {name: {key: str(x) for key, x in value.items()} if isinstance(value, Mapping) else value for name, value in values}


def _limited(flag: str, asked: int | None, default: int, heads: int) -> int:
    if asked is None:
        return min(default, heads)
    if asked > heads:
        raise OptionError(f"{flag}: {asked} is more than the {heads} heads there are")
    return asked
