"""The recording attention function: SDPA for the model, and beside it the few reductions that the cache needs.

It is registered with transformers under a name of its own, together with SDPA's mask function (without that, transformers
would silently drop causal masking), and serves every architecture that goes through transformers' attention interface.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..data.errors import InputError
from . import reductions
from .prefixes import SharedPrefix

NAME = "headscore_recording"
# Arguments that change the softmax in ways that SDPA, and so this function, does not compute.
_CHANGES_THE_SOFTMAX = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class AttentionCall:
    """One attention layer's forward pass: query [B,H,T,D], key and value [B,G,P+T,D], mask as for `reductions`.

    `sdpa()` makes z [B,T,H,D] by SDPA.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None
    sdpa: Callable[[], Tensor]


Listener = Callable[[AttentionCall], Tensor]  # makes z [B,T,H,D]


@contextlib.contextmanager
def recording(model: PreTrainedModel, listener: Listener) -> Iterator[None]:
    """Within this context `listener` makes z in every attention layer that `model` runs; afterwards all is as before.

    Raises InputError where the architecture does not go through transformers' attention interface, or changes the softmax
    in a way that is not supported.
    """
    if not model._can_set_attn_implementation():
        raise InputError(
            f"{model.config.model_type}: this architecture does not use transformers' attention interface, "
            "so its attention cannot be recorded"
        )

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        for name in _CHANGES_THE_SOFTMAX:
            if options.get(name) is not None:
                raise InputError(f"{model.config.model_type}: attention with '{name}' is not supported")

        def sdpa() -> Tensor:
            z, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
            return z

        scaling = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
        return listener(AttentionCall(module, query, key, value, scaling, attention_mask, sdpa)), None

    previous = model.config._attn_implementation
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(previous)
        for interface in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            interface._global_mapping.pop(NAME, None)


def output_projection(module: nn.Module, width: int) -> nn.Module:
    """The attention module's output projection: the one linear child by a known name that takes `width` = H·D values.

    Raises InputError where there is none.
    """
    for name in ("o_proj", "out_proj", "c_proj", "dense", "wo"):
        child = getattr(module, name, None)
        weight = getattr(child, "weight", None)
        if isinstance(child, nn.Module) and isinstance(weight, Tensor) and output_weight(child).shape[1:] == (width,):
            return child
    raise InputError(f"{type(module).__name__}: found no output projection that takes {width} values")


def output_weight(projection: Any) -> Tensor:
    """W_O as [M, H·D]; GPT-2's Conv1D keeps it transposed."""
    weight: Tensor = projection.weight
    return weight.detach().T if type(projection).__name__ == "Conv1D" else weight.detach()


class AllRecorded(Exception):
    """Raised in a forward pass once the last attention layer is recorded: nothing needs the rest of it."""


class NoAttentionError(Exception):
    """The model ran, but no attention layer was heard of."""


@dataclass(frozen=True)
class Recorded:
    """What was recorded of a batch, on the host: `arrays` [L,B,H,T] or [L,B,H] by their names in the cache.

    finite [B]: whether all of a sample's values are finite; `layers`: the model's number of each of the L layers.
    """

    arrays: dict[str, npt.NDArray[Any]]
    finite: npt.NDArray[np.bool_]
    layers: list[int]

    def first_fault(self, position: int) -> str:
        """The first array and layer in which the sample at `position` of the batch has a value that is not finite."""
        for name, values in self.arrays.items():
            broken = ~np.isfinite(values[:, position]).reshape(len(self.layers), -1).all(axis=1)
            if broken.any():
                return f"NaN or infinite '{name}' from layer {self.layers[int(broken.argmax())]} on"
        return "no fault"


@dataclass(frozen=True)
class Recording:
    """What was recorded of a batch, on its way to the host."""

    arrays: dict[str, Tensor]
    finite: Tensor
    layers: list[int]
    arrived: torch.cuda.Event | None

    def finish(self) -> Recorded:
        """Wait until all has arrived."""
        if self.arrived:
            self.arrived.synchronize()
        return Recorded({name: v.numpy() for name, v in self.arrays.items()}, self.finite.numpy(), self.layers)


@dataclass(frozen=True)
class Prefix:
    """A prefix that was run once for many prompts: its tokens, its keys and values, and its sums by layer and array name."""

    tokens: int
    kv_cache: SharedPrefix
    sums: dict[int, dict[str, Tensor]]


