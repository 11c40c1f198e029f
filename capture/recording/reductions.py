"""Pure tensor functions that reduce one layer's attention to what the cache stores.

Shapes by letter: B batch, T tokens, H heads, G kv heads, D head dim, M model dim. Batches are padded on the right, so a
sample's real tokens are its first `lengths[b]`. All results are float32 whatever the model's dtype.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.errors import one_line
from ..model.device import profile_of
from ..model.out_of_memory import is_out_of_memory

logger = logging.getLogger("headscore")

MIN_LOGIT = torch.finfo(torch.float32).min  # the logit of what is not attended; its exponential is 0
BITS = math.log2(math.e)  # bits in a nat


@dataclass(frozen=True)
class Softmax:
    """How a layer turns q·k into weights: softmax over keys of capped(q·k · scaling) + mask, with a sink beside the keys.

    Args:
        scaling: factor on q·k.
        mask: None or [B or 1, H or 1, T, P+T]. Boolean: True is attended; float: added to the logits.
        softcap: c in c · tanh(logits / c) (Gemma 2).
        sinks: [B or 1, H, T or 1, 1], the logit of one more key from which nothing is read (gpt-oss). A pattern row then sums
            to less than 1.
    """

    scaling: float
    mask: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether SDPA computes it too."""
        return self.softcap is None and self.sinks is None


def last_token_patterns(query: Tensor, key: Tensor, lengths: Tensor, softmax: Softmax) -> Tensor:
    """The pattern row of each sample's last real token, over keys up to that token.

    Args:
        query: [B,H,T,D].
        key: [B,G,P+T,D], of which the first P are those of a shared prefix.
        lengths: [B], the real queries of each sample.
        softmax: how logits become weights.

    Returns [B,H,P+T]. Each row sums to 1 (with sinks to less) and is exactly 0 after the last real token.
    """
    last = lengths - 1
    each = torch.arange(len(last), device=query.device)
    keys = torch.arange(key.shape[2], device=key.device) - (key.shape[2] - query.shape[2])
    seen = (keys <= last[:, None])[:, None]  # [B,1,P+T]
    grouped = query[each, :, last].float().mul(softmax.scaling).unflatten(1, (key.shape[1], -1))  # [B,G,H/G,D]
    logits = torch.matmul(grouped, key.float().transpose(2, 3)).flatten(1, 2)
    if softmax.softcap is not None:
        logits.div_(softmax.softcap).tanh_().mul_(softmax.softcap)
    if softmax.mask is not None:
        _mask(logits, softmax.mask.expand(len(last), -1, query.shape[2], -1)[each, :, last])
    logits.masked_fill_(~seen, -torch.inf)
    if softmax.sinks is None:
        return logits.softmax(-1)
    sinks = softmax.sinks.float().expand(len(last), -1, query.shape[2], -1)[each, :, last]
    return torch.cat([logits, sinks], -1).softmax(-1)[..., :-1]


