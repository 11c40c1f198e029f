"""The recording attention function: SDPA for the model, and beside it the few reductions that the cache needs.

It is registered with transformers under a name of its own, together with SDPA's mask function (without that, transformers
would silently drop causal masking), and serves every architecture that goes through transformers' attention interface.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ...data.errors import RunError
from ..model.projections import output_projection
from .exact import exact_attention
from .reductions import MIN_LOGIT, Softmax

NAME = "headscore_recording"
# Looks whether a row of a batch holds several sequences, which none does here, and waits for a GPU to know.
_PACKED = "find_packed_sequence_indices"

# The arguments that models hand to attention functions and that are understood here. Any other one ends the recording.
UNDERSTOOD = ("scaling", "softcap", "sinks", "s_aux", "position_bias", "dropout", "is_causal", "sliding_window")
# These change nothing in what is computed: they say what to return, or repeat what the mask says.
WITHOUT_EFFECT = ("position_ids", "use_cache", "output_attentions")


class CannotRecordError(RunError):
    """What was recorded of this model is not what its own attention does, or nothing can be recorded at all."""


class UnsupportedModelError(CannotRecordError):
    """The model's attention is of a kind that cannot be recorded in this way."""


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer's forward pass.

    Args:
        module: the attention module.
        projection: the layer's output projection, None where it has none.
        query: [B,H,T,D].
        key: [B,G,P+T,D], of which the first P are those of a shared prefix.
        value: [B,G,P+T,D'].
        softmax: how logits become weights.
        sdpa: makes the heads' output [B,T,H,D'] by SDPA, which is right where `softmax.plain`.
        exact: makes the patterns [H,T,P+T] and the output [T,H,D'] of one sample in float32, by its own eager attention.
    """

    module: nn.Module
    projection: nn.Module | None
    query: Tensor
    key: Tensor
    value: Tensor
    softmax: Softmax
    sdpa: Callable[[], Tensor]
    exact: Callable[[int], tuple[Tensor, Tensor]]


class Listener(Protocol):
    """What hears of every attention layer, one after the other."""

    def attend(self, call: AttentionCall) -> Tensor:
        """Make the heads' output [B,T,H,D']."""

    def project(self, z: Tensor) -> None:
        """Hear z [B,T,H·D'], which is what enters the output projection: the heads' output, gated or normed in some models."""


@contextlib.contextmanager
def recording(model: PreTrainedModel, listener: Listener) -> Iterator[None]:
    """Within this context `listener` makes every attention layer's output as `model` runs; afterwards all is as before.

    Raises CannotRecordError where the architecture does not go through transformers' attention interface.
    """
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(f"{model.config.model_type}: does not use transformers' attention interface")
    projections: dict[nn.Module, nn.Module | None] = {}
    hooks = contextlib.ExitStack()

    def projection_of(module: nn.Module, width: int) -> nn.Module | None:
        if module not in projections:
            found = projections[module] = output_projection(module, width)
            if found is not None:
                hook = found.register_forward_pre_hook(lambda _, inputs: listener.project(inputs[0]))
                hooks.callback(hook.remove)
        return projections[module]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        _require_understood(module, key, attention_mask, options)
        projection = projection_of(module, query.shape[1] * value.shape[-1])
        softmax = _softmax(query, attention_mask, options)

        def sdpa() -> Tensor:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]

        exact = partial(exact_attention, module, query, key, value, attention_mask, options)
        output = listener.attend(AttentionCall(module, projection, query, key, value, softmax, sdpa, exact))
        if projection is None:
            listener.project(output.flatten(2))
        return output, None

    with hooks, _attending(model, attend):
        yield


@contextlib.contextmanager
def _attending(model: PreTrainedModel, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Within this context `model` calls `attend` in place of its attention function, with the masks that SDPA gets."""
    previous = model.config._attn_implementation
    packed = getattr(masking_utils, _PACKED, None)
    if packed:
        setattr(masking_utils, _PACKED, lambda position_ids: None)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(previous)
        if packed:
            setattr(masking_utils, _PACKED, packed)
        for interface in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            interface._global_mapping.pop(NAME, None)


def _require_understood(module: nn.Module, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
    """Raises CannotRecordError for arguments whose effect on the attention would be missed."""

    def refuse(reason: str) -> None:
        raise UnsupportedModelError(f"{module.config.model_type}: {reason}")  # type: ignore[union-attr]

    unknown = [name for name, value in options.items() if value is not None and name not in (*UNDERSTOOD, *WITHOUT_EFFECT)]
    if unknown:
        refuse(f"its attention takes '{unknown[0]}', which recording does not understand")
    if options.get("dropout"):
        refuse("its attention drops weights at random")
    window = options.get("sliding_window")
    if mask is None and window is not None and key.shape[2] > window:
        refuse(f"has a window of {window} tokens, but gives no mask for {key.shape[2]}")


def _softmax(query: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Softmax:
    """How a layer's weights are made, from the arguments that it gives to attention functions."""
    scaling = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    bias = options.get("position_bias")
    if bias is not None:
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, bias, MIN_LOGIT)
        else:
            mask = bias if mask is None else mask + bias
    sinks = options.get("sinks")
    if options.get("s_aux") is not None:
        sinks = options["s_aux"].view(1, -1, 1, 1)
    return Softmax(scaling, mask, options.get("softcap"), sinks)
