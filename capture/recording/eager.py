"""The model's own eager attention: what all is checked against, and the way of architectures that cannot be recorded.

It makes all T×T weights of a layer, but they are not kept beyond it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..model.projections import output_projection

# Hears of a layer: its module and output projection, its patterns [B,H,T,P+T], and z [B,T,H·D'] as it entered the projection.
Observer = Callable[[nn.Module, nn.Module | None, Tensor, Tensor | None], None]


@contextlib.contextmanager
def eager(model: PreTrainedModel, observe: Observer, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Within this context `model` runs its own eager attention; afterwards all is as before.

    Args:
        model: it must be called with `eager_options`.
        observe: hears of each layer.
        modules: the layers' attention modules; None for all that return patterns and have an output projection.
    """
    layers = list(modules) if modules is not None else [module for module in model.modules() if output_projection(module)]
    hooks = [hook for module in layers for hook in _hooks(module, observe)]
    previous = model.config._attn_implementation
    try:
        _set_attention(model, "eager")
        yield
    finally:
        _set_attention(model, previous)
        for hook in hooks:
            hook.remove()


def eager_options(model: PreTrainedModel) -> dict[str, Any]:
    """What the model must be called with for its layers to return patterns; those of transformers' interface do so anyway."""
    return {} if model._can_set_attn_implementation() else {"output_attentions": True}


def _set_attention(model: PreTrainedModel, name: str) -> None:
    if model._can_set_attn_implementation():
        model.set_attn_implementation(name)
    else:  # Falcon looks it up as it runs, and would be given a mask that its eager attention cannot take
        model.config._attn_implementation = name


def _hooks(module: nn.Module, observe: Observer) -> list[Any]:
    projection = output_projection(module)
    entered: list[Tensor] = []

    def returned(_: nn.Module, __: Any, outputs: Any) -> Any:
        z = entered.pop() if entered else None
        parts = tuple(outputs) if isinstance(outputs, tuple | list) else ()
        place = next((i for i, part in enumerate(parts) if _is_patterns(part, z)), None)
        if place is None or (z is None and projection is not None):
            return None
        observe(module, projection, parts[place], z)
        return type(outputs)([*parts[:place], None, *parts[place + 1 :]])  # else a model might keep the patterns of all layers

    def enters(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered[:] = [inputs[0]]

    hooks = [module.register_forward_hook(returned)]
    return [*hooks, projection.register_forward_pre_hook(enters)] if projection is not None else hooks


def _is_patterns(part: Any, z: Tensor | None) -> bool:
    """Whether what a module returned is [B,H,T,P+T], for the z [B,T,H·D'] that it made."""
    if not isinstance(part, Tensor) or part.ndim != 4:
        return False
    batch, heads, queries, keys = part.shape
    return queries <= keys and (z is None or (z.shape[-1] % heads == 0 and z.numel() == batch * queries * z.shape[-1]))
