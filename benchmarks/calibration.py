"""Whether what `score --bootstrap` says is so: on samples with planted truth, and on the samples of a cache of yours.

    python benchmarks/calibration.py                       # 500 trials of 12 layers of 8 heads, 200 and 50 samples
    python benchmarks/calibration.py --cache CACHE         # also: halves of its samples, one predicting the other

top        p_top of every head in every trial beside whether the head is among the top k of another sample of as many rows.
           Heads go by their p_top into ten bins; `gap` is the largest difference between mean p_top and share of members over
           the bins of at least 500 heads, `error` the mean difference over all heads. `fresh` is the bootstrap of `score`, a
           sample of a sample; `half` draws half as many rows as there are, `plain` as many as there are.
intervals  in how many trials the intervals of all heads' ranks hold at once. `spread`: true means that differ; `ties`: two
           of eight in each layer are equal; `equal`: all are, so that telling any two apart is wrong.

Samples have skewed values (gamma of shape 2) with a share in common, as heads see the same prompts. `noise` is the standard
error of a mean over the standard deviation of the true means of a layer.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headscore.data.cache.folder import open_cache
from headscore.data.options.settings import ScoreSettings
from headscore.score.evidence.rank_intervals import rank_intervals
from headscore.score.evidence.resampling import draws
from headscore.score.evidence.weighted_means import ranked_replicates, sample_values
from headscore.score.kept import open_store
from headscore.score.recipe import Recipe, choose_recipe

Float = npt.NDArray[np.float64]
SIGNALS = ("out", "ent", "task")
LAYERS, HEADS, TOP_K = 12, 8, 20
BINS, MANY = 10, 500
WAYS = ("fresh", "half", "plain")
SETTINGS = ScoreSettings(top_k=TOP_K)


@dataclass
class Predictions:
    """p_top and membership of many heads."""

    predicted: list[Float] = field(default_factory=list)
    observed: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        predicted, observed = np.concatenate(self.predicted), np.concatenate(self.observed)
        bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
        table = [
            (
                round(float(predicted[bins == at].mean()), 3),
                round(float(observed[bins == at].mean()), 3),
                int((bins == at).sum()),
            )
            for at in range(BINS)
            if (bins == at).any()
        ]
        gaps = [abs(p - o) for p, o, count in table if count >= MANY]
        error = sum(abs(p - o) * count for p, o, count in table) / len(predicted)
        return {"gap": round(max(gaps), 3) if gaps else None, "error": round(error, 4), "bins": table}


def drawn(way: str, n: int, replicates: int, seed: int) -> Float:
    """Weights [B,n] of a way to draw."""
    if way == "half":
        random = np.random.default_rng(seed)
        return random.multinomial(n // 2, np.full(n, 1 / n), replicates).astype(float)
    return draws(n, replicates, seed, fresh=way == "fresh").astype(float)


def note(
    found: dict[str, Predictions], recipe: Recipe, ways: Sequence[str], here: Float, there: Float, replicates: int, seed: int
) -> None:
    """Let a sample [signals,n,L,H] predict which heads are the top of another."""
    member = ranks(recipe, there.mean(axis=1, keepdims=True))[0] <= TOP_K
    for way in ways:
        its = found.setdefault(way, Predictions())
        means = averages(drawn(way, here.shape[1], replicates, seed), here)
        its.predicted.append((ranks(recipe, means) <= TOP_K).mean(axis=0))
        its.observed.append(member)


def ranks(recipe: Recipe, means: Float) -> npt.NDArray[np.int64]:
    """Ranks [B,heads] by means [signals,B,L,H]."""
    frame = ranked_replicates(recipe, dict(zip(SIGNALS, means, strict=True)), SETTINGS)
    return frame["rank"].to_numpy().reshape(means.shape[1], -1)


def averages(weights: Float, values: Float) -> Float:
    """Means [signals,B,L,H] of values [signals,n,L,H]."""
    flat = values.reshape(len(values), values.shape[1], -1)
    found = weights @ flat / weights.sum(axis=1, keepdims=True)
    return found.reshape(len(values), len(weights), *values.shape[2:])


def planted(random: np.random.Generator, noise: float, n: int, groups: int = len(SIGNALS)) -> tuple[Float, Callable[[], Float]]:
    """True means [signals,L,H], and what draws a sample of n rows, [signals,n,L,H]."""
    truth = random.normal(size=(groups, LAYERS, HEADS)) / (noise * np.sqrt(n))

    def sample() -> Float:
        own = random.gamma(2, 1, (groups, n, LAYERS, HEADS)) - 2
        shared = random.gamma(2, 1, (groups, n, 1, 1)) - 2
        return truth[:, None] + (own + shared) / np.sqrt(4)

    return truth, sample


def top(recipe: Recipe, ways: Sequence[str], n: int, noise: float, trials: int, replicates: int) -> dict[str, Any]:
    found: dict[str, Predictions] = {}
    for trial in range(trials):
        _, sample = planted(np.random.default_rng([trial, 1]), noise, n)
        note(found, recipe, ways, sample(), sample(), replicates, trial)
    return {way: its.figures() for way, its in found.items()}


def of_halves(path: Path, ways: Sequence[str], trials: int, replicates: int) -> dict[str, Any]:
    """A half of a cache's samples predicts the top k of the other half."""
    cache = open_cache(path)
    recipe = choose_recipe(cache, SETTINGS, partial=False)
    blocks: dict[str, dict[int, list[Float]]] = {name: {} for name in SIGNALS}
    for some in sample_values(cache, recipe, open_store(cache, recipe.mode), list(SIGNALS)):
        for name, values in some.values.items():
            blocks[name].setdefault(some.samples.start, []).append(values)
    parts = [np.concatenate([np.concatenate(each) for each in blocks[name].values()], axis=2) for name in SIGNALS]
    values = np.ascontiguousarray(np.stack(parts).transpose(0, 3, 1, 2))
    n = values.shape[1] // 2
    found: dict[str, Predictions] = {}
    for trial in range(trials):
        order = np.random.default_rng([trial, 2]).permutation(2 * n)
        note(found, recipe, ways, values[:, order[:n]], values[:, order[n:]], replicates, trial)
    return {way: its.figures() for way, its in found.items()}


