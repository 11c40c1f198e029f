"""The arrays of a batch, filled layer by layer on the model's device."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from . import reductions
from .prefixes import Prefix, SharedPrefix
from .recorded import Recording

PATTERN_DTYPE = torch.half  # as the cache stores patterns


class BatchBuffers:
    """The arrays of one batch, or the sums of a prefix that is run for others.

    Args:
        lengths: [B], the real tokens of each sample, without those of the prefix.
        prefix: what all samples begin with, if it was run before.
        will_be_prefix: whether the batch is a prefix itself, of which only sums are wanted.
        depth: the number of attention layers if known, so that there is room for all of them from the start.
    """

    def __init__(self, lengths: Tensor, prefix: Prefix | None = None, will_be_prefix: bool = False, depth: int = 0):
        self.lengths = lengths
        self.past = prefix.tokens if prefix else 0
        self.will_be_prefix = will_be_prefix
        self.layers: list[int] = []  # the model's numbers of those that have begun
        self._prefix = prefix
        self._depth = depth
        self._arrays: dict[str, Tensor] = {}
        self._sums: dict[int, dict[str, Tensor]] = {}

    @property
    def empty(self) -> bool:
        """Whether there are no arrays."""
        return not self._arrays

    def add(self, last: Tensor | None, norms: Mapping[str, Tensor], sums: dict[str, Tensor]) -> None:
        """Take the values of the layer that began last.

        Args:
            last: [B,H,P+T], the last token's pattern rows; None for a batch that will be a prefix.
            norms: [B,T,H] by name.
            sums: over all real tokens, [B,H,P+T] or [B,H] by array name; they are overwritten.
        """
        layer = self.layers[-1]
        sums |= {f"all_tokens/{name}": reductions.sum_over_tokens(v, self.lengths.to(v.device)) for name, v in norms.items()}
        if last is None:
            self._sums[layer] = sums
            return
        self._put("last_token/attention", last)
        for name, values in norms.items():
            self._put(f"last_token/{name}", reductions.at_last_token(values, self.lengths.to(values.device)))
        for name, values in sums.items():
            self._put(name, self._mean(layer, name, values))

    def _put(self, name: str, values: Tensor) -> None:
        """Put the latest layer's values beside those of the layers before.

        There is room for all layers from the first on: small tensors that outlast a layer would scatter its temporaries.
        """
        layers = len(self.layers)
        array = self._arrays.get(name)
        if array is None:
            dtype = PATTERN_DTYPE if name.endswith("attention") else torch.float32
            array = self._arrays[name] = values.new_empty((max(self._depth, layers), *values.shape), dtype=dtype)
        elif len(array) < layers:
            array = self._arrays[name] = torch.cat([array, torch.empty_like(array)])
        array[layers - 1].copy_(values)

    def _mean(self, layer: int, name: str, sums: Tensor) -> Tensor:
        """The mean over all tokens of a sample, those of the prefix included, given the sums over the others."""
        total = self.lengths.to(sums.device)
        if self._prefix:
            before = self._prefix.sums[layer][name]
            sums[..., : before.shape[-1]] += before  # a key's sums are [1,H,P], a head's [1,H]
            total = total + self._prefix.tokens
        return sums / total.view(-1, *[1] * (sums.ndim - 1))

    def recording(self) -> Recording:
        """The arrays of all layers, on their way to the host; on a GPU this waits for nothing."""
        layers = len(self.layers)
        # In a model's first pass there may be result norms up to a layer that has no output projection.
        whole = {name: values[:layers] for name, values in self._arrays.items() if len(values) >= layers}
        return Recording.of(whole, self.layers)

    def as_prefix(self, tokens: int, kv_cache: Cache) -> Prefix:
        """The prefix of `tokens` tokens that was run, with the keys and values that the model left in `kv_cache`."""
        return Prefix(tokens, SharedPrefix(kv_cache.layers), self._sums)
