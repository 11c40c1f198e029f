"""The three signals of a head, per sample; higher always means that the task drives the head more.

Shapes: L layers, H heads, n samples, t tokens of all samples one after the other; `offsets` int64 [n+1] says where each
sample's tokens start. A sample has at least one token. Signals are float32, as the norms in a cache are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..data.cache import Cache
from ..data.errors import DamagedShardError, InputError
from ..data.settings import ScoreSettings
from .rows import RowSums

if TYPE_CHECKING:
    from ..data.reader import Block, Shard

Signal = npt.NDArray[np.float32]

SIGNALS = ("out", "ent", "task")  # what the ranking is made of
SINK = "sink"  # the mass on the first token, which only explains: many heads rest there
MEASURES = (*SIGNALS, SINK)


@dataclass(frozen=True)
class SignalChoice:
    """Which definition of the signals is meant: the part of ScoreSettings that they depend on, and the span's bits."""

    query_mode: str
    head_output: str
    span_bits: int

    def passes(self) -> dict[str, tuple[str, ...]]:
        """The MEASURES by the pass over a shard that gives them, whose name has in it all that they depend on."""
        return {
            f"out.{self.query_mode}.{self.head_output}": ("out",),
            f"rows.{self.query_mode}.span{self.span_bits}": ("ent", "task", SINK),
        }


def choose_signals(cache: Cache, settings: ScoreSettings, partial: bool) -> SignalChoice:
    """The signals that `settings` ask for; InputError where the cache cannot give them, or is incomplete but not `partial`."""
    if not partial:
        cache.require_complete()
    if settings.score_query_mode == "all_tokens" and cache.metadata["settings"]["queries"] != "all_tokens":
        raise InputError(
            f"--score-query-mode all_tokens: {cache.path} was captured with --queries last_token; "
            "capture it again with --queries all_tokens"
        )
    if settings.head_output == "result" and not cache.metadata["attention"]["result_norms"]:
        raise InputError(
            f"--head-output result: {cache.path} has no result norms, as this model's output projection "
            "cannot be split by heads; use --head-output z"
        )
    return SignalChoice(settings.score_query_mode, settings.head_output, cache.require_spans(settings.task_span))


def block_signals(shard: "Shard", choice: SignalChoice, block: "Block", names: Sequence[str] = MEASURES) -> dict[str, Signal]:
    """Those MEASURES of a block of a shard's b samples that `names` names: each float32 [L,H,b]. What is not asked is not read.

    Raises InputError where the shard lacks what the query mode needs, is damaged, or yields a value that is not finite.
    """
    mode, found = choice.query_mode, {}
    stored_entropy = mode == "all_tokens"  # the entropy of a mean row is not the mean entropy of the rows
    if "out" in names:
        norm = "result_norm" if choice.head_output == "result" else "output_norm"
        found["out"] = shard.read(f"{mode}/{norm}", block=block)
    if "ent" in names and stored_entropy:
        found["ent"] = -shard.read("all_tokens/entropy", block=block)
    if of_rows := [name for name in ("ent", "task", SINK) if name in names and name not in found]:
        found |= {name: values for name, values in _row_signals(shard, choice, block).items() if name in of_rows}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise DamagedShardError(f"{shard.path}: gives a '{name}' that is not finite: the shard is damaged")
    return {name: found[name] for name in names}


def _row_signals(shard: "Shard", choice: SignalChoice, block: "Block") -> dict[str, Signal]:
    """The measures `ent`, `task` and `sink` of a block, from its pattern rows."""
    member = (shard.read("tokens/span", block=block) & choice.span_bits) > 0
    sums = RowSums(member, block.offsets, shard.layers, shard.heads)
    array = f"{choice.query_mode}/attention"
    for layer in range(shard.layers):
        patterns = shard.read(array, layer, block)
        try:
            sums.add(layer, slice(0, patterns.shape[1]), patterns)
        except ValueError as error:
            raise DamagedShardError(f"{shard.path}: '{array}' holds {error}: the shard is damaged") from error
    found = {"ent": sums.negative_entropy(), "task": sums.mass(), SINK: sums.first_mass()}
    return {name: values.astype(np.float32) for name, values in found.items()}
