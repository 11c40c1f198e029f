"""What scoring keeps in derived/ saves time and never changes a result, whatever lies there."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from damage import flipped

import headscore
from headscore.data.cache.folder import Cache, shard_path
from headscore.data.cache.reader import Shard
from headscore.data.errors import InputError, RunError

FILES = 6  # of three shards, in one query mode


@pytest.fixture
def own(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own whose measures are kept at once, however young its shards are, with a home of its own."""
    monkeypatch.setattr("headscore.score.kept.SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return Path(shutil.copytree(cache, tmp_path / "own", ignore=shutil.ignore_patterns("derived")))


def assert_like_fresh(cache: Path, **options: Any) -> None:
    """Scores and lines are those of the shards to the last bit, or the same error is raised."""
    try:
        fresh = headscore.score(cache, fresh=True, **options)
    except InputError as error:
        with pytest.raises(InputError) as found:
            headscore.score(cache, **options)
        assert str(found.value) == str(error)
        return
    assert headscore.score(cache, **options).heads.equals(fresh.heads)
    scanned = {
        name: value for name, value in options.items() if name not in ("weight", "fusion", "norm_mode", "within", "lambda_task")
    }
    lines = {fresh: headscore.scan_cache(cache, fresh=fresh, **scanned).collect() for fresh in (False, True)}
    assert lines[False].equals(lines[True])


def kept_files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((cache / "derived").iterdir())}


