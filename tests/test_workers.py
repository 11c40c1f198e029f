"""However the work of scoring is spread, and whatever is there of a cache, the sums are the same to the last bit."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Cli, run_cli  # noqa: F401 - a fixture

import headscore
from headscore.data.cache import open_cache, shard_path
from headscore.data.errors import InputError, RunError
from headscore.data.reader import Shard
from headscore.data.settings import ScoreSettings, WorkSettings
from headscore.score.signals import choose_signals
from headscore.score.sums import SignalSums, cache_sums, shard_sums
from headscore.score.workers import workers


@pytest.fixture
def incomplete(cache: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(cache, tmp_path / "incomplete"))
    shard_path(copy, 1).unlink()
    return copy


def assert_equal_to_the_last_bit(one: headscore.Scores, other: headscore.Scores) -> None:
    for name in ("raw", "norm", "combined", "topk_global", "topk_per_layer"):
        assert getattr(one, name).equals(getattr(other, name)), name


@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
def test_processes_change_no_bit(cache: Path, mode: str) -> None:
    alone = headscore.score(cache, score_query_mode=mode, fresh=True)
    assert_equal_to_the_last_bit(alone, headscore.score(cache, score_query_mode=mode, fresh=True, workers=2))


def test_a_dask_cluster_of_processes_changes_no_bit(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.chdir(cache.parent)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        spread = headscore.score(cache.name, tmp_path / "r", dask=address, fresh=True)
        assert_equal_to_the_last_bit(headscore.score(cache), spread)
        config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
        assert "dask" not in config, "how the work was spread is no part of the run"
        headscore.score(cache.name, tmp_path / "r")
        torn = Path(shutil.copytree(cache, tmp_path / "torn"))
        shard_path(torn, 1).write_bytes(b"torn")
        with pytest.raises(InputError, match=r"00001\.h5: is not a readable shard"):
            headscore.score(torn, dask=address)


def noted(notes: Path, item: int) -> int:
    with notes.open("a") as file:
        file.write(f"{item} {os.getpid()}\n")
    time.sleep(item % 5 / 200)
    return item * item


@pytest.mark.parametrize("count", [0, 1, 60])
def test_each_item_is_worked_on_once_and_here_too(tmp_path: Path, count: int) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    with workers(WorkSettings(workers=2)) as spread:
        assert list(spread(partial(noted, notes), range(count))) == [item * item for item in range(count)]
    items, processes = zip(*map(str.split, notes.read_text().splitlines()), strict=True) if count else ((), ())
    assert sorted(map(int, items)) == list(range(count))
    assert str(os.getpid()) in processes or not count
    assert len(set(processes)) == min(count, 2)


DIES = """
import os, signal, sys, time
from functools import partial
from headscore.data.errors import RunError
from headscore.data.settings import WorkSettings
from headscore.score.workers import workers

def work(parent, item):
    time.sleep(0.02)
    if os.getpid() != parent and item == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as a system short of memory does
    return item

if __name__ == "__main__":
    try:
        with workers(WorkSettings(workers=3)) as spread:
            list(spread(partial(work, os.getpid()), range(int(sys.argv[1]))))
    except RunError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize("items", [4, 200])
def test_a_killed_process_ends_the_others_and_is_told_in_one_line(tmp_path: Path, items: int) -> None:
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    done = subprocess.run([sys.executable, str(script), str(items)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("workers: a process ended before its time")
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_shard_is_named_whoever_reads_it(cache: Path, tmp_path: Path) -> None:
    torn = Path(shutil.copytree(cache, tmp_path / "torn"))
    shard_path(torn, 2).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"00002\.h5: is not a readable shard"):
        headscore.score(torn, workers=2)


def test_bad_ways_to_spread_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="workers: 0 is not between 1 and 1024"):
        headscore.score(cache, workers=0)
    with pytest.raises(InputError, match="workers: is for processes of this machine; leave it out with dask"):
        headscore.score(cache, workers=2, dask="tcp://127.0.0.1:1")
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        monkeypatch.setattr("headscore.score.workers.SECONDS_TO_CONNECT", 1)
        with pytest.raises(InputError, match=f"dask {address}: no Dask scheduler with workers is reached"):
            headscore.score(cache, dask=address)
    with socket.socket() as silent:  # takes connections, but never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match="no Dask scheduler with workers is reached there"):
            headscore.score(cache, dask=f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"needs dask.distributed: pip install 'headscore\[cluster\]'"):
        headscore.score(cache, dask="tcp://127.0.0.1:1")


def test_a_script_without_a_guard_is_told_so(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import headscore\nheadscore.score({str(cache)!r}, workers=2, fresh=True)\n")
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore:resource_tracker"}  # which Python may put after the error
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, env=quiet)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("headscore.data.errors.RunError: workers: a process ended before its time")


def test_worker_processes_import_neither_polars_nor_torch() -> None:
    program = "import sys, headscore.score.sums; print([m for m in ('polars', 'torch', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


@given(st.permutations(range(3)), st.integers(0, 3))
def test_sums_merge_in_any_order_and_grouping(cache: Path, order: list[int], cut: int) -> None:
    """Merging is adding: exact but for the rounding of float64."""
    opened = open_cache(cache)
    choice = choose_signals(opened, ScoreSettings(), partial=False)
    sums = [shard_sums(opened, choice, None, opened.shards[number]) for number in order]
    zero = SignalSums(0, sums[0].layers, {name: np.zeros_like(values) for name, values in sums[0].sums.items()})
    merged = sum(sums[:cut], start=zero) + sum(sums[cut:], start=zero)
    whole = cache_sums(opened, choice, map)
    assert merged.samples == whole.samples == 24
    for name, values in whole.means().items():
        np.testing.assert_allclose(merged.means()[name], values, rtol=1e-14)


