"""The modules of a model whose rows or columns are its heads, one after the other, by what a ranking's record tells."""

from ...data.errors import OptionError
from .chosen import Chosen

_PLAIN = {
    "query": ("q_proj", "wq", "Wq"),
    "key": ("k_proj", "wk", "Wk"),
    "value": ("v_proj", "wv", "Wv"),
}
# Whose query projections make gates too, or are of another width than z.
_OTHER_ROWS = ("qwen3_next", "qwen3_5", "qwen4_exp", "mimo_v2")


def module_path(chosen: Chosen, part: str, layer: int) -> str | None:
    """The path of a layer's `query`, `key`, `value` or `output` projection; None where it has none or that is not known."""
    shape = chosen.shape
    return shape.paths[part][shape.layers.index(layer)] if shape.paths else None


def plain_path(chosen: Chosen, part: str, layer: int) -> str | None:
    """The same of a projection that makes nothing else, and whose rows are heads one after the other; None for others."""
    path = module_path(chosen, part, layer)
    if path is None or part == "output":
        return path
    others = [module_path(chosen, other, layer) for other in _PLAIN if other != part]
    kind = str(chosen.results.model.get("type"))
    latent = any((other or "").endswith("kv_b_proj") for other in others)
    is_plain = path.rpartition(".")[2] in _PLAIN[part] and path not in others and not latent
    return path if is_plain and not kind.startswith(_OTHER_ROWS) else None


def require_paths(chosen: Chosen) -> None:
    """Raises InputError where a ranking does not tell the paths of the model's modules."""
    if not chosen.shape.paths:
        raise OptionError(
            f"--format {chosen.format}: the cache of {chosen.results.folder} does not have the paths of the model's modules, "
            "as it was made by an older headscore; capture it again"
        )
