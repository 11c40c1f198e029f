"""HDF5 trusts what a file says about its chunks, and reads on in memory beyond one that is stored short; headscore does not."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fuzzing_cache import LIBVERS, rewritten
from made_caches import BY_HAND, write_cache

import headscore
from headscore.data.cache.folder import shard_path
from headscore.data.errors import DamagedShardError, InputError

ARRAYS = ["tokens/span", "last_token/attention", "last_token/output_norm", "layers/index"]


def stored(content: bytes) -> bytes:
    """What HDF5 stores of a chunk with this content: the checksum after it is right."""
    with h5py.File(io.BytesIO(), "w") as file:
        data = np.frombuffer(content, np.uint8)
        return bytes(file.create_dataset("x", data=data, chunks=data.shape, fletcher32=True).id.read_direct_chunk((0,))[1])


def with_chunk(cache: Path, whole: bytes, libver: str, name: str, chunk: bytes, **options: Any) -> None:
    """Write the `whole` shard into a cache with something else stored as the chunk of an array."""
    content = io.BytesIO(whole)
    with h5py.File(content, "r+", libver=(libver, "latest")) as file:
        data = file[name][:]
        del file[name]
        made = file.create_dataset(name, data.shape, data.dtype, chunks=data.shape, fletcher32=True)
        if chunk:
            made.id.write_direct_chunk((0,) * data.ndim, chunk, **options)
    shard_path(cache, 0).write_bytes(content.getvalue())


def content_of(cache: Path, name: str) -> bytes:
    with h5py.File(shard_path(cache, 0), locking=False) as file:
        return bytes(file[name][:].tobytes())


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "headscore", *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("libver", LIBVERS)
def test_a_chunk_of_another_size_than_its_own_is_refused(tmp_path: Path, libver: str, name: str) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    right, data, shard = headscore.score(cache).raw, content_of(cache, name), rewritten(shard_path(cache, 0), libver, ())
    whole = stored(data)
    wrong = [whole[:size] for size in range(1, len(whole))] + [stored(data[:size]) for size in range(1, len(data))]
    for content in (*wrong, stored(data + bytes(2)), whole + bytes(1000)):
        with_chunk(cache, shard, libver, name, content)
        with pytest.raises(DamagedShardError, match=rf"'{name}' has pieces that .* are not stored as they should be"):
            headscore.score(cache)
        assert name in headscore.inspect(cache)["damaged"][0]
    with_chunk(cache, shard, libver, name, whole)
    assert headscore.score(cache).raw.equals(right) and not headscore.inspect(cache, verify=True)["damaged"]


@pytest.mark.parametrize("libver", LIBVERS)
def test_the_commands_end_in_one_line(tmp_path: Path, libver: str) -> None:
    """They were killed by the system, or told other scores each time, before sizes were checked."""
    cache = write_cache(tmp_path, **BY_HAND)
    shard, short = rewritten(shard_path(cache, 0), libver, ()), stored(content_of(cache, "last_token/attention")[:2])
    with_chunk(cache, shard, libver, "last_token/attention", short)
    for arguments in (["score", "--fresh"], ["inspect", "--verify"]):
        done = command(*arguments, str(cache))
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "00000.h5" in done.stderr + done.stdout


@pytest.mark.parametrize("libver", LIBVERS)
def test_a_chunk_that_is_missing_or_not_filtered_is_refused(tmp_path: Path, libver: str) -> None:
    for chunk, options in ((b"", {}), (stored(b"\x01" * 6), {"filter_mask": 1}), (b"\x01" * 6, {"filter_mask": 1})):
        cache = write_cache(tmp_path / f"{len(chunk)}{options}", **BY_HAND)
        shard = rewritten(shard_path(cache, 0), libver, ())
        with_chunk(cache, shard, libver, "tokens/span", chunk, **options)
        with pytest.raises(DamagedShardError, match="'tokens/span' has pieces that are missing"):
            headscore.score(cache)


def place_of(content: bytes, name: str, chunk: int) -> bytes:
    with h5py.File(io.BytesIO(content)) as file:
        return int(file[name].id.get_chunk_info(chunk).byte_offset).to_bytes(8, "little")


@pytest.mark.parametrize("to", ["another chunk", "the middle of another chunk", "the file's end", "beyond", "nowhere"])
def test_a_chunk_that_lies_elsewhere_is_refused(tmp_path: Path, to: str) -> None:
    """In HDF5's oldest structures, which have no checksums; layers 0 and 1 have a chunk each."""
    both = {key: np.concatenate([BY_HAND[key]] * 2) for key in ("rows", "out")}
    cache = write_cache(tmp_path, **{**BY_HAND, **both})
    name = "last_token/attention"
    content = rewritten(shard_path(cache, 0), "earliest", ())
    first, second = place_of(content, name, 0), place_of(content, name, 1)
    places = {
        "another chunk": int.from_bytes(first, "little"),
        "the middle of another chunk": int.from_bytes(first, "little") + 4,
        "the file's end": len(content) - 3,
        "beyond": 1 << 40,
        "nowhere": 2**64 - 1,
    }
    assert content.count(second) == 1
    shard_path(cache, 0).write_bytes(content)
    assert headscore.score(cache).samples == 2
    shard_path(cache, 0).write_bytes(content.replace(second, places[to].to_bytes(8, "little")))
    with pytest.raises(DamagedShardError, match=rf"00000\.h5: '{name}' has pieces that are missing, or are not stored"):
        headscore.score(cache)


def growing(file: h5py.File) -> None:
    file.create_dataset("tokens/span", (6,), "uint8", maxshape=(None,), chunks=(6,), fletcher32=True)


def not_chunked(file: h5py.File) -> None:
    file.create_dataset("tokens/span", data=np.zeros(6, "uint8"))


def of_other_type(file: h5py.File) -> None:
    """NumPy takes it for int8's like: a number of 8 bits of which 7 count."""
    kind = h5py.h5t.STD_U8LE.copy()
    kind.set_precision(7)
    space, layout = h5py.h5s.create_simple((6,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((6,))
    layout.set_fletcher32()
    h5py.h5d.create(file["tokens"].id, b"span", kind, space, layout).write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(6, "uint8"))


@pytest.mark.parametrize("libver", LIBVERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (growing, "may grow|listed in another way"),
        (not_chunked, "has no checksums"),
        (of_other_type, "'tokens/span' is uint8 .* not uint8"),
    ],
)
def test_arrays_that_are_stored_in_another_way_are_refused(
    tmp_path: Path, make: Callable[[h5py.File], None], message: str, libver: str
) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    content = io.BytesIO(rewritten(shard_path(cache, 0), libver, ()))
    with h5py.File(content, "r+", libver=(libver, "latest")) as file:
        del file["tokens/span"]
        make(file)
    shard_path(cache, 0).write_bytes(content.getvalue())
    with pytest.raises(InputError, match=message):
        headscore.score(cache)
    assert headscore.inspect(cache)["damaged"]
