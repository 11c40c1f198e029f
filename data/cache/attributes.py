"""Reads what a shard says about itself, the attributes of its root group, as untrusted input."""

import json
import zlib
from math import prod
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from ..errors import DamagedShardError, InputError, NewerFormatError
from ..files.bounded_json import require_bounded
from .metadata import FORMAT, ShardMetadata, check_metadata
from .shard import CHECKSUMS, MAX_CHECKED_BYTES

# As in layout.py: what a stranger's file may ask of a reader's memory.
MAX_ATTRIBUTES = 256
MAX_ATTRIBUTE_BYTES = 16 << 20  # of all of them


def shard_metadata(path: Path, file: h5py.h5f.FileID) -> ShardMetadata:
    """The checked metadata of the shard in `path`, opened as `file`.

    Raises DamagedShardError where it cannot be used, NewerFormatError where it is of a newer format, and what HDF5 and
    Python raise for attributes that make no sense.
    """
    metadata = _attributes(path, file)
    if metadata.get("format") != FORMAT:
        raise DamagedShardError(f"{path}: is not a shard of a headscore cache")
    try:
        check_metadata(metadata, str(path), of_shard=True)
    except NewerFormatError:
        raise
    except InputError as error:
        raise DamagedShardError(error.message) from error
    return cast(ShardMetadata, metadata)


def _attributes(path: Path, file: h5py.h5f.FileID) -> dict[str, Any]:
    contents = _contents(path, file)
    large = {key: text for key, text in contents.items() if isinstance(text, bytes) and len(text) > MAX_CHECKED_BYTES}
    texts = {key: text for key, text in contents.items() if isinstance(text, bytes) and key != "format"}
    require_bounded(texts.values())
    attributes = contents | {key: json.loads(text.decode()) for key, text in texts.items()}
    if isinstance(name := contents.get("format"), bytes):
        attributes["format"] = name.decode()
    _require_checksums(path, attributes.pop(CHECKSUMS, {}), {key: zlib.crc32(text) for key, text in large.items()})
    return attributes


def _contents(path: Path, file: h5py.h5f.FileID) -> dict[str, Any]:
    """What the attributes of the root group hold, as bytes or int; nothing is read before the size of all is known."""
    root = h5py.h5g.open(file, b"/")
    if h5py.h5a.get_num_attrs(root) > MAX_ATTRIBUTES:
        raise DamagedShardError(f"{path}: has more than {MAX_ATTRIBUTES} attributes")
    names: list[bytes] = []
    h5py.h5a.iterate(root, names.append)
    found = {name.decode(): h5py.h5a.open(root, name) for name in names}
    # others would be read from an unchecked heap; a dtype that NumPy lacks raises an error here
    known = {name: attribute for name, attribute in found.items() if attribute.dtype.kind in "Siu"}
    if sum(prod(attribute.shape) * attribute.dtype.itemsize for attribute in known.values()) > MAX_ATTRIBUTE_BYTES:
        raise DamagedShardError(f"{path}: has attributes of more than {MAX_ATTRIBUTE_BYTES} bytes in all")
    contents: dict[str, Any] = {}
    for name, attribute in known.items():
        value = np.zeros(attribute.shape, attribute.dtype)  # of its own shape, as HDF5 writes all of it there
        attribute.read(value)
        contents[name] = value.item()
    return contents


def _require_checksums(path: Path, stored: Any, found: dict[str, int]) -> None:
    """Raises DamagedShardError where a large attribute is not what was written; older shards do not tell."""
    if not isinstance(stored, dict):
        raise DamagedShardError(f"{path}: its metadata has no usable '{CHECKSUMS}'")
    if different := [key for key, value in stored.items() if found.get(key) != value]:
        raise DamagedShardError(f"{path}: '{different[0]}' in its metadata is damaged: its checksum does not match")
