"""Writes a model with heads set to zero as a checkpoint, which anything that loads the model loads."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import OptionError
from ...data.files.foreign import foreign_faults_told
from ...data.options.export_settings import ExportSettings
from ...data.options.places import last_part
from ..model import models
from ..model.gguf import without_progress_bars
from ..model.layers import AttentionLayer
from ..model.sources import resolve
from .ablation import attention_layers, gates_without

logger = logging.getLogger("headscore")

_REQUIRED = ("name", "fingerprint")  # of the `model` of a record


def write_checkpoint(
    folder: Path, record: Mapping[str, Any], heads: Iterable[tuple[int, int]], settings: ExportSettings
) -> dict[str, Any]:
    """The model of a ranking, in which the columns of W_O that are of some heads are zero, with its tokenizer.

    It gives what `headscore.ablated` gives with zero: the heads compute what they did, and none of it is written. So nothing is
    smaller or faster. Biases stay: they are of no head.

    Args:
        folder: that exists.
        record: what the config.yaml of the ranking says about its cache, or about the list that was imported.
        heads: pairs (layer, head).
        settings: of the export.

    Returns what was loaded: name, dtype and fingerprint. Raises InputError where the model is not there, is another than was
    captured, has no such heads, or has no weights that can be set; RunError where it does not fit in memory.
    """
    captured = record.get("model") or {}
    name, revision, adapter = settings.model, None, settings.adapter
    if name is None:
        if not isinstance(captured.get("name"), str):
            raise OptionError("--format checkpoint: the ranking is an imported list, which names no model; give --model")
        name, revision = captured["name"], captured.get("commit")
        own = (captured.get("adapter") or {}).get("name")
        adapter = adapter or (None if own in (None, name) else own)
    dtype = (record.get("settings") or {}).get("dtype", "fp32")
    if dtype not in models.DTYPES:
        raise OptionError(f"--format checkpoint: the ranking was captured as {dtype!r:.20}, not as {', '.join(models.DTYPES)}")
    source = resolve(name, settings.trust_remote_code, captured.get("arguments") or {}, revision, adapter)
    config, tokenizer = models.load_config(source), models.load_tokenizer(source)
    if getattr(config, "quantization_config", None) or source.arguments.get("quantization_config"):
        raise OptionError(f"--model {name}: is quantised, so the columns of a head cannot be set to zero; give one that is not")
    model = models.load_model(source, dtype, torch.device("cpu"), with_head=True)
    fingerprint = models.model_fingerprint(models.decoder_of(model), source.adapter.sha256 if source.adapter else "")
    before = captured.get("fingerprint")
    if before != fingerprint and not settings.allow_other_model:
        other = f"is not the model that was captured ({captured.get('name')}, {before!s:.12}; this is {fingerprint:.12})"
        what = other if before else "cannot be checked, as the imported list names no model"
        raise OptionError(f"--model {name}: {what}; --allow-other-model takes it all the same")
    zero_heads(model, heads)
    with foreign_faults_told(f"--format checkpoint: {name} cannot be saved", hold_stderr=False), without_progress_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {"name": last_part(name), "dtype": dtype, "fingerprint": fingerprint}


@torch.no_grad()
def zero_heads(model: PreTrainedModel, heads: Iterable[tuple[int, int]]) -> None:
    """Set the columns of W_O that are of some heads (layer, head) to zero, in the model itself.

    Raises InputError for heads that the model does not have, and for a projection whose weight is not of floats, or is shared.
    """
    layers = attention_layers(model)
    gates = gates_without([heads], layers)
    weights = {layer: _weight(layer, layers[layer]) for layer in gates}
    places = {weight.data_ptr() for weight in weights.values()}
    shared = [name for name, each in model.named_parameters() if each.data_ptr() in places]
    if len(places) < len(weights) or len(shared) > len(weights):
        raise OptionError("--format checkpoint: output projections of the model share their weights, so no head has its own")
    for layer, weight in weights.items():
        per_head = weight.unflatten(1, (layers[layer].heads, -1))  # [M,H,D], a view
        per_head[:, gates[layer][0] == 0] = 0


def _weight(layer: int, found: AttentionLayer) -> Tensor:
    """W_O of a layer as [M, H·D], a view: writing to it changes the model."""
    projection = found.projection
    weight = getattr(projection, "weight", None)
    usable = isinstance(weight, Tensor) and weight.is_floating_point() and weight.itemsize > 1
    if type(projection).__name__ == "Conv1D" and usable:  # GPT-2 keeps it transposed
        return cast(Tensor, weight).data.T
    if not isinstance(projection, nn.Linear) or not usable:
        kind = type(projection).__name__ if projection is not None else "no module that was found"
        raise OptionError(f"--format checkpoint: the output projection of layer {layer} is {kind}, whose columns cannot be set")
    return cast(Tensor, weight).data