@pytest.mark.parametrize("items", [1, 500, 3000])
def test_reading_a_shard_in_blocks_changes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    whole, lines = headscore.score(cache, fresh=True), headscore.scan_cache(cache, fresh=True).collect()
    monkeypatch.setattr("headscore.data.reader.BLOCK_ITEMS", items)
    with Shard(open_cache(cache).shards[0]) as shard:
        blocks = list(shard.blocks())
        assert len(blocks) > 1
        assert [i for block in blocks for i in range(block.samples.start, block.samples.stop)] == list(range(shard.samples))
        joined = np.concatenate([shard.read("last_token/attention", 1, block) for block in blocks], axis=-1)
        np.testing.assert_array_equal(joined, shard.read("last_token/attention", 1))
    assert headscore.scan_cache(cache, fresh=True).collect().equals(lines)
    for name in ("out_raw", "ent_raw", "task_raw"):
        np.testing.assert_allclose(headscore.score(cache, fresh=True).raw[name], whole.raw[name], rtol=1e-14)
    assert headscore.inspect(cache, verify=True)["damaged"] == []


# --------------------------------------------------------------------------------------------------------------- partial


def test_an_incomplete_cache_is_scored_only_when_asked_and_says_so(
    run_cli: Cli,  # noqa: F811
    cache: Path,
    incomplete: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "r"
    status, _, err = run_cli("score", incomplete, "--out", out)
    assert status == 2 and "1 of 3 shards are missing" in err and "--partial" in err and not out.exists()
    status, printed, err = run_cli("score", incomplete, "--out", out, "--partial")
    assert status == 0, err
    assert "14 samples (PARTIAL: shards 1 are missing)" in printed
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["partial"] is True and config["record"]["missing_shards"] == "1" and config["record"]["samples"] == 14
    assert "PARTIAL: 1 of 3 shards are missing (1)" in (out / "run.log").read_text()
    lines = headscore.scan_cache(cache).filter(~pl.col("sample").is_between(10, 19)).collect()
    expected = lines.group_by("layer", "head").agg(pl.col("task").mean()).sort("layer", "head")["task"]
    np.testing.assert_allclose(pl.read_csv(out / "scores_raw.csv")["task_raw"], expected, rtol=1e-12)
    shutil.copy(shard_path(cache, 1), shard_path(incomplete, 1))
    status, _, err = run_cli("score", incomplete, "--out", out)
    assert status == 2 and "holds another run (partial, record differ)" in err
    status, printed, _ = run_cli("score", incomplete, "--out", out, "--overwrite")
    assert status == 0 and "PARTIAL" not in printed
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["partial"] is False and "missing_shards" not in config["record"]


def test_the_config_of_a_partial_run_repeats_it(run_cli: Cli, incomplete: Path, tmp_path: Path) -> None:  # noqa: F811
    assert run_cli("score", incomplete, "--out", tmp_path / "r", "--partial")[0] == 0
    status, _, err = run_cli("score", "--config", tmp_path / "r" / "config.yaml", "--out", tmp_path / "s")
    assert status == 0, err
    assert (tmp_path / "s" / "config.yaml").read_bytes() == (tmp_path / "r" / "config.yaml").read_bytes()


def test_partial_does_not_excuse_damage(incomplete: Path) -> None:
    shard_path(incomplete, 2).write_bytes(b"torn")
    with pytest.raises(InputError, match=r"00002\.h5"):
        headscore.score(incomplete, partial=True)
    shard_path(incomplete, 2).unlink()
    assert headscore.scan_cache(incomplete, partial=True).collect()["sample"].n_unique() == 10
    shard_path(incomplete, 0).unlink()
    with pytest.raises(InputError, match="holds no samples"):
        headscore.score(incomplete, partial=True)


def test_inspect_says_what_is_missing_and_how_to_get_it(run_cli: Cli, incomplete: Path) -> None:  # noqa: F811
    status, out, _ = run_cli("inspect", incomplete)
    assert status == 0 and "missing 1; the same `headscore capture` command makes them" in out
    status, out, err = run_cli("inspect", incomplete, "--verify", "--json")
    assert status == 2 and "shards 1 of 3 are missing; the same `headscore capture`" in err
    assert json.loads(out)["shards"] == {"there": 2, "planned": 3, "missing": "1"}


def test_missing_shards_are_told_as_ranges(cache: Path, tmp_path: Path) -> None:
    made = json.loads((cache / "cache.json").read_text())
    made["plan"]["shards"] = 10**9
    (tmp_path / "cache.json").write_text(json.dumps(made))
    (tmp_path / "shards").mkdir()
    for number in (1, 2, 4):
        shard_path(tmp_path, number).touch()
    assert open_cache(tmp_path).missing_ranges() == "0, 3, 5-999999999"


def test_a_worker_that_dies_is_told_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscore.score.workers._prepare_process", sys.exit)
    with pytest.raises(RunError, match="a process ended before its time: out of memory"):
        headscore.score(cache, workers=2, fresh=True)
