"""Takes heads out of a model: sets their z to zero or to its mean, where it enters the output projection."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import HeadscoreError, InputError, typed_line
from ...data.options.settings import How
from ...data.text import ranges
from ..model.device import computing_on
from ..model.layers import AttentionLayer
from ..model.models import decoder_of
from ..recording.recorder import Recorder
from ..recording.runner import ModelError

if TYPE_CHECKING:
    import polars as pl

    Heads = Iterable[tuple[int, int]] | pl.DataFrame

Means = Mapping[int, Tensor]  # of z, [H,D] by layer

_PROBE_TOKENS = 4


def attention_layers(model: PreTrainedModel) -> dict[int, AttentionLayer]:
    """The attention layers of a model by the numbers that a cache has for them, found in a pass over a few tokens.

    Raises InputError or RunError where its attention cannot be heard.
    """
    decoder, failures = decoder_of(model), list[Exception]()
    for eager in (False, True):
        recorder = Recorder(False, eager=eager)
        try:
            with torch.inference_mode(), computing_on(decoder.device), recorder.listening(decoder):
                recorder.start(torch.tensor([_PROBE_TOKENS], device=decoder.device))
                tokens = torch.zeros((1, _PROBE_TOKENS), dtype=torch.long, device=decoder.device)
                recorder.run(decoder, input_ids=tokens, use_cache=False)
                recorder.take()
            return dict(recorder.known.layers)
        except Exception as error:  # whatever an architecture's code raises
            failures.append(error)
    first = failures[0]
    if isinstance(first, HeadscoreError):
        raise first
    raise ModelError(f"{decoder.config.model_type}: fails on {_PROBE_TOKENS} tokens: {typed_line(first)}") from first


class HeadGates:
    """Multiplies the z of each head by a number of its own for each sample; 1 leaves it as it is and 0 takes it out.

    Within `with gates:` a model whose layers these are runs with them; afterwards all is as before.

    Args:
        layers: as `attention_layers` finds them. means: what stands in the place of a head that is taken out, 0 if not given:
            z becomes gate · z + (1 − gate) · mean.
    """

    def __init__(self, layers: Mapping[int, AttentionLayer], means: Means | None = None):
        self._layers, self._means = layers, means
        self._hooks: list[Any] = []
        self._gates: dict[int, Tensor] = {}

    def set(self, gates: Mapping[int, Tensor]) -> None:
        """From now on the gates are these: [B,H] by layer, or [1,H] for whatever samples there are; others are 1."""
        if without := [layer for layer in gates if self._layers[layer].projection is None]:
            raise InputError(f"layer {without[0]}: has no output projection, so no head of it can be taken out")
        self._gates = dict(gates)

    def __enter__(self) -> "HeadGates":
        for layer, found in self._layers.items():
            if found.projection is not None:
                hook = found.projection.register_forward_pre_hook(self._gate_of(layer, found.heads))
                self._hooks.append(hook)
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _gate_of(self, layer: int, heads: int) -> Any:
        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            gates = self._gates.get(layer)
            if gates is None:
                return None
            z = inputs[0]
            # Some models bring [B·T,H·D]: its samples lie one after the other, too.
            per_head = z.reshape(len(gates), -1, heads, z.shape[-1] // heads)
            gate = gates.to(z)[:, None, :, None]
            gated = per_head * gate
            if self._means is not None:
                gated = gated + (1 - gate) * self._means[layer].to(z)
            return (gated.reshape(z.shape), *inputs[1:])

        return enter


@contextlib.contextmanager
def ablated(
    model: PreTrainedModel,
    heads: "Heads",
    how: How = "zero",
    means: Means | None = None,
) -> Iterator[PreTrainedModel]:
    """Within this context the model runs without some of its heads; afterwards all is as before, also after an error.

    A head is taken out by setting its z, where it enters the output projection, to zero or to its mean, at all
    positions. Everything that runs the same model object sees it, such as another tool's evaluation.

    Args:
        model: a causal language model of transformers, of any architecture that `capture` can record.
        heads: pairs (layer, head), or a frame with such columns, such as `Scores.top()`; with a column `kv_head` in place of
            `head`, all heads of those groups. None at all changes nothing.
        how: `zero`, or `mean` for the mean of z, see `means`. Zero is what setting the head's columns of W_O to zero does.
        means: for `mean`, what `mean_outputs` found: z of each head, [H,D] by layer.

    Raises InputError for a head that the model does not have, a layer without an output projection, and `mean` without means.
    """
    if how not in get_args(How):
        raise InputError(f"ablated: how={how!r:.40} is not one of {', '.join(get_args(How))}")
    if (how == "mean") != (means is not None):
        raise InputError("ablated: how='mean' needs means, as mean_outputs() finds them, and nothing else takes any")
    layers = attention_layers(model)
    gates = gates_without([pairs_in(heads, layers)], layers)
    with HeadGates(layers, means) as hooks:
        hooks.set(gates)
        yield model


@torch.no_grad()
def mean_outputs(model: PreTrainedModel, prompts: Iterable[Sequence[int]]) -> dict[int, Tensor]:
    """The mean z of every head over all positions of some prompts, float32 [H,D] by layer, for `ablated(…, how="mean")`.

    Args:
        model: as in `ablated`.
        prompts: the token ids of each; they are run one by one. Raises InputError where there is none.
    """
    means = MeanOutputs(attention_layers(model))
    decoder = decoder_of(model)
    with means, computing_on(decoder.device):
        for ids in prompts:
            tokens = torch.as_tensor(ids, dtype=torch.long, device=decoder.device)[None]
            means.lengths = torch.tensor([tokens.shape[1]])
            decoder(input_ids=tokens, use_cache=False)
            means.add()
    return means.result()


class MeanOutputs:
    """Adds up z as a model runs within `with means:`, whose batches have `lengths` [B] real tokens, padded on the right.

    Args:
        layers: as `attention_layers` finds them.
    """

    def __init__(self, layers: Mapping[int, AttentionLayer]):
        self._layers = layers
        self._latest: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}
        self._tokens = 0
        self._hooks: list[Any] = []
        self.lengths = torch.empty(0, dtype=torch.long)

    def __enter__(self) -> "MeanOutputs":
        for layer, found in self._layers.items():
            if found.projection is not None:
                self._hooks.append(found.projection.register_forward_pre_hook(self._adder(layer, found.heads)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _adder(self, layer: int, heads: int) -> Any:
        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            z = inputs[0].detach()
            per_head = z.reshape(len(self.lengths), -1, heads, z.shape[-1] // heads)
            lengths = self.lengths.to(z.device)
            real = torch.arange(per_head.shape[1], device=z.device) < lengths[:, None]
            self._latest[layer] = per_head.masked_fill(~real[:, :, None, None], 0).sum((0, 1), dtype=torch.float64)

        return enter

    def add(self) -> None:
        """Add the batch that was run last; not to be called for one that failed."""
        for layer, total in self._latest.items():
            self._sums[layer] = self._sums.get(layer, 0) + total
        self._tokens += int(self.lengths.sum())
        self._latest = {}

    def result(self) -> dict[int, Tensor]:
        """The means, float32 [H,D] by layer; InputError where nothing was run."""
        if not self._sums:
            raise InputError("mean_outputs: there are no prompts to take the mean over")
        return {layer: (total / self._tokens).float() for layer, total in self._sums.items()}


def gates_without(sets: Sequence[Iterable[tuple[int, int]]], layers: Mapping[int, AttentionLayer]) -> dict[int, Tensor]:
    """Gates [B,H] by layer, of which row b takes out the heads of set b; layers that lose none are left out.

    Raises InputError for a head that the model does not have.
    """
    gates: dict[int, Tensor] = {}
    for row, heads in enumerate(sets):
        for layer, head in heads:
            if layer not in layers or not 0 <= head < layers[layer].heads:
                last = layers[layer].heads - 1 if layer in layers else None
                known = f"layers {ranges(sorted(layers))}" if last is None else f"heads 0 to {last}"
                raise InputError(f"heads: the model has no head {head} in layer {layer}; it has {known}")
            if layer not in gates:
                gates[layer] = torch.ones(len(sets), layers[layer].heads)
            gates[layer][row, head] = 0
    return gates


def heads_of_groups(groups: Iterable[tuple[int, int]], layers: Mapping[int, AttentionLayer]) -> list[tuple[int, int]]:
    """The (layer, head) pairs of all heads in some (layer, kv_head) groups; InputError for a group that is not there."""
    pairs = []
    for layer, group in groups:
        if layer not in layers or not 0 <= group < layers[layer].kv_heads:
            known = f"groups 0 to {layers[layer].kv_heads - 1}" if layer in layers else f"layers {ranges(sorted(layers))}"
            raise InputError(f"heads: the model has no group {group} of heads in layer {layer}; it has {known}")
        size = layers[layer].heads // layers[layer].kv_heads
        pairs += [(layer, head) for head in range(group * size, (group + 1) * size)]
    return pairs


def pairs_in(heads: "Heads", layers: Mapping[int, AttentionLayer]) -> list[tuple[int, int]]:
    """The (layer, head) pairs that are meant by what `ablated` takes for heads."""
    if hasattr(heads, "columns"):  # a frame, without polars where none is given
        heads = cast("pl.DataFrame", heads)
        unit = "head" if "head" in heads.columns else "kv_head"
        if missing := [name for name in ("layer", unit) if name not in heads.columns]:
            has = f"has no column {' or '.join(missing)}; give layer, and head or kv_head"
            raise InputError(f"heads: the frame of heads {has}")
        pairs = [(int(layer), int(head)) for layer, head in heads.select("layer", unit).iter_rows()]
        return pairs if unit == "head" else heads_of_groups(pairs, layers)
    try:
        return [(int(layer), int(head)) for layer, head in heads]
    except (TypeError, ValueError) as error:
        raise InputError("heads: expected pairs (layer, head), such as [(3, 7), (5, 0)]") from error
