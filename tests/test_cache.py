import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from damage import change, damage, flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from made_caches import BY_HAND, metadata, write_cache

import headscore
from headscore.data.cache.folder import open_cache, read_metadata, shard_path
from headscore.data.cache.reader import Shard, verify_shard
from headscore.data.cache.shard import ARRAYS, write_shard
from headscore.data.errors import DamagedShardError, InputError, RunError

LAYERS, HEADS = 2, 3


def arrays_of_lengths(lengths: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    dims = {"n": len(lengths), "n+1": len(lengths) + 1, "t": sum(lengths), "L": LAYERS, "H": HEADS}
    made = {name: random.random([dims[axis] for axis in axes]).astype(dtype) for name, (dtype, axes) in ARRAYS.items()}
    made["samples/row"] = np.arange(len(lengths)) * 3
    made["samples/offset"] = np.cumsum([0, *lengths])
    made["layers/index"] = np.array([1, 4])
    for name in ("last_token/attention", "all_tokens/attention"):
        rows = [random.dirichlet(np.ones(n), size=(LAYERS, HEADS)) for n in lengths]
        made[name] = np.concatenate(rows, axis=-1) if rows else np.zeros((LAYERS, HEADS, 0))
    return made


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 30), max_size=6))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    folder = tmp_path_factory.mktemp("cache")
    arrays = arrays_of_lengths(lengths)
    made = metadata(LAYERS, HEADS, {"layers": [1, 4]})
    skipped = [{"row": 1, "reason": "too long — 你好"}]
    write_shard(shard_path(folder, 7), 7, arrays, made, skipped)
    with Shard(shard_path(folder, 7)) as shard:
        verify_shard(shard)
        assert (shard.samples, shard.tokens, shard.layers, shard.heads) == (len(lengths), sum(lengths), LAYERS, HEADS)
        assert shard.metadata == made and shard.skipped == skipped and shard.number == 7
        for name, (dtype, axes) in ARRAYS.items():
            assert shard.read(name).dtype == np.dtype(dtype)
            np.testing.assert_array_equal(shard.read(name), arrays[name].astype(dtype))
            if axes[0] == "L" and len(axes) > 1:
                np.testing.assert_array_equal(shard.read(name, 1), arrays[name][1].astype(dtype))


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), sizes=st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_how_arrays_are_cut_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], sizes: tuple[int, int]
) -> None:
    folder, arrays = tmp_path_factory.mktemp("cache"), arrays_of_lengths(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headscore.data.cache.shard.CHUNK_ITEMS", sizes[0])
        patch.setattr("headscore.data.cache.reader.BLOCK_ITEMS", sizes[1])
        patch.setattr("headscore.data.cache.value_checks._ITEMS", sizes[1])
        patch.setattr("headscore.data.cache.layout.LEAST_CHUNK_BYTES", 1)
        made = metadata(LAYERS, HEADS, {"layers": [1, 4]})
        write_shard(shard_path(folder, 0), 0, arrays, made, [])
        with Shard(shard_path(folder, 0)) as shard:
            per_head = [name for name, (_, axes) in ARRAYS.items() if axes[:2] == ("L", "H")]
            for name, layer in itertools.product(per_head, range(LAYERS)):
                expected = arrays[name][layer].astype(ARRAYS[name][0])
                blocks = [shard.read(name, layer, block) for block in shard.blocks()]
                np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected)


def test_the_file_is_as_the_format_says(cache: Path) -> None:
    """Read with h5py alone, as docs/cache-format.md tells another tool to."""
    with h5py.File(shard_path(cache, 0), locking=False) as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        assert {name: item.dtype.name for name, item in found.items()} == {name: dtype for name, (dtype, _) in ARRAYS.items()}
        assert all(item.chunks and item._filters.keys() == {"fletcher32"} for item in found.values())
        assert list(file["tokens/span"].attrs["names"]) == [b"question", b"choices", b"template", b"special"]
        assert file.attrs["format"] == b"headscore-cache" and file.attrs["format_version"] == 1
        stored = {key: json.loads(value) for key, value in file.attrs.items() if isinstance(value, bytes) and key != "format"}
        whole = json.loads((cache / "cache.json").read_text())
        assert {entry["way"] for entry in stored.pop("spot_checks")} == {"eager"}
        assert {**stored, "format": "headscore-cache", "format_version": 1} == {**whole, "skipped": []}
        offset, attention = file["samples/offset"][:], file["last_token/attention"][:]
        np.testing.assert_allclose(np.add.reduceat(attention.astype(float), offset[:-1], axis=2), 1, atol=1e-3)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    arrays = arrays_of_lengths([3])
    del arrays["layers/index"]
    with pytest.raises(KeyError):
        write_shard(shard_path(tmp_path, 0), 0, arrays, metadata(LAYERS, HEADS), [])
    assert not list(tmp_path.iterdir())
    (tmp_path / "shards" / "00000.h5").mkdir(parents=True)  # what stands in the way cannot be replaced
    with pytest.raises(RunError, match="cannot be written"):
        write_shard(shard_path(tmp_path, 0), 0, arrays_of_lengths([3]), metadata(LAYERS, HEADS), [])
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.h5"]


