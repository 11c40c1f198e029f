"""How a shard's arrays are stored, checked before they are read: a stranger's file may not lead elsewhere or fill memory."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import DamagedShardError
from ..options.settings import MAX_TOKENS
from .shard import ARRAYS
from .structures import Structures

# What a stranger's file may ask of a reader's memory.
MAX_CHUNK_BYTES = 1 << 20
LEAST_CHUNK_BYTES = 1 << 16  # on average, beyond one chunk for each layer
MAX_READ_BYTES = 256 << 20  # of one array read whole, and of one sample's attention in one layer
MAX_SHARD_TOKENS = MAX_READ_BYTES // 4  # whose ids are as large

CHECKSUM_BYTES = 4  # fletcher32's, after the content of each chunk

_TYPES = {  # as files have them: a type that NumPy would take for the same might have another bias or precision
    "int64": h5py.h5t.STD_I64LE,
    "int32": h5py.h5t.STD_I32LE,
    "uint8": h5py.h5t.STD_U8LE,
    "float16": h5py.h5t.IEEE_F16LE,
    "float32": h5py.h5t.IEEE_F32LE,
}


def too_large(longest: int, tokens: int, heads: int) -> str:
    """What is more than a shard may have; empty where nothing is.

    Args:
        longest: how many tokens the longest sample has.
        tokens: how many all samples have.
        heads: how many a layer has.
    """
    most = min(MAX_TOKENS, MAX_READ_BYTES // (2 * heads))
    if longest > most:
        return f"a sample of {longest} tokens, and with {heads} heads in a layer none may have more than {most}"
    return f"{tokens} tokens, more than {MAX_SHARD_TOKENS}" if tokens > MAX_SHARD_TOKENS else ""


def linked(path: Path, place: Any, part: str, name: str, structures: Structures) -> Any:
    """What a hard link leads to: no other can be trusted to stay inside this file.

    Raises DamagedShardError where there is none, and ValueError as `Structures.require_safe`.
    """
    links, link = getattr(place, "links", None), part.encode()  # only groups have links
    if links and links.exists(link) and (info := links.get_info(link)).type == h5py.h5l.TYPE_HARD:
        structures.require_safe(info.u)
        return h5py.h5o.open(place, link)
    raise DamagedShardError(f"{path}: '{name}' is missing or is not a plain array of this file")


def checked_layout(path: Path, name: str, array: Any, file_bytes: int) -> tuple[int, ...]:
    """The dims of an array in a file of `file_bytes`.

    Raises DamagedShardError where it is not stored as the format says, or in pieces that are not safe to read.
    """
    expected, axes = ARRAYS[name]
    layout = array.get_create_plist() if isinstance(array, h5py.h5d.DatasetID) else None
    if layout is None or layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise DamagedShardError(f"{path}: '{name}' is not a plain array of this file")
    shape = array.shape
    if not array.get_type().equal(_TYPES[expected]) or shape is None or len(shape) != len(axes):
        raise DamagedShardError(
            f"{path}: '{name}' is {array.dtype} with {len(shape or ())} axes, not {expected} with {len(axes)}"
        )
    filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
    if prod(shape) and h5py.h5z.FILTER_FLETCHER32 not in filters:
        raise DamagedShardError(f"{path}: '{name}' has no checksums")
    if array.get_space().get_simple_extent_dims(True) != shape:  # HDF5 itself confuses the chunks of some that may grow
        raise DamagedShardError(f"{path}: '{name}' has dims that may grow, which those of a shard never do")
    if filters not in ([], [h5py.h5z.FILTER_FLETCHER32]):
        raise DamagedShardError(f"{path}: '{name}' is stored through other filters than fletcher32; capture it again")
    if prod(shape) * np.dtype(expected).itemsize > file_bytes:
        raise DamagedShardError(f"{path}: '{name}' declares more data than the file holds")
    if prod(shape):
        _require_chunks(path, name, array, layout.get_chunk(), file_bytes)
    return tuple(shape)


def _require_chunks(path: Path, name: str, array: Any, chunk: Sequence[int], file_bytes: int) -> None:
    """Raises DamagedShardError where chunks are too large or too many, or are not stored whole and each by itself."""
    shape = array.shape
    item = np.dtype(ARRAYS[name][0]).itemsize
    size, chunk_bytes = prod(shape) * item, prod(chunk) * item
    across_layers = len(shape) == 3 and chunk[0] != 1  # would be read again for each layer
    if (len(shape) == 1 and size > MAX_READ_BYTES) or chunk_bytes > MAX_CHUNK_BYTES or across_layers:
        raise DamagedShardError(f"{path}: '{name}' would have to be read in pieces too large for a reader's memory")
    count = prod(ceil(length / part) for length, part in zip(shape, chunk, strict=True))
    if count > (shape[0] if len(shape) == 3 else 1) + size // LEAST_CHUNK_BYTES:
        raise DamagedShardError(f"{path}: '{name}' is stored in {count} pieces, too small to be read in reasonable time")
    if not _stored_whole(array, chunk, count, chunk_bytes + CHECKSUM_BYTES, file_bytes):
        raise DamagedShardError(f"{path}: '{name}' has pieces that are missing, or are not stored as they should be")


def _stored_whole(array: Any, chunk: Sequence[int], count: int, whole: int, file_bytes: int) -> bool:
    """Whether there is each of `count` chunks once, of `whole` bytes inside the file that belong to no other chunk.

    HDF5 trusts the size that a chunk is said to have: it reads on in memory beyond one that is shorter.
    """
    found: list[Any] = []
    shape = array.shape  # HDF5 takes time to tell it, and there may be many chunks

    def add(piece: Any) -> bool | None:
        found.append(piece)
        return len(found) > count or None  # True ends it: a damaged index may go round in circles

    array.chunk_iter(add)
    if len({piece.chunk_offset for piece in found}) != len(found) or len(found) != count:
        return False
    for piece in found:
        if piece.byte_offset is None or piece.size != whole or piece.filter_mask:
            return False
        if any(place % part or place >= n for place, n, part in zip(piece.chunk_offset, shape, chunk, strict=True)):
            return False
    starts = sorted(piece.byte_offset for piece in found)
    return all(stop - start >= whole for start, stop in pairwise([*starts, file_bytes]))
