"""Whether `headscore stability` predicts what fresh captures share: populations whose truth is known, through synthetic caches.

    python benchmarks/stability_truth.py --trials 60

In each trial a population of samples is made up: each head has means of its own, and samples move all heads of a layer together
and each by itself. A capture of some of them is written as a cache and given to `headscore.stability`; what it says of a size
is held against the mean overlap of pairs of fresh captures of that size from the same population. Ends with a line of JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import headscore
from headscore.data.cache.folder import shard_path, write_metadata
from headscore.data.cache.shard import write_shard
from headscore.score.evidence.stability import ENOUGH
from headscore.score.ranking import rank
from headscore.score.scores import DEFAULT_TOP_K

LAYERS, HEADS = 8, 8


def population(random: np.random.Generator, size: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Attention to the one token of the question, and output norms: [L,H,size] each."""
    shape = (LAYERS, HEADS, size)

    def values() -> np.ndarray:
        own = random.normal(0, 1, (LAYERS, HEADS, 1))
        return own + noise * (random.normal(0, 1, shape) + random.normal(0, 0.7, (LAYERS, 1, size)))

    mass = (1 / (1 + np.exp(-values()))).astype(np.float16)
    return np.clip(mass, 2.0**-10, 1 - 2.0**-10), np.exp(0.2 * values()).astype(np.float32)


def signals(mass: np.ndarray, out: np.ndarray) -> dict[str, np.ndarray]:
    """What headscore makes of samples with two tokens."""
    other = (1 - mass).astype(np.float16)
    entropy = -sum(x.astype(np.float64) * np.log(x.astype(np.float64)) for x in (mass, other))
    return {"out": out.astype(np.float64), "ent": -entropy, "task": mass.astype(np.float64)}


def write_cache(folder: Path, mass: np.ndarray, out: np.ndarray) -> Path:
    count = mass.shape[2]
    rows = np.stack([mass, (1 - mass).astype(np.float16)], axis=3).reshape(LAYERS, HEADS, 2 * count)
    metadata = {
        "format": "headscore-cache",
        "format_version": 1,
        "versions": {},
        "model": {"name": "synthetic"},
        "data": {},
        "templates": [],
        "span_names": ["question", "choices", "template", "special"],
        "settings": {"queries": "last_token", "shard_size": count},
        "attention": {"way": "recorded", "full_rows": True, "result_norms": True},
        "dims": {"layers": LAYERS, "heads": HEADS},
        "layers": list(range(LAYERS)),
        "plan": {"rows": count, "shards": 1},
        "example": {"row": 0, "pieces": []},
    }
    arrays = {
        "samples/row": np.arange(count),
        "samples/offset": 2 * np.arange(count + 1),
        "tokens/id": np.zeros(2 * count),
        "tokens/span": np.tile([1, 4], count),
        "layers/index": np.arange(LAYERS),
        "last_token/attention": rows,
        **{f"{mode}/{norm}_norm": out for mode in ("last_token", "all_tokens") for norm in ("output", "result")},
    }
    write_metadata(folder, metadata, keep_existing=False)
    write_shard(shard_path(folder, 0), 0, arrays, metadata, [])
    return folder


def fresh_overlaps(random: np.random.Generator, everything: dict[str, np.ndarray], size: int, pairs: int) -> np.ndarray:
    """The share of the top k that pairs of captures of fresh samples have in common."""
    count = next(iter(everything.values())).shape[2]
    captures = [random.choice(count, size, replace=False) for _ in range(2 * pairs)]
    places = {
        "replicate": np.repeat(np.arange(2 * pairs), LAYERS * HEADS),
        "layer": np.tile(np.repeat(np.arange(LAYERS), HEADS), 2 * pairs),
        "head": np.tile(np.arange(HEADS), 2 * pairs * LAYERS),
    }
    means = {
        name: np.concatenate([x[:, :, chosen].mean(axis=2).ravel() for chosen in captures]) for name, x in everything.items()
    }
    ranked = rank(pl.DataFrame({**places, **means}), {"out": 1.0, "ent": 0.5, "task": 1.0}, by="replicate")
    tops = (ranked["rank"].to_numpy() <= DEFAULT_TOP_K).reshape(pairs, 2, -1)
    return (tops[:, 0] & tops[:, 1]).sum(axis=1) / DEFAULT_TOP_K


def trial(random: np.random.Generator, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Of one population: at every other size what is said, and the truth; and the truth where 0.9 is said to be reached."""
    noise = float(np.exp(random.uniform(np.log(0.3), np.log(6))))
    mass, out = population(random, args.population, noise)
    chosen = random.choice(args.population, args.samples, replace=False)
    found = headscore.stability(write_cache(folder, mass[:, :, chosen], out[:, :, chosen]), seed=int(random.integers(1 << 30)))
    everything, lines = signals(mass, out), []
    for line in reversed(found.curve.to_dicts()[::-1][::2]):
        fresh = fresh_overlaps(random, everything, line["samples"], args.pairs)
        inside = float(((fresh >= line["low"] - 1e-9) & (fresh <= line["high"] + 1e-9)).mean())
        said = {"measured": line["overlap"], "fitted": line["fitted"]}
        lines.append({"size": str(line["samples"]), "true": float(fresh.mean()), **said, "inside": inside})
    if found.needed:
        true = float(fresh_overlaps(random, everything, found.needed, args.pairs).mean())
        lines.append({"size": "needed", "true": true, "measured": None, "fitted": ENOUGH, "inside": None})
    return lines


def summary(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By size: the mean truth, and of what was said the mean error, its root mean square, and how often it is below 0.05."""
    found: dict[str, dict[str, float]] = {}
    for (size,), part in pl.DataFrame(lines, infer_schema_length=None).group_by("size", maintain_order=True):
        line = {"trials": len(part), "true": part["true"].mean()}
        for name in ("measured", "fitted"):
            if (error := (part[name] - part["true"]).drop_nulls()).len():
                line |= {f"{name}_bias": error.mean(), f"{name}_rms": (error**2).mean() ** 0.5}
                line |= {f"{name}_within_0.05": (error.abs() <= 0.05).mean()}
        if part["inside"].count():
            line["inside"] = part["inside"].mean()
        found[str(size)] = {name: round(float(value), 4) for name, value in line.items()}
    return dict(sorted(found.items(), key=lambda item: (not item[0].isdecimal(), int(item[0]) if item[0].isdecimal() else 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--samples", type=int, default=512, help="in a cache")
    parser.add_argument("--population", type=int, default=20_000, help="samples that captures are drawn from")
    parser.add_argument("--pairs", type=int, default=200, help="of fresh captures that the truth is made of")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random = np.random.default_rng(args.seed)
    lines = []
    for _ in range(args.trials):
        with tempfile.TemporaryDirectory() as folder:
            lines += trial(random, Path(folder) / "cache", args)
    found = summary(lines)
    for size, line in found.items():
        print(f"{size:>6} samples: " + ", ".join(f"{name} {value:g}" for name, value in line.items()))
    print(json.dumps({"benchmark": "stability_truth", "trials": args.trials, "samples": args.samples, "results": found}))


if __name__ == "__main__":
    main()
