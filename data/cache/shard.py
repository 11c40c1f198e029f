"""One shard of a cache, an HDF5 file: its arrays, and how it is written."""

import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import numpy.typing as npt

from ..files.whole_file import write_bytes
from ..options.settings import QueryMode
from .metadata import Metadata, SkippedRow

CHUNK_ITEMS = 1 << 17  # values in one chunk: large enough for fast reads, small enough for a short sample range

CHECKSUMS = "checksums"  # of large attributes, by their names
MAX_CHECKED_BYTES = 2048  # of an attribute; HDF5 keeps no checksum of one that takes more than 4,096 with its name and type

Array = npt.NDArray[Any]

# Every array of a shard: its dtype and its axes. n samples, t tokens, L layers, H heads.
ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "samples/row": ("int64", ("n",)),
    "samples/offset": ("int64", ("n+1",)),
    "tokens/id": ("int32", ("t",)),
    "tokens/span": ("uint8", ("t",)),
    "layers/index": ("int32", ("L",)),
    "last_token/attention": ("float16", ("L", "H", "t")),
    "last_token/output_norm": ("float32", ("L", "H", "n")),
    "last_token/result_norm": ("float32", ("L", "H", "n")),
    "all_tokens/output_norm": ("float32", ("L", "H", "n")),
    "all_tokens/result_norm": ("float32", ("L", "H", "n")),
    "all_tokens/attention": ("float16", ("L", "H", "t")),
    "all_tokens/entropy": ("float32", ("L", "H", "n")),
}
ALL_TOKENS_ARRAYS = ("all_tokens/attention", "all_tokens/entropy")  # only with --queries all_tokens


def array_names(queries: QueryMode | str, result_norms: bool = True) -> list[str]:
    """The arrays that a shard captured with `--queries` holds; result norms only where W_O can be split by heads."""
    left_out = () if queries == "all_tokens" else ALL_TOKENS_ARRAYS
    return [name for name in ARRAYS if name not in left_out and (result_norms or not name.endswith("result_norm"))]


def stored_arrays(metadata: Metadata) -> list[str]:
    """The arrays of every shard of a cache."""
    return array_names(metadata["settings"]["queries"], metadata["attention"]["result_norms"])


def array_shapes(names: Iterable[str], samples: int, tokens: int, layers: int, heads: int) -> dict[str, tuple[int, ...]]:
    """The dims of arrays of a shard."""
    dims = {"n": samples, "n+1": samples + 1, "t": tokens, "L": layers, "H": heads}
    return {name: tuple(dims[axis] for axis in ARRAYS[name][1]) for name in names}


def shard_bytes(queries: QueryMode | str, samples: int, tokens: int, layers: int, heads: int) -> int:
    """How large a shard file of these dims is, but for a few KB of metadata; chunks are stored whole."""
    size = 0
    for name, shape in array_shapes(array_names(queries), samples, tokens, layers, heads).items():
        if prod(shape):
            chunks = prod(ceil(length / chunk) for length, chunk in zip(shape, _chunks(shape), strict=True))
            size += chunks * prod(_chunks(shape)) * np.dtype(ARRAYS[name][0]).itemsize
    return size


def write_shard(
    path: Path, number: int, arrays: Mapping[str, Array], metadata: Mapping[str, Any], skipped: Sequence[SkippedRow]
) -> None:
    """Write one shard under its final name, whole or not at all.

    `arrays` holds what `array_names` lists, in the dtypes and dims of ARRAYS. Raises RunError where the disk refuses.
    """
    content = io.BytesIO()  # HDF5 does not survive a full disk, plain files do
    # v110 adds checksums to HDF5's own structures, so that damage outside the arrays is found too
    with h5py.File(content, "w", libver=("v110", "v110")) as file:
        values = {**metadata, "shard": number, "skipped": list(skipped)}
        attributes = {key: _as_attribute(value) for key, value in values.items()}
        for key, value in _with_checksums(attributes).items():
            _write_attribute(file, key, value)
        for name in stored_arrays(cast(Metadata, metadata)):
            data = np.ascontiguousarray(arrays[name], dtype=ARRAYS[name][0])
            stored = {"chunks": _chunks(data.shape), "fletcher32": True} if data.size else {}
            file.create_dataset(name, data=data, **stored)
        names = [name.encode() for name in metadata["span_names"]]
        file["tokens/span"].attrs["names"] = np.array(names, f"S{max(map(len, names))}")
    write_bytes(path, content.getbuffer())


def _with_checksums(attributes: Mapping[str, int | bytes]) -> dict[str, int | bytes]:
    """Attributes with one more where some are so large that HDF5 keeps them without a checksum: the CRC-32 of each of those."""
    large = {key: zlib.crc32(v) for key, v in attributes.items() if isinstance(v, bytes) and len(v) > MAX_CHECKED_BYTES}
    return {**attributes, **({CHECKSUMS: _as_attribute(large)} if large else {})}


def _as_attribute(value: Any) -> int | bytes:
    text = value if isinstance(value, int | str) else json.dumps(value, ensure_ascii=False)
    return text if isinstance(text, int) else text.encode()


def _write_attribute(file: h5py.File, key: str, value: int | bytes) -> None:
    """Text is written with its length fixed, since HDF5 keeps other strings in a heap that has no checksum."""
    if isinstance(value, int):
        file.attrs[key] = value
    else:
        file.attrs.create(key, value, dtype=h5py.string_dtype("utf-8", max(1, len(value))))


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One layer with all its heads to a chunk, and about CHUNK_ITEMS values at most; no axis may be empty.

    The last axis is cut into equal parts, as HDF5 stores the last chunk at full size.
    """
    length, most = shape[-1], max(1, CHUNK_ITEMS // (shape[1] if len(shape) == 3 else 1))
    part = ceil(length / ceil(length / most))
    return (1, shape[1], part) if len(shape) == 3 else (part,)
