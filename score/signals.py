"""The three signals of a head, per sample; higher always means that the task drives the head more.

Shapes: L layers, H heads, n samples, t tokens of all samples one after the other; `offsets` int64 [n+1] says where each
sample's tokens start. A sample has at least one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.errors import InputError
from ..data.reader import Block, Shard

Float = npt.NDArray[np.floating[Any]]
Offsets = npt.NDArray[np.int64]

SIGNALS = ("out", "ent", "task")


@dataclass(frozen=True)
class SignalChoice:
    """Which definition of the signals is meant: the part of ScoreSettings that they depend on, and the span's bits."""

    query_mode: str
    head_output: str
    span_bits: int


def negative_entropy(patterns: npt.NDArray[np.float16], offsets: Offsets) -> Float:
    """−H = Σⱼ aⱼ ln aⱼ of each pattern row, in nats: patterns [H,t] -> [H,n], between −ln T and 0 (0 ln 0 is 0).

    Shannon (1948). A row of one token has entropy 0, a uniform row over T tokens −ln T. Values outside [0, 1] give NaN.
    """
    return np.add.reduceat(_p_ln_p()[patterns.view(np.uint16)], offsets[:-1], axis=1, dtype=np.float64)


def span_mass(patterns: npt.NDArray[np.float16], member: npt.NDArray[np.bool_], offsets: Offsets) -> Float:
    """Σ_{j ∈ span} aⱼ of each pattern row: patterns [H,t], member [t] -> [H,n], between 0 and 1; an empty span has 0."""
    columns = np.flatnonzero(member)
    inside = np.zeros((len(patterns), len(columns) + 1), np.float64)
    np.cumsum(patterns[:, columns], axis=1, dtype=np.float64, out=inside[:, 1:])
    edges = np.searchsorted(columns, offsets)  # where each sample's span columns start
    return inside[:, edges[1:]] - inside[:, edges[:-1]]


@cache
def _p_ln_p() -> npt.NDArray[np.float32]:
    """p ln p of all 65,536 half-precision numbers by their bits; faster than a logarithm per value. NaN outside [0, 1]."""
    p = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        table = np.where(p == 0, 0.0, p * np.log(p))
        return np.where((p >= 0) & (p <= 1), table, np.nan).astype(np.float32)


def block_signals(shard: Shard, choice: SignalChoice, block: Block, names: Sequence[str] = SIGNALS) -> dict[str, Float]:
    """The signals `names` of a block of a shard's b samples: each float64 [L,H,b]. What is not asked for is not read.

    Raises InputError where the shard lacks what the query mode needs, is damaged, or yields a value that is not finite.
    """
    shape = (shard.layers, shard.heads, len(block.offsets) - 1)
    found: dict[str, Float] = {name: np.zeros(shape) for name in names}
    mode = choice.query_mode
    stored_entropy = mode == "all_tokens"  # the entropy of a mean row is not the mean entropy of the rows
    member = (shard.read("tokens/span", block=block) & choice.span_bits) > 0
    for layer in range(shard.layers):
        needs_rows = "task" in names or ("ent" in names and not stored_entropy)
        patterns = shard.read(f"{mode}/attention", layer, block) if needs_rows else None
        if "out" in names:
            norm = "result_norm" if choice.head_output == "result" else "output_norm"
            found["out"][layer] = shard.read(f"{mode}/{norm}", layer, block)
        if "ent" in names and stored_entropy:
            found["ent"][layer] = -shard.read("all_tokens/entropy", layer, block)
        elif "ent" in names and patterns is not None:
            found["ent"][layer] = negative_entropy(patterns, block.offsets)
        if "task" in names and patterns is not None:
            found["task"][layer] = span_mass(patterns, member, block.offsets)
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise InputError(f"{shard.path}: gives a '{name}' that is not finite: the shard is damaged")
    return found
