"""Keeps the measures of a cache's shards in `derived/` beside them, so that scoring it again reads no row.

There is one file for each pass over a shard. It is believed only if it is what this program would have written for the shard as
it is now: its first line names the pass with all that it depends on, the capture, and the shard file with its size, inode and
times, and checksums cover the rest. A shard that was replaced, damaged or copied since has other times, so what a cache brings
along from elsewhere is never believed.
Nothing depends on these files: what does not fit is made again, and where they cannot be written, scoring goes on without.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import stat
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.cache import Cache
from ..data.errors import HeadscoreError, UnreadableFileError
from ..data.files import remove_leftovers, write_bytes
from ..data.metadata import MAX_HEADS, identity
from ..data.plain import PlainFile, kind_of

logger = logging.getLogger("headscore")

DERIVED_FOLDER = "derived"
VERSION = 2  # of these files and of what the signals mean: raise it when either changes

MAX_BYTES = 128 << 20  # of the values that are kept of a shard, as they are held at once
SETTLED_NS = 2_000_000_000  # a shard that changed this recently might change again without its times telling
_SUMS, _VALUES, _CHECK_BYTES = np.dtype("<f8"), np.dtype("<f4"), 4

Sums = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kept:
    """What a pass over a shard gave: the number of samples n, and the sum of each measure over them, float64 [L,H]."""

    samples: int
    sums: Mapping[str, Sums]


def open_derived(cache: Cache) -> "Derived | None":
    """Where the signals of `cache` are kept; None for a single shard file, which has no folder of its own."""
    folder, dims = cache.path / DERIVED_FOLDER, cache.metadata["dims"]
    shape = (dims["layers"], dims["heads"])
    if cache.shards == (cache.path,) or not 0 < prod(shape) <= MAX_HEADS or shape[0] != len(cache.metadata["layers"]):
        return None
    try:
        foreign = kind_of(folder) not in (stat.S_IFDIR, 0)
    except UnreadableFileError:
        foreign = True
    if foreign:
        logger.info("%s: is not a folder of this cache; signals are not kept for another time", folder)
        return None
    capture = json.dumps(identity(cache.metadata), sort_keys=True, ensure_ascii=False)
    return Derived(folder, hashlib.sha256(capture.encode()).hexdigest(), shape, SETTLED_NS)


@dataclass(frozen=True)
class Derived:
    """The kept signals of a cache. Safe to use from many processes at once."""

    folder: Path
    capture: str  # which capture the cache is of, as a hash
    shape: tuple[int, int]  # L, H
    settled_ns: int

    def key(self, shard: Path, name: str) -> bytes | None:
        """The first line of the file that keeps a pass over a shard as that is now; None where it cannot have one."""
        try:
            found, folder = shard.lstat(), shard.parent.lstat()
        except OSError:
            return None
        settled = time.time_ns() - found.st_ctime_ns >= self.settled_ns
        if not settled or not stat.S_ISREG(found.st_mode) or stat.S_ISLNK(folder.st_mode):
            return None
        times = {"bytes": found.st_size, "inode": found.st_ino, "changed": found.st_ctime_ns, "modified": found.st_mtime_ns}
        key = {"headscore-derived": VERSION, "pass": name, "capture": self.capture, "shard": shard.name, **times}
        return json.dumps(key).encode() + b"\n"

    def has_room_for(self, samples: int, measures: Sequence[str]) -> bool:
        """Whether the measures of so many samples may be kept."""
        return 0 < samples * len(measures) * prod(self.shape) * _VALUES.itemsize <= MAX_BYTES

    def read(self, shard: Path, name: str, measures: Sequence[str]) -> Kept | None:
        """What a pass that gives `measures` gave, as it is kept; None where that is nothing to be believed."""
        found = self._content(shard, name, measures, with_values=False)
        return found and found[0]

    def read_values(self, shard: Path, name: str, measures: Sequence[str]) -> dict[str, Values]:
        """The measures of each sample of a shard, float32 [L,H,n]; none where none are kept that can be believed."""
        found = self._content(shard, name, measures, with_values=True)
        return found[1] if found else {}

    def write(self, shard: Path, name: str, key: bytes, kept: Kept, values: Mapping[str, Values]) -> None:
        """Keep what a pass gave, if the shard still is what `key` said before it. Raises RunError as `write_bytes`."""
        if key != self.key(shard, name):
            return
        sums = np.array(list(kept.sums.values()), _SUMS)
        head = [key, kept.samples.to_bytes(8, "little"), sums.tobytes()]
        body = [np.ascontiguousarray(values[measure], _VALUES).data for measure in kept.sums]
        write_bytes(self._path(shard, name), b"".join([*head, _checksum(*head), *body, _checksum(*body)]), durable=False)

    def clear(self) -> None:
        """Remove what killed processes left half-written."""
        remove_leftovers(self.folder)

    def _path(self, shard: Path, name: str) -> Path:
        return self.folder / f"{shard.stem}.{name}"

    def _content(
        self, shard: Path, name: str, measures: Sequence[str], with_values: bool
    ) -> tuple[Kept, dict[str, Values]] | None:
        key, shape = self.key(shard, name), (len(measures), *self.shape)
        if key is None:
            return None
        with contextlib.suppress(OSError, HeadscoreError), io.BufferedReader(PlainFile(self._path(shard, name))) as file:
            head = file.read(len(key) + 8 + prod(shape) * _SUMS.itemsize)
            if not head.startswith(key) or file.read(_CHECK_BYTES) != _checksum(head):
                return None
            samples = int.from_bytes(head[len(key) :][:8], "little")
            size = samples * prod(shape) * _VALUES.itemsize
            if (
                not self.has_room_for(samples, measures)
                or os.fstat(file.fileno()).st_size != len(head) + size + 2 * _CHECK_BYTES
            ):
                return None
            sums = np.frombuffer(head, _SUMS, offset=len(key) + 8).reshape(shape)
            kept = Kept(samples, dict(zip(measures, sums, strict=True)))
            if not with_values:
                return kept, {}
            body = file.read(size)
            if file.read(_CHECK_BYTES) == _checksum(body):
                return kept, dict(zip(measures, np.frombuffer(body, _VALUES).reshape(*shape, samples), strict=True))
        return None


def _checksum(*pieces: bytes | memoryview) -> bytes:
    found = 0
    for piece in pieces:
        found = zlib.crc32(piece, found)
    return found.to_bytes(_CHECK_BYTES, "little")