def all_token_patterns(
    query: Tensor, key: Tensor, value: Tensor | None, lengths: Tensor, softmax: Softmax, compiled: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The patterns and the row entropies, summed over all real query positions, computed in blocks of queries.

    Args:
        query: [B,H,T,D].
        key: [B,G,P+T,D], of which the first P are those of a shared prefix.
        value: [B,G,P+T,D']; None where z is not wanted.
        lengths: [B], the real queries of each sample.
        softmax: how logits become weights.
        compiled: have torch compile what is done with a block.

    Returns, summed over real queries, the attention to each key [B,H,P+T] and the entropies in nats [B,H]; and z [B,T,H,D'],
    which costs less from these weights than by attention of its own. The attention to all keys of a sample sums to its length
    (with sinks to less). 0 ln 0 is 0, a row over one token has entropy 0, and a row with a sink counts by what it leaves to
    the keys. Temporaries are bounded by `block_bytes` whatever T is, once one query of the batch fits.
    """
    batch, heads, tokens, _ = query.shape
    attention = query.new_zeros((batch, heads, key.shape[2]), dtype=torch.float32)
    entropy = query.new_zeros((batch, heads), dtype=torch.float32)
    z = None if value is None else query.new_empty((batch, tokens, heads, value.shape[-1]))
    reduced = _reduced_compiled if compiled else _reduced
    for queries, block in _blocks(query, key, value, lengths, softmax):
        of_keys, in_bits, output = reduced(block)
        attention[..., : of_keys.shape[-1]] += of_keys
        entropy += in_bits
        if z is not None and output is not None:
            z[:, queries] = output.transpose(1, 2)
    return attention, entropy / BITS, z


class Block(NamedTuple):
    """R queries that follow each other, and the K keys up to the last of them.

    Args:
        rows: the queries [B,H,R,D], scaled; 0 at padding.
        key: [B·G,D,K], 0 at padding.
        value: [B·G,K,D'], 0 at padding; None where z is not wanted.
        counted: [B,1,R], which queries are real.
        later: [R,R], which of the last R keys come after a query.
        mask: as of `Softmax`, for these queries and keys.
        sinks: [B,H,R,1], base 2.
        softcap: as of `Softmax`.
        memory: [2,…] for the temporaries; None where torch is to allocate them.
    """

    rows: Tensor
    key: Tensor
    value: Tensor | None
    counted: Tensor
    later: Tensor
    mask: Tensor | None
    sinks: Tensor | None
    softcap: float | None
    memory: Tensor | None


def _blocks(
    query: Tensor, key: Tensor, value: Tensor | None, lengths: Tensor, softmax: Softmax
) -> Iterator[tuple[slice, Block]]:
    """The queries in blocks of `block_bytes` per temporary, each with its place among the queries; arguments as above."""
    batch, heads, tokens, _ = query.shape
    keys = key.shape[2]
    past = keys - tokens
    positions = torch.arange(tokens, device=query.device)
    real = positions < lengths[:, None]  # [B,T]
    # What stands at padding may be NaN, and a weight of 0 would not take that away.
    padding = ~F.pad(real, (past, 0), value=True)[:, None, :, None]
    key = key.float().masked_fill(padding, 0).transpose(2, 3).flatten(0, 1)
    value = None if value is None else value.float().masked_fill(padding, 0).flatten(0, 1)
    sinks = None if softmax.sinks is None else softmax.sinks.float().mul(BITS).expand(batch, -1, tokens, -1)
    scale = softmax.scaling * BITS if softmax.softcap is None else softmax.scaling / softmax.softcap
    size = min(tokens, max(1, profile_of(query.device).block_bytes // (4 * batch * heads * keys)))
    # Memory that is used anew for each block stays in the caches of a CPU, and is not asked of the system again and again.
    memory = query.new_empty((2, batch * heads * size * keys), dtype=torch.float32) if query.device.type == "cpu" else None
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        end = past + stop  # no query of the block attends to a later key
        counted = real[:, None, start:stop]
        yield (
            slice(start, stop),
            Block(
                rows=query[:, :, start:stop].float().mul(scale).masked_fill_(~counted[..., None], 0),
                key=key[..., :end],
                value=None if value is None else value[:, :end],
                counted=counted,
                later=positions[start:stop] > positions[start:stop, None],
                mask=None if softmax.mask is None else softmax.mask[:, :, start:stop, :end],
                sinks=None if sinks is None else sinks[:, :, start:stop],
                softcap=softmax.softcap,
                memory=memory,
            ),
        )


def _reduced(block: Block) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a block adds: the attention to each of its keys [B,H,K], the entropies in bits [B,H], and z [B,H,R,D'].

    Let l be the base-2 logits minus their maximum, S = Σ 2ˡ with the sink, and W = Σ 2ˡ without it. Then the entropy is
    (W log₂ S − Σ l 2ˡ) / S bits. That takes one exponential and no logarithm for each weight, and nothing cancels.
    """
    logits, weights = _logits(block)
    maximum = logits.amax(-1, keepdim=True)
    if block.sinks is not None:
        maximum = torch.maximum(maximum, block.sinks)
    logits -= maximum
    weights = torch.exp2(logits, out=weights)
    in_keys = sums = weights.sum(-1)
    if block.sinks is not None:
        sums = in_keys + torch.exp2(block.sinks - maximum).squeeze(-1)
    attention = torch.matmul((block.counted / sums).unsqueeze(2), weights).squeeze(2)
    z = None
    if block.value is not None:
        z = torch.bmm(weights.view(len(block.value), -1, weights.shape[-1]), block.value)
        z = z.view(*weights.shape[:-1], -1) / sums[..., None]
    spread = in_keys * sums.log2() - logits.mul_(weights).sum(-1)
    return attention, (spread / sums * block.counted).sum(-1), z


def _logits(block: Block) -> tuple[Tensor, Tensor | None]:
    """The base-2 logits of a block [B,H,R,K], and room for its weights where it has `memory`."""
    batch, heads, queries, _ = block.rows.shape
    groups, keys = len(block.key), block.key.shape[-1]
    grouped = block.rows.reshape(groups, -1, block.rows.shape[-1])
    weights: Tensor | None
    if block.memory is None:
        logits, weights = torch.bmm(grouped, block.key).view(batch, heads, queries, keys), None
    else:
        logits, weights = block.memory[:, : batch * heads * queries * keys].view(2, batch, heads, queries, keys)
        torch.bmm(grouped, block.key, out=logits.view(groups, -1, keys))
    if block.softcap is not None:
        logits.tanh_().mul_(block.softcap * BITS)
    if block.mask is not None:
        _mask(logits, block.mask, BITS)
    logits[..., keys - queries :].masked_fill_(block.later, MIN_LOGIT)
    return logits, weights


_faults: list[str] = []  # why blocks are not compiled, once that has failed


def _reduced_compiled(block: Block) -> tuple[Tensor, Tensor, Tensor | None]:
    """`_reduced`, compiled where possible, so that intermediate values are not written to memory."""
    if not _faults:
        try:
            return _compile()(block)
        except Exception as error:  # whatever a compiler raises
            if is_out_of_memory(error):
                raise
            _faults.append(one_line(error)[:200])
            logger.warning("all_tokens goes on without torch.compile, which fails: %s", _faults[0])
    return _reduced(block)


@lru_cache
def _compile() -> Callable[[Block], tuple[Tensor, Tensor, Tensor | None]]:
    return torch.compile(_reduced, dynamic=True)


def last_of(patterns: Tensor, lengths: Tensor) -> Tensor:
    """The pattern row of each sample's last real token, from whole patterns: [B,H,T,P+T] -> [B,H,P+T]."""
    return patterns[torch.arange(len(lengths), device=patterns.device), :, lengths - 1].float()


def sums_of(patterns: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The attention to each key and the row entropies, summed over real queries: [B,H,T,P+T] -> [B,H,P+T], [B,H] in nats."""
    real = (torch.arange(patterns.shape[2], device=patterns.device) < lengths[:, None])[:, None, :, None]
    rows = patterns.float().masked_fill(~real, 0)
    return rows.sum(2), torch.special.entr(rows).sum((2, 3))


def output_norms(z: Tensor) -> Tensor:
    """‖z‖₂ of every head and token: z [B,T,H,D] -> [B,T,H]."""
    return torch.linalg.vector_norm(z, dim=-1, dtype=torch.float32)


def result_factors(output_weight: Tensor, heads: int) -> Tensor:
    """For each head a small R with ‖R z‖ = ‖W_O z‖ for every z: the R of the QR decomposition of the head's W_O.

    output_weight [M, H·D] (as of `nn.Linear`) -> [H, min(M,D), D] float32. Taking R instead of the Gram matrix W_Oᵀ W_O costs
    the same afterwards and does not square the condition number; a head with W_O = 0 has R = 0 exactly.
    """
    per_head = output_weight.float().unflatten(1, (heads, -1)).transpose(0, 1)
    return torch.linalg.qr(per_head, mode="r").R


def result_norms(z: Tensor, factors: Tensor) -> Tensor:
    """‖W_O z‖₂ of every head and token, without making the results: z [B,T,H,D], factors [H,K,D] -> [B,T,H]."""
    return torch.linalg.vector_norm(torch.einsum("bthd,hkd->bthk", z.float(), factors), dim=-1)


def at_last_token(values: Tensor, lengths: Tensor) -> Tensor:
    """The value at each sample's last real token: [B,T,H] -> [B,H]."""
    return values[torch.arange(len(lengths), device=values.device), lengths - 1]


def sum_over_tokens(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum over each sample's real tokens: [B,T,H] -> [B,H]; what stands at padding is not read."""
    real = torch.arange(values.shape[1], device=lengths.device) < lengths[:, None]
    return torch.where(real[:, :, None], values, 0).sum(1)


def _mask(logits: Tensor, mask: Tensor, unit: float = 1) -> None:
    """Put a mask of the model's own on the logits, of which `unit` make a nat: boolean, True is attended, or to be added."""
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, MIN_LOGIT)
    else:
        logits.add_(mask, alpha=unit).clamp_(min=MIN_LOGIT)
