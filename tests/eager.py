"""The reference that the recorded values are held against: the model's own eager attention, one sample, no padding.

It shares no code with headscore: z is read by a hook where it enters the output projection, results are made in full, and
every pattern row is kept.
"""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard

PROJECTIONS = (  # what the output projection is called, with the module that it is in
    *(f".{module}.{name}" for module in ("self_attn", "attn", "attention") for name in ("o_proj", "out_proj", "dense")),
    *(".attn.c_proj", ".self_attention.dense", ".multi_head_attention.dense", ".temporal_block.o_proj"),
)


def output_projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Those of a causal language model's text layers, without linear attention's."""
    modules = dict(model.get_decoder().named_modules())
    own = [name for name in modules if f".{name}".endswith(PROJECTIONS)]
    linear = [name for name in own if "Lightning" in type(modules[name.rpartition(".")[0]]).__name__]  # MiniMax's
    return [modules[name] for name in own if name not in linear]


@dataclass(frozen=True)
class Eager:
    patterns: np.ndarray  # [L,H,T,T]
    z_norms: np.ndarray  # [L,H,T]
    result_norms: np.ndarray  # [L,H,T]

    @property
    def row_entropies(self) -> np.ndarray:  # [L,H,T]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(self.patterns > 0, self.patterns * np.log(self.patterns), 0)
        return -terms.sum(-1)


class EagerModel:
    """Runs one prompt at a time.

    Args:
        model: or its folder.
        fresh: each prompt is run through a copy of the model that nothing was run through before, and only once.
    """

    def __init__(self, model: Path | PreTrainedModel, fresh: bool = False):
        self.fresh = fresh
        self._known: dict[bytes, Eager] = {}
        if isinstance(model, Path):
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        self.model = model.eval()

    def __call__(self, ids: np.ndarray) -> Eager:
        if not self.fresh:
            return self._run(ids)
        key = ids.tobytes()
        if key not in self._known:
            self._known[key] = self._run(ids)
        return self._known[key]

    def _run(self, ids: np.ndarray) -> Eager:
        model = copy.deepcopy(self.model) if self.fresh else self.model
        projections = output_projections(model)
        entered: list[torch.Tensor] = []
        hooks = [p.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0][0].numpy())) for p in projections]
        with torch.inference_mode():
            output = model(input_ids=torch.tensor(np.asarray(ids, np.int64))[None], output_attentions=True, use_cache=False)
        for hook in hooks:
            hook.remove()
        square = [p for p in output.attentions if p is not None and p.shape[-1] == len(ids)]  # else of a linear attention
        patterns = torch.stack([p[0] for p in square]).double().numpy()
        z_norms, result_norms = [], []
        if not entered:
            return Eager(patterns, np.empty(0), np.empty(0))
        for projection, z in zip(projections, entered, strict=True):
            heads = patterns.shape[1]
            per_head = torch.from_numpy(z).unflatten(-1, (heads, -1))  # [T,H,D]
            weight = projection.weight.detach()
            weight = weight.T if type(projection).__name__ == "Conv1D" else weight
            results = torch.einsum("thd,mhd->htm", per_head, weight.unflatten(-1, (heads, -1)))
            z_norms.append(per_head.norm(dim=-1).T.numpy())
            result_norms.append(results.norm(dim=-1).numpy())
        return Eager(patterns, np.stack(z_norms), np.stack(result_norms))


SIGNALS = ("out", "ent", "task")


def eager_means(cache: Path, eager: EagerModel, query_mode: str, head_output: str, spans: list[str]) -> dict[str, np.ndarray]:
    """out, ent, task [L,H] from eager tensors in float64: nothing but token ids and span masks comes from the cache."""
    opened = open_cache(cache)
    bits = sum(1 << opened.metadata["span_names"].index(name) for name in spans)
    found: dict[str, list[np.ndarray]] = {name: [] for name in SIGNALS}
    for path in opened.shards:
        with Shard(path) as shard:
            offsets, ids, span = shard.offsets(), shard.read("tokens/id"), shard.read("tokens/span")
        for start, stop in itertools.pairwise(offsets):
            one = eager(ids[start:stop])
            norms = one.result_norms if head_output == "result" else one.z_norms
            member = span[start:stop] & bits > 0
            if query_mode == "last_token":
                found["out"].append(norms[:, :, -1])
                found["ent"].append(-one.row_entropies[:, :, -1])
                found["task"].append(one.patterns[:, :, -1, member].sum(-1))
            else:
                found["out"].append(norms.mean(-1))
                found["ent"].append(-one.row_entropies.mean(-1))
                found["task"].append(one.patterns.mean(2)[:, :, member].sum(-1))
    return {name: np.mean(values, axis=0) for name, values in found.items()}
