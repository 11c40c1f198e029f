"""However the work of scoring is spread, and whatever is there of a cache, the sums are the same to the last bit."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from cli_runs import Cli
from hypothesis import given
from hypothesis import strategies as st
from noting import noted

import headscore
from headscore.data.cache.folder import open_cache, shard_path, write_metadata
from headscore.data.cache.reader import Shard
from headscore.data.cache.shard import write_shard
from headscore.data.errors import InputError, RunError
from headscore.data.options.settings import ScoreSettings, WorkSettings
from headscore.score.cache_means import cache_means, shard_sums
from headscore.score.recipe import choose_recipe
from headscore.score.workers import executor_of


@pytest.fixture
def incomplete(cache: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(cache, tmp_path / "incomplete"))
    shard_path(copy, 1).unlink()
    return copy


def assert_equal_to_the_last_bit(one: headscore.Scores, other: headscore.Scores) -> None:
    assert one.heads.columns == other.heads.columns
    for name in one.heads.columns:
        assert one.heads[name].equals(other.heads[name], check_dtypes=True, null_equal=True), name


MINE: dict[str, Any] = {
    "measure": {"recent": "position >= tokens - 10"},
    "signal": {"late": "CASE WHEN largest > 0.1 THEN recent / largest END", "cancels": "(row % 2 * 2 - 1) * 1e8 + sink * 1e-8"},
    "weight": {"lift": -0.5},
}


@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
def test_processes_change_no_bit(cache: Path, mode: str) -> None:
    alone = headscore.score(cache, score_query_mode=mode, fresh=True, **MINE)
    assert_equal_to_the_last_bit(alone, headscore.score(cache, score_query_mode=mode, fresh=True, workers=2, **MINE))


class LastFirst(Executor):
    """Does the last work first, and each when it is asked for."""

    def map(self, function: Any, *items: Any, **_: Any) -> Any:
        work = list(zip(*items, strict=True))
        results = [function(*one) for one in reversed(work)]
        return reversed(results)

    def submit(self, function: Any, /, *given: Any, **more: Any) -> Any:
        future: Future[Any] = Future()
        future.set_result(function(*given, **more))
        return future


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(3), lambda: ThreadPoolExecutor(1), LastFirst])
def test_any_executor_changes_no_bit(cache: Path, make: Any) -> None:
    with make() as executor:
        spread = headscore.score(cache, executor=executor, fresh=True, **MINE)
        again = headscore.score(cache, executor=executor, fresh=True, **MINE)
    assert_equal_to_the_last_bit(headscore.score(cache, fresh=True, **MINE), spread)
    assert_equal_to_the_last_bit(spread, again)


def shut_down() -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    return executor


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        (3, r"^executor: expected a concurrent\.futures\.Executor, got 3$"),
        (ThreadPoolExecutor, r"^executor: expected a concurrent\.futures\.Executor, got <class"),
        (shut_down(), r"^executor: takes no work: cannot schedule new futures after shutdown$"),
    ],
)
def test_what_cannot_do_the_work_is_told_in_one_line(cache: Path, executor: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        headscore.score(cache, executor=executor, fresh=True)


def test_a_function_that_cannot_be_sent_to_a_process_is_told_in_one_line(cache: Path) -> None:
    lock = threading.Lock()
    unsendable = pl.col("sink").map_batches(lambda sink: (lock, sink)[1], return_dtype=pl.Float64)
    given: dict[str, Any] = {"signal": {"mine": unsendable}, "fresh": True}
    assert headscore.score(cache, **given).samples == 24
    with pytest.raises(InputError, match=r"^workers: a function in a signal or measure cannot be sent .*; leave out workers$"):
        headscore.score(cache, workers=2, **given)


def test_an_executor_that_breaks_is_told_in_one_line(cache: Path) -> None:
    class Breaking(LastFirst):
        def submit(self, function: Any, /, *given: Any, **more: Any) -> Any:
            future: Future[Any] = Future()
            future.set_exception(BrokenExecutor("a child died"))
            return future

        map = Executor.map

    with pytest.raises(RunError, match=r"^executor: a worker ended unexpectedly: a child died$"):
        headscore.score(cache, executor=Breaking(), fresh=True)


def resharded(cache: Path, folder: Path, sizes: list[int]) -> Path:
    """The same samples in shards of other sizes."""
    opened = open_cache(cache)
    per_sample: list[dict[str, np.ndarray]] = []
    for path in opened.shards:
        with Shard(path) as shard:
            arrays = {name: shard.read(name) for name in shard.names}
            for sample, (start, stop) in enumerate(itertools.pairwise(shard.offsets())):
                per_sample.append({n: sample_of(n, values, sample, start, stop) for n, values in arrays.items()})
    metadata = {**opened.metadata, "plan": {**opened.metadata["plan"], "shards": len(sizes)}}
    write_metadata(folder, metadata, keep_existing=False)
    for number, (first, last) in enumerate(itertools.pairwise([0, *itertools.accumulate(sizes)])):
        some = per_sample[first:last]
        joined = {
            name: np.concatenate([one[name] for one in some], axis=-1)
            if some else np.empty((*per_sample[0][name].shape[:-1], 0)) for name in per_sample[0]
        }  # fmt: skip
        joined["samples/offset"] = np.concatenate([[0], np.cumsum(joined["samples/offset"])])
        joined["layers/index"] = np.array(metadata["layers"])
        write_shard(shard_path(folder, number), number, joined, metadata, [])
    return folder


def sample_of(name: str, values: np.ndarray, sample: int, start: int, stop: int) -> np.ndarray:
    if name == "samples/offset":
        return np.array([stop - start])
    of_tokens = name.startswith("tokens/") or name.endswith("attention")
    return values[..., start:stop] if of_tokens else values[..., sample : sample + 1]


@pytest.mark.parametrize(
    ("mode", "sizes"),
    [
        ("last_token", [24]),
        ("last_token", [23, 1]),
        ("last_token", [5, 0, 7, 12]),
        ("all_tokens", [1] * 24),
        ("all_tokens", [3, 8, 2, 11]),
        ("all_tokens", [0, 24]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_any_split_into_shards_and_blocks_changes_no_bit(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, sizes: list[int]
) -> None:
    alone = headscore.score(cache, score_query_mode=mode, fresh=True, **MINE)
    other = resharded(cache, tmp_path / "other", sizes)
    assert_equal_to_the_last_bit(alone, headscore.score(other, score_query_mode=mode, fresh=True, **MINE))
    for items, lines in ((1, 1), (997, 50), (3000, 1 << 17)):
        monkeypatch.setattr("headscore.data.cache.reader.BLOCK_ITEMS", items)
        monkeypatch.setattr("headscore.score.shard_source.LINES", lines)
        with ThreadPoolExecutor(2) as executor:
            spread = headscore.score(other, score_query_mode=mode, fresh=True, executor=executor, **MINE)
        assert_equal_to_the_last_bit(alone, spread)


def test_a_dask_cluster_of_processes_changes_no_bit(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, LocalCluster

    monkeypatch.chdir(cache.parent)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        spread = headscore.score(cache.name, tmp_path / "r", dask=address, fresh=True)
        assert_equal_to_the_last_bit(headscore.score(cache), spread)
        config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
        assert "dask" not in config, "how the work was spread is no part of the run"
        with Client(address, set_as_default=False) as client, client.get_executor() as executor:
            theirs = headscore.score(cache.name, fresh=True, executor=executor, **MINE)
            assert_equal_to_the_last_bit(headscore.score(cache, **MINE), theirs)
            assert client.scheduler_info()["workers"], "it is still theirs"
        headscore.score(cache.name, tmp_path / "r")
        torn = Path(shutil.copytree(cache, tmp_path / "torn"))
        shard_path(torn, 1).write_bytes(b"torn")
        with pytest.raises(InputError, match=r"00001\.h5: is not a readable shard"):
            headscore.score(torn, dask=address)


@pytest.mark.parametrize("count", [0, 1, 60])
def test_each_item_is_worked_on_once(tmp_path: Path, count: int) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    with executor_of(WorkSettings(workers=2)) as executor:
        assert executor is not None
        assert list(executor.map(partial(noted, notes), range(count))) == [item * item for item in range(count)]
    items, processes = zip(*map(str.split, notes.read_text().splitlines()), strict=True) if count else ((), ())
    assert sorted(map(int, items)) == list(range(count))
    assert str(os.getpid()) not in processes and len(set(processes)) <= 2


DIES = """
import os, signal, sys, time
from functools import partial
from headscore.data.errors import RunError
from headscore.data.options.settings import WorkSettings
from headscore.score.workers import executor_of

