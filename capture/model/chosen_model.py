"""The model that settings choose: where it comes from and where it is to run, known before its weights are loaded."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ...data.options.settings import CaptureSettings
from ..job.ranks import Rank
from . import models
from .device import computing_on
from .sources import Source, resolve


@dataclass(frozen=True)
class ChosenModel:
    """A model as the settings choose it.

    Args:
        source: where it comes from.
        config: its transformers configuration.
        tokenizer: its own, or the adapter's.
        device: where it is to run.
        dtype: fp32, fp16 or bf16, as which it is to be loaded.
        device_map: how it is to be spread over several devices, if at all.
    """

    source: Source
    config: Any
    tokenizer: Any
    device: torch.device
    dtype: str
    device_map: str | None

    @property
    def fingerprint_of_adapter(self) -> str:
        """What the adapter adds to the fingerprint of the model; empty without one."""
        return self.source.adapter.sha256 if self.source.adapter else ""

    def load(self, highest_id: int, *, with_head: bool = False) -> PreTrainedModel:
        """Load the weights.

        Args:
            highest_id: the highest token id of all prompts.
            with_head: load the whole model, with its language-modelling head, instead of the decoder alone.

        Raises InputError where the model cannot be used or does not know all tokens, RunError where memory is too small.
        """
        config = getattr(self.config, "quantization_config", None)
        quantised = bool(config or self.source.arguments.get("quantization_config"))
        with computing_on(self.device):  # what a model's code makes as it loads may go to the current device
            model = models.load_model(
                self.source, self.dtype, self.device, self.device_map, quantised=quantised, with_head=with_head
            )
        models.require_same_vocabulary(self.source, model, highest_id)
        return model


def chosen_model(settings: CaptureSettings, rank: Rank) -> ChosenModel:
    """The model that the settings choose for a process. Raises InputError where there is none that can be used."""
    device = models.resolve_device(settings.device, rank)
    dtype = models.resolve_dtype(settings.dtype, device)
    source = resolve(
        settings.model, settings.trust_remote_code, settings.model_arguments(), settings.revision, settings.adapter
    )
    return ChosenModel(source, models.load_config(source), models.load_tokenizer(source), device, dtype, settings.device_map)
