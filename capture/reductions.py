"""Pure tensor functions that reduce one layer's attention to what the cache stores.

Shapes by letter: B batch, T tokens, H heads, G kv heads, D head dim, M model dim. Batches are padded on the right, so a
sample's real tokens are its first `lengths[b]`. All results are float32 whatever the model's dtype.
"""

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20  # what one block of attention logits may take in `all_token_patterns`


def last_token_patterns(query: Tensor, key: Tensor, lengths: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """The pattern row of each sample's last real token: softmax(q_last Kᵀ · scaling) over keys up to that token.

    query [B,H,T,D], key [B,G,T,D], lengths [B], mask None or [B or 1, H or 1, T, T] (boolean: True is attended; float:
    added to the logits) -> [B,H,T]; each row sums to 1 and is exactly 0 after the last real token.
    """
    last = lengths - 1
    each = torch.arange(len(last), device=query.device)
    row_mask = None if mask is None else mask.expand(len(last), -1, -1, -1)[each, :, last]
    keys = torch.arange(key.shape[2], device=key.device)
    seen = (keys <= last[:, None])[:, None]  # [B,1,T]
    logits = _grouped_logits(query[each, :, last].unsqueeze(2), key, scaling).squeeze(2)
    return _masked(logits, seen, row_mask).softmax(-1)


def all_token_patterns(
    query: Tensor, key: Tensor, lengths: Tensor, scaling: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mean pattern and mean row entropy over all query positions, computed in blocks of queries.

    Arguments as for `last_token_patterns` -> mean attention to each key [B,H,T] (sums to 1) and mean entropy in nats [B,H]
    (between 0 and ln T; 0 ln 0 is 0; a sample of one token has entropy 0). Memory is bounded by BLOCK_BYTES per temporary
    whatever T, once one query row of the batch fits.
    """
    batch, heads, tokens, _ = query.shape
    weights = _mean_weights(lengths, tokens)
    attention = query.new_zeros((batch, heads, tokens), dtype=torch.float32)
    entropy = query.new_zeros((batch, heads), dtype=torch.float32)
    block = max(1, BLOCK_BYTES // (4 * batch * heads * tokens))
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        rows = torch.arange(start, stop, device=query.device)
        seen = torch.arange(stop, device=query.device) <= rows[:, None]  # keys after the block are seen by none of it
        block_mask = None if mask is None else mask[:, :, start:stop, :stop]
        logits = _grouped_logits(query[:, :, start:stop], key[:, :, :stop], scaling)
        patterns = _masked(logits, seen, block_mask).softmax(-1)
        weight = weights[:, None, start:stop, None]
        patterns = torch.where(weight > 0, patterns, 0)  # what stands at padding may be NaN
        attention[:, :, :stop] += (patterns * weight).sum(2)
        entropy += (torch.special.entr(patterns).sum(-1, keepdim=True) * weight).sum((2, 3))
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


def mean_over_tokens(values: Tensor, lengths: Tensor) -> Tensor:
    """The mean over each sample's real tokens: [B,T,H] -> [B,H]; what stands at padding is not read."""
    weights = _mean_weights(lengths, values.shape[1])[:, :, None]
    return torch.where(weights > 0, values * weights, 0).sum(1)


def _mean_weights(lengths: Tensor, tokens: int) -> Tensor:
    """1/length at a sample's real tokens and 0 at its padding: [B,T]."""
    real = torch.arange(tokens, device=lengths.device) < lengths[:, None]
    return real / lengths[:, None].float()


def _grouped_logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """q Kᵀ · scaling in float32 without repeating K over the heads that share it: [B,H,Q,D], [B,G,T,D] -> [B,H,Q,T]."""
    grouped = query.float().unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # [B,G,(H/G)·Q,D]
    logits = torch.matmul(grouped, key.float().transpose(2, 3)) * scaling
    return logits.unflatten(2, (-1, query.shape[2])).flatten(1, 2)


def _masked(logits: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
    """The logits with what may not be attended set to -inf; `seen` and a boolean `mask` are True where attending is allowed."""
    if mask is not None and mask.dtype == torch.bool:
        seen = seen & mask
    elif mask is not None:
        logits = logits + mask
    return logits.masked_fill(~seen, -torch.inf)
