"""What scoring keeps in derived/ saves time and never changes a result, whatever lies there."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cache import flipped

import headscore
from headscore.data.cache import Cache, shard_path
from headscore.data.errors import InputError, RunError
from headscore.data.reader import Shard

TABLES = ("raw", "norm", "combined", "topk_global", "topk_per_layer")


@pytest.fixture
def own(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own whose signals are kept at once, however young its shards are."""
    monkeypatch.setattr("headscore.score.derived.SETTLED_NS", 0)
    return Path(shutil.copytree(cache, tmp_path / "own", ignore=shutil.ignore_patterns("derived")))


def assert_like_fresh(cache: Path, **options: object) -> None:
    """Scores and lines are those of the shards to the last bit, or the same error is raised."""
    try:
        fresh = headscore.score(cache, fresh=True, **options)
    except InputError as error:
        with pytest.raises(InputError) as found:
            headscore.score(cache, **options)
        assert str(found.value) == str(error)
        return
    kept = headscore.score(cache, **options)
    for name in TABLES:
        assert getattr(kept, name).equals(getattr(fresh, name)), name
    lines = {fresh: headscore.scan_cache(cache, fresh=fresh, **options).collect() for fresh in (False, True)}
    assert lines[False].equals(lines[True])


def kept_files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((cache / "derived").iterdir())}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score_query_mode": "all_tokens", "task_span": ["choices", "template"]},
        {"head_output": "result", "task_span": ["special"]},
    ],
)
def test_what_is_kept_changes_no_bit(own: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    headscore.score(own)
    headscore.score(own, **options)
    assert_like_fresh(own, **options)
    before = kept_files(own)
    assert len(before) in (6, 9, 12)  # shards times passes, of one definition or two
    monkeypatch.setattr(Cache, "open_shard", lambda *_: pytest.fail("a shard was opened"))
    headscore.score(own, lambda_task=3, norm_mode="percentile", **options)
    assert kept_files(own) == before


def test_another_span_reads_rows_alone(own: Path, arrays_read: set[str]) -> None:
    headscore.score(own)
    arrays_read.clear()
    headscore.score(own, task_span="choices")
    assert "last_token/attention" in arrays_read and "last_token/output_norm" not in arrays_read


def replaced(shard: Path) -> None:
    """By another shard's file, of the same size and times as far as a program can set them."""
    times = shard.stat()
    content = shard.read_bytes()
    other = flipped(content, len(content) * 4)
    shard.unlink()
    shard.write_bytes(other)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def flipped_in_place(shard: Path) -> None:
    times = shard.stat()
    content = flipped(shard.read_bytes(), shard.stat().st_size * 4)
    with shard.open("r+b") as file:
        file.write(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def other_values(shard: Path) -> None:
    """A sound shard of the same capture and size, with other values."""
    with shard.open("r+b"), Shard(shard) as opened:
        arrays = {name: opened.read(name) for name in opened.names}
        arrays["last_token/output_norm"] = arrays["last_token/output_norm"] * 2
        metadata = opened.metadata
    times = shard.stat()
    from headscore.data.shard import write_shard

    write_shard(shard, 1, arrays, metadata, [])
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def other_capture(shard: Path) -> None:
    path = shard.parent.parent / "cache.json"
    made = json.loads(path.read_text())
    made["settings"]["seed"] += 1
    path.write_text(json.dumps(made))


CHANGES: dict[str, Callable[[Path], None]] = {
    "flipped and replaced": replaced,
    "flipped in place": flipped_in_place,
    "other values": other_values,
    "touched": lambda shard: os.utime(shard),
    "cut": lambda shard: os.truncate(shard, 1000),
    "gone": Path.unlink,
    "a link": lambda shard: (shard.rename(shard.with_suffix(".old")), shard.symlink_to(shard.with_suffix(".old")))[1],
    "another capture": other_capture,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_shard_that_changed_is_read_again(own: Path, what: str) -> None:
    headscore.score(own)
    CHANGES[what](shard_path(own, 1))
    assert_like_fresh(own)


def test_a_copied_folder_is_not_believed(own: Path, tmp_path: Path) -> None:
    """Nobody can send a cache along with signals that are not its own."""
    headscore.score(own)
    copy = Path(shutil.copytree(own, tmp_path / "copy"))
    before = kept_files(copy)
    assert_like_fresh(copy)
    assert all(before[name] != content for name, content in kept_files(copy).items())


def test_a_shard_that_has_just_changed_is_not_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change again within the same tick of the file system's clock."""
    monkeypatch.undo()
    monkeypatch.setattr("headscore.score.derived.SETTLED_NS", 1 << 40)
    headscore.score(own)
    assert not (own / "derived").exists()


def test_a_damaged_file_is_made_again(own: Path) -> None:
    headscore.score(own)
    right, random = kept_files(own), np.random.default_rng(0)
    for _ in range(25):
        path = own / "derived" / random.choice(list(right))
        content = right[path.name]
        cut = random.random() < 0.3
        damaged = content[: random.integers(len(content))] if cut else flipped(content, int(random.integers(len(content) * 8)))
        path.write_bytes(damaged)
        assert_like_fresh(own)
    for name, content in right.items():
        (own / "derived" / name).write_bytes(content)
        (own / "derived" / name.replace("00000", "00001")).write_bytes(content)
    assert_like_fresh(own)


def huge(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.index(b"\n") + 1
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "make",
    [
        huge,
        lambda path: path.write_bytes(b""),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.rename(path.with_suffix(".old")), path.symlink_to(path.with_suffix(".old"))),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    ],
)
def test_hostile_files_are_passed_over(own: Path, make: Callable[[Path], None]) -> None:
    headscore.score(own)
    make(own / "derived" / "00001.rows.last_token.span1")
    assert_like_fresh(own)


@pytest.mark.parametrize("make", [lambda path, to: path.symlink_to(to), lambda path, to: path.write_text("mine")])
def test_only_a_folder_of_the_cache_is_written_to(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make(own / "derived", elsewhere)
    with caplog.at_level(logging.INFO, "headscore"):
        headscore.score(own)
    assert "derived: is not a folder of this cache" in caplog.text
    assert_like_fresh(own)
    assert not list(elsewhere.iterdir())


def test_a_disk_that_takes_nothing_is_told_once(
    own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise RunError(f"{path}: cannot be written: Read-only file system")

    monkeypatch.setattr("headscore.score.derived.write_bytes", refuse)
    with caplog.at_level(logging.INFO, "headscore"):
        headscore.score(own)
    told = [line for line in caplog.messages if "Read-only file system" in line]
    assert len(told) == 1 and told[0].startswith("signals are not kept")
    assert_like_fresh(own)


def test_many_at_once_do_no_harm(own: Path) -> None:
    program = (
        "import sys, headscore, headscore.score.derived as derived; derived.SETTLED_NS = 0\n"
        "for _ in range(10): print(headscore.score(sys.argv[1]).raw.hash_rows().to_list())"
    )
    command = [sys.executable, "-c", program, str(own)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=100)[0].splitlines() for process in running]
    assert {len(lines) for lines in printed} == {10} and len({line for lines in printed for line in lines}) == 1
    assert_like_fresh(own)
    assert not [name for name in kept_files(own) if name.startswith(".")]


def test_whoever_reads_the_shards_keeps_the_same(own: Path) -> None:
    headscore.score(own)
    alone = kept_files(own)
    shutil.rmtree(own / "derived")
    headscore.score(own, workers=2)
    assert kept_files(own) == alone
    assert_like_fresh(own)


def test_fresh_leaves_it_alone(own: Path) -> None:
    headscore.score(own, fresh=True)
    assert not (own / "derived").exists()


def test_a_shard_alone_keeps_nothing(own: Path) -> None:
    headscore.score(shard_path(own, 1))
    assert not list(own.rglob("*.last_token*"))


def test_other_commands_pass_over_it(own: Path, llama: Path, tmp_path: Path) -> None:
    facts = headscore.inspect(own, verify=True)
    headscore.score(own)
    assert headscore.inspect(own, verify=True) == facts
    headscore.merge([own], tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["cache.json", "shards", "skipped.jsonl"]
    options = {"model": str(llama), "max_samples": 24, "shard_size": 10, "seed": 7}
    shard_path(own, 1).unlink()
    headscore.capture(own, queries="all_tokens", **options)
    assert_like_fresh(own)
    headscore.capture(own, overwrite=True, **options)
    assert_like_fresh(own)


def test_a_partial_cache_keeps_what_is_there(own: Path) -> None:
    whole = shard_path(own, 1).read_bytes()
    shard_path(own, 1).unlink()
    assert_like_fresh(own, partial=True)
    shard_path(own, 1).write_bytes(whole)
    assert_like_fresh(own)


def test_leftovers_of_killed_processes_are_removed(own: Path) -> None:
    (own / "derived").mkdir()
    (own / "derived" / ".00000.rows.last_token.span1.x.headscore-tmp").write_text("half")
    headscore.score(own)
    assert len(kept_files(own)) == 6
