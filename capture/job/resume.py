"""Decides what of an earlier run is kept: the same capture goes on where it stopped, another is refused or replaced."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.cache.folder import Cache, open_cache, read_metadata, shard_files, shard_path, write_metadata
from ...data.cache.metadata import Metadata, SkippedRow, differences
from ...data.cache.reader import Shard
from ...data.errors import InputError, NewerFormatError, OptionError, RunError, UnreadableFileError
from ...data.files.plain import PlainFile, names_in
from ...data.files.whole_file import TEMPORARY, remove
from ...data.options.settings import METADATA_FILE
from .ranks import Rank

logger = logging.getLogger("headscore")

MAX_NAMED = 5  # shards in an error message
NOT_OURS_TO_MIND = ("lost+found",)  # what a fresh disk may have in it


@dataclass(frozen=True)
class _Earlier:
    """The capture that a folder holds, if any, and whether its cache.json is there, and is whole."""

    metadata: Metadata | None
    there: bool
    whole: bool


def require_same_capture(out: Path, metadata: Metadata, overwrite: bool, own: Collection[int]) -> set[int]:
    """The numbers of the shards that are in the folder already and may be kept.

    Args:
        out: the cache folder.
        metadata: of this capture, as far as it is known.
        overwrite: whether another capture may be replaced.
        own: numbers of this process's shards.

    Raises InputError, listing every difference, where the folder holds another capture that may not be replaced, and where it
    holds something that is no cache or is damaged; NewerFormatError where it is of a newer format; UnreadableFileError
    where the system refuses to read it, or to open one of this process's shards.
    """
    kept = _kept(out, _earlier(out, overwrite), metadata, overwrite)
    for number in sorted(kept.intersection(own)):
        PlainFile(shard_path(out, number)).close()
    return kept


def start_cache(out: Path, metadata: Metadata, overwrite: bool, rank: Rank) -> Cache:
    """The cache that this process adds to: the one that is there if it is of the same capture, else a new one.

    Several processes may come here at once: the first to write cache.json has written it for all, and each removes only its own
    share of another capture's shards. Raises InputError as `require_same_capture`, also where the other is just being started.
    """
    earlier = _earlier(out, overwrite)  # asked again, as another process may have begun in the meantime
    _kept(out, earlier, metadata, overwrite)
    for path in shard_files(out) if overwrite else ():
        number = int(path.stem)
        if (number in rank.share(number + 1) or number >= metadata["plan"]["shards"]) and not _belongs(path, metadata):
            remove(path)
    if earlier.metadata and not earlier.whole and not overwrite:
        logger.warning("%s: is written again from what the shards say", out / METADATA_FILE)
    if not earlier.whole or differences(earlier.metadata or metadata, metadata):
        write_metadata(out, metadata, keep_existing=not earlier.there)
    cache = open_cache(out)
    if different := differences(cache.metadata, metadata):
        raise InputError(f"{out}: another capture has just been started there: {'; '.join(different)}; use another --out")
    return cache


@dataclass(frozen=True)
class Finished:
    """What is in a cache by now: row, tokens and shard of each sample, skipped rows, and why a shard is missing, by number."""

    lines: list[tuple[int, int, int]]
    skipped: list[SkippedRow]
    missing: dict[int, str]

    def require(self, out: Path, own: Collection[int]) -> None:
        """Raises RunError, naming them, unless all of this process's `own` shards are there."""
        if not (lost := sorted(self.missing.keys() & set(own))):
            return
        named = ", ".join(shard_path(out, number).name for number in lost[:MAX_NAMED])
        more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        raise RunError(
            f"{out}: at the end, {len(lost)} of this process's {len(own)} shards are missing or damaged: {named}{more} "
            f"({self.missing[lost[0]]}); when nothing else changes that folder, run the same command again"
        )


def require_ours(cache: Cache) -> None:
    """Raises InputError where the folder of `cache`, which this process adds to, has become another capture's."""
    found = read_metadata(cache.path)
    different = differences(cache.metadata, found) if found else [f"its {METADATA_FILE} is gone"]
    if different:
        raise InputError(
            f"{cache.path}: another capture has been started there since: {'; '.join(different)}; "
            "shards of both may be in it: use another --out for one of the two, or --overwrite when nothing else writes there"
        )


