"""How often `headscore control` finds what is not there, and how often it finds what is, on data whose truth is known.

python benchmarks/control_truth.py --trials 500

Two parts, each with many trials:

- the tests alone, of 270 heads that share their samples: values between 0 and 1 that are skewed, and correlated between heads.
  Nothing is there in any head, or in 202 of them, while the others are higher by 0.2, 0.4 or 0.8 standard deviations (of the
  differences of pairs, or of one sample's value where there are no pairs);
- all of it, through caches on disk: 16 heads over prompts of different lengths, with a random stretch, and with the same rows'
  control prompts, where nothing is there, or four heads give the question 0.05 to 0.2 more of
  their attention.

The last line is JSON: for each part the share of false ones among what is found (its mean over the trials, which is the false
discovery rate, with its standard error), and the power by effect. At the level 0.05 the first is to be at most 0.05.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import headscore
from headscore.data.cache.folder import shard_path, write_metadata
from headscore.data.cache.shard import write_shard
from headscore.score.evidence.t_tests import benjamini_hochberg, paired, unpaired

LEVEL = 0.05
HEADS = 270
EFFECTS = (0.2, 0.4, 0.8)
LAYERS, LAYER_HEADS, PROMPTS = 2, 8, 40
PLANTED = {(0, 1): 0.05, (0, 6): 0.05, (1, 0): 0.1, (1, 5): 0.2}  # how much more attention the question gets, by layer and head

Bools = npt.NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    found = {}
    for name, trials in parts(options.trials, options.seed):
        found[name] = summary(trials)
        print(f"{name:<32} {json.dumps(found[name])}", flush=True)
    seconds = round(time.perf_counter() - started, 1)
    worst = max(each["false_discovery_rate"] - 2 * each["standard_error"] for each in found.values())
    print(json.dumps({"trials": options.trials, "level": LEVEL, "seconds": seconds, "holds": worst <= LEVEL, **found}))


Trial = tuple[Bools, npt.NDArray[np.float64]]  # what was found of the heads, and the effect of each


def parts(trials: int, seed: int) -> Iterator[tuple[str, list[Trial]]]:
    random = np.random.default_rng(seed)
    for samples in (32, 128, 1024):
        for planted in (False, True):
            what = "planted" if planted else "nothing"
            yield f"pairs, {samples} samples, {what}", [pairs(random, samples, planted) for _ in range(trials)]
    for planted in (False, True):
        what = "planted" if planted else "nothing"
        yield f"two tasks, 64 and 200, {what}", [two_tasks(random, planted) for _ in range(trials)]
    for kind in ("random span", "control prompts"):
        for planted in (False, True):
            what = "planted" if planted else "nothing"
            yield f"{kind}, {what}", [through_caches(random, kind, planted) for _ in range(trials)]


def summary(trials: list[Trial]) -> dict[str, Any]:
    rates = [(found & (effects == 0)).sum() / max(1, found.sum()) for found, effects in trials]
    powers = {
        f"{effect:g}": round(float(np.mean([found[effects == effect].mean() for found, effects in trials])), 3)
        for effect in sorted({*trials[0][1].tolist()} - {0.0})
    }
    error = float(np.std(rates, ddof=1) / np.sqrt(len(rates)))
    return {"false_discovery_rate": round(float(np.mean(rates)), 4), "standard_error": round(error, 4), "power": powers}


# --------------------------------------------------------------------------------------------------------- the tests alone


def pairs(random: np.random.Generator, samples: int, planted: bool) -> Trial:
    """Masses of the same prompts with and without, which have the prompt in common, and some noise with other heads."""
    prompts, effects = random.normal(size=samples), effects_of(planted)
    own, control = (masses(random, prompts, 0.0) for _ in range(2))
    differences = own - control
    differences += (effects * differences.std(axis=1, ddof=1))[:, None]
    return benjamini_hochberg(paired(differences).p()) <= LEVEL, effects


def two_tasks(random: np.random.Generator, planted: bool) -> Trial:
    effects, levels = effects_of(planted), random.normal(-1, 1, HEADS)[:, None]
    own = masses(random, random.normal(size=64), levels)
    control = masses(random, random.normal(size=200), levels)
    own += (effects * own.std(axis=1, ddof=1))[:, None]
    return benjamini_hochberg(unpaired(own, control).p()) <= LEVEL, effects


def masses(random: np.random.Generator, prompts: npt.NDArray[np.float64], levels: Any) -> npt.NDArray[np.float64]:
    noise = random.normal(size=(HEADS, len(prompts))) + random.normal(size=len(prompts)) * np.linspace(-1, 1, HEADS)[:, None]
    return 1 / (1 + np.exp(-(levels + 0.5 * prompts + noise - 1.5)))


def effects_of(planted: bool) -> npt.NDArray[np.float64]:
    effects = np.zeros(HEADS)
    if planted:
        effects[::4] = np.resize(EFFECTS, len(effects[::4]))
    return effects


# ------------------------------------------------------------------------------------------------------- through the caches


def through_caches(random: np.random.Generator, kind: str, planted: bool) -> Trial:
    """Attention that is the same for any order of the tokens after the first, but for what is planted."""
    effects = np.zeros((LAYERS, LAYER_HEADS))
    for head, more in PLANTED.items() if planted else ():
        effects[head] = more
    lengths = random.integers(24, 60, PROMPTS)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"random_span": True, "seed": int(random.integers(2**32))}
        if kind == "control prompts":
            options = {"against": write_cache(Path(folder) / "control", random, lengths, np.zeros_like(effects), "shuffle")}
        cache = write_cache(Path(folder) / "cache", random, lengths, effects, None)
        control = headscore.control(cache, **options, lambda_ent=0, weight={"out": 0})
    return control.heads["task_significant"].to_numpy(), effects.reshape(-1)


def write_cache(
    folder: Path, random: np.random.Generator, lengths: npt.NDArray[Any], more: npt.NDArray[np.float64], control: str | None
) -> Path:
    """Prompts of one template token, some more, a question of a quarter of the tokens, and the rest; a cache of one shard."""
    spans, rows = [], []
    for length in lengths.tolist():
        span = np.full(length, 4)
        start, count = length // 3, length // 4
        span[start : start + count] = 1
        weights = random.dirichlet(np.full(length, 0.3), (LAYERS, LAYER_HEADS))
        weights *= 1 - more[..., None]
        weights[..., start : start + count] += (more / count)[..., None]
        spans.append(span)
        rows.append(weights)
    metadata: dict[str, Any] = {
        "format": "headscore-cache",
        "format_version": 1,
        "versions": {},
        "model": {"name": "none"},
        "data": {"path": "none", "sha256": "none"},
        "templates": [],
        "span_names": ["question", "choices", "template", "special"],
        "settings": {"queries": "last_token", **({"control": control} if control else {})},
        "attention": {"way": "recorded", "full_rows": True, "result_norms": False},
        "dims": {"layers": LAYERS, "heads": LAYER_HEADS},
        "layers": list(range(LAYERS)),
        "plan": {"rows": len(lengths), "shards": 1},
        "example": {"row": 0, "pieces": []},
    }
    norms = np.ones((LAYERS, LAYER_HEADS, len(lengths)))
    arrays = {
        "samples/row": np.arange(len(lengths)),
        "samples/offset": np.cumsum([0, *lengths]),
        "tokens/id": np.zeros(lengths.sum()),
        "tokens/span": np.concatenate(spans),
        "layers/index": np.arange(LAYERS),
        "last_token/attention": np.concatenate(rows, axis=-1),
        "last_token/output_norm": norms,
        "all_tokens/output_norm": norms,
    }
    write_metadata(folder, metadata, keep_existing=False)
    write_shard(shard_path(folder, 0), 0, arrays, metadata, [])
    return folder


if __name__ == "__main__":
    main()
