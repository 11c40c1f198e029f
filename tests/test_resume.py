"""A capture goes on where it stopped, and keeps what is finished whatever goes wrong."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from parity import arrays_of, assert_same
from resuming import again, files_of, length_of_one_sample, poison

import headscore
from headscore.capture.inputs import tokenising as samples
from headscore.capture.recording import prefixes, recorder
from headscore.capture.writing import space
from headscore.data.cache.folder import open_cache, shard_files, shard_path
from headscore.data.cache.reader import Shard
from headscore.data.cache.shard import shard_bytes
from headscore.data.errors import InputError, RunError
from headscore.data.files import whole_file as files
from headscore.data.prompts.tokens import Encoded, Sample, Skipped


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache, tmp_path / "copy"))


# ---------------------------------------------------------------------------------------------------------- what is kept


def test_whole_shards_are_kept_and_damaged_ones_named_and_made_again(
    llama: Path, cache: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = files_of(copy)
    damaged = bytearray(shard_path(copy, 1).read_bytes())
    damaged[len(damaged) // 2] ^= 4
    shard_path(copy, 1).write_bytes(damaged)
    shard_path(copy, 2).write_bytes(shard_path(copy, 2).read_bytes()[:5000])
    again(llama, copy)
    named = [record.message for record in caplog.records if "it is made again" in record.message]
    assert len(named) == 2 and "00001.h5" in named[0] and "00002.h5" in named[1]
    after = files_of(copy)
    assert {name for name in before if after[name] == before[name]} == {"00000.h5"}, "a whole shard was made twice"
    assert_same(arrays_of(cache), arrays_of(copy), exactly=True)


def test_a_shard_of_another_capture_is_never_replaced_unasked(
    llama: Path, cache: Path, last_token_cache: Path, copy: Path
) -> None:
    shutil.copy(shard_path(last_token_cache, 0), shard_path(copy, 1))
    with pytest.raises(InputError, match=r"00001\.h5: belongs to another capture \(other plan, "):
        again(llama, copy)
    assert shard_path(copy, 1).read_bytes() == shard_path(last_token_cache, 0).read_bytes()
    again(llama, copy, overwrite=True)
    assert_same(arrays_of(cache), arrays_of(copy), exactly=True)


def test_a_cache_json_that_contradicts_its_shards_is_told_apart(llama: Path, cache: Path, copy: Path) -> None:
    changed = (copy / "cache.json").read_text().replace('"seed": 7', '"seed": 5')
    (copy / "cache.json").write_text(changed)
    with pytest.raises(InputError, match=r"does not agree with the shards beside it \(settings seed was 5, now 7\).*remove"):
        again(llama, copy)
    (copy / "cache.json").unlink()
    again(llama, copy)
    assert_same(arrays_of(cache), arrays_of(copy), exactly=True)


def test_shards_that_nobody_can_read_are_not_replaced_unasked(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "c" / "shards").mkdir(parents=True)
    shard_path(tmp_path / "c", 0).write_bytes(b"precious")
    with pytest.raises(InputError, match=r"has shards but no cache\.json; and no shard is readable"):
        again(llama, tmp_path / "c")
    assert shard_path(tmp_path / "c", 0).read_bytes() == b"precious"
    again(llama, tmp_path / "c", overwrite=True)
    assert headscore.inspect(tmp_path / "c", verify=True)["damaged"] == []


def test_another_capture_that_starts_at_the_same_moment_is_noticed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache.json appears after this process has looked and before it writes its own."""
    from headscore.capture.job import resume

    again(llama, tmp_path / "other", seed=8)
    real = resume.write_metadata

    def late(out: Path, *arguments: Any, **options: Any) -> None:
        shutil.copy(tmp_path / "other" / "cache.json", out / "cache.json")
        real(out, *arguments, **options)

    monkeypatch.setattr(resume, "write_metadata", late)
    with pytest.raises(InputError, match="another capture has just been started there: settings seed was 8, now 7"):
        again(llama, tmp_path / "c")
    assert not list((tmp_path / "c").rglob("*.h5"))


def test_a_changed_skipped_jsonl_is_written_again(llama: Path, cache: Path, copy: Path) -> None:
    (copy / "skipped.jsonl").write_text("garbage\n")
    again(llama, copy)
    assert (copy / "skipped.jsonl").read_bytes() == (cache / "skipped.jsonl").read_bytes()


