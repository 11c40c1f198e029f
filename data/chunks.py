"""Reads chunks past HDF5's filters, whose fletcher32 takes several times as long as the same sums here."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .plain import PlainFile
from .words import fletcher_sums

CHECKSUM_BYTES = 4


class ChunkError(Exception):
    """A chunk is not as it was written."""


class PlainChunks:
    """The chunks of an array [L,H,t] that were stored through fletcher32 alone, each of one layer and all heads.

    file: of the array. chunk: the dims of a chunk. places: the byte at which a chunk lies, by its layer and first token.
    """

    def __init__(self, file: PlainFile, dtype: str, chunk: Sequence[int], places: dict[tuple[int, int], int]):
        self._file, self._places, self._dtype, self._dims = file, places, np.dtype(dtype), tuple(chunk[1:])
        self._items = prod(self._dims)
        self._bytes = self._items * self._dtype.itemsize

    def parts(self, layer: int, tokens: slice) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """The values [H,w] of some tokens of a layer, chunk by chunk, each part with its place among those tokens.

        Raises ChunkError where one ends early or its checksum does not match, OSError where the system refuses to read it.
        """
        length = self._dims[-1]
        for start in range(tokens.start // length * length, tokens.stop, length):
            content = self._file.read_at(self._places[layer, start], self._bytes + CHECKSUM_BYTES)
            if len(content) < self._bytes + CHECKSUM_BYTES:
                raise ChunkError("the file ends early")
            if fletcher32(np.frombuffer(content, "<u2", self._bytes // 2)) != int.from_bytes(content[self._bytes :], "little"):
                raise ChunkError("a checksum does not match")
            values = np.frombuffer(content, self._dtype, self._items).reshape(self._dims)
            first, last = max(start, tokens.start), min(start + length, tokens.stop)
            yield slice(first - tokens.start, last - tokens.start), values[:, first - start : last - start]


def fletcher32(words: npt.NDArray[np.uint16]) -> int:
    """HDF5's checksum of at most 2¹⁹ little-endian 16-bit words w₀ … wₙ₋₁.

    It is Σ (n−i) wᵢ in the upper and Σ wᵢ in the lower 16 bits, both modulo 65,535 over the words read as big-endian. Other
    multiples of 65,535 than 0 give 65,535. Fletcher (1982), as in HDF5's H5_checksum_fletcher32.
    """
    places, total = fletcher_sums(words)
    return _folded(places) << 16 | _folded(total)


def _folded(total: int) -> int:
    """A sum modulo 65,535 as HDF5 has it, with its bytes exchanged, which is to multiply it by 256 there."""
    return ((total * 256 - 1) % 65535 + 1) if total else 0
