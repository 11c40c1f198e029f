"""Caches whose heads do what a test asks for, written through headscore's own writer, without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headscore.data.cache import folder as cache_format
from headscore.data.cache.shard import write_shard

TOKENS = 40


def made_cache(
    folder: Path,
    out: np.ndarray,
    task: np.ndarray,
    sink: np.ndarray,
    focus: np.ndarray,
    lengths: np.ndarray,
    *,
    shards: Sequence[Sequence[int]] | None = None,
    keep: Mapping[str, Sequence[Any]] | None = None,
    kv_heads: int | None = None,
) -> Path:
    """A cache of prompts of 40 tokens: the first is no part of any span, then comes the question, then the template.

    Args:
        folder: where it goes.
        out: output norms [L,H,n].
        task: the mass on the question [L,H,n], spread evenly.
        sink: the mass on the first token [L,H,n].
        focus: how much of what is left goes to the last token [L,H,n]; the rest is spread evenly.
        lengths: how many tokens each question has, int [n].
        shards: which rows each shard holds, in its order; all in one if not given.
        keep: columns of the data file, with a value for each row.
        kv_heads: in a layer.
    """
    layers, heads, count = out.shape
    rows = np.zeros((layers, heads, count, TOKENS))
    inside = (np.arange(1, TOKENS - 1) <= lengths[:, None]).astype(float)
    left = 1 - task - sink
    rows[..., 0], rows[..., -1] = sink, left * focus
    rows[..., 1:-1] = (task / lengths)[..., None] * inside
    rows[..., 1:-1] += (left * (1 - focus) / (TOKENS - 2 - lengths))[..., None] * (1 - inside)
    span = np.concatenate([np.full((count, 1), 8), np.where(inside, 1, 4), np.full((count, 1), 4)], axis=1)
    shards = shards or [list(range(count))]
    made = metadata(layers, heads, {"plan": {"rows": count, "shards": len(shards)}})
    made["settings"] = {"queries": "last_token", "shard_size": 256, "keep": sorted(keep or {})}
    made["dims"] = {"layers": layers, "heads": heads, **({"kv_heads": kv_heads} if kv_heads else {})}
    cache_format.write_metadata(folder, made, keep_existing=False)
    for number, part in enumerate(shards):
        norms = dict.fromkeys(
            f"{mode}/{norm}" for mode in ("last_token", "all_tokens") for norm in ("output_norm", "result_norm")
        )
        arrays = {
            "samples/row": np.array(part),
            "samples/offset": np.arange(len(part) + 1) * TOKENS,
            "tokens/id": np.zeros(len(part) * TOKENS),
            "tokens/span": span[list(part)].reshape(-1),
            "layers/index": np.arange(layers),
            "last_token/attention": rows[:, :, list(part)].reshape(layers, heads, -1),
            **dict.fromkeys(norms, out[:, :, list(part)]),
        }
        kept = {name: [values[row] for row in part] for name, values in (keep or {}).items()}
        write_shard(cache_format.shard_path(folder, number), number, arrays, made | ({"kept": kept} if kept else {}), [])
    return folder


def clean(layers: int = 4, heads: int = 8, count: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Heads whose signals agree, which give the question more than uniform attention would, whatever its length."""
    random = np.random.default_rng(seed)
    level = np.stack([random.permutation(heads) for _ in range(layers)])[..., None] + np.zeros(count)
    noise = random.normal(size=(3, layers, heads, count))
    return {
        "out": 5 + level + 0.2 * noise[0],
        "task": 0.4 + 0.02 * level + 0.002 * noise[1],
        "sink": np.full_like(level, 0.05),
        "focus": 0.1 + 0.1 * level + 0.01 * noise[2],
        "lengths": random.integers(4, 13, count),
    }


def metadata(layers: int, heads: int, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "layers": list(range(layers)),
        "format": "headscore-cache",
        "format_version": 1,
        "versions": {},
        "model": {"name": "made by hand"},
        "data": {},
        "templates": [],
        "span_names": ["question", "choices", "template", "special"],
        "settings": {"queries": "all_tokens", "shard_size": 256},
        "attention": {"way": "recorded", "full_rows": True, "result_norms": True},
        "dims": {"layers": layers, "heads": heads},
        "plan": {"rows": 2, "shards": 1},
        "example": {"row": 0, "pieces": [{"text": "a b c d", "spans": ["question"]}]},
    }
    return {**made, **(changes or {})}


def write_cache(
    folder: Path,
    rows: np.ndarray,
    out: np.ndarray,
    span: list[int],
    lengths: list[int],
    others: dict[str, np.ndarray] | None = None,
) -> Path:
    """A one-shard cache of last-token rows [L,H,t] and output norms [L,H,n]; the all_tokens arrays are shifted copies.

    others: arrays that are to be something else.
    """
    layers, heads = rows.shape[:2]
    sums = np.add.reduceat(rows, np.cumsum([0, *lengths])[:-1], axis=2)
    full = bool(np.allclose(sums, 1, atol=0.005))
    made = metadata(layers, heads, {"attention": {"way": "recorded", "full_rows": full, "result_norms": True}})
    arrays = {
        "samples/row": np.arange(len(lengths)),
        "samples/offset": np.cumsum([0, *lengths]),
        "tokens/id": np.zeros(sum(lengths)),
        "tokens/span": np.array(span),
        "layers/index": np.arange(layers),
        "last_token/attention": rows,
        "last_token/output_norm": out,
        "last_token/result_norm": out * 10,
        "all_tokens/output_norm": out + 1,
        "all_tokens/result_norm": out + 2,
        "all_tokens/attention": rows[:, ::-1],
        "all_tokens/entropy": out + 3,
        **(others or {}),
    }
    cache_format.write_metadata(folder, made, keep_existing=False)
    write_shard(cache_format.shard_path(folder, 0), 0, arrays, made, [])
    return folder


HALF, QUARTER = 0.5, 0.25


# one layer, two heads; sample 0 has four tokens, sample 1 has two; question is tokens 1 and 2, then token 0
BY_HAND = {
    "rows": np.array([[[HALF, QUARTER, QUARTER, 0, 1, 0], [QUARTER, QUARTER, QUARTER, QUARTER, HALF, HALF]]]),
    "out": np.array([[[1.0, 3.0], [2.0, 4.0]]]),
    "span": [8, 1, 1, 2, 1 | 2, 0],
    "lengths": [4, 2],
}
