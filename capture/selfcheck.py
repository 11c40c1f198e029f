"""Compares what is recorded with the model's own eager attention before any work is done."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.errors import RunError
from ..data.tokens import Sample
from .attention import Recorder, output_weight, recording
from .batches import pad

Values = npt.NDArray[np.float32]

# Largest difference that rounding explains, by dtype: in a pattern row, and in a norm relative to the layer's largest.
TOLERANCES = {"fp32": (1e-3, 1e-3), "fp16": (2e-2, 2e-2), "bf16": (1e-1, 1e-1)}


def self_check(model: PreTrainedModel, samples: Sequence[Sample], dtype: str) -> dict[str, Any]:
    """Run the shortest and the longest of `samples` padded in one batch, and one at a time through eager attention.

    Returns the `layers`, `heads` and `kv_heads` that were recorded, the `rows` checked and the `largest_difference` per
    quantity. Raises RunError, naming layer and quantity, if one is
    above the dtype's tolerance: the recorded values would be wrong for this model.
    """
    index = sorted(range(len(samples)), key=lambda i: len(samples[i].ids))
    batch = pad(samples, list(dict.fromkeys((index[0], index[-1]))))
    recorder = Recorder(all_tokens=False)
    with torch.inference_mode(), recording(model, recorder):
        recorder.start(batch.lengths)
        model(input_ids=batch.ids.to(model.device), use_cache=False)
    recorded, layers = recorder.take(), recorder.layers
    row_tolerance, norm_tolerance = TOLERANCES[dtype]
    worst = {"rows": 0.0, "output_norm": 0.0, "result_norm": 0.0}
    for position, i in enumerate(batch.index):
        eager = eager_last_token(model, samples[i], recorder.projections)
        for entry, layer in enumerate(layers):
            rows, z_norms, result_norms = eager[layer]
            length = len(samples[i].ids)
            found = {
                "rows": np.abs(recorded["last_token/attention"][entry, position, :, :length] - rows).max(),
                "output_norm": _relative(recorded["last_token/output_norm"][entry, position], z_norms),
                "result_norm": _relative(recorded["last_token/result_norm"][entry, position], result_norms),
            }
            for name, difference in found.items():
                tolerance = row_tolerance if name == "rows" else norm_tolerance
                if not difference <= tolerance:  # catches NaN too
                    raise RunError(
                        f"self-check failed for {model.config.model_type}: layer {layer}, {name} differ from the model's own "
                        f"eager attention by {difference:.2g} (tolerance {tolerance:g} for {dtype})"
                    )
                worst[name] = max(worst[name], float(difference))
    return {
        "layers": layers,
        "heads": recorded["last_token/attention"].shape[2],
        "kv_heads": recorder.kv_heads,
        "rows": [samples[i].row for i in batch.index],
        "largest_difference": worst,
    }


def eager_last_token(
    model: PreTrainedModel, sample: Sample, projections: Mapping[int, nn.Module]
) -> dict[int, tuple[Values, Values, Values]]:
    """By layer: pattern rows [H,T], ‖z‖ [H] and ‖W_O z‖ [H] of the last token, by the model's own eager attention.

    One sample, no padding; z is what enters the layer's output projection, and its results are made in full.
    """
    entered: dict[int, torch.Tensor] = {}
    hooks = [
        projection.register_forward_pre_hook(lambda _, inputs, layer=layer: entered.update({layer: inputs[0][0, -1]}))
        for layer, projection in projections.items()
    ]
    previous = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            ids = torch.from_numpy(sample.ids.astype(np.int64))[None].to(model.device)
            patterns = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(previous)
        for hook in hooks:
            hook.remove()
    found = {}
    for (layer, projection), pattern in zip(sorted(projections.items()), patterns, strict=True):
        z = entered[layer].float().unflatten(0, (pattern.shape[1], -1))
        weight = output_weight(projection).float().unflatten(1, tuple(z.shape))
        results = torch.einsum("mhd,hd->hm", weight, z)
        values = (pattern[0, :, -1].float(), z.norm(dim=-1), results.norm(dim=-1))
        found[layer] = tuple(value.cpu().numpy() for value in values)
    return found


def _relative(found: Values, expected: Values) -> float:
    """The largest difference, as a share of the largest expected value; 0 where both are all zero."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
