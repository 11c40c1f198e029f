"""Finds HDF5's own structures in a file, and makes their checksums right after they were changed."""

import io
from dataclasses import dataclass

import h5py
import numpy as np

SIGNATURES = (
    b"OHDR", b"OCHK", b"FRHP", b"FHIB", b"BTHD", b"BTIN", b"BTLF",
    b"FAHD", b"FADB", b"EAHD", b"EAIB", b"EASB", b"EADB", b"FSHD", b"FSSE",
)  # fmt: skip
INTERESTING = (0, 1, 2, 4, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
LONGEST = 700  # of a structure whose length is not told, and of a part of a header that is kept apart:
LONGEST_PART = 3000


@dataclass(frozen=True)
class Structure:
    """The bytes from `start` to `stop` have their checksum at `stop`."""

    start: int
    stop: int


def structures(content: bytes) -> list[Structure]:
    """Those that have a checksum; none in a file with HDF5's oldest structures."""
    found = [Structure(0, 44)] if content[8:9] in (b"\x02", b"\x03") else []
    for signature in SIGNATURES:
        start = content.find(signature)
        while start >= 0:
            if stop := _stop(content, start):
                found.append(Structure(start, stop))
            start = content.find(signature, start + 4)
    return found


def repaired(content: bytes, found: list[Structure]) -> bytes:
    """The file with the right checksum after each structure."""
    made = bytearray(content)
    for structure in found:
        made[structure.stop : structure.stop + 4] = checksum(bytes(made[structure.start : structure.stop]))
    return bytes(made)


def metadata_places(content: bytes) -> np.ndarray:
    """The places of all bytes but those of array values."""
    places = np.ones(len(content), bool)

    def leave_out(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            for number in range(item.id.get_num_chunks()):
                chunk = item.id.get_chunk_info(number)
                places[chunk.byte_offset : chunk.byte_offset + chunk.size] = False

    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(leave_out)
    return np.flatnonzero(places)


def _stop(content: bytes, start: int) -> int | None:
    if content[start : start + 4] == b"OHDR":
        flags = content[start + 5]
        at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        return at + width + int.from_bytes(content[at : at + width], "little")
    longest = LONGEST_PART if content[start : start + 4] == b"OCHK" else LONGEST
    for stop in range(start + 5, min(start + longest, len(content) - 3)):
        if checksum(content[start:stop]) == content[stop : stop + 4]:
            return stop
    return None


def _rotated(x: int, by: int) -> int:
    return (x << by | x >> 32 - by) & 0xFFFFFFFF


def checksum(content: bytes) -> bytes:
    """HDF5's checksum of its structures: lookup3 by Bob Jenkins, who gave it to the public domain."""
    words = np.frombuffer(content + bytes(-len(content) % 12), "<u4").tolist()
    a = b = c = (0xDEADBEEF + len(content)) & 0xFFFFFFFF
    while len(words) > 3:
        a, b, c = a + words[0], b + words[1], c + words[2]
        words = words[3:]
        for by in (4, 6, 8, 16, 19, 4):
            a = (a - c & 0xFFFFFFFF) ^ _rotated(c & 0xFFFFFFFF, by)
            c = c + b & 0xFFFFFFFF
            a, b, c = b, c, a
    if words:
        a, b, c = (x + word & 0xFFFFFFFF for x, word in zip((a, b, c), words, strict=True))
        for by in (14, 11, 25, 16, 4, 14, 24):
            c = (c ^ b) - _rotated(b, by) & 0xFFFFFFFF
            a, b, c = b, c, a
        c = b  # where the last step has left its result
    return c.to_bytes(4, "little")
