"""Pure tensor functions that reduce one layer's attention to what the cache stores.

Shapes by letter: B batch, T tokens, H heads, G kv heads, D head dim, M model dim. Batches are padded on the right, so a
sample's real tokens are its first `lengths[b]`. All results are float32 whatever the model's dtype.
"""

import torch
from torch import Tensor

LEAST_LOGIT = torch.finfo(torch.float32).min  # the logit of what is not attended; its exponential is 0
# What one block of attention logits takes in `all_token_patterns`: on a CPU no more than its caches hold.
BLOCK_BYTES = {"cpu": 2 << 20, "cuda": 64 << 20}


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
    logits = _grouped_logits(query[each, :, last].unsqueeze(2), key, scaling).squeeze(2)
    logits = logits if row_mask is None else _masked(logits, row_mask)
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)


def all_token_patterns(
    query: Tensor, key: Tensor, lengths: Tensor, scaling: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The patterns and the row entropies, summed over all real query positions, computed in blocks of queries.

    Arguments as for `last_token_patterns` -> sum of the attention to each key [B,H,P+T] (in all: `lengths`) and of the
    entropies in nats [B,H] (0 ln 0 is 0; a row over one token has entropy 0). Memory is bounded by BLOCK_BYTES per temporary
    whatever T, once one query row of the batch fits. With l the logits less their largest: H = ln Σ eˡ − Σ l eˡ / Σ eˡ, which
    needs one exponential and no logarithm per weight, and loses nothing to cancellation.
    """
    batch, heads, tokens, _ = query.shape
    past = key.shape[2] - tokens
    attention = query.new_zeros((batch, heads, past + tokens), dtype=torch.float32)
    entropy = query.new_zeros((batch, heads), dtype=torch.float32)
    positions = torch.arange(tokens, device=query.device)
    real = positions < lengths[:, None]  # [B,T]
    query = torch.where(real[:, None, :, None], query, 0)  # what stands at padding may be NaN
    key = torch.cat([key[:, :, :past], torch.where(real[:, None, :, None], key[:, :, past:], 0)], dim=2)
    block = max(1, BLOCK_BYTES.get(query.device.type, 1 << 26) // (4 * batch * heads * (past + tokens)))
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        end = past + stop  # keys after the block are seen by none of it
        logits = _grouped_logits(query[:, :, start:stop], key[:, :, :end], scaling)
        if mask is not None:
            logits = _masked(logits, mask[:, :, start:stop, :end])
        # Of the others only keys within the block may come later than a query. Not -inf, which would make NaN of 0 · l.
        later = positions[start:stop] > positions[start:stop, None]
        logits[..., past + start :].masked_fill_(later, LEAST_LOGIT)
        logits -= logits.amax(-1, keepdim=True)
        weights = logits.exp()
        sums = weights.sum(-1)
        counted = real[:, None, start:stop]
        attention[:, :, :end] += torch.matmul((counted / sums).unsqueeze(2), weights).squeeze(2)
        entropy += ((sums.log() - torch.linalg.vecdot(weights, logits) / sums) * counted).sum(-1)
    return attention, entropy


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


def _grouped_logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """q Kᵀ · scaling in float32 without repeating K over the heads that share it: [B,H,Q,D], [B,G,T,D] -> [B,H,Q,T]."""
    grouped = query.float().mul(scaling).unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # [B,G,(H/G)·Q,D]
    logits = torch.matmul(grouped, key.float().transpose(2, 3))
    return logits.unflatten(2, (-1, query.shape[2])).flatten(1, 2)


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    """The logits under a mask of the model's own: boolean, where True is attended, or to be added."""
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, LEAST_LOGIT)
    return (logits + mask).clamp(min=LEAST_LOGIT)