def test_a_full_disk_ends_in_one_line_and_no_file(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_cache import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try: write_shard(Path(sys.argv[1]), 0, arrays_of_lengths([40] * 6), metadata(LAYERS, HEADS), [])\n"
        "except RunError as error: print(error)\n"
    )
    arguments = [str(tmp_path / "00000.h5"), str(Path(__file__).parent)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "00000.h5: cannot be written: File too large" in done.stdout, (done.stdout, done.stderr)
    assert not list(tmp_path.iterdir())


def replace(file: h5py.File, name: str, data: Any, checked: bool = True) -> None:
    del file[name]
    file.create_dataset(name, data=data, fletcher32=checked)


def link_outside(file: h5py.File) -> None:
    del file["tokens/span"]
    file["tokens/span"] = h5py.ExternalLink("other.h5", "/secret")


def link_inside(file: h5py.File) -> None:
    del file["tokens/span"]
    file["tokens/span"] = h5py.SoftLink("/tokens/id")


def virtual(file: h5py.File) -> None:
    del file["tokens/span"]
    layout = h5py.VirtualLayout(shape=(6,), dtype="uint8")
    layout[:] = h5py.VirtualSource("other.h5", "secret", shape=(6,))
    file.create_virtual_dataset("tokens/span", layout)


def outside_storage(file: h5py.File, name: str = "/etc/hostname") -> None:
    del file["tokens/span"]
    file.create_dataset("tokens/span", (6,), "uint8", external=[(name, 0, 24)])


def huge(file: h5py.File) -> None:
    del file["tokens/span"]
    file.create_dataset("tokens/span", (1 << 50,), "uint8", chunks=(1024,), fletcher32=True)


def large_chunks(file: h5py.File) -> None:
    del file["tokens/span"]
    file.create_dataset("tokens/span", data=np.zeros(1 << 21, "uint8"), chunks=(1 << 21,), fletcher32=True)


def other_filter(file: h5py.File, **options: Any) -> None:
    del file["tokens/span"]
    file.create_dataset("tokens/span", data=np.zeros(6, "uint8"), fletcher32=True, **options)


HOSTILE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external link": (link_outside, "'tokens/span' is missing or is not a plain array"),
    "soft link": (link_inside, "'tokens/span' is missing or is not a plain array"),
    "virtual dataset": (virtual, "'tokens/span' is not a plain array"),
    "external storage": (outside_storage, "'tokens/span' is not a plain array"),
    "huge dims": (huge, "'tokens/span' declares more data than the file holds"),
    "huge chunks": (large_chunks, "'tokens/span' would have to be read in pieces too large"),
    "lzf": (lambda f: other_filter(f, compression="lzf"), "'tokens/span' is stored through other filters than fletcher32"),
    "gzip": (lambda f: other_filter(f, compression="gzip"), "'tokens/span' is stored through other filters than fletcher32"),
    "shuffle": (lambda f: other_filter(f, shuffle=True), "'tokens/span' is stored through other filters than fletcher32"),
    "missing array": (lambda f: f.__delitem__("tokens/span"), "'tokens/span' is missing"),
    "missing group": (lambda f: f.__delitem__("layers"), "'layers/index' is missing"),
    "wrong dtype": (lambda f: replace(f, "tokens/span", np.zeros(6)), "'tokens/span' is float64 with 1 axes, not uint8"),
    "object dtype": (lambda f: replace(f, "tokens/span", ["a"] * 6, False), "'tokens/span' is object"),
    "wrong axes": (lambda f: replace(f, "tokens/span", np.zeros((2, 3), "uint8")), "2 axes, not uint8 with 1"),
    "wrong length": (lambda f: replace(f, "tokens/span", np.zeros(5, "uint8")), "does not divide the 5 tokens"),
    "wrong samples": (lambda f: replace(f, "last_token/output_norm", np.zeros((1, 2, 3), "f4")), "has 3 along n, not 2"),
    "offsets that fall": (lambda f: f["samples/offset"].write_direct(np.array([0, 7, 6])), "does not divide the 6 tokens"),
    "offsets that wrap around": (
        lambda f: f["samples/offset"].write_direct(np.array([0, -(2**63), 6])),
        "does not divide the 6",
    ),
    "no checksums": (lambda f: replace(f, "tokens/span", np.zeros(6, "uint8"), False), "'tokens/span' has no checksums"),
    "offsets that overlap": (lambda f: f["samples/offset"].write_direct(np.array([0, 4, 5])), "does not divide the 6 tokens"),
    "NaN": (lambda f: f["last_token/output_norm"].write_direct(np.full((1, 2, 2), np.nan, "f4")), "not finite"),
    "rows that are no patterns": (
        lambda f: f["last_token/attention"].write_direct(np.full((1, 2, 6), -1, "f2")),
        "not between 0 and 1",
    ),
    "metadata that is not JSON": (lambda f: f.attrs.__setitem__("plan", np.bytes_("{")), "damaged, or not a shard"),
    "metadata of other dims": (
        lambda f: f.attrs.__setitem__("dims", np.bytes_('{"layers": 3, "heads": 2}')),
        "has 1 along L, not 3 as its metadata says",
    ),
    "attributes of many values": (lambda f: f.attrs.__setitem__("more", np.arange(8000)), "damaged, or not a shard"),
    "no offsets": (lambda f: replace(f, "samples/offset", np.zeros(0, "int64"), False), "'samples/offset' has -1 along n"),
    "no format": (lambda f: f.attrs.__delitem__("format"), "is not a shard of a headscore cache"),
    "text in the heap": (lambda f: f.attrs.__setitem__("model", "{}"), "has no usable 'model'"),
    "no version": (
        lambda f: f.attrs.__setitem__("format_version", 0),
        "cache format 0, this headscore reads 1; capture it again",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_and_broken_shards_are_refused(tmp_path: Path, what: str) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    with h5py.File(tmp_path / "other.h5", "w", locking=False) as other:
        other["secret"] = np.arange(6, dtype="int32")
    do, message = HOSTILE[what]
    change(cache, do)
    with pytest.raises(InputError) as error:
        headscore.score(cache)
    assert message in str(error.value) and "00000.h5" in str(error.value)
    assert len(headscore.inspect(cache, verify=True)["damaged"]) == 1


def test_a_sample_too_large_to_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    monkeypatch.setattr("headscore.data.cache.layout.MAX_TOKENS", 3)
    with pytest.raises(DamagedShardError, match="a sample of 4 tokens, and with 2 heads in a layer none may have more than 3"):
        headscore.score(cache)
    assert len(headscore.inspect(cache, verify=True)["damaged"]) == 1


@pytest.mark.parametrize("name", ["tokens/span", "last_token/attention"])
@pytest.mark.parametrize("beyond", [1 << 20, 1 << 40, 2**63 + 8, 2**64 - 8])
def test_a_place_beyond_the_file_is_refused(tmp_path: Path, name: str, beyond: int) -> None:
    """Nothing is taken for the zeros that are said to be there; in HDF5's oldest structures, which have no checksums."""
    cache, content = write_cache(tmp_path, **BY_HAND), io.BytesIO()
    with h5py.File(shard_path(cache, 0), locking=False) as whole, h5py.File(content, "w", libver=("earliest", "v110")) as file:
        for key in whole.attrs:
            file.attrs.create(key, whole.attrs[key], dtype=whole.attrs.get_id(key).dtype)
        for group in whole:
            whole.copy(group, file)
        data = np.zeros(whole[name].shape, whole[name].dtype)
        del file[name]
        chunks = file.create_dataset(name, data=data, chunks=data.shape, fletcher32=True).id
        place = chunks.get_chunk_info(0).byte_offset.to_bytes(8, "little")
    assert content.getvalue().count(place) == 1
    shard_path(cache, 0).write_bytes(content.getvalue().replace(place, beyond.to_bytes(8, "little")))
    with pytest.raises(DamagedShardError, match=rf"00000\.h5: '{name}' has pieces that are missing"):
        headscore.score(cache)
    assert len(headscore.inspect(cache, verify=True)["damaged"]) == 1


def test_a_file_that_is_cut_while_it_is_open_is_damaged(tmp_path: Path) -> None:
    arrays = {name: np.zeros_like(values) for name, values in arrays_of_lengths([3000, 2000]).items()}
    arrays |= {"layers/index": np.array([1, 4]), "samples/offset": np.array([0, 3000, 5000])}
    made = metadata(LAYERS, HEADS, {"layers": [1, 4]})
    for name in ARRAYS:
        write_shard(shard_path(tmp_path, 0), 0, arrays, made, [])
        with Shard(shard_path(tmp_path, 0)) as shard:
            shard.require_arrays()
            os.truncate(shard_path(tmp_path, 0), 1000)
            with pytest.raises(DamagedShardError, match=r"00000\.h5: "):
                shard.read(name)


def test_an_array_is_checked_when_it_is_read(tmp_path: Path) -> None:
    """Scoring needs no token ids, so it never opens them, and tells nothing about them; `inspect` does."""
    cache = write_cache(tmp_path, **BY_HAND)
    right = headscore.score(cache).raw
    os.mkfifo(cache / "shards" / "other.h5")
    for storage, told in (("other.h5", "is not a plain array of this file"), (None, "'tokens/id' is missing")):
        change(cache, lambda file: file.__delitem__("tokens/id"))
        if storage:
            change(cache, lambda file: file.create_dataset("tokens/id", (6,), "int32", external=[(storage, 0, 24)]))  # noqa: B023
        assert headscore.score(cache).raw.equals(right)
        for verify in (False, True):
            assert told in headscore.inspect(cache, verify=verify)["damaged"][0]


@pytest.mark.parametrize("what", ["external link", "virtual dataset", "external storage"])
def test_nothing_outside_the_cache_is_read(tmp_path: Path, what: str) -> None:
    """What a hostile shard names is a pipe here: whoever opened it would wait for ever."""
    cache = write_cache(tmp_path, **BY_HAND)
    change(cache, HOSTILE[what][0])
    if what == "external storage":
        change(cache, lambda file: outside_storage(file, "other.h5"))
    os.mkfifo(cache / "shards" / "other.h5")
    program = "import sys, headscore; headscore.score(sys.argv[1])"
    command = [sys.executable, "-c", program, str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cache / "shards")
    assert "'tokens/span' is" in done.stderr and "is not a plain array of this file" in done.stderr


def test_damage_is_named_or_changes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short version of tests/damage.py."""
    monkeypatch.setattr("headscore.score.kept.SETTLED_NS", 0)
    report = damage(cache, flips=40, truncations=10, swaps=4, edits=20)
    assert report.damaged == 74 and report.fooled == 0 and report.slowest < 20
    assert report.in_array_data > 30 and report.named >= report.in_array_data


@given(st.integers(0, 10**9))
def test_any_flipped_bit_of_a_small_shard_is_named_or_harmless(tmp_path_factory: pytest.TempPathFactory, place: int) -> None:
    """Most of this shard is HDF5's own structures."""
    cache = write_cache(tmp_path_factory.mktemp("flip"), **BY_HAND)
    path = shard_path(cache, 0)
    right = headscore.score(cache).raw
    path.write_bytes(flipped(path.read_bytes(), place % (path.stat().st_size * 8)))
    try:
        assert headscore.score(cache).raw.equals(right)
    except InputError as error:
        assert "00000.h5" in str(error)


@pytest.mark.parametrize("key", ["templates", "versions", "skipped"])
@pytest.mark.parametrize("size", [1, 2000, 2100, 4000, 4100, 70_000])
def test_a_flipped_bit_of_any_text_in_the_metadata_is_named(tmp_path: Path, key: str, size: int) -> None:
    """HDF5 itself has checksums for small attributes only."""
    text = "x" * size + "end"
    changes = {"templates": {"templates": [{"name": "x", "text": text}]}, "versions": {"versions": {"x": text}}, "skipped": {}}
    made = metadata(LAYERS, HEADS, {"layers": [1, 4], **changes[key]})
    skipped = [{"row": 1, "reason": text}] if key == "skipped" else []
    path = shard_path(tmp_path, 0)
    write_shard(path, 0, arrays_of_lengths([3, 2]), made, skipped)
    whole = path.read_bytes()
    with Shard(path) as shard:
        assert (shard.metadata, shard.skipped) == (made, skipped)
    for place in (whole.index(text.encode()), whole.index(b"end")):
        path.write_bytes(flipped(whole, place * 8))
        with pytest.raises(InputError, match=r"00000\.h5: .*damaged"):
            Shard(path)


@pytest.mark.parametrize("sums", ["[]", "5", '{"templates": 7}', '{"nothing": 7}', '{"versions": "x"}'])
def test_checksums_that_are_none_are_refused(tmp_path: Path, sums: str) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    change(cache, lambda file: file.attrs.__setitem__("checksums", np.bytes_(sums)))
    with pytest.raises(InputError, match=r"00000\.h5: .*(no usable 'checksums'|its checksum does not match)"):
        Shard(shard_path(cache, 0))


def test_a_shard_of_another_capture_or_place_is_refused(cache: Path, last_token_cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cache, tmp_path / "copy")
    another = r"00001\.h5: belongs to another capture \(other plan, .*settings queries.*\); remove it"
    for stranger, why in ((shard_path(last_token_cache, 0), another), (shard_path(cache, 2), r"00001\.h5: is shard 2, so")):
        shutil.copy(stranger, shard_path(copy, 1))
        with pytest.raises(InputError, match=why):
            headscore.score(copy)
        with pytest.raises(InputError, match=why):
            headscore.scan_cache(copy).collect()
        assert re.search(why, headscore.inspect(copy)["damaged"][0])


def test_only_plain_files_of_the_folder_are_read(cache: Path, tmp_path: Path) -> None:
    """A pipe would make a reader wait for ever, a device never end, and a link lead out of the folder."""
    places: list[tuple[str, Callable[[Path], None]]] = [
        ("shards/00001.h5", os.mkfifo),
        ("shards/00001.h5", Path.mkdir),
        ("shards/00001.h5", lambda path: path.symlink_to(shard_path(cache, 1))),
        ("shards", lambda path: path.symlink_to(cache / "shards")),
        ("cache.json", os.mkfifo),
        ("cache.json", lambda path: path.symlink_to("/dev/zero")),
        ("cache.json", lambda path: path.symlink_to(cache / "cache.json")),
    ]
    for number, (name, make) in enumerate(places):
        copy = shutil.copytree(cache, tmp_path / str(number))
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
        make(copy / name)
        with pytest.raises(InputError, match=r"is not a file of this folder|is not a regular file|is a link"):
            headscore.score(copy)


HOSTILE_METADATA = {
    "a number without end": ("skipped", '[{"row": 1e999, "reason": "x"}]', "has no usable 'skipped'"),
    "a shard without end": ("shard", "1e999", "has no usable 'shard'"),
    "a shard that is no number": ("shard", "true", "has no usable 'shard'"),
    "half a surrogate pair": ("versions", '{"torch": "\\ud800"}', "is not text that can be written"),
    "deep nesting": ("versions", '{"a": ' + "[" * 400 + "]" * 400 + "}", "nested more than 32 deep"),
    "deeper nesting": ("versions", '{"a": ' + "[" * 40_000 + "]" * 40_000 + "}", "damaged, or not a shard"),
    "no kv heads": ("dims", '{"layers": 1, "heads": 2, "kv_heads": 0}', "has no usable 'dims'"),
    "kv heads that divide no heads": ("dims", '{"layers": 1, "heads": 2, "kv_heads": 3}', "has no usable 'dims'"),
    "a head dim that is no number": ("dims", '{"layers": 1, "heads": 2, "head_dim": "8"}', "has no usable 'dims'"),
    "projections of another layer": ("projections", "[]", "has no usable 'projections'"),
    "a path that is no text": ("projections", '[{"query": 3}]', "has no usable 'projections'"),
    "projections that are no list": ("projections", "null", "has no usable 'projections'"),
    "many heads": ("dims", '{"layers": 1, "heads": 1e3}', "has no usable 'dims'"),
}


@pytest.mark.parametrize("what", HOSTILE_METADATA)
def test_hostile_metadata_is_refused(tmp_path: Path, what: str) -> None:
    key, value, message = HOSTILE_METADATA[what]
    cache = write_cache(tmp_path, **BY_HAND)
    change(cache, lambda file: file.attrs.__setitem__(key, np.bytes_(value)))
    with pytest.raises(InputError) as error:
        headscore.score(cache)
    assert message in str(error.value) and "00000.h5" in str(error.value)


def test_too_many_heads_or_attributes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    monkeypatch.setattr("headscore.data.cache.reader.MAX_HEADS", 1)
    with pytest.raises(InputError, match="has 1 layers of 2 heads, none or more than 1024 layers or 1 heads"):
        headscore.score(cache)
    monkeypatch.undo()
    change(cache, lambda file: [file.attrs.__setitem__(f"a{i}", i) for i in range(300)] and None)
    with pytest.raises(InputError, match="has more than 256 attributes"):
        headscore.score(cache)


def dust(file: h5py.File) -> None:
    """A piece for every value."""
    del file["last_token/attention"]
    file.create_dataset("last_token/attention", data=np.zeros((1, 2, 6), "f2"), chunks=(1, 1, 1), fletcher32=True)


def test_dust_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    change(cache, dust)
    with pytest.raises(InputError, match="is stored in 12 pieces, too small"):
        headscore.score(cache)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"[1]", "is not a headscore cache"),
        (b"\xff", "cannot be read as JSON"),
        (b'{"format": "other"}', "is not a headscore cache"),
        (b'{"format": "headscore-cache", "format_version": 2}', "upgrade headscore to read it"),
        (b'{"format": "headscore-cache", "format_version": 0}', "capture it again"),
        (b'{"format": "headscore-cache", "format_version": 1}', "has no usable 'versions'"),
        (b" " * (1 << 21), "is larger than"),
    ],
)
def test_unusable_cache_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_cache(tmp_path)


