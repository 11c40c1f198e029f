"""Keeps what a pass over a shard gave, so that scoring it again reads no row.

There are two files for each shard and query mode: the measures as Parquet, and a JSON file that says what they are: of which
shard, with its size, inode and times, and with a CRC-32 of the Parquet file, which has none of its own. The JSON file has one
of itself, too. It also keeps the sums of signals. They lie in `derived/` in the cache folder, or where that cannot be written,
in the user's cache folder. A shard that was replaced, damaged or copied since has other times, so what a cache brings along
from elsewhere is never believed. Nothing depends on these files: what does not fit is made again.
"""

import base64
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ..data.cache.folder import Cache
from ..data.cache.metadata import MAX_HEADS, identity
from ..data.errors import HeadscoreError, InputError, RunError, UnreadableFileError
from ..data.files.bounded_json import parse_json
from ..data.files.plain import kind_of, read_plain
from ..data.files.whole_file import remove_leftovers, user_cache, write_bytes
from .means import PARTS, Sums
from .measures import Measure

logger = logging.getLogger("headscore")

DERIVED_FOLDER = "derived"
VERSION = 4  # of these files, and of what measures and built-in signals mean: raise it when either changes

MAX_BYTES = 128 << 20  # of the measures that are kept of a shard, as they are held at once
MAX_JSON_BYTES = 64 << 20
MAX_ELEMENTS = 1 << 22  # of the JSON: some for each sample
MAX_SUMS = 200  # signals of a shard; the oldest make room
SETTLED_NS = 2_000_000_000  # a shard that changed this recently might change again without its times telling


@dataclass
class Kept:
    """What is kept of a shard.

    Args:
        samples: what is known of each sample, lists by name.
        measures: the key of each kept measure's definition (`Recipe.measure_key`), by the measure's name.
        parquet: `bytes` and `crc32` of the measures' file; empty where there is none.
        sums: of signals, [L,H] each, by the key of the signal and all that it depends on (`Recipe.signal_key`).
    """

    samples: dict[str, list[Any]]
    measures: dict[str, str] = field(default_factory=dict)
    parquet: dict[str, int] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)


