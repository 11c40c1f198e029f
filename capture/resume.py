"""What of an earlier run is kept: the same capture goes on where it stopped, another one is refused or replaced."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.cache import METADATA_FILE, Cache, open_cache, read_metadata, shard_files, write_metadata
from ..data.errors import InputError
from ..data.files import TEMPORARY
from ..data.metadata import Metadata, differences
from ..data.reader import Shard
from .ranks import Rank

logger = logging.getLogger("headscore")

NOT_OURS_TO_MIND = ("lost+found",)  # what a fresh disk may have in it


@dataclass(frozen=True)
class _Earlier:
    """The capture that a folder holds, if any, and whether its cache.json is there, and is whole."""

    metadata: Metadata | None
    there: bool
    whole: bool


def require_same_capture(out: Path, metadata: Metadata, overwrite: bool) -> set[int]:
    """The numbers of the shards that are there already and may be kept.

    metadata: of this capture, as far as it is known. Raises InputError, listing every difference, where the folder holds
    another capture and `overwrite` is False, and where it holds something that is no cache or cannot be read.
    """
    return _kept(out, _earlier(out, overwrite), metadata, overwrite)


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
            path.unlink(missing_ok=True)
    if earlier.metadata and not earlier.whole and not overwrite:
        logger.warning("%s: is written again from what the shards say", out / METADATA_FILE)
    if not earlier.whole or differences(earlier.metadata or metadata, metadata):
        write_metadata(out, metadata, keep_existing=not earlier.there)
    cache = open_cache(out)
    if different := differences(cache.metadata, metadata):
        raise InputError(f"{out}: another capture has just been started there: {'; '.join(different)}; use another --out")
    return cache


def finished_shards(out: Path) -> tuple[list[tuple[int, int, int]], list[dict[str, Any]], int]:
    """(row, tokens, shard) of every sample in the cache by now, its skipped rows, and how many shards are not there whole."""
    cache = open_cache(out)
    missing = cache.missing
    lines, skipped = [], []
    for path in cache.shards:
        try:
            with cache.open_shard(path) as shard:
                shard.require_arrays()
                rows, lengths = shard.read("samples/row").tolist(), np.diff(shard.offsets()).tolist()
                lines += [(row, length, shard.number) for row, length in zip(rows, lengths, strict=True)]
                skipped += shard.skipped
        except InputError:  # damaged before; the process whose shard it is makes it again
            missing += 1
    return lines, skipped, missing


def _kept(out: Path, earlier: _Earlier, metadata: Metadata, overwrite: bool) -> set[int]:
    different = differences(earlier.metadata, metadata) if earlier.metadata else []
    if different and not overwrite:
        if earlier.whole and (contradiction := _contradiction(out, earlier.metadata or {})):
            raise InputError(contradiction)
        raise InputError(
            f"{out}: holds another capture: {'; '.join(different)}; use another --out, or --overwrite to start anew"
        )
    return set() if different or not earlier.metadata else {int(path.stem) for path in shard_files(out)}


def _earlier(out: Path, overwrite: bool) -> _Earlier:
    """What cache.json says, or where it is damaged or gone, what the first readable shard says, as that is the same.

    With `overwrite`, what cannot be read counts as nothing; else InputError.
    """
    shards = shard_files(out)
    there = (out / METADATA_FILE).exists()
    others = (path for path in out.iterdir() if not path.name.endswith(TEMPORARY) and path.name not in NOT_OURS_TO_MIND)
    if not there and not shards:
        if any(others):
            raise InputError(f"--out {out}: is not empty and holds no cache; give a new folder")
        return _Earlier(None, there=False, whole=False)
    try:
        if found := read_metadata(out):
            return _Earlier(found, there=True, whole=True)
        problem = InputError(f"{out}: has shards but no {METADATA_FILE}")
    except InputError as error:
        problem = error
    first = _first_readable(shards)
    if first is None and not overwrite:
        raise InputError(f"{problem}; and no shard is readable: use another --out, or --overwrite to start anew")
    return _Earlier(first, there, whole=False)


def _belongs(path: Path, metadata: Metadata) -> bool:
    try:
        with Shard(path) as shard:
            return not differences(shard.metadata, metadata)
    except InputError:
        return False


def _first_readable(shards: list[Path]) -> Metadata | None:
    for path in shards:
        try:
            with Shard(path) as shard:
                return shard.metadata
        except InputError:
            continue
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