def work(parent, item):
    time.sleep(0.02)
    if os.getpid() != parent and item == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as a system short of memory does
    return item

if __name__ == "__main__":
    try:
        with executor_of(WorkSettings(workers=3)) as executor:
            list(executor.map(partial(work, os.getpid()), range(int(sys.argv[1]))))
    except RunError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize("items", [4, 200])
def test_a_killed_process_ends_the_others_and_is_told_in_one_line(tmp_path: Path, items: int) -> None:
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    done = subprocess.run([sys.executable, str(script), str(items)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.startswith("workers: a process ended unexpectedly")
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
        with pytest.raises(InputError, match=f"dask {address}: no Dask scheduler with workers answers there"):
            headscore.score(cache, dask=address)
    with socket.socket() as silent:  # takes connections, but never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match="no Dask scheduler with workers answers there"):
            headscore.score(cache, dask=f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"needs dask.distributed: pip install 'headscore\[cluster\]'"):
        headscore.score(cache, dask="tcp://127.0.0.1:1")


def test_a_script_without_a_guard_is_told_so(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import headscore\nheadscore.score({str(cache)!r}, workers=2, fresh=True)\n")
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore:resource_tracker"}  # which Python may put after the error
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=quiet)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("headscore.data.errors.RunError: workers: a process ended unexpectedly")


def test_worker_processes_import_no_torch() -> None:
    """Nor what the command line and the report need: it would be done in each of them."""
    unused = ("torch", "transformers", "tokenizers", "typer", "rich", "altair", "distributed")
    imports = "import headscore.score.cache_means, headscore.score.workers"
    program = f"import sys; {imports}; print([m for m in {unused} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_worker_that_scored_has_no_torch(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, headscore\n"
        "from headscore.data.options.settings import WorkSettings\n"
        "from headscore.score.workers import executor_of\n"
        "def there(_): return [m for m in ('torch', 'transformers', 'typer', 'rich') if m in sys.modules]\n"
        "if __name__ == '__main__':\n"
        "    with executor_of(WorkSettings(workers=2)) as executor:\n"
        "        headscore.score(sys.argv[1], executor=executor, fresh=True)\n"
        "        print(list(executor.map(there, range(4))), there(0))\n"
    )
    done = subprocess.run([sys.executable, str(script), str(cache)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[[], [], [], []] []", done.stderr


@given(st.permutations(range(3)), st.integers(1, 2))
def test_sums_merge_in_any_order_and_grouping(cache: Path, order: list[int], cut: int) -> None:
    opened = open_cache(cache)
    recipe = choose_recipe(opened, ScoreSettings(**MINE), partial=False)
    sums = [shard_sums(opened, recipe, None, opened.shards[number]) for number in order]
    merged = reduce(add, sums[:cut]) + reduce(add, sums[cut:])
    whole = cache_means(opened, recipe, None, None)
    assert merged.task.samples == whole.samples == 24
    for name, values in whole.means.items():
        assert np.array_equal(merged.sums[name].means(), values, equal_nan=True), name


@pytest.mark.parametrize("items", [1, 500, 3000])
def test_reading_a_shard_in_blocks_changes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    whole, lines = headscore.score(cache, fresh=True), headscore.scan_cache(cache, fresh=True).collect()
    lines_of = ["sample", "layer", "head"]
    monkeypatch.setattr("headscore.data.cache.reader.BLOCK_ITEMS", items)
    with Shard(open_cache(cache).shards[0]) as shard:
        blocks = list(shard.blocks())
        assert len(blocks) > 1
        assert [i for block in blocks for i in range(block.samples.start, block.samples.stop)] == list(range(shard.samples))
        joined = np.concatenate([shard.read("last_token/attention", 1, block) for block in blocks], axis=-1)
        np.testing.assert_array_equal(joined, shard.read("last_token/attention", 1))
    assert headscore.scan_cache(cache, fresh=True).sort(lines_of).collect().equals(lines.sort(lines_of))
    assert_equal_to_the_last_bit(headscore.score(cache, fresh=True), whole)
    assert headscore.inspect(cache, verify=True)["damaged"] == []


# --------------------------------------------------------------------------------------------------------------- partial


def test_an_incomplete_cache_is_scored_only_when_asked_and_says_so(
    run_cli: Cli,
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


def test_the_config_of_a_partial_run_repeats_it(run_cli: Cli, incomplete: Path, tmp_path: Path) -> None:
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


def test_inspect_says_what_is_missing_and_how_to_get_it(run_cli: Cli, incomplete: Path) -> None:
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
    with pytest.raises(RunError, match="a process ended unexpectedly: out of memory"):
        headscore.score(cache, workers=2, fresh=True)
