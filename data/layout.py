"""How a shard's arrays are stored, checked before they are read: a stranger's file may not lead elsewhere or fill memory."""

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .errors import DamagedShardError
from .shard import ARRAYS

# What a stranger's file may ask of a reader's memory.
MAX_GZIP_RATIO = 1032  # deflate cannot expand more than this, so larger declared dims are a lie
MAX_CHUNK_BYTES = 1 << 20
LEAST_CHUNK_BYTES = 1 << 16  # on average, beyond one chunk for each layer
MAX_READ_BYTES = 256 << 20  # of one array read whole, and of one sample's attention in one layer

CHECKSUM_BYTES = 4  # fletcher32's, after the content of each chunk

_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)


def linked(path: Path, place: Any, part: str, name: str) -> Any:
    """What a hard link leads to: no other can be trusted to stay inside this file."""
    links, link = getattr(place, "links", None), part.encode()  # only groups have links
    if links and links.exists(link) and links.get_info(link).type == h5py.h5l.TYPE_HARD:
        return h5py.h5o.open(place, link)
    raise DamagedShardError(f"{path}: '{name}' is missing or is not a plain array of this file")


def checked_layout(path: Path, name: str, array: Any) -> tuple[int, ...]:
    """An array's dims.

    Raises DamagedShardError where it is not stored as the format says, or in pieces that are not safe to read.
    """
    expected, axes = ARRAYS[name]
    layout = array.get_create_plist() if isinstance(array, h5py.h5d.DatasetID) else None
    if layout is None or layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise DamagedShardError(f"{path}: '{name}' is not a plain array of this file")
    dtype, shape = array.dtype, array.shape
    if dtype != np.dtype(expected) or shape is None or len(shape) != len(axes):
        raise DamagedShardError(f"{path}: '{name}' is {dtype} with {len(shape or ())} axes, not {expected} with {len(axes)}")
    filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
    if prod(shape) and h5py.h5z.FILTER_FLETCHER32 not in filters:
        raise DamagedShardError(f"{path}: '{name}' has no checksums")
    if not set(filters) <= set(_FILTERS) or len(set(filters)) < len(filters):
        raise DamagedShardError(f"{path}: '{name}' is stored through other filters than shuffle, gzip, fletcher32, once each")
    size = prod(shape) * dtype.itemsize
    if size > array.get_storage_size() * MAX_GZIP_RATIO:
        raise DamagedShardError(f"{path}: '{name}' declares more data than the file holds")
    if size:
        _require_chunks(path, name, array, layout.get_chunk(), h5py.h5z.FILTER_DEFLATE in filters)
    return tuple(shape)


def _require_chunks(path: Path, name: str, array: Any, chunk: Sequence[int], gzip: bool) -> None:
    """Raises DamagedShardError where the pieces of an array are too large or too many, or are not stored whole."""
    shape = array.shape
    item = np.dtype(ARRAYS[name][0]).itemsize
    size, chunk_bytes = prod(shape) * item, prod(chunk) * item
    across_layers = len(shape) == 3 and chunk[0] != 1  # would be read again for each layer
    if (len(shape) == 1 and size > MAX_READ_BYTES) or chunk_bytes > MAX_CHUNK_BYTES or across_layers:
        raise DamagedShardError(f"{path}: '{name}' would have to be read in pieces too large for a reader's memory")
    count = prod(ceil(length / part) for length, part in zip(shape, chunk, strict=True))
    if count > (shape[0] if len(shape) == 3 else 1) + size // LEAST_CHUNK_BYTES:
        raise DamagedShardError(f"{path}: '{name}' is stored in {count} pieces, too small to be read in reasonable time")
    # HDF5 trusts the size that a piece is said to have, and reads on beyond one that is shorter than a chunk or a checksum.
    # Inflating does not stop at a chunk's size, so what is stored must not be larger than it could be.
    whole = chunk_bytes + CHECKSUM_BYTES
    sizes = range(CHECKSUM_BYTES + 1, whole + chunk_bytes // 100 + 61) if gzip else range(whole, whole + 1)
    stored: list[Any] = []
    array.chunk_iter(stored.append)
    if len(stored) != count or any(piece.filter_mask or piece.size not in sizes for piece in stored):
        raise DamagedShardError(f"{path}: '{name}' has pieces that are missing, or are not stored as they should be")
