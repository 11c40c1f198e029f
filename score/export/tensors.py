"""Writes a safetensors file, which needs neither torch nor the package of that name."""

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_DTYPES = {"float32": "F32", "int32": "I32"}
_ALIGNMENT = 8


def safetensors(arrays: Mapping[str, npt.NDArray[np.generic]], told: Mapping[str, str]) -> bytes:
    """The bytes of a file: the length of a header, the header as JSON, and the arrays one after the other.

    Args:
        arrays: float32 or int32, by name.
        told: the file's own metadata.
    """
    header: dict[str, object] = {"__metadata__": dict(told)}
    parts: list[memoryview] = []
    place = 0
    for name, array in arrays.items():
        part = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data.cast("B")
        offsets = [place, place + len(part)]
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        parts.append(part)
        place += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])
