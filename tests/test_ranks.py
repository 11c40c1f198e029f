"""Several processes make one cache without talking to each other, and shards from several places become one cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from parity import arrays_of, assert_same
from resuming import OPTIONS, again, as_rank, files_of

import headscore
from headscore.capture.inputs.tokenising import encode_share, read_prompts, without_special_tokens
from headscore.capture.job.ranks import Rank, this_rank
from headscore.capture.model.memory import free_bytes
from headscore.capture.model.models import resolve_device
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.errors import InputError
from headscore.data.options.settings import CaptureSettings

COMMAND = ["--max-samples", "24", "--shard-size", "3", "--queries", "all_tokens", "--seed", "7"]
SHARDS = 8


@pytest.fixture(scope="module")
def small_shards(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of COMMAND, made by one process with one thread, as torchrun gives each of its processes one."""
    out = tmp_path_factory.mktemp("ranks") / "c"
    subprocess.run(command(llama, out), check=True, capture_output=True, env=environment())
    return out


def command(llama: Path, out: Path, python: tuple[str, ...] = (sys.executable, "-m", "headscore")) -> list[str]:
    return [*python, "capture", "--model", str(llama), "--out", str(out), *COMMAND]


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **values}


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, Rank(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(3, 4, 1)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, Rank(2, 8, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Rank(0, 1, 0)),  # sbatch alone runs a script once
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            Rank(1, 2, 1),
        ),
        ({"PMI_RANK": "5", "PMI_SIZE": "6", "MPI_LOCALRANKID": "1"}, Rank(5, 6, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Rank(1, 2, 1)),
        ({"RANK": "1"}, Rank(0, 1, 0)),
    ],
)
def test_the_rank_is_read_from_what_launchers_set(variables: dict[str, str], rank: Rank) -> None:
    assert this_rank(variables) == rank


@pytest.mark.parametrize("index, world", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0"), ("0", "two"), ("", "1"), ("²", "3")])
def test_what_is_no_rank_is_refused(index: str, world: str) -> None:
    with pytest.raises(InputError, match=r"environment variable (RANK|WORLD_SIZE)=.*: expected a number from"):
        this_rank({"RANK": index, "WORLD_SIZE": world})


def test_processes_beside_each_other_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (6000, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda gpu: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda gpu: 20)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for beside in (1, 2, 3, 4):
        as_rank(monkeypatch, 0, 4)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(beside))
        found.append(free_bytes(torch.device("cuda", 0)))
    assert found == [6030, 6030, 3030, 3030], "what a process holds itself stays its own"