def test_what_is_not_a_cache(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cache not found; make one with"):
        open_cache(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"it has no cache\.json"):
        open_cache(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match="is not a readable shard"):
        open_cache(tmp_path / "text.h5")
    assert read_metadata(tmp_path) is None


def test_inspect_tells_what_there_is(cache: Path, tmp_path: Path) -> None:
    facts = headscore.inspect(cache)
    assert (facts["samples"], facts["dims"]) == (
        24,
        {"layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden_size": 24},
    )
    assert facts["model"]["type"] == "llama" and facts["settings"]["queries"] == "all_tokens"
    assert facts["tokens"] == sum(Shard(path).tokens for path in open_cache(cache).shards)
    assert facts["shards"] == {"there": 3, "planned": 3, "missing": ""} and facts["skipped"] == [] and facts["damaged"] == []
    assert {"question", "choices", "template", "special"} == {name for p in facts["example"]["pieces"] for name in p["spans"]}
    json.dumps(facts)
    copy = shutil.copytree(cache, tmp_path / "copy")
    shard_path(copy, 1).write_bytes(b"no shard")
    damaged = headscore.inspect(copy)["damaged"]
    assert len(damaged) == 1 and "00001.h5" in damaged[0]


# ------------------------------------------------------------------------------------------------------- older caches


def older(cache: Path, compression: str) -> None:
    """As 0.1 wrote it, which names the compression."""
    settings = json.dumps({"queries": "all_tokens", "compression": compression, "shard_size": 256}).encode()
    change(cache, lambda file: file.attrs.create("settings", settings, dtype=h5py.string_dtype("utf-8", len(settings))))
    there = json.loads((cache / "cache.json").read_text())
    (cache / "cache.json").write_text(json.dumps(there | {"settings": json.loads(settings)}))


def test_a_cache_that_names_no_compression_is_the_same_capture_as_one_that_does(tmp_path: Path) -> None:
    new, old = (write_cache(tmp_path / name, **BY_HAND) for name in ("new", "old"))
    older(old, "none")
    assert headscore.score(old).raw.equals(headscore.score(new).raw)
    for caches in ([old, new], [new, old]):
        merged = headscore.merge(caches, tmp_path / f"merged from {caches[0].name}")
        assert not merged.missing and not headscore.inspect(merged.path, verify=True)["damaged"]
    shutil.copy(shard_path(old, 0), shard_path(new, 0))
    assert headscore.score(new).samples == 2


def test_a_cache_with_gzip_is_to_be_captured_again(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    older(cache, "gzip")
    for path in (cache, shard_path(cache, 0)):
        with pytest.raises(InputError, match=r"is compressed \('gzip'\), which is no longer read; capture it again"):
            headscore.score(path)
