"""Means under many weightings of the samples: each is what a cache of those samples would give."""

from pathlib import Path

import numpy as np
import pytest

import headscore
from headscore.data.cache.folder import open_cache
from headscore.data.options.settings import ScoreSettings
from headscore.score.evidence.weighted_means import ranked_replicates, sample_values, weighted_means
from headscore.score.recipe import choose_recipe

NAMES = ["out", "ent", "task", "ent_free", "lift"]


def test_weights_count_samples(cache: Path) -> None:
    opened = open_cache(cache)
    recipe = choose_recipe(opened, ScoreSettings(), partial=False)
    counts = np.random.default_rng(0).integers(0, 4, (5, 24)).astype(np.uint16)
    counts[0] = 1
    found = weighted_means(opened, recipe, None, NAMES, counts)
    lines = headscore.scan_cache(cache).select("sample", "layer", "head", *NAMES).collect().sort("layer", "head", "sample")
    for name in NAMES:
        values = lines[name].to_numpy().reshape(3, 4, 24)
        for place, count in enumerate(counts):
            repeated = np.repeat(values, count, axis=2)
            assert found[name][place] == pytest.approx(np.nanmean(repeated, axis=2), abs=1e-12)


def test_undefined_values_do_not_count(cache: Path) -> None:
    opened = open_cache(cache)
    settings = ScoreSettings(signal={"some": "CASE WHEN sample > 2 THEN entropy END"}, weight={"some": 1.0})
    recipe = choose_recipe(opened, settings, partial=False)
    weights = np.eye(24, dtype=np.uint16)
    found = weighted_means(opened, recipe, None, ["some"], weights)["some"]
    assert np.isnan(found[:3]).all() and np.isfinite(found[3:]).all()
    with pytest.raises(headscore.InputError, match="some"):
        ranked_replicates(recipe, {"out": found, "ent": found, "task": found, "some": found}, settings)


@pytest.mark.parametrize("options", [{}, {"fusion": "sum"}, {"by": "kv_head"}, {"within": "model", "fusion": "rrf"}])
def test_a_replicate_of_all_samples_is_the_ranking(cache: Path, options: dict[str, str]) -> None:
    opened, settings = open_cache(cache), ScoreSettings(**options)  # type: ignore[arg-type]
    recipe = choose_recipe(opened, settings, partial=False)
    means = weighted_means(opened, recipe, None, NAMES[:3], np.ones((2, 24), np.uint8))
    found = ranked_replicates(recipe, means, settings)
    expected = headscore.score(cache, **options).heads
    for replicate in range(2):
        own = found.filter(replicate=replicate)
        assert own["combined"].to_list() == pytest.approx(expected["combined"].to_list())
        assert own["rank"].equals(expected["rank"])


def test_blocks_hold_every_value_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only some layers fit in a table, and shards are many."""
    monkeypatch.setattr("headscore.score.shard_source.LINES", 1)
    opened = open_cache(cache)
    recipe = choose_recipe(opened, ScoreSettings(), partial=False)
    seen = np.zeros((3, 24), int)
    for some in sample_values(opened, recipe, None, ["out"]):
        seen[some.layers, some.samples] += 1
        assert some.values["out"].shape[1] == 4
    assert (seen == 1).all()