def finished_shards(cache: Cache) -> Finished:
    """What is in the cache by now, whichever process made it.

    Raises UnreadableFileError where the folder cannot be read, and InputError as `require_ours`.
    """
    require_ours(cache)
    cache = open_cache(cache.path)
    missing = dict.fromkeys(range(cache.planned), "there is no such file")
    lines, skipped = [], []
    for path in cache.shards:
        try:
            with cache.open_shard(path) as shard:
                shard.require_arrays()
                rows, lengths = shard.read("samples/row").tolist(), np.diff(shard.offsets()).tolist()
                lines += [(row, length, shard.number) for row, length in zip(rows, lengths, strict=True)]
                skipped += shard.skipped
                del missing[shard.number]
        except (InputError, UnreadableFileError) as error:
            missing[int(path.stem)] = error.message
            logger.warning("%s", error.message)
    return Finished(lines, skipped, missing)


def _kept(out: Path, earlier: _Earlier, metadata: Metadata, overwrite: bool) -> set[int]:
    different = differences(earlier.metadata, metadata) if earlier.metadata else []
    if different and not overwrite:
        if earlier.metadata and earlier.whole and (contradiction := _contradiction(out, earlier.metadata)):
            raise InputError(contradiction)
        raise InputError(
            f"{out}: holds another capture: {'; '.join(different)}; use another --out, or --overwrite to start anew"
        )
    return set() if different or not earlier.metadata else {int(path.stem) for path in shard_files(out)}


def _earlier(out: Path, overwrite: bool) -> _Earlier:
    """What cache.json says, or where it is damaged or gone, what the first readable shard says, as that is the same.

    With `overwrite`, what is damaged or of a newer format counts as nothing; else InputError and NewerFormatError. Raises
    UnreadableFileError in any case.
    """
    shards = shard_files(out)
    names = names_in(out)
    there = METADATA_FILE in names
    if not there and not shards:
        if any(not name.endswith(TEMPORARY) and name not in NOT_OURS_TO_MIND for name in names):
            raise OptionError(f"--out {out}: is not empty and holds no cache; give a new folder")
        return _Earlier(None, there=False, whole=False)
    try:
        if found := read_metadata(out):
            return _Earlier(found, there=True, whole=True)
        problem = InputError(f"{out}: has shards but no {METADATA_FILE}")
    except NewerFormatError as error:
        if not overwrite:
            raise
        problem = error
    except InputError as error:
        problem = error
    try:
        first = _first_readable(shards)
    except NewerFormatError:
        if not overwrite:
            raise
        first = None
    if first is None and not overwrite:
        raise InputError(f"{problem.message}; and no shard is readable: use another --out, or --overwrite to start anew")
    return _Earlier(first, there, whole=False)


def _belongs(path: Path, metadata: Metadata) -> bool:
    try:
        with Shard(path) as shard:
            return not differences(shard.metadata, metadata)
    except InputError:
        return False


def _first_readable(shards: list[Path]) -> Metadata | None:
    """What the first readable shard says; UnreadableFileError or NewerFormatError where none is and one may be whole."""
    refused: UnreadableFileError | NewerFormatError | None = None
    for path in shards:
        try:
            with Shard(path) as shard:
                return shard.metadata
        except (UnreadableFileError, NewerFormatError) as error:
            refused = refused or error
        except InputError:
            continue
    if refused:
        raise refused
    return None


def _contradiction(out: Path, metadata: Metadata) -> str | None:
    """Where cache.json does not agree with its own shards: what to do, so that nobody overwrites good shards for its sake."""
    shards = _first_readable(shard_files(out))
    different = differences(metadata, shards) if shards else []
    if not different:
        return None
    return (
        f"{out / METADATA_FILE}: does not agree with the shards beside it ({'; '.join(different)}); if it was damaged, "
        "remove it, and the same command writes it again from them"
    )