class Recorder:
    """The listener that reduces each layer at once and hands a whole batch to the host in one go.

    all_tokens: whether the mean pattern and entropy over all query positions are wanted too. After each forward pass `take()`
    gives what was recorded, `layers` the model's numbers of the L layers, and `projections` their output projections. One
    object serves one model. Its first pass tells it how many layers there are; later ones it may end early by AllRecorded.
    """

    def __init__(self, all_tokens: bool):
        self._all_tokens = all_tokens
        self._lengths = torch.empty(0, dtype=torch.long)
        self._prefix: Prefix | None = None
        self._will_be_prefix = False
        self._factors: dict[int, Tensor] = {}
        self._depth = 0  # attention layers of a whole pass, once known
        self._found: dict[str, Tensor] = {}
        self._sums: dict[int, dict[str, Tensor]] = {}
        self.layers: list[int] = []
        self.kv_heads = 0
        self.projections: dict[int, nn.Module] = {}

    def start(self, lengths: Tensor, prefix: Prefix | None = None, *, will_be_prefix: bool = False) -> None:
        """Begin a batch whose samples have `lengths` [B] real tokens, after those of the prefix; or one to `take_prefix` of.

        They should lie on the model's device: to bring them there in each layer would wait for it.
        """
        self._lengths, self._prefix, self._will_be_prefix = lengths, prefix, will_be_prefix
        self.layers = []
        self.clear()

    def clear(self) -> None:
        """Let go of what a failed batch holds."""
        self._found, self._sums = {}, {}

    def run(self, model: PreTrainedModel, **inputs: Any) -> None:
        """The forward pass of a batch, up to where all is recorded."""
        with contextlib.suppress(AllRecorded):
            model(**inputs)
            self._depth = len(self.layers)

    def __call__(self, call: AttentionCall) -> Tensor:
        """Run and reduce one layer of the current batch; z [B,T,H,D]. Raises AllRecorded after the last."""
        z = self._record(call)
        if len(self.layers) == self._depth:
            raise AllRecorded
        return z

    def _record(self, call: AttentionCall) -> Tensor:
        query, key, scaling, mask = call.query, call.key, call.scaling, call.mask
        lengths = self._lengths.to(query.device)
        layer = int(call.module.layer_idx)  # type: ignore[arg-type]
        self.layers.append(layer)
        self.kv_heads = key.shape[1]
        sums, z = {}, None
        if self._all_tokens:
            # On a CPU z costs less from the patterns that are made anyway; a GPU's SDPA takes next to no time.
            value = call.value if query.device.type == "cpu" else None
            attention, entropy, z = reductions.all_token_patterns(query, key, value, lengths, scaling, mask)
            sums = {"all_tokens/attention": attention, "all_tokens/entropy": entropy}
        if z is None:
            z = call.sdpa()
        outputs = reductions.output_norms(z)
        results = reductions.result_norms(z, self._result_factors(layer, call.module, z))
        sums["all_tokens/output_norm"] = reductions.sum_over_tokens(outputs, lengths)
        sums["all_tokens/result_norm"] = reductions.sum_over_tokens(results, lengths)
        if self._will_be_prefix:
            self._sums[layer] = sums
            return z
        found = {
            "last_token/attention": reductions.last_token_patterns(query, key, lengths, scaling, mask),
            "last_token/output_norm": reductions.at_last_token(outputs, lengths),
            "last_token/result_norm": reductions.at_last_token(results, lengths),
            **{name: self._mean(layer, name, values) for name, values in sums.items()},
        }
        for name, values in found.items():
            self._keep(name, values)
        return z

    def _keep(self, name: str, values: Tensor) -> None:
        """Put the latest layer's values beside those of the layers before.

        There is room for all layers from the first on: small tensors that outlast a layer would scatter its temporaries.
        """
        layers = len(self.layers)
        kept = self._found.get(name)
        if kept is None:
            dtype = torch.half if name.endswith("attention") else torch.float32
            kept = self._found[name] = values.new_empty((max(self._depth, layers), *values.shape), dtype=dtype)
        elif len(kept) < layers:
            kept = self._found[name] = torch.cat([kept, torch.empty_like(kept)])
        kept[layers - 1].copy_(values)

    def take_prefix(self, tokens: int, kv_cache: Cache) -> Prefix:
        """What was just run, a batch of one, as a prefix."""
        prefix = Prefix(tokens, SharedPrefix(kv_cache.layers), self._sums)
        self.clear()
        return prefix

    def _mean(self, layer: int, name: str, sums: Tensor) -> Tensor:
        """The mean over all tokens of a sample, those of the prefix included, of what was summed over the rest of them."""
        total = self._lengths.to(sums.device)
        if self._prefix:
            before = self._prefix.sums[layer][name]
            sums[..., : before.shape[-1]] += before  # a key's sums are [1,H,P], a head's [1,H]
            total = total + self._prefix.tokens
        return sums / total.view(-1, *[1] * (sums.ndim - 1))

    def take(self) -> Recording:
        """What was recorded of the batch, in the order of `layers`; on a GPU this waits for nothing."""
        if not self._found:
            raise NoAttentionError
        found = {name: values[: len(self.layers)] for name, values in self._found.items()}
        self.clear()
        # All values are at least 0, so that one pass for the largest tells NaN and infinity too.
        largest = torch.stack([v.amax(dim=(0, *range(2, v.ndim))).float() for v in found.values()])
        finite = torch.isfinite(largest).all(0)
        arrays = {name: _to_host(v) for name, v in found.items()}
        device = finite.device
        on_host = _to_host(finite)
        event = torch.cuda.Event() if device.type == "cuda" else None
        if event:
            event.record(torch.cuda.current_stream(device))
        return Recording(arrays, on_host, list(self.layers), event)

    def _result_factors(self, layer: int, module: nn.Module, z: Tensor) -> Tensor:
        if layer not in self._factors:
            heads, head_dim = z.shape[2:]
            self.projections[layer] = output_projection(module, heads * head_dim)
            self._factors[layer] = reductions.result_factors(output_weight(self.projections[layer]), heads)
        return self._factors[layer]


def _to_host(values: Tensor) -> Tensor:
    """The tensor in the host's memory; from a GPU it is on its way there when this returns."""
    if values.device.type == "cuda":
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    return values.cpu()
