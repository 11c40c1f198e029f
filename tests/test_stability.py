"""The stability of a ranking by the number of samples: laws on caches whose heads are known."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from made_caches import write_cache

import headscore
from headscore.data.errors import InputError
from headscore.score.evidence.stability import RESULT_FILES, SCHEMA

LAYERS, HEADS = 4, 8


def made_cache(folder: Path, noise: float, samples: int, seed: int = 0) -> Path:
    """Output norms alone tell heads apart: each has its own mean; attention is the same everywhere."""
    random = np.random.default_rng(seed)
    own = np.stack([random.permutation(HEADS) for _ in range(LAYERS)]) + 0.1 * np.arange(LAYERS)[:, None]
    out = own[:, :, None] + noise * random.uniform(0, 2, (LAYERS, HEADS, samples))
    rows = np.full((LAYERS, HEADS, 2 * samples), 0.5)
    return write_cache(folder, rows, out, [1, 4] * samples, [2] * samples)


def test_heads_that_no_sample_moves_give_full_overlap(tmp_path: Path) -> None:
    found = headscore.stability(made_cache(tmp_path / "c", 0.0, 64), top_k=6)
    assert found.curve.schema == SCHEMA and found.samples == 64
    assert found.curve["samples"].to_list()[::11] == [8, 32] and found.curve["groups"].to_list()[::11] == [4, 2]
    for name in ("overlap", "low", "high", "phi", "phi_low", "phi_high"):
        assert found.curve[name].to_list() == pytest.approx([1.0] * 12), name
    assert found.curve["chance"].to_list() == pytest.approx([6 / 32] * 12)
    assert found.needed == 8 and found.lines[1].startswith("8 samples, the fewest that were tried, give 0.9 overlap")


def test_noise_gives_chance_and_more_samples_more(tmp_path: Path) -> None:
    noise = headscore.stability(made_cache(tmp_path / "noise", 3000.0, 128), top_k=8, lambda_ent=0, lambda_task=0)
    assert noise.curve["overlap"].mean() == pytest.approx(8 / 32, abs=0.1)
    assert noise.curve["phi"].mean() == pytest.approx(0, abs=0.13)
    assert noise.needed is None and "would need more than 64 samples each" in noise.lines[1]
    some = headscore.stability(made_cache(tmp_path / "some", 6.0, 128), top_k=8, lambda_ent=0, lambda_task=0)
    shares = some.curve["fitted"].to_list()
    assert shares[-1] > shares[0] + 0.1 > 0.3
    assert (some.curve["low"] <= some.curve["overlap"]).all() and (some.curve["overlap"] <= some.curve["high"]).all()


def test_phi_is_the_overlap_corrected_for_chance(tmp_path: Path) -> None:
    curve = headscore.stability(made_cache(tmp_path / "c", 5.0, 40), top_k=8).curve
    corrected = (curve["overlap"] - curve["chance"]) / (1 - curve["chance"])
    assert curve["phi"].to_list() == pytest.approx(corrected.to_list())


def test_the_number_that_is_needed_lies_where_the_curve_says_so(tmp_path: Path) -> None:
    found = headscore.stability(made_cache(tmp_path / "c", 6.0, 256), top_k=8, lambda_ent=0, lambda_task=0)
    assert found.needed and f"about {found.needed} samples give 0.9 overlap" in found.lines[1]
    sizes, shares = found.curve["samples"].to_list(), found.curve["fitted"].to_list()
    below = max(size for size, share in zip(sizes, shares, strict=True) if share < 0.9)
    assert below <= found.needed <= min(size for size in sizes if size > below)
    reached = np.interp(math.log(found.needed), np.log(sizes), shares)
    assert reached == pytest.approx(0.9, abs=0.01)


def test_the_curve_is_that_of_fresh_samples(tmp_path: Path) -> None:
    """Moderate in size; benchmarks/stability_truth.py is the full test."""
    errors = []
    for seed in range(6):
        found = headscore.stability(made_cache(tmp_path / str(seed), 8.0, 128, seed), top_k=8, lambda_ent=0, lambda_task=0)
        random = np.random.default_rng(seed)  # the same heads
        own = np.stack([random.permutation(HEADS) for _ in range(LAYERS)]) + 0.1 * np.arange(LAYERS)[:, None]
        size = found.curve["samples"][6]
        means = own + 8.0 * random.uniform(-1, 1, (400, size, LAYERS, HEADS)).mean(axis=1)
        places = {"replicate": np.repeat(np.arange(400), 32), "layer": np.tile(np.repeat(np.arange(4), 8), 400)}
        frame = pl.DataFrame({**places, "head": np.tile(np.arange(8), 1600), "out": means.ravel()})
        tops = (headscore.rank(frame, {"out": 1.0}, by="replicate")["rank"].to_numpy() <= 8).reshape(200, 2, 32)
        errors.append(found.curve["fitted"][6] - (tops[:, 0] & tops[:, 1]).sum(axis=1).mean() / 8)
    assert abs(np.mean(errors)) < 0.03 and np.abs(errors).max() < 0.1


def test_the_same_seed_gives_the_same_curve_and_more_repeats_more_pairs(tmp_path: Path) -> None:
    cache = made_cache(tmp_path / "c", 5.0, 20)
    first, again, other = (headscore.stability(cache, seed=seed).curve for seed in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)
    assert headscore.stability(cache, repeats=40).curve["pairs"].to_list() == [2 * pairs for pairs in first["pairs"]]


def test_a_cache_of_few_samples(tmp_path: Path) -> None:
    assert headscore.stability(made_cache(tmp_path / "four", 1.0, 4)).curve["samples"].to_list() == [2]
    with pytest.raises(InputError, match="has 3 samples; the stability of a ranking needs 4 or more"):
        headscore.stability(made_cache(tmp_path / "three", 1.0, 3))


def test_sizes_at_which_a_signal_is_undefined_are_left_out(tmp_path: Path) -> None:
    cache = made_cache(tmp_path / "c", 5.0, 40)
    signal = {"rare": "CASE WHEN sample < 4 THEN norm END"}
    found = headscore.stability(cache, signal=signal, weight={"rare": 1})
    assert found.curve.is_empty() and "cannot be told" in found.lines[0]


def test_files_are_written_and_the_configuration_repeats_the_run(tmp_path: Path) -> None:
    cache, out = made_cache(tmp_path / "c", 5.0, 20), tmp_path / "out"
    found = headscore.stability(cache, out, top_k=5, seed=3)
    assert {path.name for path in out.iterdir()} == {*RESULT_FILES, "config.yaml", "run.log"}
    assert pl.read_csv(out / "stability.csv").columns == found.curve.columns
    assert (out / "stability.txt").read_text().splitlines() == found.lines
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["cache"], config["seed"], config["repeats"], config["top_k"]) == (str(cache), 3, 20, 5)
    with pytest.raises(InputError, match=r"holds another run \(seed differ\)"):
        headscore.stability(cache, out, top_k=5, seed=4)
