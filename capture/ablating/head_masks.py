"""Which rows and columns of a model's projections are those of some heads, to train or prune these alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import InputError
from ...data.head_parts import Groups, groups_among, of_heads
from ..model.layers import AttentionLayer
from ..model.projections import input_projections, input_width, output_width
from .ablation import attention_layers, gates_without, pairs_in

if TYPE_CHECKING:
    from .ablation import Heads


@dataclass(frozen=True)
class HeadMasks:
    """The rows and columns of some heads.

    Args:
        rows: bool [out] by the path of each query, key and value projection that makes something for one of the heads alone.
        columns: bool [in] by the path of each output projection that takes something of one of the heads.
    """

    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]

    @property
    def modules(self) -> list[str]:
        """The paths of all of them."""
        return [*self.rows, *self.columns]


def masks_of(model: PreTrainedModel, heads: "Heads", groups: Groups = "whole") -> HeadMasks:
    """The rows and columns of heads in the projections of a model, see `headscore.head_masks`.

    Args:
        model: a causal language model of transformers, without adapters.
        heads: as `ablated` takes them.
        groups: whose rows of W_K and W_V count: `whole`, groups all of whose heads are among these; `any`, groups with one.

    Raises InputError for heads that the model does not have, and where its modules are not split by heads.
    """
    layers = attention_layers(model)
    gates = gates_without([pairs_in(heads, layers)], layers)
    paths = {module: path for path, module in model.named_modules()}
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for layer, gate in gates.items():
        numbers = torch.nonzero(gate[0] == 0).flatten().tolist()
        rows |= _rows(layer, layers[layer], numbers, groups, paths)
        projection = layers[layer].projection
        width, left = divmod(input_width(projection), layers[layer].heads)
        if projection is None or left or not width:
            raise InputError(f"head_masks: layer {layer} has no output projection whose columns are its heads")
        columns[paths[projection]] = _tensor(numbers, layers[layer].heads, width, projection)
    return HeadMasks(rows, columns)


def _rows(
    layer: int, found: AttentionLayer, heads: list[int], groups: Groups, paths: Mapping[nn.Module, str]
) -> dict[str, Tensor]:
    """The rows of a layer's heads in W_Q, and of their groups in W_K and W_V."""
    parts = input_projections(found.attention)
    z = input_width(found.projection) // found.heads
    shared = groups_among(heads, found.heads, found.kv_heads, groups)
    rows = {}
    for part, count, chosen in (
        ("query", found.heads, heads),
        ("key", found.kv_heads, shared),
        ("value", found.kv_heads, shared),
    ):
        module = parts[part]
        if module is None or sum(module is other for other in parts.values()) > 1:
            raise InputError(
                f"head_masks: layer {layer} makes its {part} together with others, in an order of its own; only a model that "
                "has a module for each can be masked by head"
            )
        width, left = divmod(output_width(module), count)
        gated, other_width = part == "query" and width == 2 * z, part == "value" and width != z
        if left or not width or gated or other_width:
            raise InputError(f"head_masks: the {part} projection of layer {layer} makes more than one {part} for each head")
        if chosen:
            rows[paths[module]] = _tensor(chosen, count, width, module)
    return rows


def _tensor(numbers: list[int], count: int, width: int, module: nn.Module) -> Tensor:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return torch.from_numpy(of_heads(numbers, count, width)).to(device)