def test_a_finished_capture_is_left_alone(llama: Path, copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.*")}
    again(llama, copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.*")} == before


@pytest.mark.parametrize("content", [None, b"", b'{"format": "headscore-cache", "form'])
def test_a_lost_or_damaged_cache_json_is_written_again_from_a_shard(
    llama: Path, cache: Path, copy: Path, content: bytes | None
) -> None:
    (copy / "cache.json").unlink()
    if content is not None:
        (copy / "cache.json").write_bytes(content)
    before = files_of(copy)
    with pytest.raises(InputError, match="settings seed was 7, now 8"):
        again(llama, copy, seed=8)
    again(llama, copy)
    assert files_of(copy) == before
    assert (copy / "cache.json").read_bytes() == (cache / "cache.json").read_bytes()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(llama: Path, copy: Path) -> None:
    dead = copy / "shards" / f".00001.h5.abc{files.TEMPORARY}"
    living = copy / "shards" / f".00002.h5.abc{files.TEMPORARY}"
    outside = copy / f".cache.json.abc{files.TEMPORARY}"
    for path in (dead, living, outside):
        path.write_bytes(b"half a file")
    with living.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        again(llama, copy)
        assert [path.exists() for path in (dead, living, outside)] == [False, True, False]
    again(llama, copy)
    assert not living.exists()


def test_each_difference_is_listed_old_and_new(llama: Path, tmp_path: Path) -> None:
    other = tiny.save(tiny.build(tiny.CONFIGS["llama"](), seed=1), tmp_path / "other")
    again(llama, tmp_path / "c", max_samples=3)
    with pytest.raises(InputError) as error:
        again(other, tmp_path / "c", max_samples=4, seed=1, data=str(tiny.LLM_ADAPTERS), dtype="bf16", queries="last_token")
    for wanted in (
        f"model was {llama}",
        f"now {other}",
        "data was samples [",
        f"now {tiny.LLM_ADAPTERS} [",
        "templates was ",
        "settings max_samples was 3, now 4",
        "settings seed was 7, now 1",
        "settings queries was all_tokens, now last_token",
        "settings dtype was fp32, now bf16",
        "use another out, or overwrite=True to start anew",
    ):
        assert wanted in str(error.value)
    with pytest.raises(InputError, match=r"holds another capture: model was \S+ \[\w{12}\], now \S+ \[\w{12}\]; use"):
        again(other, tmp_path / "c", max_samples=3)


def test_overwriting_replaces_another_capture(llama: Path, tmp_path: Path) -> None:
    headscore.capture(tmp_path, model=str(llama), max_samples=4, shard_size=1)
    headscore.capture(tmp_path, model=str(llama), max_samples=3, overwrite=True)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.h5"]
    assert headscore.inspect(tmp_path, verify=True)["damaged"] == []


def test_a_capture_may_go_on_in_another_place_and_with_other_batches(
    llama: Path, cache: Path, copy: Path, tmp_path: Path
) -> None:
    shard_path(copy, 1).unlink()
    again(Path(shutil.copytree(llama, tmp_path / "moved")), copy, batch_size=3)
    assert_same(arrays_of(cache), arrays_of(copy), exactly=False)


# ------------------------------------------------------------------------------------------------------------ bad luck


def test_values_that_are_not_finite_name_the_row_and_stop(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, row = length_of_one_sample(cache)
    poison(monkeypatch, {length})
    with pytest.raises(RunError, match=rf"row {row} \(sample \d of its shard\): NaN or infinite 'last_token/output_norm' from"):
        again(llama, tmp_path / "c")
    with pytest.raises(RunError, match=rf"1 rows would be skipped, max_skipped allows 0; one of them is row {row}"):
        again(llama, tmp_path / "c", on_nan="skip")
    monkeypatch.undo()
    again(llama, tmp_path / "c")
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=True)


def test_the_limit_of_skipped_rows_holds_across_resumes_and_ranks(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = arrays_of(cache)
    lengths = found["lengths"].tolist()
    alone = [n for n in sorted(lengths)[2:-2] if lengths.count(n) == 1]
    first, last = (next(n for n in part if n in alone) for part in (lengths[:10], lengths[10:20]))
    poison(monkeypatch, {first, last})
    for _ in range(2):
        with pytest.raises(RunError, match="2 rows would be skipped, max_skipped allows 1"):
            again(llama, tmp_path / "c", on_nan="skip", max_skipped=0.05)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    again(llama, tmp_path / "d", on_nan="skip", max_skipped=0.05)
    monkeypatch.setenv("RANK", "1")
    for _ in range(2):
        with pytest.raises(RunError, match="2 rows would be skipped, max_skipped allows 1"):
            again(llama, tmp_path / "d", on_nan="skip", max_skipped=0.05)
    assert not (tmp_path / "d" / "skipped.jsonl").exists()
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    again(llama, tmp_path / "c", on_nan="skip", max_skipped=0.1)
    assert headscore.inspect(tmp_path / "c", verify=True)["samples"] == 22
    with pytest.raises(InputError, match=r"was made with on_nan='skip' and leaves out row \d+ .*; give on_nan='skip' again"):
        again(llama, tmp_path / "c", max_skipped=0.1)


def test_values_that_are_not_finite_may_be_skipped_and_are_listed(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, row = length_of_one_sample(cache)
    poison(monkeypatch, {length})
    again(llama, tmp_path / "c", on_nan="skip", max_skipped=0.1)
    skipped = [json.loads(line) for line in (tmp_path / "c" / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [{"row": row, "reason": "NaN or infinite 'last_token/output_norm' from layer 0 on"}]
    facts = headscore.inspect(tmp_path / "c", verify=True)
    assert facts["skipped"] == skipped and facts["damaged"] == [] and facts["samples"] == 23
    whole, rest = arrays_of(cache), arrays_of(tmp_path / "c")
    place = whole["samples/row"].tolist().index(row)
    tokens = np.repeat(np.arange(24) == place, whole["lengths"])
    for name in ("samples/row", "lengths", "all_tokens/entropy", "last_token/result_norm"):
        np.testing.assert_allclose(rest[name], np.delete(whole[name], place, axis=-1), rtol=1e-5)
    for name in ("tokens/id", "tokens/span", "last_token/attention", "all_tokens/attention"):
        np.testing.assert_allclose(rest[name], np.delete(whole[name], tokens, axis=-1), atol=1e-3)


def test_padding_that_spoils_a_sample_costs_only_a_second_run(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {length_of_one_sample(cache)[0]}, only_beside_others=True)
    again(llama, tmp_path / "c")
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=False)


def test_a_model_that_overflows_is_told_by_the_self_check(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(1000)))
    for on_nan in ("stop", "skip"):
        with pytest.raises(
            RunError, match=r"self-check: row \d+: NaN or infinite .*overflows in fp32.*: (leave such rows|use another)"
        ):
            again(llama, tmp_path / "c", on_nan=on_nan)


def test_a_halved_batch_is_remembered(llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran out of memory once is not tried again in the next shards."""
    real, tried = recorder.Recorder.start, []

    def start(self: recorder.Recorder, lengths: torch.Tensor, *prefix: prefixes.Prefix | None, **options: bool) -> None:
        tried.append(len(lengths) * int(lengths.max()) > 400)
        if tried[-1]:
            raise torch.OutOfMemoryError("no memory")
        real(self, lengths, *prefix, **options)

    monkeypatch.setattr(recorder.Recorder, "start", start)
    again(llama, tmp_path / "c", batch_tokens=5000)
    first, count = tried.index(True), sum(tried)
    assert tried[first : first + count] == [True] * count, "all in the first shard"
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=False)


# ----------------------------------------------------------------------------------------------------------------- disks


def test_the_size_is_told_and_matches_what_is_written(cache: Path, llama: Path, tmp_path: Path) -> None:
    for path in open_cache(cache).shards:
        with Shard(path) as shard:
            told = shard_bytes("all_tokens", shard.samples, shard.tokens, shard.layers, shard.heads)
        assert told < path.stat().st_size < told + space.METADATA_BYTES


def test_too_little_space_stops_before_the_model_is_loaded(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**5, 10**5))
    monkeypatch.setattr(headscore.capture.model.models, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=r"about 0\.\d MB are needed for 3 shards and 0\.1 MB are free; make room"):
        again(llama, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("MAX_TOKENS", r"a shard would have a sample of \d+ tokens, and with 4 heads in a layer none may have more than 40"),
        ("MAX_SHARD_TOKENS", r"a shard would have \d+ tokens, more than 40"),
    ],
)
def test_more_tokens_than_a_shard_may_have_stop_before_the_model_is_loaded(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, message: str
) -> None:
    monkeypatch.setattr(f"headscore.data.cache.layout.{limit}", 40)
    monkeypatch.setattr(headscore.capture.model.models, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=message):
        again(llama, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_resumed_capture_needs_space_for_the_rest_only(
    llama: Path, cache: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    shard_path(copy, 2).unlink()
    free = shard_path(cache, 2).stat().st_size + space.METADATA_BYTES
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage(10**9, 0, free))
    again(llama, copy)
    assert_same(arrays_of(cache), arrays_of(copy), exactly=True)


@pytest.mark.parametrize("refusal", ["ENOSPC", "EDQUOT", "EIO", "ESTALE"])
def test_a_disk_that_fills_up_or_fails_keeps_whole_shards(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    real, flushed, why = os.fsync, [], os.strerror(getattr(errno, refusal))

    def fsync(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) > 4:  # cache.json and its folder, shard 0 and its folder, …
            raise OSError(getattr(errno, refusal), why)
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(RunError, match=f"{why}; whole shards are kept: remedy that, then run the same command"):
        again(llama, tmp_path / "c")
    monkeypatch.undo()
    left = sorted(path.name for path in (tmp_path / "c" / "shards").iterdir())
    assert left == ["00000.h5"]
    kept = files_of(tmp_path / "c")
    again(llama, tmp_path / "c")
    assert files_of(tmp_path / "c")["00000.h5"] == kept["00000.h5"]
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=True)


# ---------------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize(
    ("signals", "status", "stored"), [(["SIGINT"], 130, 1), (["SIGINT"] * 2, 130, 0), (["SIGTERM"], 143, 0)]
)
def test_an_interrupted_capture_finishes_or_drops_its_shard(
    llama: Path, cache: Path, tmp_path: Path, signals: list[str], status: int, stored: int
) -> None:
    """The signals come while the first shard is computed."""
    program = (
        "import os, signal, sys\n"
        "from headscore import cli\n"
        "from headscore.capture.recording.recorder import Recorder\n"
        "from headscore.capture.recording.runner import Runner\n"
        "signals, real, fit, checked = sys.argv.pop(1).split(','), Recorder.take, Runner.fit, []\n"
        "def take(recorder):\n"
        "    if checked and checked.pop():\n"  # in the first batch after the self-check
        "        [os.kill(os.getpid(), getattr(signal, name)) for name in signals]\n"
        "    return real(recorder)\n"
        "Recorder.take, Runner.fit = take, lambda *of: checked.append(True) or fit(*of)\n"
        "cli.main()\n"
    )
    options = ["--max-samples", "24", "--shard-size", "10", "--queries", "all_tokens", "--seed", "7"]
    command = [sys.executable, "-c", program, ",".join(signals), "capture", "--model", str(llama), "--out", str(tmp_path / "c")]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if status == 130:
        assert done.stderr.splitlines()[-1].endswith("interrupted; the same command continues where it stopped")
    assert ("stopping after the shard in hand" in done.stderr) == bool(stored)
    assert len(list((tmp_path / "c").rglob("*.h5"))) == stored
    assert not list((tmp_path / "c").rglob(f"*{files.TEMPORARY}"))
    again(llama, tmp_path / "c")
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=True)


def test_a_capture_in_a_thread_leaves_signals_alone(llama: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(again, llama, tmp_path / "c", max_samples=3).result()
    again(llama, tmp_path / "d", max_samples=3)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_device_map_spreads_the_model(llama: Path, cache: Path, tmp_path: Path) -> None:
    """On a machine without a GPU, auto puts all of it on the CPU; the hooks that move tensors are there all the same."""
    again(llama, tmp_path / "c", device_map="auto")
    assert_same(arrays_of(cache), arrays_of(tmp_path / "c"), exactly=True)
    with pytest.raises(InputError, match="device_map: chooses the devices itself"):
        again(llama, tmp_path / "d", device_map="auto", device="cpu")


def test_rows_whose_spans_are_not_found_are_left_out_as_the_capture_goes_on(
    llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found shard by shard beside the model, but are no fault of the model's: a resume takes them as they are."""
    rows = arrays_of(cache)["samples/row"].tolist()
    real, reason = samples.mark, "its spans could not be matched to tokens"

    def mark(encoded: Encoded, *of: Any) -> Sample | Skipped:
        return Skipped(encoded.row, reason) if encoded.row in unmatched else real(encoded, *of)

    monkeypatch.setattr(samples, "mark", mark)
    unmatched = {rows[0]}
    with pytest.raises(InputError, match=rf"1 of 24 rows would be skipped .*the first is row {rows[0]}: {reason}"):
        again(llama, tmp_path / "c")
    unmatched = {rows[12], rows[23]}
    with pytest.raises(RunError, match=rf"1 rows would be skipped, max_skipped allows 0; one of them is row {rows[12]}"):
        again(llama, tmp_path / "c")
    assert [path.name for path in shard_files(tmp_path / "c")] == ["00000.h5"]
    for _ in range(2):
        again(llama, tmp_path / "c", max_skipped=0.1)
    facts = headscore.inspect(tmp_path / "c", verify=True)
    assert facts["samples"] == 22 and facts["damaged"] == []
    assert facts["skipped"] == [{"row": row, "reason": reason} for row in (rows[12], rows[23])]
    unmatched = {*rows[10:20], rows[23]}
    shard_path(tmp_path / "c", 1).unlink()
    again(llama, tmp_path / "c", max_skipped=0.5)
    assert headscore.inspect(tmp_path / "c")["samples"] == 13, "a shard may be left with no sample"
