"""Reads chunks past HDF5's filters, whose fletcher32 takes three times as long as the same sums in numpy."""

import os
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

CHECKSUM_BYTES = 4

_COLUMNS = 1024  # of the grid that words are summed in: few enough for 32-bit sums of half a MiB of words


class PlainChunks:
    """The chunks of an array [L,H,t] that were stored through fletcher32 alone, each of one layer and all heads.

    handle: of the open file. chunk: the dims of a chunk. places: the byte at which a chunk lies, by its layer and first token.
    """

    def __init__(self, handle: int, dtype: str, chunk: Sequence[int], places: dict[tuple[int, int], int]):
        self._handle, self._places, self._dtype, self._dims = handle, places, np.dtype(dtype), tuple(chunk[1:])
        self._bytes = prod(self._dims) * self._dtype.itemsize

    def read(self, layer: int, tokens: slice, out: npt.NDArray[Any]) -> None:
        """Fill `out` [H,tokens] with a part of a layer; OSError where a chunk ends early or its checksum does not match."""
        length = self._dims[-1]
        for start in range(tokens.start // length * length, tokens.stop, length):
            content = os.pread(self._handle, self._bytes + CHECKSUM_BYTES, self._places[layer, start])
            if len(content) < self._bytes + CHECKSUM_BYTES:
                raise OSError("the file ends early")
            if fletcher32(np.frombuffer(content, "<u2", self._bytes // 2)) != int.from_bytes(content[self._bytes :], "little"):
                raise OSError("a checksum does not match")
            values = np.frombuffer(content, self._dtype, prod(self._dims)).reshape(self._dims)
            first, last = max(start, tokens.start), min(start + length, tokens.stop)
            out[:, first - tokens.start : last - tokens.start] = values[:, first - start : last - start]


def fletcher32(words: npt.NDArray[np.uint16]) -> int:
    """HDF5's checksum of at most 2¹⁹ little-endian 16-bit words w₀ … wₙ₋₁.

    It is Σ (n−i) wᵢ in the upper and Σ wᵢ in the lower 16 bits, both modulo 65,535 over the words read as big-endian. Other
    multiples of 65,535 than 0 give 65,535. Fletcher (1982), as in HDF5's H5_checksum_fletcher32.
    """
    whole = len(words) - len(words) % _COLUMNS
    grid, rest = words[:whole].reshape(-1, _COLUMNS), words[whole:].astype(np.int64)
    by_row, by_column = (np.add.reduce(grid, axis=axis, dtype=np.uint32).astype(np.int64) for axis in (1, 0))
    row, column = _numbers()
    total = int(by_row.sum() + rest.sum())
    places = int(by_row @ row[: len(by_row)]) + int(by_column @ column) + int(rest @ (column[: len(rest)] + whole))
    return _folded(len(words) * total - places) << 16 | _folded(total)


@cache
def _numbers() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The place of each row's first word, and of each column in a row."""
    return np.arange(0, 1 << 19, _COLUMNS), np.arange(_COLUMNS)


def _folded(total: int) -> int:
    """A sum modulo 65,535 as HDF5 has it, with its bytes exchanged, which is to multiply it by 256 there."""
    return ((total * 256 - 1) % 65535 + 1) if total else 0
