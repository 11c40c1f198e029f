"""Reduces every attention layer as soon as it is heard, and hands a whole batch to the host at once."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ...data.errors import InputError
from ..model.layers import AttentionLayer, KnownModel
from ..model.model_state import ModelState
from ..model.projections import kv_heads, output_weight
from . import reductions
from .attention import AttentionCall, CannotRecordError, UnsupportedModelError, recording
from .buffers import BatchBuffers
from .eager import eager, eager_options
from .exact import exact_differences
from .prefixes import Prefix
from .recorded import Recording


class AllRecorded(Exception):
    """Raised in a forward pass once the last attention layer is recorded, as nothing needs the rest of the pass."""


class NoAttentionError(InputError):
    """The model ran, but no attention layer was heard."""


@dataclass(frozen=True)
class _Attended:
    """A layer whose patterns are reduced, and whose z is still to come."""

    number: int
    attention: nn.Module
    projection: nn.Module | None
    heads: int
    kv_heads: int
    sinks: bool
    last: Tensor | None
    sums: dict[str, Tensor]


class Recorder:
    """Listens to a model, one batch after the other: `start`, `run`, then `take`.

    One recorder serves one model. Its first pass runs to the end and tells it the model's layers (`known`); later passes end
    with the last attention layer.

    Args:
        all_tokens: whether the mean pattern and entropy over all query positions are wanted too.
        eager: whether patterns come from the model's own eager attention instead of the recording function.
        compiled: whether torch compiles what is done with a block of queries for `all_tokens`.
    """

    def __init__(self, all_tokens: bool, *, eager: bool = False, compiled: bool = False):
        self.all_tokens = all_tokens
        self.eager = eager
        self._compiled = compiled
        self._known: KnownModel | None = None
        self._kind = ""  # of model, for messages
        self._state: ModelState | None = None
        self._hooks = contextlib.ExitStack()
        self._exact: dict[str, float] | None = None
        self._heard: dict[int, AttentionLayer] = {}  # layers of the current pass
        self._factors: dict[int, Tensor] = {}  # for result norms, by layer
        self._attended: _Attended | None = None
        self.clear()

    @property
    def known(self) -> KnownModel:
        """What the first whole pass has shown of the model. Raises NoAttentionError before it."""
        if self._known is None:
            raise self._no_attention()
        return self._known

    def leave_out_results(self) -> None:
        """Record no result norms from now on."""
        self._known = replace(self.known, results=False)

    @contextlib.contextmanager
    def listening(self, model: PreTrainedModel) -> Iterator[None]:
        """Within this context every attention layer of `run` is heard. Raises CannotRecordError as `recording`."""
        self._state = ModelState(model)
        with self._hooks:
            self._listen(model)
            yield

    @contextlib.contextmanager
    def paused(self, model: PreTrainedModel) -> Iterator[None]:
        """Within this context, inside that of `listening`, the model is as it was before: no hook, its own attention."""
        self._hooks.close()
        try:
            yield
        finally:
            self._listen(model)

    def _listen(self, model: PreTrainedModel) -> None:
        self._hooks.enter_context(eager(model, self.observe) if self.eager else recording(model, self))

    @contextlib.contextmanager
    def compared_exactly(self) -> Iterator[dict[str, float]]:
        """Within this context each layer is compared with an exact float32 attention over the same inputs.

        Yields the largest difference by array; it stays empty for eager attention. `run` raises CannotRecordError where a
        difference is above its tolerance.
        """
        largest: dict[str, float] = {}
        self._exact = None if self.eager else largest
        try:
            yield largest
        finally:
            self._exact = None

    def start(self, lengths: Tensor, prefix: Prefix | None = None, *, will_be_prefix: bool = False) -> None:
        """Begin a batch.

        Args:
            lengths: [B], the real tokens of each sample, without those of the prefix. They should be on the model's device: to
                bring them there in each layer would wait for it.
            prefix: what all samples begin with, if it was run before.
            will_be_prefix: whether the batch is to be taken by `take_prefix`.
        """
        self.clear()
        self._batch = BatchBuffers(lengths, prefix, will_be_prefix, len(self._known.layers) if self._known else 0)

    def clear(self) -> None:
        """Let go of what a failed batch holds."""
        self._batch = BatchBuffers(torch.empty(0, dtype=torch.long))
        self._heard, self._attended = {}, None

    def run(self, model: PreTrainedModel, **inputs: Any) -> None:
        """The forward pass of a batch, up to where all is recorded; whatever it leaves in the model is undone."""
        options = eager_options(model) if self.eager else {}
        self._kind = model.config.model_type
        try:
            with contextlib.suppress(AllRecorded):
                model(**inputs, **options)
                if self._known is None:
                    self._known = KnownModel(self._heard, self._wants_results())
        finally:
            if self._state:
                self._state.restore()

    def attend(self, call: AttentionCall) -> Tensor:
        """Run one layer of the current batch and reduce its patterns; the heads' output [B,T,H,D']."""
        query, key, softmax = call.query, call.key, call.softmax
        lengths = self._batch.lengths.to(query.device)
        number = self._begin(call.module, query.shape[1], query.shape[2], key.shape[2])
        sums: dict[str, Tensor] = {}
        output = None
        if self.all_tokens or not softmax.plain:
            # On a CPU it costs less from the patterns that are made anyway; a GPU's SDPA takes next to no time.
            value = call.value if query.device.type == "cpu" or not softmax.plain else None
            attention, entropy, output = reductions.all_token_patterns(query, key, value, lengths, softmax, self._compiled)
            sums = {"all_tokens/attention": attention, "all_tokens/entropy": entropy} if self.all_tokens else {}
        last = None if self._batch.will_be_prefix else reductions.last_token_patterns(query, key, lengths, softmax)
        output = call.sdpa() if output is None else output
        self._attended = _Attended(
            number, call.module, call.projection, query.shape[1], key.shape[1], softmax.sinks is not None, last, sums
        )
        self._compare_exactly(call, lengths, output, last, sums)
        return output

    def observe(self, module: nn.Module, projection: nn.Module | None, patterns: Tensor, z: Tensor | None) -> None:
        """Reduce a layer that the model ran itself: patterns [B,H,T,P+T], z [B,T,H·D']; raises AllRecorded after the last."""
        if z is None:
            raise self._refusal(f"{type(module).__name__}: found no output projection")
        lengths = self._batch.lengths.to(patterns.device)
        _, heads, queries, keys = patterns.shape
        number = self._begin(module, heads, queries, keys)
        sums: dict[str, Tensor] = {}
        if self.all_tokens:
            sums["all_tokens/attention"], sums["all_tokens/entropy"] = reductions.sums_of(patterns, lengths)
        last = None if self._batch.will_be_prefix else reductions.last_of(patterns, lengths)
        self._attended = _Attended(number, module, projection, heads, kv_heads(module, heads), False, last, sums)
        self.project(z)

    def project(self, z: Tensor) -> None:
        """Reduce z [B,T,H·D'], what enters the output projection of the layer; raises AllRecorded after the last."""
        if self._attended is None:
            where = f"layer {self._batch.layers[-1]}" if self._batch.layers else "its first layer"
            raise self._refusal(f"{where}: its output projection ran twice, or before its attention")
        of, self._attended = self._attended, None
        layer = AttentionLayer(of.attention, of.projection, of.heads, of.kv_heads, z.shape[-1] // of.heads, of.sinks)
        self._heard[of.number] = layer
        z = z.view(len(self._batch.lengths), -1, layer.heads, layer.head_dim)
        norms = {"output_norm": reductions.output_norms(z)}
        if layer.projection is not None and self._wants_results():
            if of.number not in self._factors:
                weight = output_weight(layer.projection, z.dtype)
                self._factors[of.number] = reductions.result_factors(weight, layer.heads)
            norms["result_norm"] = reductions.result_norms(z, self._factors[of.number])
        self._batch.add(of.last, norms, of.sums)
        if self._known and len(self._batch.layers) == len(self._known.layers):
            raise AllRecorded

    def _begin(self, module: nn.Module, heads: int, queries: int, keys: int) -> int:
        """The number of a layer that begins; UnsupportedModelError where it is not what is expected to come next."""
        before = self._batch.layers
        given = getattr(module, "layer_idx", None)
        number = int(given) if isinstance(given, int) else len(before)
        if self._attended is not None:
            raise self._refusal(f"layer {before[-1]}: its output projection does not follow its attention")
        if before and number <= before[-1]:
            raise self._refusal(f"runs attention layer {number} after layer {before[-1]}, or more than once")
        if keys - queries != self._batch.past:
            raise self._refusal(f"layer {number}: attends to other things than tokens: {keys} keys for {queries} queries")
        if before and heads != self._heard[before[-1]].heads:
            raise self._refusal(f"layer {number}: has {heads} heads, those before it {self._heard[before[-1]].heads}")
        if self._known and number not in self._known.layers:
            raise self._refusal(f"layer {number}: has attention in some passes only")
        before.append(number)
        return number

    def _compare_exactly(
        self, call: AttentionCall, lengths: Tensor, output: Tensor, last: Tensor | None, sums: Mapping[str, Tensor]
    ) -> None:
        if self._exact is None:
            return
        for name, difference, tolerance in exact_differences(call.exact, lengths, output, last, sums):
            if not difference <= tolerance:  # catches NaN too
                raise CannotRecordError(
                    f"self-check failed for {self._kind}: layer {self._batch.layers[-1]}, {name} differs by {difference:.2g} "
                    f"(tolerance {tolerance:g}) from an exact softmax of the same queries and keys"
                )
            self._exact[name] = max(self._exact.get(name, 0.0), difference)

    def _wants_results(self) -> bool:
        """Whether result norms are wanted, as far as is known by now."""
        return self._known.results if self._known else all(layer.projection is not None for layer in self._heard.values())

    def take(self) -> Recording:
        """What was recorded of the batch; on a GPU this waits for nothing. Raises NoAttentionError where nothing was."""
        if self._batch.empty:
            raise self._no_attention()
        batch = self._batch
        self.clear()
        return batch.recording()

    def take_prefix(self, tokens: int, kv_cache: Cache) -> Prefix:
        """The batch, of a single prefix of `tokens` tokens, for prompts that begin with it."""
        batch = self._batch
        self.clear()
        return batch.as_prefix(tokens, kv_cache)

    def _no_attention(self) -> NoAttentionError:
        return NoAttentionError(f"{self._kind}: has no attention layer that could be recorded")

    def _refusal(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._kind}: {reason}")
