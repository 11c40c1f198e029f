"""Finds an attention layer's projections by the names that models give them, and what each head writes through W_O."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "linear_proj", "attention_out")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "W_pack")  # make queries, keys and values together
_INPUTS = {
    "query": ("q_proj", "q_b_proj", "q_gate_proj", "Wq", "wq", *_FUSED),  # the second and third from a latent query (MLA)
    "key": ("k_proj", "kv_b_proj", "kv_proj", "Wk", "wk", *_FUSED),
    "value": ("v_proj", "kv_b_proj", "kv_proj", "Wv", "wv", *_FUSED),
}


def output_projection(attention: nn.Module, width: int | None = None) -> nn.Module | None:
    """The child that takes all heads' outputs, `width` = H·D values a token, back to the model dim; None where there is none.

    It is found by the names that models give it. Without a width, the first child of such a name that has weights.
    """
    for name in _NAMES:
        child = getattr(attention, name, None)
        if isinstance(child, nn.Module) and input_width(child) and width in (None, input_width(child)):
            return child
    return None


def projection_paths(
    model: nn.Module, prefix: str, modules: Mapping[int, nn.Module], outputs: Mapping[int, nn.Module]
) -> list[dict[str, str | None]]:
    """The paths of each layer's `query`, `key`, `value` and `output` projection, None where it has no such module.

    What makes several of them at once has its path in each.

    Args:
        model: the decoder that the layers are in.
        prefix: its own path in the whole model, from which the paths begin.
        modules: the attention modules by layer number; the layers are in the order of the numbers.
        outputs: those output projections that there are, by layer number.
    """
    paths: dict[nn.Module | None, str] = {m: ".".join(filter(None, (prefix, name))) for name, m in model.named_modules()}
    return [
        {part: paths.get(module) for part, module in input_projections(attention).items()}
        | {"output": paths.get(outputs.get(layer))}
        for layer, attention in sorted(modules.items())
    ]


def input_projections(attention: nn.Module) -> dict[str, nn.Module | None]:
    """The children that make an attention layer's `query`, `key` and `value`; None where it has no such child."""
    return {part: _first(attention, names) for part, names in _INPUTS.items()}


def _first(attention: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first child of such a name that is a linear layer."""
    children = (getattr(attention, name, None) for name in names)
    return next((child for child in children if isinstance(child, nn.Module) and input_width(child)), None)


def kv_heads(attention: nn.Module, heads: int) -> int:
    """How many groups of neighbouring heads of a layer share a key.

    The layer's own attributes tell, since its keys are not seen; without them no heads share a key.
    """
    groups, shared = (getattr(attention, name, None) for name in ("num_key_value_groups", "num_kv_heads"))
    if isinstance(groups, int) and groups > 0:
        return heads // groups
    return shared if isinstance(shared, int) and shared > 0 else heads


def output_weight(projection: nn.Module, dtype: torch.dtype) -> Tensor:
    """W_O as [M, H·D].

    GPT-2's Conv1D keeps it transposed. A quantised layer is asked for it: it is given the identity, and what it adds to
    everything is taken off. That holds for 8-bit floats too, which mean nothing without the scales beside them.

    Args:
        projection: a layer that `output_projection` finds.
        dtype: of what the layer is given in the model, for a quantised one.
    """
    if isinstance(projection, nn.Linear) and projection.weight.is_floating_point() and projection.weight.itemsize > 1:
        return projection.weight.detach()
    if type(projection).__name__ == "Conv1D":
        weight: Tensor = projection.weight.detach().T  # type: ignore[operator]
        return weight
    device = next((p.device for p in projection.parameters()), torch.device("cpu"))
    ones = torch.eye(input_width(projection), dtype=dtype, device=device)
    return (_apply(projection, ones) - _apply(projection, torch.zeros_like(ones[:1]))).T


def head_results(projection: nn.Module, z: Tensor) -> Iterator[Tensor]:
    """W_Oʰ zₕ of every token in full, head by head: z [T,H,D] -> H times [T,M] float32."""
    weight = output_weight(projection, z.dtype).float().unflatten(1, tuple(z.shape[1:]))
    return (z[:, head].float() @ weight[:, head].T for head in range(z.shape[1]))


def projection_error(projection: nn.Module, z: Tensor) -> float:
    """How far the sum over heads of W_Oʰ zₕ, plus the bias, is from what the projection gives for z, as a share of the largest.

    z [T,H,D]. 0 for outputs that are all 0.
    """
    output = _apply(projection, z.flatten(1)).float()
    bias = _apply(projection, torch.zeros_like(z[:1].flatten(1))).float()
    results = z.flatten(1).float() @ output_weight(projection, z.dtype).float().T  # the sum over heads is one product
    largest = output.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((results + bias - output).abs().max() / largest)


def _apply(projection: nn.Module, values: Tensor) -> Tensor:
    """What the projection makes of values [N, H·D], unheard by those who listen to the model."""
    with torch.no_grad():
        output: Tensor = projection.forward(values)
    return output


def output_width(module: Any) -> int:
    """The values per token that a linear layer gives; 0 for what is none."""
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return weight.shape[1]
    features = getattr(module, "out_features", 0)
    return features if isinstance(features, int) else 0


def input_width(module: Any) -> int:
    """The values per token that a linear layer takes; 0 for what is none."""
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return len(weight)
    features = getattr(module, "in_features", 0)
    return features if isinstance(features, int) else 0
