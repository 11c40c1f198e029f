"""A LoraConfig of PEFT for the layers that have chosen heads, with the rows and columns of these for masking by head."""

import io
import re

import numpy as np

from ...data.errors import OptionError
from ...data.head_parts import Mask, groups_among, of_heads
from .chosen import Chosen, counts_in_layers
from .modules import module_path, plain_path, require_paths
from .written import Content, json_bytes

CONFIG, MASKS = "lora.json", "masks.npz"
RANK_OF_A_HEAD = 4
SCALE = 2  # alpha / r, the same in all layers


def peft(chosen: Chosen) -> Content:
    """A folder with lora.json, for `LoraConfig(**json)`, and masks.npz.

    The rank of a layer's modules is 4 for each head that is chosen in it. masks.npz has `PATH.rows`, bool [out], of W_Q, and of
    W_K and W_V those of groups all of whose heads are chosen; and `PATH.columns`, bool [in], of W_O.
    """
    chosen.require_top()
    require_paths(chosen)
    heads = chosen.query_heads
    ranks: dict[str, int] = {}
    masks: dict[str, Mask] = {}
    for layer, count in counts_in_layers(heads).items():
        paths = {module_path(chosen, part, layer) for part in ("query", "key", "value", "output")}
        ranks |= dict.fromkeys(sorted(path for path in paths if path), RANK_OF_A_HEAD * count)
        masks |= _masks(chosen, layer, [head for own, head in heads if own == layer])
    if not ranks:
        raise OptionError("--format peft: no layer with chosen heads has a projection whose path is known")
    patterns = {re.escape(path): rank for path, rank in ranks.items()}
    config = {
        "task_type": "CAUSAL_LM",
        "r": RANK_OF_A_HEAD,
        "lora_alpha": SCALE * RANK_OF_A_HEAD,
        "target_modules": f"(?:{'|'.join(patterns)})",
        "rank_pattern": patterns,
        "alpha_pattern": {path: SCALE * rank for path, rank in patterns.items()},
    }
    archive = io.BytesIO()
    np.savez(archive, **masks)  # type: ignore[arg-type]
    meaning = (
        f"LoRA on {len(ranks)} modules of the {len(counts_in_layers(heads))} layers that have some of the {len(heads)} chosen "
        f"heads: layer-selective, not head-selective, rank {RANK_OF_A_HEAD} for each; {MASKS} has the heads' rows and columns"
    )
    return Content({CONFIG: json_bytes(config), MASKS: archive.getvalue()}, meaning)


def _masks(chosen: Chosen, layer: int, heads: list[int]) -> dict[str, Mask]:
    """Rows and columns of a layer's chosen heads, of those projections that are split by heads."""
    shape, (width, _) = chosen.shape, chosen.widths()
    masks = {}
    if path := plain_path(chosen, "query", layer):
        masks[f"{path}.rows"] = of_heads(heads, shape.heads, width)
    if shape.kv_heads is not None:
        groups = groups_among(heads, shape.heads, shape.kv_heads)
        for path in (plain_path(chosen, part, layer) for part in ("key", "value")):
            if path:
                masks[f"{path}.rows"] = of_heads(groups, shape.kv_heads, width)
    if path := plain_path(chosen, "output", layer):
        masks[f"{path}.columns"] = of_heads(heads, shape.heads, width)
    return masks
