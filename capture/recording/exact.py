"""An exact float32 attention over the queries, keys and mask of a pass; recordings in any dtype are compared with it.

Comparing a low-precision pass with another one shows the rounding of both, which hides small faults. Here nothing but the
softmax is computed twice: by the model's own eager attention function, in float32, from the same inputs.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# A larger total variation of a pattern, or share of the layer's largest entropy, is no rounding of float32.
TOLERANCE = 1e-3
# The output is in the model's dtype, so it is rounded once: as a share of the layer's largest value.
OUTPUT_TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def exact_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any], sample: int
) -> tuple[Tensor, Tensor]:
    """The patterns and the output of one sample of a pass, in float32.

    Args:
        module: the attention module whose file defines the model's `eager_attention_forward`; the textbook formula is used
            where it has none.
        query: [B,H,T,D]; key: [B,G,P+T,D]; value: [B,G,P+T,D'], as the module gave them to its attention function.
        mask: as given too: None (causal), or [B or 1, H or 1, T, P+T], boolean (True is attended) or to be added to the logits.
        options: the arguments by name that came with them.
        sample: number of the sample in the batch.

    Returns the patterns [H,T,P+T] and the heads' output [T,H,D'].
    """
    query, key, value = (states[sample : sample + 1].float() for states in (query, key, value))
    given = {name: _of_sample(option, sample) for name, option in options.items()}
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    forward: Callable[..., tuple[Tensor, Tensor]] = own or _textbook_attention
    output, patterns = forward(module, query, key, value, _additive(mask, query, key, sample), **given)
    return patterns[0].float(), output[0]


def exact_differences(
    exact: Callable[[int], tuple[Tensor, Tensor]],
    lengths: Tensor,
    output: Tensor,
    last: Tensor | None,
    sums: Mapping[str, Tensor],
) -> Iterator[tuple[str, float, float]]:
    """How far one layer's reductions and output are from an exact attention over the same inputs.

    Args:
        exact: gives patterns [H,T,P+T] and output [T,H,D'] of a sample, as `exact_attention`.
        lengths: [B], the real tokens of each sample without those of a prefix.
        output: [B,T,H,D'], what the layer was given as its attention's output.
        last: [B,H,P+T], the last token's rows; None where they are not wanted.
        sums: over all real tokens of the pass, `all_tokens/attention` [B,H,P+T] and `all_tokens/entropy` [B,H], if wanted.

    Yields (what differs, the largest difference, the tolerance): total variation for patterns, else relative to the largest.
    """
    for sample, tokens in enumerate(lengths.tolist()):
        patterns, z = exact(sample)
        patterns, z = patterns[:, :tokens], z[:tokens]
        keys = patterns.shape[2] - output.shape[1] + tokens  # those after the last token are padding
        if last is not None:
            yield "last_token/attention", _variation(last[sample], patterns[:, -1], keys), TOLERANCE
        if sums:
            mean = sums["all_tokens/attention"][sample] / tokens
            yield "all_tokens/attention", _variation(mean, patterns.mean(1), keys), TOLERANCE
            entropy = torch.special.entr(patterns).sum(-1).mean(-1)
            yield "all_tokens/entropy", _share(sums["all_tokens/entropy"][sample] / tokens, entropy), TOLERANCE
        yield "output", _share(output[sample, :tokens], z), OUTPUT_TOLERANCES[output.dtype]


def _variation(found: Tensor, expected: Tensor, keys: int) -> float:
    """The largest total variation over heads [H,·] of two sets of rows, of which only the first `keys` may be above 0."""
    beyond = found[:, keys:].abs().sum(-1)
    return float(((found[:, :keys].float() - expected[:, :keys]).abs().sum(-1) + beyond).max() / 2)


def _share(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest expected value; 0 where both are all zero."""
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((found.float() - expected).abs().max() / largest)


def _of_sample(option: Any, sample: int) -> Any:
    """An argument as it is for one sample of the batch: a tensor by batch is cut, and all are float32."""
    if not isinstance(option, Tensor) or not option.is_floating_point():
        return option
    return (option[sample : sample + 1] if option.ndim == 4 and len(option) > 1 else option).float()


def _additive(mask: Tensor | None, query: Tensor, key: Tensor, sample: int) -> Tensor:
    """The mask of one sample as a float32 tensor to be added to the logits."""
    minimum = torch.finfo(torch.float32).min
    if mask is None:
        queries, keys = query.shape[2], key.shape[2]
        seen = torch.ones((1, 1, queries, keys), dtype=torch.bool, device=query.device).tril(keys - queries)
    else:
        mask = mask[sample : sample + 1] if len(mask) > 1 else mask
        if mask.dtype != torch.bool:
            return mask.float().clamp(min=minimum)
        seen = mask
    return torch.zeros(seen.shape, device=query.device).masked_fill_(~seen, minimum)


def _textbook_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """softmax(q·kᵀ·scaling + mask)·v, with softcap, position bias and sink logits where they are given."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scaling = options.get("scaling")
    logits = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if (softcap := options.get("softcap")) is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if (bias := options.get("position_bias")) is not None:
        logits = logits + bias
    logits = logits + mask
    sinks = options.get("sinks", options.get("s_aux"))
    if sinks is not None:
        column = sinks.view(1, -1, 1, 1) if sinks.ndim == 1 else sinks
        logits = torch.cat([logits, column.expand(*logits.shape[:3], 1)], -1)
    patterns = logits.softmax(-1)[..., : key.shape[2]]
    return (patterns @ value).transpose(1, 2), patterns