def true_ranks(truth: Float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The lowest and the highest rank that each true mean [L,H] could have, 1 = lowest."""
    below = (truth[:, None, :] < truth[:, :, None]).sum(axis=2)
    return 1 + below, truth.shape[1] - (truth[:, None, :] > truth[:, :, None]).sum(axis=2)


def intervals(kind: str, n: int, trials: int, replicates: int) -> float:
    """The share of trials in which all intervals hold."""
    held = 0
    for trial in range(trials):
        random = np.random.default_rng([trial, 3])
        truth, sample = planted(random, 0.3, n, 1)
        values = sample()[0] - truth[0]
        means = {"equal": np.zeros_like(truth[0]), "spread": truth[0], "ties": truth[0].copy()}[kind]
        if kind == "ties":
            means[:, : HEADS // 3] = means[:, :1]
        values = values + means
        estimates = values.mean(axis=0)
        replicated = averages(draws(n, replicates, trial).astype(float), values[None])[0]
        low, high = rank_intervals(estimates, (replicated - estimates) / np.sqrt(2), degrees=n - 1)
        least, most = true_ranks(means)
        held += bool((low <= least).all() and (high >= most).all())
    return held / trials


def lines(name: str, found: dict[str, Any]) -> Iterator[str]:
    for way, its in found.items():
        yield f"{name}: {way}: largest gap {its['gap']}, mean {its['error']}"
        yield "  " + "  ".join(f"{p:.2f}/{o:.2f} ({count})" for p, o, count in its["bins"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--replicates", type=int, default=300, help="of p_top; the intervals have 1,000")
    parser.add_argument("--samples", type=int, nargs="*", default=[200, 50])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    recipe = synthetic_recipe()
    found: dict[str, Any] = {"benchmark": "calibration", "trials": arguments.trials, "top": {}, "intervals": {}}
    for n in arguments.samples:
        for noise in arguments.noise:
            name = f"{n} samples, noise {noise:g}"
            found["top"][name] = top(recipe, arguments.ways, n, noise, arguments.trials, arguments.replicates)
            print(*lines(name, found["top"][name]), sep="\n", flush=True)
        for kind in ("spread", "ties", "equal"):
            share = intervals(kind, n, arguments.trials, 1000)
            found["intervals"][f"{n} samples, {kind}"] = share
            print(f"{n} samples: intervals of {kind} means hold at once in {share:.1%} of the trials", flush=True)
    if arguments.cache:
        found["halves"] = of_halves(arguments.cache, arguments.ways, arguments.trials, arguments.replicates)
        print(*lines("halves of the cache", found["halves"]), sep="\n")
    print(json.dumps(found))


def synthetic_recipe() -> Recipe:
    """What `ranked_replicates` must know of a model of this shape."""
    from headscore.score.linear_measures import LinearMeasures

    return Recipe("last_token", False, "question", LinearMeasures((), {}, {}), (), (), tuple(range(LAYERS)), HEADS, None)


if __name__ == "__main__":
    main()
