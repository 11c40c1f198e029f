"""What of an earlier run is kept: the same capture goes on where it stopped, another one is refused or replaced."""

import logging
from pathlib import Path

import numpy as np

from ..data.cache import METADATA_FILE, Cache, open_cache, read_metadata, shard_files, write_metadata
from ..data.errors import InputError
from ..data.files import TEMPORARY
from ..data.metadata import Metadata, differences
from ..data.shard import Shard
from .ranks import Rank

logger = logging.getLogger("headscore")


def require_same_capture(out: Path, metadata: Metadata, overwrite: bool) -> set[int]:
    """The numbers of the shards that are there already and may be kept.

    metadata: of this capture, as far as it is known. Raises InputError, listing every difference, where the folder holds
    another capture and `overwrite` is False, or holds something that is no cache.
    """
    if any(not path.name.endswith(TEMPORARY) for path in out.iterdir()) and not _has_cache(out):
        raise InputError(f"--out {out}: is not empty and holds no cache; give a new folder")
    existing = _earlier_metadata(out, overwrite)
    different = differences(existing, metadata) if existing else []
    if different and not overwrite:
        raise InputError(
            f"{out}: holds another capture: {'; '.join(different)}; use another --out, or --overwrite to start anew"
        )
    return set() if different or not existing else {int(path.stem) for path in shard_files(out)}


def start_cache(out: Path, metadata: Metadata, overwrite: bool, rank: Rank) -> Cache:
    """The cache that this process adds to: the one that is there if it is of the same capture, else a new one.

    Several processes may come here at once: the first to write cache.json has written it for all, and each removes only its own
    share of another capture's shards.
    """
    kept = require_same_capture(out, metadata, overwrite)  # asked again, as another process may have begun in the meantime
    for path in shard_files(out) if overwrite else ():
        number = int(path.stem)
        if number not in kept and (number in rank.share(number + 1) or number >= metadata["plan"]["shards"]):
            path.unlink(missing_ok=True)
    readable = _readable(out)
    if not (readable and not differences(readable, metadata)):
        write_metadata(out, metadata, keep_existing=not (out / METADATA_FILE).exists())
    return open_cache(out)


def finished_shards(out: Path) -> tuple[list[tuple[int, int, int]], list[dict[str, object]], int]:
    """(row, tokens, shard) of every sample in the cache by now, its skipped rows, and how many shards are not there whole."""
    cache = open_cache(out)
    missing = cache.missing
    lines, skipped = [], []
    for path in cache.shards:
        try:
            with cache.open_shard(path) as shard:
                rows, lengths = shard.read("samples/row").tolist(), np.diff(shard.offsets()).tolist()
                lines += [(row, length, shard.number) for row, length in zip(rows, lengths, strict=True)]
                skipped += shard.skipped
        except InputError:  # damaged before; the process whose shard it is makes it again
            missing += 1
    return lines, skipped, missing


def _has_cache(out: Path) -> bool:
    return (out / METADATA_FILE).exists() or bool(shard_files(out))


def _readable(out: Path) -> Metadata | None:
    try:
        return read_metadata(out)
    except InputError:
        return None


def _earlier_metadata(out: Path, overwrite: bool) -> Metadata | None:
    """What cache.json says, or where it is damaged or gone, what the first readable shard says, as it is the same.

    With `overwrite`, a cache that cannot be read counts as none; else InputError.
    """
    damage = None
    try:
        if found := read_metadata(out):
            return found
    except InputError as error:
        damage = error
    for path in shard_files(out):
        try:
            with Shard(path) as shard:
                logger.warning("%s: is written again from %s: %s", out / METADATA_FILE, path.name, damage or "it is gone")
                return shard.metadata
        except InputError:
            continue
    if damage and not overwrite:
        raise damage
    return None