def no_shard_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "open_shard", lambda *_: pytest.fail("a shard was opened"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score_query_mode": "all_tokens", "task_span": ["choices", "template"]},
        {"head_output": "result", "task_span": ["special"]},
        {"measure": {"recent": "position >= tokens - 10"}, "signal": {"late": "recent / largest"}, "weight": {"late": -1}},
    ],
)
def test_what_is_kept_changes_no_bit(own: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    headscore.score(own)
    headscore.score(own, **options)
    assert_like_fresh(own, **options)
    before = kept_files(own)
    assert len(before) in (FILES, 2 * FILES)  # of one query mode or two
    no_shard_is_opened(monkeypatch)
    headscore.score(own, lambda_task=3, norm_mode="percentile", **options)
    assert kept_files(own) == before


@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
@pytest.mark.parametrize(
    "options",
    [
        {"lambda_task": 3, "weight": {"lift": -2, "out": 0}},
        {"task_span": "choices"},
        {"task_span": "template", "head_output": "result"},
        {"fusion": "rrf", "within": "model", "by": "kv_head"},
        {"fusion": "sum", "norm_mode": "ratio"},
        {"signal": {"mine": "mass_question * exp(-entropy)"}, "weight": {"mine": 1}},
        {"signal": {"mine": pl.col("mass_choices").sqrt() - pl.col("rest")}},
    ],
)
def test_another_ranking_opens_no_shard(own: Path, mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do lines of a scan, once any score was made in the query mode."""
    fresh = headscore.score(own, score_query_mode=mode, fresh=True, **options)
    headscore.score(own, score_query_mode=mode)
    no_shard_is_opened(monkeypatch)
    for _ in range(2):
        assert headscore.score(own, score_query_mode=mode, **options).heads.equals(fresh.heads)
    assert headscore.scan_cache(own, score_query_mode=mode).select("sample", "ent", "mass_special").collect().height == 24 * 12


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({"measure": {"recent": "position >= tokens - 10"}, "signal": {"late": "recent"}}, set()),
        ({"task_span": ["choices", "question"]}, {"samples/row", "samples/offset"}),
    ],
)
def test_a_new_measure_reads_rows_alone_and_is_kept_too(
    own: Path, options: dict[str, Any], read: set[str], arrays_read: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    headscore.score(own)
    arrays_read.clear()
    computed: list[set[str]] = []
    from headscore.score import shard_source

    real = shard_source.block_measures
    monkeypatch.setattr(shard_source, "block_measures", lambda *given: (computed.append(set(given[3])), real(*given))[1])
    headscore.score(own, **options)
    assert computed and all(len(names) == 1 for names in computed), "what is kept is not computed anew"
    assert arrays_read == {"last_token/attention", "tokens/span", "layers/index", *read}
    assert_like_fresh(own, **options)
    no_shard_is_opened(monkeypatch)
    headscore.score(own, lambda_ent=2, **options)
    signal = {**options.get("signal", {}), "other": "1 + " + ("recent" if "measure" in options else "task_mass")}
    headscore.score(own, **{**options, "signal": signal})
    headscore.score(own)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"signal": {"mine": "entropy"}}, {"signal": {"mine": "largest"}}),
        ({"measure": {"w": "position"}, "signal": {"mine": "w"}}, {"measure": {"w": "position + 1"}, "signal": {"mine": "w"}}),
        ({"signal": {"mine": "task_mass"}}, {"signal": {"mine": "task_mass"}, "task_span": "choices"}),
        ({"signal": {"mine": "norm"}}, {"signal": {"mine": "norm"}, "head_output": "result"}),
        ({"signal": {"mine": "norm"}}, {"signal": {"mine": "norm"}, "score_query_mode": "all_tokens"}),
        ({"signal": {"mine": pl.col("sink") * 2}}, {"signal": {"mine": pl.col("sink") * 3}}),
    ],
)
def test_another_definition_of_the_same_name_is_another_signal(
    own: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    headscore.score(own, **before)
    assert_like_fresh(own, **after)
    assert_like_fresh(own, **before)


LATER = """
def doubled(values):
    return values[0] * {factor}

def added(one, other):
    return (one + other) * {factor}
"""


@pytest.mark.parametrize(
    "signal",
    [
        lambda module: pl.col("sink").map_batches(lambda values: module.doubled([values])),
        lambda module: pl.map_batches(["sink"], module.doubled),
        lambda module: pl.map_batches([pl.col("sink")], lambda values: module.doubled(values)),
        lambda module: pl.reduce(module.added, [pl.col("sink"), pl.col("rest")]),
        lambda module: pl.struct("sink").map_batches(lambda values: module.doubled([values.struct.field("sink")])),
    ],
)
def test_python_code_that_changed_is_not_taken_for_what_it_was(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: Callable[[Any], pl.Expr]
) -> None:
    """An expression that calls Python may say nothing of what is called but its name."""
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for factor in (2, 30):
        (tmp_path / "called_by_signals.py").write_text(LATER.format(factor=factor))
        sys.modules.pop("called_by_signals", None)
        importlib.invalidate_caches()
        module = importlib.import_module("called_by_signals")
        found.append(headscore.score(own, signal={"mine": signal(module)}).heads["mine"])
    np.testing.assert_allclose(found[1], found[0] * 15)


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
    from headscore.data.cache.shard import write_shard

    write_shard(shard, 1, arrays, metadata, [])
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def other_capture(shard: Path) -> None:
    path = shard.parent.parent / "cache.json"
    made = json.loads(path.read_text())
    made["settings"]["seed"] += 1
    path.write_text(json.dumps(made))


CHANGES: dict[str, Callable[[Path], Any]] = {
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
    """Nobody can send a cache along with measures that are not its own."""
    headscore.score(own)
    copy = Path(shutil.copytree(own, tmp_path / "copy"))
    before = kept_files(copy)
    for path in (copy / "derived").glob("*.parquet"):
        pl.read_parquet(path).with_columns(pl.all() * 2).write_parquet(path)
    assert_like_fresh(copy)
    after = kept_files(copy)
    assert all(before[name] != content for name, content in after.items() if name.endswith(".json"))
    assert all(before[name] == content for name, content in after.items() if name.endswith(".parquet")), "made again"


def test_a_shard_that_has_just_changed_is_not_kept(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could change again within the same tick of the file system's clock."""
    monkeypatch.setattr("headscore.score.kept.SETTLED_NS", 1 << 40)
    headscore.score(own)
    assert not (own / "derived").exists() and not (tmp_path / "home").exists()


def test_a_damaged_file_is_made_again(own: Path) -> None:
    """With every bit of both kinds of files as likely to be hit, and every length to be cut to."""
    signal = {"mine": "mass_choices - sink"}  # its sums are not kept yet, so that measures are asked for
    headscore.score(own)
    right, random = kept_files(own), np.random.default_rng(0)
    for number in range(60):
        for name, content in right.items():
            (own / "derived" / name).write_bytes(content)
        path = own / "derived" / random.choice(list(right))
        content = right[path.name]
        cut = random.random() < 0.3
        damaged = content[: random.integers(len(content))] if cut else flipped(content, int(random.integers(len(content) * 8)))
        path.write_bytes(damaged)
        assert_like_fresh(own, **({"signal": signal} if number % 2 else {}))
    for name, content in right.items():
        (own / "derived" / name).write_bytes(content)
        (own / "derived" / name.replace("00000", "00001")).write_bytes(content)
    assert_like_fresh(own, signal=signal)


def test_a_damaged_table_is_read_from_the_shard_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headscore.score(own)
    table = own / "derived" / "00001.last_token.parquet"
    right = table.read_bytes()
    table.write_bytes(flipped(right, len(right) * 4))
    headscore.score(own, signal={"mine": "sink + 1"})
    assert table.read_bytes() == right
    no_shard_is_opened(monkeypatch)
    headscore.score(own, signal={"mine": "sink + 2"})


def another_modes(path: Path) -> None:
    path.write_bytes(path.with_name(path.name.replace("last_token", "all_tokens")).read_bytes())


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_itself_moved(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.symlink_to(path.with_suffix(".old"))


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    """Sparse: it has no blocks, and a terabyte of zeros."""
    os.truncate(path, 1 << 40)


def numbers_alone(path: Path) -> None:
    path.write_text("12345678\n[1, 2, 3]")


HOSTILE = [
    another_modes,
    a_fifo,
    a_folder,
    a_link_to_itself_moved,
    endless,
    huge,
    numbers_alone,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"PAR1" + path.read_bytes()[4:]),
    lambda path: path.write_bytes(path.read_bytes() * 2),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_files_are_passed_over(own: Path, kind: str, make: Callable[[Path], Any]) -> None:
    headscore.score(own)
    headscore.score(own, score_query_mode="all_tokens")
    make(own / "derived" / f"00001.last_token.{kind}")
    assert_like_fresh(own)
    assert_like_fresh(own, signal={"mine": "sink + distance"}, task_span="choices")


def with_checksum(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a JSON file says, with a checksum that fits."""
    import zlib

    content = json.loads(path.read_bytes()[9:])
    change(content)
    text = json.dumps(content).encode()
    path.write_bytes(f"{zlib.crc32(text):08x}\n".encode() + text)


WRONG: list[Callable[[dict[str, Any]], Any]] = [
    lambda content: content.update(sums=3),
    lambda content: content.update(sums={"x": ["A"]}),
    lambda content: content.update(sums={name: ["AAAA"] * 2 for name in content["sums"]}),
    lambda content: content.update(measures=[1]),
    lambda content: content.update(parquet=None),
    lambda content: content.update(samples=None),
    lambda content: content.pop("samples"),
    lambda content: content["samples"].pop("row"),
    lambda content: content["samples"].update(tokens="x"),
    lambda content: content["samples"].update(tokens=[[1]]),
    lambda content: content.update(bytes=content["bytes"] + 1),
    lambda content: content.update(shard="00000.h5"),
    lambda content: content.update({"headscore-derived": 2}),
]


@pytest.mark.parametrize("change", WRONG, ids=map(str, range(len(WRONG))))
def test_a_file_of_another_form_is_passed_over(own: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Such as another version of headscore may write one."""
    headscore.score(own)
    with_checksum(own / "derived" / "00001.last_token.json", change)
    assert_like_fresh(own, signal={"mine": "sink + 1"})


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


def refusing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Writing below a folder fails, as on a disk that is read-only; the tests may run as root, whom no mode keeps out."""
    from headscore.score import kept

    real = kept.write_bytes

    def write(path: Path, *given: Any, **more: Any) -> bool:
        if path.is_relative_to(folder):
            raise RunError(f"{path}: cannot be written: Read-only file system")
        return real(path, *given, **more)

    monkeypatch.setattr(kept, "write_bytes", write)


def test_a_read_only_cache_is_kept_in_the_users_cache_folder(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(monkeypatch, own)
    before = sorted(own.rglob("*"))
    with caplog.at_level(logging.INFO, "headscore"):
        headscore.score(own)
    assert sorted(own.rglob("*")) == before and "not kept" not in caplog.text
    (folder,) = (tmp_path / "home" / "headscore" / "derived").iterdir()
    assert len(list(folder.iterdir())) == FILES
    assert_like_fresh(own, signal={"mine": "sink"})
    other = Path(shutil.copytree(own, tmp_path / "other"))
    headscore.score(other)
    assert (other / "derived").is_dir() and len(list(folder.parent.iterdir())) == 1, "each cache has a place of its own"
    no_shard_is_opened(monkeypatch)
    headscore.score(own, lambda_task=7, task_span="choices")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_folder_without_permission_is_a_read_only_cache(own: Path, tmp_path: Path) -> None:
    own.chmod(0o555)
    try:
        headscore.score(own)
        assert not (own / "derived").exists() and (tmp_path / "home" / "headscore" / "derived").is_dir()
    finally:
        own.chmod(0o755)


def test_a_disk_that_takes_nothing_is_told_once(
    own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(monkeypatch, Path("/"))
    with caplog.at_level(logging.INFO, "headscore"):
        headscore.score(own)
    told = [line for line in caplog.messages if "Read-only file system" in line]
    assert len(told) == 1 and told[0].startswith("measures are not kept")
    assert_like_fresh(own)


def test_many_at_once_do_no_harm(own: Path) -> None:
    program = (
        "import sys, headscore, headscore.score.kept as kept; kept.SETTLED_NS = 0\n"
        "signal = {'mine': f'sink * {sys.argv[2]}'}\n"
        "measure = {'w': f'position * {sys.argv[2]}'}\n"
        "for _ in range(10): print(headscore.score(sys.argv[1], signal=signal, measure=measure).raw.hash_rows().to_list())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(own), str(number)], stdout=subprocess.PIPE, text=True)
        for number in (1, 2, 2)
    ]
    printed = [process.communicate(timeout=200)[0].splitlines() for process in running]
    assert {len(lines) for lines in printed} == {10} and len({line for lines in printed for line in lines}) == 1
    for number in (1, 2):
        assert_like_fresh(own, measure={"w": f"position * {number}"}, signal={"mine": f"sink * {number} + w"})
    assert not [name for name in kept_files(own) if name.startswith(".")]


def test_threads_of_one_process_do_no_harm(own: Path) -> None:
    fresh = headscore.score(own, fresh=True).heads
    found: list[pl.DataFrame] = []
    threads = [threading.Thread(target=lambda: found.append(headscore.score(own).heads)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(heads.equals(fresh) for heads in found)


def test_whoever_reads_the_shards_keeps_the_same(own: Path) -> None:
    headscore.score(own)
    alone = kept_files(own)
    shutil.rmtree(own / "derived")
    headscore.score(own, workers=2)
    assert kept_files(own) == alone
    assert_like_fresh(own)


@pytest.mark.parametrize("items", [1, 3000])
def test_blocks_keep_the_same(own: Path, monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    headscore.score(own)
    alone = kept_files(own)
    shutil.rmtree(own / "derived")
    monkeypatch.setattr("headscore.data.cache.reader.BLOCK_ITEMS", items)
    headscore.score(own)
    assert {name: content for name, content in kept_files(own).items() if name.endswith("parquet")} == {
        name: content for name, content in alone.items() if name.endswith("parquet")
    }
    assert_like_fresh(own)


def test_fresh_leaves_it_alone(own: Path, tmp_path: Path) -> None:
    headscore.score(own, fresh=True)
    headscore.scan_cache(own, fresh=True).collect()
    assert not (own / "derived").exists() and not (tmp_path / "home").exists()


def test_a_shard_alone_keeps_nothing(own: Path, tmp_path: Path) -> None:
    headscore.score(shard_path(own, 1))
    assert not list(own.rglob("*.last_token*")) and not (tmp_path / "home").exists()


def test_what_is_too_large_to_keep_is_not_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums still are."""
    monkeypatch.setattr("headscore.score.kept.MAX_BYTES", 1000)
    headscore.score(own)
    assert sorted(kept_files(own)) == [f"{number:05d}.last_token.json" for number in range(3)]
    assert_like_fresh(own, signal={"mine": "sink"})
    no_shard_is_opened(monkeypatch)
    headscore.score(own, lambda_task=2)


def test_samples_too_many_to_be_read_again_are_not_kept(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscore.score.kept.MAX_ELEMENTS", 2)
    headscore.score(own)
    assert not (own / "derived").exists()
    assert_like_fresh(own, signal={"mine": "sink"})


def test_old_sums_make_room(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscore.score.kept.MAX_SUMS", 30)
    for number in range(30):
        headscore.score(own, signal={"mine": f"sink * {number}"})
    content = json.loads((own / "derived" / "00001.last_token.json").read_bytes()[9:])
    assert len(content["sums"]) == 30 and any(name.startswith("mine") for name in content["sums"])
    assert_like_fresh(own, signal={"mine": "sink * 1"})


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
    (own / "derived" / ".00000.last_token.json.x.headscore-tmp").write_text("half")
    headscore.score(own)
    assert len(kept_files(own)) == FILES
