"""A SHiRA adapter of PEFT that trains the chosen heads alone: their rows of W_Q and their columns of W_O."""

import math

import numpy as np
import numpy.typing as npt

from ...data.errors import OptionError
from ...data.head_parts import of_heads
from ...data.text import json_text
from .chosen import Chosen, counts_in_layers
from .modules import plain_path, require_paths
from .tensors import safetensors
from .written import Content, json_bytes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_RULE = "r = k·d·M / (H·d + M)"  # as each module has r·(in + out) numbers, and k heads have k·d·M


def shira(chosen: Chosen) -> Content:
    """A folder with adapter_config.json and adapter_model.safetensors: all numbers 0, at the places of the chosen heads.

    Keys and values are left out: heads share them. SHiRA has one r for all modules, so equally many must be chosen in each
    layer that has any.
    """
    chosen.require_top()
    require_paths(chosen)
    width, model_width = chosen.widths()
    counts = counts_in_layers(chosen.query_heads)
    r = _r(chosen, counts, width, model_width)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for layer in counts:
        heads = [head for own, head in chosen.query_heads if own == layer]
        along = np.flatnonzero(of_heads(heads, chosen.shape.heads, width))
        across = np.arange(model_width)
        places = np.stack(np.meshgrid(along, across, indexing="ij")).reshape(2, -1).astype(np.int32)
        query, output = (_path(chosen, part, layer) for part in ("query", "output"))
        for path, indices in ((query, places), (output, places[::-1])):
            arrays[f"base_model.model.{path}.shira_weight"] = np.zeros(places.shape[1], np.float32)
            arrays[f"base_model.model.{path}.shira_indices"] = indices
    modules = [name.removeprefix("base_model.model.").removesuffix(".shira_weight") for name in arrays if "weight" in name]
    config = {
        "peft_type": "SHIRA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": chosen.provenance.get("model", {}).get("name"),
        "r": r,
        "mask_type": "headscore",  # any but `random`, which would choose the places anew
        "target_modules": modules,
        "inference_mode": False,
    }
    weights = safetensors(arrays, {"format": "pt", "headscore": json_text(chosen.provenance)})
    meaning = (
        f"{len(chosen.query_heads)} query heads, {next(iter(counts.values()))} in each of {len(counts)} layers: "
        f"head-selective, rows of W_Q and columns of W_O, r {r}; load it with is_trainable=True"
    )
    return Content({CONFIG: json_bytes(config), WEIGHTS: weights}, meaning)


def _r(chosen: Chosen, counts: dict[int, int], width: int, model_width: int) -> int:
    if len(set(counts.values())) > 1:
        few, most = (picker(counts, key=lambda layer: counts[layer]) for picker in (min, max))
        raise OptionError(
            f"--format shira: has one {_RULE} for all layers, but {counts[few]} of layer {few} and {counts[most]} of layer "
            f"{most} are chosen; choose the same number in each with --top-k-per-layer"
        )
    k, both = next(iter(counts.values())), chosen.shape.heads * width + model_width
    if (k * width * model_width) % both:
        step = both // math.gcd(width * model_width, both)
        known = f"k may be a multiple of {step}" if step <= chosen.shape.heads else "no k of this model gives one"
        raise OptionError(f"--format shira: {_RULE} is not a whole number for k = {k} heads in a layer; {known}")
    return k * width * model_width // both


def _path(chosen: Chosen, part: str, layer: int) -> str:
    path = plain_path(chosen, part, layer)
    if path is None:
        raise OptionError(
            f"--format shira: layer {layer} has no {part} projection whose {'columns' if part == 'output' else 'rows'} are its "
            "heads and nothing else"
        )
    return path
