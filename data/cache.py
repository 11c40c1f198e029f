"""A cache: a folder with `cache.json`, `skipped.jsonl`, and shards that are each complete in themselves."""

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import InputError, one_line
from .files import write_text
from .metadata import Metadata, check_metadata, identity
from .shard import Shard, verify_shard

logger = logging.getLogger("headscore")

METADATA_FILE = "cache.json"
SKIPPED_FILE = "skipped.jsonl"
SHARDS_FOLDER = "shards"
MAX_METADATA_BYTES = 1 << 20


@dataclass(frozen=True)
class Cache:
    """A cache on disk: its metadata and its shard files in order. `planned` is how many shards a complete one has."""

    path: Path
    metadata: Metadata
    shards: tuple[Path, ...]
    planned: int

    @property
    def missing(self) -> int:
        """How many planned shards are not there yet."""
        return self.planned - len(self.shards)

    def missing_ranges(self) -> str:
        """The numbers of the missing shards, as in '0-2, 7'; empty where none is missing."""
        if not self.missing:
            return ""
        there = [-1, *(int(path.stem) for path in self.shards), self.planned]
        gaps = ((before + 1, after - 1) for before, after in itertools.pairwise(there) if after - before > 1)
        return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in gaps)

    def require_complete(self) -> None:
        """Raises InputError, saying what to do, if a shard is missing."""
        if self.missing:
            raise InputError(
                f"{self.path}: {self.missing} of {self.planned} shards are missing; "
                "run the same `headscore capture` command again to make them, or use what is there with --partial"
            )

    def require_spans(self, names: Sequence[str]) -> int:
        """The bits of the named spans, or-ed together; InputError where the cache has no span of a name."""
        known = self.metadata["span_names"]
        require_known_spans(names, known, str(self.path))
        return sum(1 << known.index(name) for name in dict.fromkeys(names))

    def open_shard(self, path: Path) -> Shard:
        """One of the cache's shards. Raises InputError where it is damaged or belongs to another capture or another place."""
        shard = Shard(path)
        misplaced = self.path.is_dir() and shard_path(self.path, shard.number) != path
        if misplaced or identity(shard.metadata) != self._identity:
            shard.__exit__()
            raise InputError(f"{path}: belongs to another capture, or to another place in this one")
        return shard

    def open_shards(self) -> Iterator[Shard]:
        """Each shard in turn, opened, and closed when the next is asked for; raises as `open_shard`."""
        for path in self.shards:
            with self.open_shard(path) as shard:
                yield shard

    def is_whole(self, number: int) -> bool:
        """Whether a shard of this capture is there, undamaged; one that is there but is not so is named in the log."""
        path = shard_path(self.path, number)
        if not path.exists():
            return False
        try:
            with self.open_shard(path) as shard:
                verify_shard(shard)
        except InputError as error:
            logger.warning("%s; it is made again", error)
            return False
        return True

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity(self.metadata)


def require_known_spans(asked: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises InputError where a name in `asked` is no span of `where`."""
    for name in asked:
        if name not in known:
            raise InputError(f"--task-span: {where} has no span '{name}'; it has {', '.join(known)}")


def open_cache(path: Path) -> Cache:
    """Open a cache folder, or a single shard file as a cache of its own.

    Raises InputError where there is none, where it is of a newer format, or where its metadata cannot be used.
    """
    if path.is_file():
        with Shard(path) as shard:
            return Cache(path, shard.metadata, (path,), 1)
    if not path.is_dir():
        raise InputError(f"{path}: cache not found; make one with `headscore capture --out {path}`")
    metadata = read_metadata(path)
    if metadata is None:
        raise InputError(f"{path}: is not a cache: it has no {METADATA_FILE}")
    planned = metadata["plan"]["shards"]
    return Cache(path, metadata, tuple(shard for shard in shard_files(path) if int(shard.stem) < planned), planned)


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` (0-based) of a cache lies."""
    return folder / SHARDS_FOLDER / f"{number:05d}.h5"


def shard_files(folder: Path) -> list[Path]:
    """The files in a cache folder that have a shard's name, in the order of their numbers."""
    numbers = (int(path.stem) for path in (folder / SHARDS_FOLDER).glob("*.h5") if path.stem.isdecimal())
    return [path for path in (shard_path(folder, number) for number in sorted(set(numbers))) if path.exists()]


def read_metadata(folder: Path) -> Metadata | None:
    """The checked content of a cache folder's `cache.json`, or None where there is none."""
    path = folder / METADATA_FILE
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise InputError(f"{path}: is larger than {MAX_METADATA_BYTES} bytes, so it is not cache metadata")
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {one_line(error)[:160]}") from error
    check_metadata(metadata, str(path))
    return dict(metadata)


def write_metadata(folder: Path, metadata: Metadata, *, keep_existing: bool = False) -> None:
    """Write `cache.json`, whole or not at all; with `keep_existing` only if no process has written one yet."""
    text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / METADATA_FILE, text, keep_existing=keep_existing)


def write_skipped(folder: Path, skipped: Sequence[Mapping[str, Any]]) -> bool:
    """Write `skipped.jsonl`, unless it is there: an object with `row` and `reason` per skipped row, in row order, or nothing.

    It says that the cache is complete. Whether it was written here.
    """
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in sorted(skipped, key=lambda entry: entry["row"]))
    return write_text(folder / SKIPPED_FILE, "".join(lines), keep_existing=True)
