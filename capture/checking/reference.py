"""What the model's own eager attention gives for one prompt, alone and whole; recorded values are compared with it."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import typed_line
from ..model.layers import KnownModel
from ..model.memory import free_bytes
from ..model.model_state import unchanged
from ..model.out_of_memory import is_out_of_memory
from ..model.projections import head_results, projection_error
from ..recording.attention import CannotRecordError
from ..recording.eager import eager, eager_options

Values = npt.NDArray[np.float32]
LayerValues = dict[int, dict[str, Values]]


class Reference:
    """Runs single prompts through a model's own eager attention, in the state in which the model was loaded.

    Args:
        model: in which nothing is hooked, and which nothing has changed since it was loaded.
        known: its layers, and whether norms of the results are wanted.
        all_tokens: whether the mean pattern and entropy over all positions are wanted.
        thorough: whether norms of the results are wanted over all positions too, and what only a self-check asks: `later`,
            the largest total attention that any token of the prompts gave to later ones, by layer, and `projection_errors`,
            by layer, how far what the heads write is from what their output projection gives.
    """

    def __init__(self, model: PreTrainedModel, known: KnownModel, all_tokens: bool, *, thorough: bool = False):
        self._model = model
        self._modules = known.modules
        self._all_tokens = all_tokens
        self._results = known.results
        self._thorough = thorough
        self.later: dict[int, float] = defaultdict(float)
        self.projection_errors: dict[int, float] = defaultdict(float)

    def __call__(self, ids: npt.NDArray[np.int32]) -> LayerValues:
        """By layer what the arrays of the cache should hold for a prompt [T].

        z is what enters the layer's output projection, and its results are made in full. Raises CannotRecordError where a layer
        shows no patterns or the model fails, and MemoryError where memory runs out.
        """
        return self.launched(ids)()

    def launched(self, ids: npt.NDArray[np.int32]) -> Callable[[], LayerValues]:
        """The same, but a GPU is only waited for when what is returned is called. Both raise the same errors."""
        numbers = {module: layer for layer, module in self._modules.items()}
        found: dict[int, dict[str, Tensor]] = {}  # brought to the host at the end, as each layer would wait for a GPU

        def observe(module: nn.Module, projection: nn.Module | None, patterns: Tensor, z: Tensor | None) -> None:
            layer = numbers[module]
            values = self._of_patterns(layer, patterns[0])
            if z is not None and projection is not None:
                values |= self._of_output(layer, projection, z.view(len(ids), patterns.shape[1], -1))
            found[layer] = values

        with (
            self._failures(),
            torch.inference_mode(),
            unchanged(self._model),
            eager(self._model, observe, self._modules.values()),
        ):
            tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self._model.device)
            self._model(input_ids=tokens, use_cache=False, **eager_options(self._model))
        if missing := self._modules.keys() - found.keys():
            raise CannotRecordError(f"layer {min(missing)}: eager attention gives no patterns to compare with")

        def on_host() -> LayerValues:
            with self._failures():
                return {layer: {name: v.cpu().numpy() for name, v in values.items()} for layer, values in found.items()}

        return on_host

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Raises MemoryError where memory runs out, and CannotRecordError for whatever else an architecture's code raises."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError from error
            raise CannotRecordError(
                f"{self._model.config.model_type}: its eager attention fails: {typed_line(error)}"
            ) from error

    def _of_patterns(self, layer: int, patterns: Tensor) -> dict[str, Tensor]:
        """The reductions of patterns [H,T,T]; head by head, as the patterns themselves take most of the memory."""
        values = {"last_token/attention": patterns[:, -1].to(torch.float32, copy=True)}  # a view would keep the patterns
        if self._thorough:
            self.later[layer] = max(self.later[layer], *(float(head.triu(1).sum(-1).max()) for head in patterns))
        if self._all_tokens:
            values["all_tokens/attention"] = torch.stack([head.float().mean(0) for head in patterns])
            entropies = [torch.special.entr(head.float()).sum(-1).mean() for head in patterns]
            values["all_tokens/entropy"] = torch.stack(entropies)
        return values

    def _of_output(self, layer: int, projection: nn.Module, z: Tensor) -> dict[str, Tensor]:
        """The norms of z [T,H,D] and of what the projection makes of it."""
        norms = z.float().norm(dim=-1)  # [T,H]
        values = {"last_token/output_norm": norms[-1], "all_tokens/output_norm": norms.mean(0)}
        if self._results:
            written = z if self._thorough else z[-1:]
            results = torch.stack([result.norm(dim=-1) for result in head_results(projection, written)], dim=-1)
            values["last_token/result_norm"] = results[-1]
            if self._thorough:
                values["all_tokens/result_norm"] = results.mean(0)
                self.projection_errors[layer] = max(self.projection_errors[layer], projection_error(projection, z))
        return values


class OwnOutput:
    """Runs single prompts through the attention that a model comes with, for prompts too long for eager attention.

    Args:
        model: as for `Reference`.
        projections: the output projections by layer number; layers without one are left out.
    """

    def __init__(self, model: PreTrainedModel, projections: Mapping[int, nn.Module]):
        self._model = model
        self._projections = projections

    def __call__(self, ids: npt.NDArray[np.int32], heads: int) -> LayerValues:
        """By layer the norm of z at the last token of a prompt [T]; nothing where memory runs out.

        Raises CannotRecordError where the model fails.
        """
        found: LayerValues = {}

        def enters(layer: int, z: Tensor) -> None:
            norms = z[0, -1].float().view(heads, -1).norm(dim=-1)
            found[layer] = {"last_token/output_norm": norms.cpu().numpy()}

        with contextlib.ExitStack() as hooks, torch.inference_mode(), unchanged(self._model):
            for layer, projection in self._projections.items():
                hook = projection.register_forward_pre_hook(lambda _, inputs, layer=layer: enters(layer, inputs[0]))
                hooks.callback(hook.remove)
            tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self._model.device)
            try:
                self._model(input_ids=tokens, use_cache=False)
            except Exception as error:  # as above
                if is_out_of_memory(error):
                    return {}
                raise CannotRecordError(f"{self._model.config.model_type}: fails: {typed_line(error)}") from error
        return found


def checkable_tokens(model: PreTrainedModel, heads: int) -> int:
    """The longest prompt whose eager attention fits well into the memory that is free now.

    Eager attention holds a layer's H·T² weights several times at once: 16 bytes for each are counted, and half of what is free.
    """
    return int((free_bytes(model.device) / 2 / (16 * heads)) ** 0.5)
