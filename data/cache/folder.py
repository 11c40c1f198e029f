"""A cache: a folder with `cache.json`, `skipped.jsonl`, and shards that are each complete in themselves."""

import contextlib
import itertools
import logging
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import DamagedShardError, ForeignShardError, InputError, OptionError, RunError, did_you_mean, one_line
from ..files.bounded_json import parse_json
from ..files.plain import kind_of, names_in, read_plain, require_own
from ..files.whole_file import output_folder, write_text
from ..options.settings import METADATA_FILE
from ..text import json_text, require_text
from .metadata import Metadata, SkippedRow, check_metadata, identity

if TYPE_CHECKING:
    from .reader import Shard

logger = logging.getLogger("headscore")

SKIPPED_FILE = "skipped.jsonl"
SHARDS_FOLDER = "shards"
MAX_METADATA_BYTES = 1 << 20
_OWN = (METADATA_FILE, SKIPPED_FILE, SHARDS_FOLDER, "derived", "charts")  # which only headscore writes


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

    def open_shard(self, path: Path) -> "Shard":
        """One of the cache's shards.

        Raises DamagedShardError where it is damaged and UnreadableFileError where the system refuses to read it (of an array:
        when it is read), ForeignShardError where it belongs to another capture or another place, or is no file of this folder,
        and NewerFormatError where it is of a newer format.
        """
        from .reader import Shard  # here, as scores that are kept need no HDF5

        in_folder = path != self.path
        if in_folder and (kind_of(path.parent) == stat.S_IFLNK or kind_of(path) not in (stat.S_IFREG, 0)):
            raise ForeignShardError(f"{path}: is not a file of this folder; remove it, or put the shard itself there")
        shard = Shard(path, follow_links=not in_folder)
        if different := [name for name, value in identity(shard.metadata).items() if self._identity.get(name) != value]:
            problem = f"belongs to another capture (other {', '.join(different)})"
        elif in_folder and shard_path(self.path, shard.number) != path:
            problem = f"is shard {shard.number}, so it belongs to another place"
        else:
            return shard
        shard.__exit__()
        raise ForeignShardError(f"{path}: {problem}; remove it, or put the right shard there")

    def open_shards(self) -> Iterator["Shard"]:
        """Each shard in turn, opened, and closed when the next is asked for; raises as `open_shard`."""
        for path in self.shards:
            with self.open_shard(path) as shard:
                yield shard

    def skipped_in_whole(self, number: int) -> list[SkippedRow] | None:
        """The skipped rows of a shard that is there undamaged, else None; one that is there damaged is named in the log.

        Raises ForeignShardError for one that is not this cache's, and UnreadableFileError or NewerFormatError for one that may
        be whole.
        """
        from .reader import verify_shard

        path = shard_path(self.path, number)
        if not kind_of(path):
            return None
        try:
            with self.open_shard(path) as shard:
                verify_shard(shard)
                return shard.skipped
        except DamagedShardError as error:
            logger.warning("%s; it is made again", error.message)
            return None

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity(self.metadata)


def require_known_spans(asked: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises InputError where a name in `asked` is no span of `where`."""
    for name in asked:
        if name not in known:
            meant = did_you_mean(name, known)
            raise OptionError(f"--task-span: {where} has no span '{name}'; {meant}it has {', '.join(known)}")


def open_cache(path: Path) -> Cache:
    """Open a cache folder, or a single shard file as a cache of its own.

    Raises InputError where there is none, its path is no text, or its metadata cannot be used; NewerFormatError where it is of
    a newer format, and UnreadableFileError where the system refuses to read it.
    """
    require_text("CACHE", path)
    kind = kind_of(path, follow_links=True)
    if kind == stat.S_IFREG:
        from .reader import Shard

        with Shard(path, follow_links=True) as shard:
            return Cache(path, shard.metadata, (path,), 1)
    if kind != stat.S_IFDIR:
        raise InputError(f"{path}: cache not found; make one with `headscore capture --out {path}`")
    metadata = read_metadata(path)
    if metadata is None:
        raise InputError(f"{path}: is not a cache: it has no {METADATA_FILE}")
    planned = metadata["plan"]["shards"]
    return Cache(path, metadata, tuple(shard for shard in shard_files(path) if int(shard.stem) < planned), planned)


def require_outside_caches(folder: Path) -> None:
    """Raises InputError where a path is, or lies in, a file or folder that a cache keeps for itself."""
    real = folder.resolve()
    for place in (real, *real.parents):
        if place.name in _OWN and kind_of(place.parent / METADATA_FILE, follow_links=True):
            where = "is" if place == real else "lies in"
            raise OptionError(f"--out {folder}: {where} '{place.name}' of the cache {place.parent}; use another --out")


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` (0-based) of a cache lies."""
    return folder / SHARDS_FOLDER / f"{number:05d}.h5"


def shard_files(folder: Path) -> list[Path]:
    """What in a cache folder has a shard's name, in the order of their numbers. Raises UnreadableFileError."""
    names = set(names_in(folder / SHARDS_FOLDER))
    numbers = {int(name[:-3]) for name in names if name.endswith(".h5") and name[:-3].isdecimal()}
    return [path for path in (shard_path(folder, number) for number in sorted(numbers)) if path.name in names]


def read_metadata(folder: Path) -> Metadata | None:
    """The checked content of a cache folder's `cache.json`, or None where there is none.

    Raises InputError where it cannot be used, and UnreadableFileError where the system refuses to read it.
    """
    path = folder / METADATA_FILE
    content = read_plain(path, MAX_METADATA_BYTES)
    if content is None:
        return None
    try:
        metadata = parse_json(content)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON: {one_line(error)[:160]}") from error
    check_metadata(metadata, str(path))
    return cast(Metadata, metadata)


def write_metadata(folder: Path, metadata: Metadata, *, keep_existing: bool) -> None:
    """Write `cache.json`, whole or not at all; with `keep_existing` only if no process has written one meanwhile."""
    text = json_text(metadata, indent=2) + "\n"
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise RunError(f"{folder / METADATA_FILE}: would be larger than {MAX_METADATA_BYTES} bytes; is a template that large?")
    write_text(folder / METADATA_FILE, text, keep_existing=keep_existing)


def write_skipped(folder: Path, skipped: Sequence[SkippedRow]) -> bool:
    """Write `skipped.jsonl`, unless it is there: an object with `row` and `reason` per skipped row, in row order, or nothing.

    It says that the cache is complete. Returns whether this call wrote it; of several processes one does. Raises RunError.
    """
    lines = (json_text(entry) + "\n" for entry in sorted(skipped, key=lambda entry: entry["row"]))
    text, path = "".join(lines), folder / SKIPPED_FILE
    try:
        changed = read_plain(path, len(text.encode())) not in (None, text.encode())
    except InputError:  # it is larger, or no file
        changed = True
    return write_text(path, text, keep_existing=not changed)


@contextlib.contextmanager
def cache_folder(folder: Path) -> Iterator[None]:
    """Makes the folder of a cache that is to be written, as `output_folder`, which in this context may be written to.

    Raises InputError, before anything is written, where something in it is a link or no file or folder as a cache has it.
    """
    require_own(folder, (METADATA_FILE, SKIPPED_FILE), (SHARDS_FOLDER,))
    with output_folder(folder):
        yield
