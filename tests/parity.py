"""Holds every array of a captured cache against the eager reference, sample by sample."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from eager import EagerModel

from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard


def stored_samples(cache: Path) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Of each sample its token ids and its part of every array that is there per head: [L,H,T] or [L,H]."""
    for path in open_cache(cache).shards:
        with Shard(path) as shard:
            arrays = {name: shard.read(name) for name in shard.names}
        per_head = {name: values for name, values in arrays.items() if name.startswith(("last_token", "all_tokens"))}
        for i, (start, stop) in enumerate(itertools.pairwise(arrays["samples/offset"])):
            part = {name: v[:, :, start:stop] if name.endswith("attention") else v[:, :, i] for name, v in per_head.items()}
            yield arrays["tokens/id"][start:stop], part


def largest_differences(cache: Path, eager: EagerModel) -> dict[str, float]:
    """The largest difference by array name: absolute for attention and entropy, relative to the layer's largest for norms.

    Where eager has no norms, as nothing could be taken for the output projection, those of the cache are not compared.
    """
    worst: dict[str, float] = defaultdict(float)
    for ids, arrays in stored_samples(cache):
        reference = eager(ids)
        expected = {
            "last_token/attention": reference.patterns[:, :, -1],
            "all_tokens/attention": reference.patterns.mean(2),
            "all_tokens/entropy": reference.row_entropies.mean(2),
        }
        if reference.z_norms.size:
            expected |= {
                "last_token/output_norm": reference.z_norms[:, :, -1],
                "last_token/result_norm": reference.result_norms[:, :, -1],
                "all_tokens/output_norm": reference.z_norms.mean(2),
                "all_tokens/result_norm": reference.result_norms.mean(2),
            }
        for name, wanted in expected.items():
            if name in arrays:
                difference = np.abs(arrays[name].astype(np.float64) - wanted)
                if name.endswith("norm"):
                    difference = difference / np.maximum(wanted.max(axis=1, keepdims=True), 1e-12)
                worst[name] = max(worst[name], float(difference.max()))
    return dict(worst)


TOLERANCES = {"attention": 1e-3, "entropy": 2e-3, "norm": 1e-4}


def assert_parity(cache: Path, eager: EagerModel) -> dict[str, float]:
    worst = largest_differences(cache, eager)
    assert worst, "nothing was compared"
    for name, difference in worst.items():
        assert difference <= TOLERANCES[name.split("_")[-1].split("/")[-1]], (name, difference)
    return worst


def arrays_of(cache: Path) -> dict[str, np.ndarray]:
    """Every array of a cache, the shards put one after the other along the sample or token axis."""
    parts: dict[str, list[np.ndarray]] = {}
    for path in open_cache(cache).shards:
        with Shard(path) as shard:
            for name in shard.names:
                parts.setdefault(name, []).append(shard.read(name))
    joined = {
        name: values[0] if name == "layers/index" else np.concatenate(values, axis=-1)
        for name, values in parts.items()
        if name != "samples/offset"
    }
    joined["lengths"] = np.concatenate([np.diff(offsets) for offsets in parts["samples/offset"]])
    return joined


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], *, exactly: bool) -> None:
    assert one.keys() == other.keys()
    for name in one:
        # fp16 values may fall on either side of a rounding step
        tolerance = 0 if exactly else 1e-3 if name.endswith("attention") else 1e-4
        np.testing.assert_allclose(one[name].astype(np.float64), other[name], atol=tolerance, rtol=tolerance, err_msg=name)
