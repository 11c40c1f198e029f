"""The head set of QRHead's retrievers."""

from ...data.cache.metadata import model_name
from ...data.text import json_text
from .chosen import Chosen
from .written import Content

# The models whose prompts its retriever knows.
MODEL_CLASSES = (
    "Llama-3.1-8B-Instruct",
    "Llama-3.1-70B-Instruct",
    "Llama-3.2-1B-Instruct",
    "Llama-3.2-3B-Instruct",
    "Qwen2.5-7B-Instruct",
)


def qrhead(chosen: Chosen) -> Content:
    """YAML with `attn_head_set`, layer-head best first, `model_base_class` and `model_name_or_path`."""
    chosen.require_top()
    chosen.require_query_heads()
    chosen.require_suffix(".yaml", ".yml")
    name = model_name(chosen.provenance.get("model", {})) or "unknown"
    base = name.rpartition("/")[2]
    known = {each.lower(): each for each in MODEL_CLASSES}
    lines = {
        "attn_head_set": ",".join(f"{layer}-{head}" for layer, head in chosen.pairs),
        "model_base_class": known.get(base.lower(), base),
        "model_name_or_path": name,
    }
    text = "".join(f"{key}: {json_text(value)}\n" for key, value in lines.items())  # a text of JSON is one of YAML
    told = f"# headscore: {json_text(chosen.provenance)}\n"
    meaning = f"{len(chosen.top)} query heads whose attention is added up: head-selective"
    if base.lower() not in known:
        meaning += f". Its retriever knows the prompts of {', '.join(MODEL_CLASSES)} alone, and this is a list of {base}"
    return Content((told + text).encode(), meaning, told_inside=True)
