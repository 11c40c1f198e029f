"""`score` and `inspect --verify` take the same for damaged: what one refuses the other names, though checksums are right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_caches import BY_HAND, metadata, write_cache

import headscore
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.cache.shard import ARRAYS, write_shard
from headscore.data.errors import DamagedShardError

ODD = [0.0, -0.0, 1.0, -1e-7, 1.0009765625, 2.0, -1.0, 6e-8, 65504.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, 0.51, 0.4902]
NORMS = [name for name in ARRAYS if name.endswith("norm")]
READ = {"last_token": ["last_token/attention", *NORMS], "all_tokens": ["all_tokens/attention", "all_tokens/entropy", *NORMS]}
TOKEN_ARRAYS = {"samples/row": [-1, 0, 1, 5, 2**62], "tokens/span": [0, 1, 15, 16, 255]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    cache = write_cache(tmp_path_factory.mktemp("whole"), **BY_HAND)
    with open_cache(cache).open_shard(shard_path(cache, 0)) as shard:
        return {name: shard.read(name) for name in ARRAYS}


def refused(cache: Path, mode: Any) -> bool:
    try:
        headscore.score(cache, score_query_mode=mode, fresh=True)
    except DamagedShardError as error:
        assert "00000.h5" in str(error) and "the shard is damaged" in str(error)
        return True
    return False


def written(folder: Path, arrays: dict[str, np.ndarray], full_rows: bool = True) -> Path:
    cache = write_cache(folder, **BY_HAND)
    attention = {"way": "recorded", "full_rows": full_rows, "result_norms": True}
    headscore.data.cache.folder.write_metadata(cache, metadata(1, 2, {"attention": attention}), keep_existing=False)
    write_shard(shard_path(cache, 0), 0, arrays, metadata(1, 2, {"attention": attention}), [])
    return cache


@given(st.data(), st.sampled_from(sorted(READ)), st.booleans())
def test_both_refuse_or_both_accept(
    tmp_path_factory: pytest.TempPathFactory, whole: dict[str, np.ndarray], data: st.DataObject, mode: Any, full_rows: bool
) -> None:
    name = data.draw(st.sampled_from([*READ[mode], *TOKEN_ARRAYS]))
    changed = whole[name].copy()
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, changed.size - 1))
        with np.errstate(over="ignore"):
            changed.flat[place] = data.draw(st.sampled_from(TOKEN_ARRAYS.get(name, ODD)))
    cache = written(tmp_path_factory.mktemp("odd"), {**whole, name: changed}, full_rows)
    assert refused(cache, mode) == bool(headscore.inspect(cache, verify=True)["damaged"])


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("last_token/output_norm", 0, -1.0),
        ("all_tokens/result_norm", 1, -1e-7),
        ("last_token/attention", 0, -0.0),
        ("last_token/attention", 1, 1.0),  # its row sums to 1.75
        ("last_token/attention", 4, 0.5),  # its row sums to a half
        ("samples/row", 1, 0),
        ("tokens/span", 0, 16),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, whole: dict[str, np.ndarray], name: str, place: int, value: float) -> None:
    changed = whole[name].copy()
    changed.flat[place] = value
    cache = written(tmp_path, {**whole, name: changed})
    assert refused(cache, "last_token") and headscore.inspect(cache, verify=True)["damaged"]
    with pytest.raises(DamagedShardError):
        headscore.scan_cache(cache, fresh=True).collect()
    with pytest.raises(DamagedShardError):
        headscore.merge([cache], tmp_path / "merged")


def test_a_norm_or_entropy_of_minus_zero_is_zero(tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    """An entropy of one certain token may come out so."""
    changed = {name: np.full_like(whole[name], -0.0) for name in (*NORMS, "all_tokens/entropy")}
    cache = written(tmp_path, whole | changed)
    assert not refused(cache, "last_token") and not refused(cache, "all_tokens")
    assert not headscore.inspect(cache, verify=True)["damaged"]
