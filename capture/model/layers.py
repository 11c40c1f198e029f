"""What is known of a model's attention layers once a whole pass was heard."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer of a model.

    Args:
        attention: the attention module.
        projection: its output projection, None where it has none.
        heads: query heads.
        kv_heads: how many groups of them share a key.
        head_dim: values of z of a head.
        sinks: whether its softmax has sink logits.
    """

    attention: nn.Module
    projection: nn.Module | None
    heads: int
    kv_heads: int
    head_dim: int
    sinks: bool


@dataclass(frozen=True)
class KnownModel:
    """What a whole pass has shown of a model.

    Args:
        layers: its attention layers by the model's own numbers, rising.
        results: whether ‖W_O z‖ is wanted. It is not where a layer has no output projection, nor where the self-check finds one
            that cannot be split by heads.
    """

    layers: Mapping[int, AttentionLayer]
    results: bool

    @property
    def heads(self) -> int:
        """Query heads of a layer, the same in all; 0 without layers."""
        return next((layer.heads for layer in self.layers.values()), 0)

    @property
    def modules(self) -> dict[int, nn.Module]:
        """The attention modules by layer."""
        return {number: layer.attention for number, layer in self.layers.items()}

    @property
    def projections(self) -> dict[int, nn.Module]:
        """The output projections by layer, without layers that have none."""
        return {number: layer.projection for number, layer in self.layers.items() if layer.projection is not None}
