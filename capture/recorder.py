"""Reduces what is heard of every attention layer at once, and hands a whole batch to the host in one go."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..data.errors import InputError
from . import reductions
from .attention import AttentionCall, CannotRecordError, UnsupportedModelError, recording
from .eager import eager, eager_options
from .exact import exact_differences
from .model_state import ModelState
from .prefixes import Prefix, SharedPrefix
from .projections import kv_heads, output_weight
from .recorded import Recording

PATTERN_DTYPE = torch.half  # as the cache stores patterns


class AllRecorded(Exception):
    """Raised in a forward pass once the last attention layer is recorded: nothing needs the rest of it."""


class NoAttentionError(InputError):
    """The model ran, but no attention layer was heard of."""


class Recorder:
    """The listener that reduces each layer at once.

    all_tokens: whether the mean pattern and entropy over all query positions are wanted too. eager: whether patterns come from
    the model's own eager attention, in place of the recording function. compiled: whether torch compiles what is done with a
    block of all_tokens. results: whether ‖W_O z‖ is wanted; it becomes False
    where a layer has no output projection. exact: where it is a dict, each layer is held against an exact float32 attention
    over the same inputs, and it gets the largest difference by array. After each forward pass `take()` gives what was recorded,
    and `layers` the model's numbers of the L layers. By those, `modules` has their attention modules, `projections` the modules
    that take their z, `kv_heads` into how many groups their heads fall that share a key, and `head_dims` the width of a head's
    z. One object serves one model. Its first pass tells it how many layers there are; later ones may be ended by AllRecorded.
    """

    def __init__(self, all_tokens: bool, *, eager: bool = False, compiled: bool = False):
        self.eager = eager
        self._compiled = compiled
        self.results = True
        self.exact: dict[str, float] | None = None
        self.all_tokens = all_tokens
        self._state: ModelState | None = None
        self._ears = contextlib.ExitStack()
        self._lengths = torch.empty(0, dtype=torch.long)
        self._prefix: Prefix | None = None
        self._will_be_prefix = False
        self._factors: dict[int, Tensor] = {}
        self._depth = 0  # attention layers of a whole pass, once known
        self.heads = 0
        self._kind = ""  # of model
        self._patterns: tuple[Tensor | None, dict[str, Tensor]] | None = None  # of the layer whose z is still to come
        self._found: dict[str, Tensor] = {}
        self._sums: dict[int, dict[str, Tensor]] = {}
        self.layers: list[int] = []
        self.kv_heads: dict[int, int] = {}
        self.head_dims: dict[int, int] = {}
        self.sinks = False
        self.modules: dict[int, nn.Module] = {}
        self.projections: dict[int, nn.Module] = {}

    @contextlib.contextmanager
    def listening(self, model: PreTrainedModel) -> Iterator[None]:
        """Within this context every attention layer of `run` is heard. Raises CannotRecordError as `recording`."""
        self._state = ModelState(model)
        with self._ears:
            self._listen(model)
            yield

    @contextlib.contextmanager
    def paused(self, model: PreTrainedModel) -> Iterator[None]:
        """Within this context, inside that of `listening`, the model is as it was before: no hook, its own attention."""
        self._ears.close()
        try:
            yield
        finally:
            self._listen(model)

    def _listen(self, model: PreTrainedModel) -> None:
        self._ears.enter_context(eager(model, self.observe) if self.eager else recording(model, self))

    def start(self, lengths: Tensor, prefix: Prefix | None = None, *, will_be_prefix: bool = False) -> None:
        """Begin a batch whose samples have `lengths` [B] real tokens, after those of the prefix; or one to `take_prefix` of.

        They should lie on the model's device: to bring them there in each layer would wait for it.
        """
        self._lengths, self._prefix, self._will_be_prefix = lengths, prefix, will_be_prefix
        self.layers = []
        self.clear()

    def clear(self) -> None:
        """Let go of what a failed batch holds."""
        self._found, self._sums, self._patterns = {}, {}, None

    def run(self, model: PreTrainedModel, **inputs: Any) -> None:
        """The forward pass of a batch, up to where all is recorded; whatever it leaves in the model is undone."""
        options = eager_options(model) if self.eager else {}
        self._kind = model.config.model_type
        try:
            with contextlib.suppress(AllRecorded):
                model(**inputs, **options)
                self._depth = len(self.layers)
        finally:
            if self._state:
                self._state.restore()

    def attend(self, call: AttentionCall) -> Tensor:
        """Run one layer of the current batch and reduce its patterns; the heads' output [B,T,H,D']."""
        query, key, softmax = call.query, call.key, call.softmax
        lengths = self._lengths.to(query.device)
        self._begin(call.module, call.projection, (query.shape[1], query.shape[2], key.shape[2]))
        self.kv_heads[self.layers[-1]] = key.shape[1]
        self.sinks |= softmax.sinks is not None
        sums: dict[str, Tensor] = {}
        output = None
        if self.all_tokens or not softmax.plain:
            # On a CPU it costs less from the patterns that are made anyway; a GPU's SDPA takes next to no time.
            value = call.value if query.device.type == "cpu" or not softmax.plain else None
            attention, entropy, output = reductions.all_token_patterns(
                query, key, value, lengths, softmax, *([True] if self._compiled else [])
            )
            sums = {"all_tokens/attention": attention, "all_tokens/entropy": entropy} if self.all_tokens else {}
        last = None if self._will_be_prefix else reductions.last_token_patterns(query, key, lengths, softmax)
        self._patterns = last, sums
        output = call.sdpa() if output is None else output
        if self.exact is not None:
            for name, difference, tolerance in exact_differences(call.exact, lengths, output, last, sums):
                if not difference <= tolerance:  # catches NaN too
                    raise CannotRecordError(
                        f"self-check failed for {self._kind}: layer {self.layers[-1]}, {name} differs by {difference:.2g} "
                        f"(tolerance {tolerance:g}) from an exact softmax of the same queries and keys"
                    )
                self.exact[name] = max(self.exact.get(name, 0.0), difference)
        return output

    def observe(self, module: nn.Module, projection: nn.Module | None, patterns: Tensor, z: Tensor | None) -> None:
        """Reduce a layer that the model ran itself: patterns [B,H,T,P+T], z [B,T,H·D']; raises AllRecorded after the last."""
        if z is None:
            raise self._refusal(f"{type(module).__name__}: found no output projection")
        lengths = self._lengths.to(patterns.device)
        self._begin(module, projection, (patterns.shape[1], patterns.shape[2], patterns.shape[3]))
        self.kv_heads[self.layers[-1]] = kv_heads(module, self.heads)
        sums: dict[str, Tensor] = {}
        if self.all_tokens:
            sums["all_tokens/attention"], sums["all_tokens/entropy"] = reductions.sums_of(patterns, lengths)
        self._patterns = None if self._will_be_prefix else reductions.last_of(patterns, lengths), sums
        self.project(z)

    def project(self, z: Tensor) -> None:
        """Reduce z [B,T,H·D'], what enters the output projection of the layer; raises AllRecorded after the last."""
        if self._patterns is None:
            raise self._refusal(f"layer {self.layers[-1:]}: its output projection ran twice, or before its attention")
        (last, sums), self._patterns = self._patterns, None
        lengths, layer = self._lengths.to(z.device), self.layers[-1]
        self.head_dims[layer] = z.shape[-1] // self.heads
        z = z.view(len(lengths), -1, self.heads, self.head_dims[layer])
        norms = {"output_norm": reductions.output_norms(z)}
        if self.results:
            norms["result_norm"] = reductions.result_norms(z, self._result_factors(layer, z.dtype))
        sums |= {f"all_tokens/{name}": reductions.sum_over_tokens(values, lengths) for name, values in norms.items()}
        if last is None:
            self._sums[layer] = sums
        else:
            self._keep("last_token/attention", last)
            for name, values in norms.items():
                self._keep(f"last_token/{name}", reductions.at_last_token(values, lengths))
            for name, values in sums.items():
                self._keep(name, self._mean(layer, name, values))
        if len(self.layers) == self._depth:
            raise AllRecorded

    def _begin(self, module: nn.Module, projection: nn.Module | None, dims: tuple[int, int, int]) -> None:
        """Begin a layer of so many heads, queries and keys."""
        heads, queries, keys = dims
        layer = getattr(module, "layer_idx", None)
        layer = int(layer) if isinstance(layer, int) else len(self.layers)
        if self._patterns is not None:
            raise self._refusal(f"layer {self.layers[-1]}: its output projection does not follow its attention")
        if self.layers and layer <= self.layers[-1]:
            raise self._refusal(f"runs attention layer {layer} after layer {self.layers[-1]}, or more than once")
        if keys - queries != (self._prefix.tokens if self._prefix else 0):
            raise self._refusal(f"layer {layer}: attends to other things than tokens: {keys} keys for {queries} queries")
        if self.layers and heads != self.heads:
            raise self._refusal(f"layer {layer}: has {heads} heads, those before it {self.heads}")
        self.layers.append(layer)
        self.heads = heads
        self.modules[layer] = module
        if projection is None:
            self.results = False
        else:
            self.projections[layer] = projection

    def _refusal(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._kind}: {reason}")

    def _keep(self, name: str, values: Tensor) -> None:
        """Put the latest layer's values beside those of the layers before.

        There is room for all layers from the first on: small tensors that outlast a layer would scatter its temporaries.
        """
        layers = len(self.layers)
        kept = self._found.get(name)
        if kept is None:
            dtype = PATTERN_DTYPE if name.endswith("attention") else torch.float32
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
        """What was recorded of the batch, in the order of `layers`; on a GPU this waits for nothing.

        Raises NoAttentionError where nothing was.
        """
        if not self._found:
            raise NoAttentionError(f"{self._kind}: has no attention layer that could be recorded")
        found = {name: values[: len(self.layers)] for name, values in self._found.items()}
        self.clear()
        return Recording.of(found, list(self.layers))

    def _result_factors(self, layer: int, dtype: torch.dtype) -> Tensor:
        if layer not in self._factors:
            weight = output_weight(self.projections[layer], dtype)
            self._factors[layer] = reductions.result_factors(weight, self.heads)
        return self._factors[layer]
