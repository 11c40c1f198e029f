"""DuoAttention's pattern of KV heads, which kvpress' DuoAttentionPress reads too."""

import io
import json

import numpy as np

from .chosen import Chosen
from .written import Content

TSV, CONFIG = "full_attention_heads.tsv", "config.json"
# To find which KV heads keep less, its reader adds noise of up to 1e-6 to the values, so they must differ by more: 1/2¹⁶ does.


def duo(chosen: Chosen) -> Content:
    """A folder with full_attention_heads.tsv, [layers, KV heads], and config.json.

    A value is (n − place + ½) / n for the place of the group among all n groups of the model, 1 for the best. So all lie in
    (0, 1), to which its reader clips them, and no two are equal.
    """
    chosen.require_all()
    layers, units = chosen.matrix()
    count = len(chosen.heads)
    values = np.empty((layers, units))
    values[chosen.heads["layer"].to_numpy(), chosen.heads["kv_head"].to_numpy()] = (count - np.arange(count) - 0.5) / count
    text = io.StringIO()
    np.savetxt(text, values, delimiter="\t")
    config = {
        "sink_size": chosen.settings.sink_size,
        "recent_size": chosen.settings.recent_size,
        "model_name": chosen.provenance.get("model", {}).get("name"),
        "headscore": chosen.provenance,
    }
    meaning = (
        f"{layers} layers of {units} KV heads, each with its place in (0, 1): which keep the whole KV cache. The ratio a "
        "reader is given is a share of KV heads, not of the KV budget: the others keep "
        f"{config['sink_size']} + {config['recent_size']} tokens"
    )
    return Content({TSV: text.getvalue().encode(), CONFIG: json.dumps(config, indent=1).encode()}, meaning)
