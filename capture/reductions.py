"""Pure tensor functions that reduce one layer's attention to what the cache stores.

Shapes by letter: B batch, T tokens, H heads, G kv heads, D head dim, M model dim. Batches are padded on the right, so a
sample's real tokens are its first `lengths[b]`. All results are float32 whatever the model's dtype.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_LOGIT = torch.finfo(torch.float32).min  # the logit of what is not attended; its exponential is 0
BITS = math.log2(math.e)  # bits in a nat
# What one block of attention logits takes in `all_token_patterns`: on a CPU no more than its caches hold.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}


def last_token_patterns(query: Tensor, key: Tensor, lengths: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """The pattern row of each sample's last real token: softmax(q_last Kᵀ · scaling) over keys up to that token.

    query [B,H,T,D], key [B,G,P+T,D] whose first P are those of a shared prefix, lengths [B] of the real queries, mask None or
    [B or 1, H or 1, T, P+T] (boolean: True is attended; float: added to the logits) -> [B,H,P+T]; each row sums to 1 and is
    exactly 0 after the last real token.
    """
    last = lengths - 1
    each = torch.arange(len(last), device=query.device)
    row_mask = None if mask is None else mask.expand(len(last), -1, -1, -1)[each, :, last]
    keys = torch.arange(key.shape[2], device=key.device) - (key.shape[2] - query.shape[2])
    seen = (keys <= last[:, None])[:, None]  # [B,1,P+T]
    grouped = query[each, :, last].float().mul(scaling).unflatten(1, (key.shape[1], -1))  # [B,G,H/G,D]
    logits = torch.matmul(grouped, key.float().transpose(2, 3)).flatten(1, 2)
    if row_mask is not None:
        _mask(logits, row_mask)
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)


def all_token_patterns(
    query: Tensor, key: Tensor, value: Tensor | None, lengths: Tensor, scaling: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The patterns and the row entropies, summed over all real query positions, computed in blocks of queries.

    Arguments as for `last_token_patterns`, value [B,G,P+T,D'] -> sum of the attention to each key [B,H,P+T] (in all:
    `lengths`), of the entropies in nats [B,H] (0 ln 0 is 0; a row over one token has entropy 0), and with a value z [B,T,H,D'],
    which from the same patterns costs less than attention of its own. Memory is bounded by BLOCK_BYTES per temporary whatever
    T, once one query row of the batch fits. With l the base-2 logits less their largest, H = log₂ Σ 2ˡ − Σ l 2ˡ / Σ 2ˡ bits,
    which needs one exponential and no logarithm per weight, and loses nothing to cancellation.
    """
    batch, heads, tokens, _ = query.shape
    groups, keys = key.shape[1:3]
    past = keys - tokens
    attention = query.new_zeros((batch, heads, keys), dtype=torch.float32)
    entropy = query.new_zeros((batch, heads), dtype=torch.float32)
    z = None if value is None else query.new_empty((batch, tokens, heads, value.shape[-1]))
    positions = torch.arange(tokens, device=query.device)
    real = positions < lengths[:, None]  # [B,T]
    # What stands at padding may be NaN, and a weight of 0 would not take that away.
    padding = ~F.pad(real, (past, 0), value=True)[:, None, :, None]
    key = key.float().masked_fill(padding, 0).transpose(2, 3).flatten(0, 1)
    value = None if value is None else value.float().masked_fill(padding, 0).flatten(0, 1)
    block = min(tokens, max(1, BLOCK_BYTES.get(query.device.type, 1 << 26) // (4 * batch * heads * keys)))
    # Memory that is used anew for each block stays in the caches of a CPU, and is not asked of the system again and again.
    logits_memory, weights_memory = query.new_empty((2, batch * heads * block * keys), dtype=torch.float32)
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        end = past + stop  # keys after the block are seen by none of it
        shape = (batch, heads, stop - start, end)
        logits, weights = (memory[: math.prod(shape)].view(shape) for memory in (logits_memory, weights_memory))
        counted = real[:, None, start:stop]
        rows = query[:, :, start:stop].float().mul(scaling * BITS).masked_fill_(~counted[..., None], 0)
        torch.bmm(rows.reshape(batch * groups, -1, rows.shape[-1]), key[..., :end], out=logits.view(batch * groups, -1, end))
        if mask is not None:
            _mask(logits, mask[:, :, start:stop, :end], BITS)
        # Of the others only keys within the block may come later than a query.
        logits[..., past + start :].masked_fill_(positions[start:stop] > positions[start:stop, None], LEAST_LOGIT)
        logits -= logits.amax(-1, keepdim=True)
        torch.exp2(logits, out=weights)
        sums = weights.sum(-1)
        attention[..., :end] += torch.matmul((counted / sums).unsqueeze(2), weights).squeeze(2)
        if z is not None and value is not None:
            unscaled = torch.bmm(weights.view(batch * groups, -1, end), value[:, :end]).view(*shape[:3], -1)
            torch.div(unscaled, sums[..., None], out=z[:, start:stop].transpose(1, 2))
        entropy += ((sums.log2() - logits.mul_(weights).sum(-1) / sums) * counted).sum(-1)
    return attention, entropy / BITS, z


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
        logits.masked_fill_(~mask, LEAST_LOGIT)
    else:
        logits.add_(mask, alpha=unit).clamp_(min=LEAST_LOGIT)