@dataclass(frozen=True)
class Store:
    """Where what is kept of a cache's shards lies. Safe to use from many processes at once.

    Args:
        folders: where to look, and to write to the first that takes it.
        capture: which capture the cache is of, as a hash.
        shape: L, H.
        mode: the query mode.
        settled_ns: how old a shard's last change must be.
    """

    folders: tuple[Path, ...]
    capture: str
    shape: tuple[int, int]
    mode: str
    settled_ns: int

    def key(self, shard: Path) -> dict[str, Any] | None:
        """What a file that is kept of a shard must say, as the shard is now; None where nothing can be kept of it."""
        try:
            found, folder = shard.lstat(), shard.parent.lstat()
        except OSError:
            return None
        changed = max(found.st_ctime_ns, found.st_mtime_ns)  # on Windows the first is when the file was made
        settled = time.time_ns() - changed >= self.settled_ns
        if not settled or not stat.S_ISREG(found.st_mode) or stat.S_ISLNK(folder.st_mode):
            return None
        times = {"bytes": found.st_size, "inode": found.st_ino, "changed": found.st_ctime_ns, "modified": found.st_mtime_ns}
        return {"headscore-derived": VERSION, "mode": self.mode, "capture": self.capture, "shard": shard.name, **times}

    def read(self, shard: Path) -> Kept | None:
        """What is kept of a shard; None where there is nothing that can be trusted."""
        if key := self.key(shard):
            for folder in self.folders:
                with contextlib.suppress(
                    OSError, HeadscoreError, ValueError, LookupError, TypeError, AttributeError, RecursionError
                ):
                    if found := self._read(folder, shard, key):
                        return found
        return None

    def read_measures(self, shard: Path, kept: Kept, names: Sequence[str]) -> dict[str, Measure] | None:
        """The named measures of a shard, float32 [L,H,n]; None where the file is not what `kept` says."""
        for folder in self.folders:
            with contextlib.suppress(OSError, HeadscoreError, ValueError, LookupError, TypeError, pl.exceptions.PolarsError):
                content = read_plain(self._path(folder, shard, "parquet"), MAX_BYTES * 2)
                if content is None or {"bytes": len(content), "crc32": zlib.crc32(content)} != kept.parquet:
                    continue
                frame = pl.read_parquet(io.BytesIO(content), columns=list(names))
                shape = (*self.shape, len(kept.samples["row"]))
                if all(frame[name].dtype == pl.Float32 for name in names):
                    return {name: frame[name].to_numpy().reshape(shape) for name in names}
        return None

    def write(self, shard: Path, key: Mapping[str, Any], kept: Kept, measures: Mapping[str, Measure] | None) -> str:
        """Keep something of a shard if it still is what `key` said; why that cannot be done, empty where it was.

        measures: float32 [L,H,n], where they are new.
        """
        if key != self.key(shard):
            return ""
        why = ""
        for folder in self.folders:
            try:
                self._write(folder, shard, key, kept, measures)
                return ""
            except RunError as error:
                why = why or str(error)
        return why

    def has_room_for_samples(self, values: int) -> bool:
        """Whether so many values of samples may be kept, all columns taken together: as many as are read again."""
        return values <= MAX_ELEMENTS // 2

    def has_room_for(self, samples: int, measures: int) -> bool:
        """Whether so many measures of so many samples may be kept."""
        return 0 < samples * measures * self.shape[0] * self.shape[1] * 4 <= MAX_BYTES

    def clear(self) -> None:
        """Remove what killed processes left half-written."""
        for folder in self.folders:
            remove_leftovers(folder)

    def _path(self, folder: Path, shard: Path, kind: str) -> Path:
        return folder / f"{shard.stem}.{self.mode}.{kind}"

    def _read(self, folder: Path, shard: Path, key: Mapping[str, Any]) -> Kept | None:
        content = read_plain(self._path(folder, shard, "json"), MAX_JSON_BYTES)
        if content is None or content[9:] == b"" or content[:9] != _checksum(content[9:]):
            return None
        found = parse_json(content[9:], MAX_ELEMENTS)
        if any(found.get(name) != value for name, value in key.items()):
            return None
        lengths = {len(values) if isinstance(values, list) else -1 for values in found["samples"].values()}
        if lengths != {len(found["samples"]["row"])}:
            return None
        sums = {name: self._sums(*parts) for name, parts in found["sums"].items()}
        return Kept(found["samples"], found["measures"], found["parquet"], sums)

    def _write(
        self, folder: Path, shard: Path, key: Mapping[str, Any], kept: Kept, measures: Mapping[str, Measure] | None
    ) -> None:
        if measures:
            table = io.BytesIO()
            frame = pl.DataFrame({name: values.reshape(-1) for name, values in measures.items()})
            frame.write_parquet(table, compression="uncompressed", statistics=False)
            kept.parquet = {"bytes": table.tell(), "crc32": zlib.crc32(table.getbuffer())}
            write_bytes(self._path(folder, shard, "parquet"), table.getbuffer(), durable=False)
        newest = list(kept.sums.items())[-MAX_SUMS:]
        sums = {name: [_text(found.parts), _text(found.counts)] for name, found in newest}
        content = {**key, "samples": kept.samples, "measures": kept.measures, "parquet": kept.parquet, "sums": sums}
        text = json.dumps(content).encode()
        write_bytes(self._path(folder, shard, "json"), _checksum(text) + text, durable=False)

    def _sums(self, parts: str, counts: str) -> Sums:
        return Sums(_array(parts, "<f8").reshape(PARTS, *self.shape), _array(counts, "<i8").reshape(self.shape))


def open_store(cache: Cache, mode: str) -> Store | None:
    """Where the measures of `cache` are kept; None for a single shard file, and where there is no folder for them."""
    dims = cache.metadata["dims"]
    shape = (dims["layers"], dims["heads"])
    if cache.shards == (cache.path,) or not 0 < shape[0] * shape[1] <= MAX_HEADS or shape[0] != len(cache.metadata["layers"]):
        return None
    capture = json.dumps(identity(cache.metadata), sort_keys=True, ensure_ascii=False)
    own = cache.path / DERIVED_FOLDER
    folders = ((own,) if _is_folder_or_free(own) else ()) + _elsewhere(cache)
    return Store(folders, hashlib.sha256(capture.encode()).hexdigest(), shape, mode, SETTLED_NS) if folders else None


def _elsewhere(cache: Cache) -> tuple[Path, ...]:
    """The folder of a cache in the user's cache folder; none for a user without a home."""
    place = hashlib.sha256(os.fsencode(cache.path.absolute())).hexdigest()[:20]
    try:
        return (user_cache() / DERIVED_FOLDER / place,)
    except InputError:
        return ()


def _is_folder_or_free(folder: Path) -> bool:
    try:
        if kind_of(folder) in (stat.S_IFDIR, 0):
            return True
    except UnreadableFileError:
        pass
    logger.info("%s: is not a folder of this cache; measures are kept in the user's cache folder", folder)
    return False


def _checksum(content: bytes) -> bytes:
    return f"{zlib.crc32(content):08x}\n".encode()


def _text(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _array(text: str, dtype: str) -> npt.NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)