def test_a_process_tokenises_its_own_rows_and_knows_of_the_special_tokens_of_all(tmp_path: Path) -> None:
    """A row of another process that brings its BOS counts in the metadata, which all processes agree in."""
    texts = [f"Row {i}" for i in range(40)]
    texts[7] = "<s>Row 7"
    (tmp_path / "d.jsonl").write_text(
        "\n".join(json.dumps({"text": text, "spans": [{"name": "question", "start": 0, "end": 3}]}) for text in texts)
    )
    settings = CaptureSettings(model="m", data=str(tmp_path / "d.jsonl"), shard_size=5)
    prompts = read_prompts(settings)
    alone = encode_share(prompts, tiny.tokenizer(), settings, Rank())
    wanted = without_special_tokens(prompts, alone.encoded, tiny.tokenizer()).without
    assert wanted == {"left_out": [], "not_repeated": ["<s>"]}
    for index in range(4):
        share = encode_share(prompts, tiny.tokenizer(), settings, Rank(index, 4))
        assert list(share.own) == [index, index + 4] and share.shards == 8
        for number, shard in share.own.items():
            for one, other in zip(shard.prompts, alone.own[number].prompts, strict=True):
                assert one.row == other.row and one.ids.tolist() == other.ids.tolist()
        assert len(share.encoded) <= 10 + 2, "of the others the first, and the one that may tell more"
        assert without_special_tokens(prompts, share.encoded, tiny.tokenizer()).without == wanted


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_disjoint_and_cover_all(world: int) -> None:
    shares = [number for index in range(world) for number in Rank(index, world).share(20)]
    assert sorted(shares) == list(range(20))


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert [str(resolve_device("auto", Rank(i, 4, i))) for i in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert str(resolve_device("cuda", Rank(1, 2, 1))) == "cuda:1"
    assert str(resolve_device("cuda:0", Rank(1, 2, 1))) == "cuda:0"
    assert str(resolve_device("auto", Rank())) == "cuda"


def test_ranks_make_their_share_and_the_last_one_sums_up(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    as_rank(monkeypatch, 1, 2)
    again(llama, tmp_path / "c")
    assert [path.name for path in open_cache(tmp_path / "c").shards] == ["00001.h5"]
    assert "2 of 3 shards are still to be made by other processes" in caplog.text and "complete" not in caplog.text
    assert not (tmp_path / "c" / "skipped.jsonl").exists()
    kept = files_of(tmp_path / "c")["00001.h5"]
    as_rank(monkeypatch, 0, 3)  # another world size
    again(llama, tmp_path / "c")
    as_rank(monkeypatch, 2, 3)
    again(llama, tmp_path / "c")
    assert caplog.text.count("complete: 24 samples") == 1
    assert files_of(tmp_path / "c")["00001.h5"] == kept
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=True)
    as_rank(monkeypatch, 5, 6)
    assert again(llama, tmp_path / "c") is None and "none of them for this process" in caplog.text


def test_overwriting_removes_only_the_own_share(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that comes late does not throw away what another one has made meanwhile."""
    again(llama, tmp_path / "c", seed=8, shard_size=4)
    as_rank(monkeypatch, 0, 2)
    again(llama, tmp_path / "c", overwrite=True)
    made = files_of(tmp_path / "c")
    assert sorted(made) == ["00000.h5", "00001.h5", "00002.h5"], "beyond the plan, and its own, old shards are gone"
    as_rank(monkeypatch, 1, 2)
    again(llama, tmp_path / "c", overwrite=True)
    after = files_of(tmp_path / "c")
    assert {name for name in made if made[name] == after[name]} == {"00000.h5", "00002.h5"}
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=True)


def test_run_is_for_one_process(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 0, 2)
    with pytest.raises(InputError, match="run: is for one process; under a launcher use `headscore capture`"):
        headscore.run(tmp_path / "r", model=str(llama))


def test_torchrun_then_other_world_sizes_give_the_same_cache(llama: Path, small_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "headscore")
    done = subprocess.run(command(llama, out, torchrun), capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("complete: 24 samples") in (1, 2)  # by the last one, or by two that end together
    for label in ("rank 0 of 2: 4 of 4 shards made", "rank 1 of 2: 4 of 4 shards made"):
        assert label in done.stderr
    assert_same(arrays_of(small_shards), arrays_of(out), exactly=True)
    kept = files_of(out)
    for number in (1, 4, 5):
        shard_path(out, number).unlink()
    ranks = [
        subprocess.Popen(command(llama, out), env=environment(RANK=str(i), WORLD_SIZE="2"), stderr=subprocess.DEVNULL)
        for i in (0, 1)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0]
    after = files_of(out)
    assert {name for name in kept if after[name] != kept[name]} == {"00001.h5", "00004.h5", "00005.h5"}
    assert_same(arrays_of(small_shards), arrays_of(out), exactly=True)


def test_the_same_command_twice_at_once_does_no_harm(llama: Path, small_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    both = [subprocess.Popen(command(llama, out), env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert_same(arrays_of(small_shards), arrays_of(out), exactly=True)
    assert sorted(path.name for path in out.iterdir()) == ["cache.json", "shards", "skipped.jsonl"]
    assert len(list((out / "shards").iterdir())) == SHARDS


# ----------------------------------------------------------------------------------------------------------------- merge


@pytest.fixture
def parts(cache: Path, tmp_path: Path) -> list[Path]:
    """The cache as two places made it: shard 0, and shards 1 and 2."""
    places = [Path(shutil.copytree(cache, tmp_path / name)) for name in ("a", "b")]
    for place, numbers in zip(places, ((1, 2), (0,)), strict=True):
        (place / "skipped.jsonl").unlink()
        for number in numbers:
            shard_path(place, number).unlink()
    return places


def test_merged_shards_are_the_cache(cache: Path, parts: list[Path], tmp_path: Path) -> None:
    merged = headscore.merge(parts, tmp_path / "m")
    assert merged.missing == 0
    for name in ("cache.json", "skipped.jsonl", *(f"shards/{number:05d}.h5" for number in range(3))):
        assert (tmp_path / "m" / name).read_bytes() == (cache / name).read_bytes(), name


def test_merging_adds_to_what_is_there(cache: Path, parts: list[Path], tmp_path: Path) -> None:
    assert headscore.merge([shard_path(parts[1], 2)], tmp_path / "m").missing_ranges() == "0-1"
    kept = files_of(tmp_path / "m")
    assert headscore.merge([parts[0], parts[0]], tmp_path / "m").missing_ranges() == "1"
    assert headscore.merge([cache], tmp_path / "m").missing == 0
    assert files_of(tmp_path / "m")["00002.h5"] == kept["00002.h5"]
    assert_same(arrays_of(cache), arrays_of(tmp_path / "m"), exactly=True)


def test_a_capture_goes_on_in_a_merged_cache(llama: Path, cache: Path, parts: list[Path], tmp_path: Path) -> None:
    headscore.merge(parts[:1], tmp_path / "m")
    again(llama, tmp_path / "m")
    assert_same(arrays_of(cache), arrays_of(tmp_path / "m"), exactly=True)


def test_what_does_not_belong_together_is_not_merged(llama: Path, cache: Path, parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m"
    again(llama, tmp_path / "other", seed=9)
    with pytest.raises(InputError, match=r"other: belongs to another capture than .*/a: settings seed was 7, now 9"):
        headscore.merge([parts[0], tmp_path / "other"], out)
    changed = rewritten(shard_path(cache, 0), tmp_path / "c" / "00000.h5")
    with pytest.raises(InputError, match=r"is shard 0 as is .*00000\.h5, but with other values"):
        headscore.merge([parts[0], changed], out)
    shard_path(parts[1], 2).write_bytes(shard_path(parts[1], 2).read_bytes()[:-100])
    with pytest.raises(InputError, match=r"00002\.h5"):
        headscore.merge(parts, out)
    assert not out.exists(), "nothing is written unless all can be"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no cache"):
        headscore.merge(parts[:1], tmp_path / "full")


def rewritten(shard: Path, path: Path) -> Path:
    """A whole shard of the same capture with one value changed."""
    from headscore.data.cache.reader import Shard
    from headscore.data.cache.shard import write_shard

    with Shard(shard) as whole:
        arrays: dict[str, Any] = {name: whole.read(name) for name in whole.names}
        arrays["last_token/output_norm"][0, 0, 0] = np.float32(0.5)
        write_shard(path, whole.number, arrays, whole.metadata, whole.skipped)
    return path


def test_the_options_of_this_file_are_those_of_the_cache_fixture(cache: Path) -> None:
    settings = open_cache(cache).metadata["settings"]
    assert {name: settings[name] for name in OPTIONS} == OPTIONS
