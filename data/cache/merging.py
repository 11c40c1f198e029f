"""Puts the shards of one capture that were made in different places into one cache."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, OptionError
from ..files.plain import PlainFile, names_in, refusals_told
from ..files.whole_file import TEMPORARY, given_path, remove_leftovers, write_bytes
from ..options.settings import METADATA_FILE
from ..options.signatures import library_call
from .folder import Cache, cache_folder, open_cache, require_outside_caches, shard_path, write_metadata, write_skipped
from .metadata import differences
from .reader import Shard, verify_shard
from .shard import ARRAYS

logger = logging.getLogger("headscore")


@library_call()
def merge(caches: Sequence[str | Path], out: str | Path) -> Cache:
    """Copy the shards of several caches of the same capture into `out`; the library call of `headscore merge`.

    caches: cache folders or single shard files; each shard is verified before it is copied. out: a new folder, or a cache of
    the same capture, which is added to. A shard that is there already, with the same values, is passed over. The result may
    still miss shards; `missing` says how many.

    Raises InputError, before anything is copied, where a cache is of another capture (listing every difference), is damaged, or
    holds a shard that another one has with other values; RunError where a disk refuses.
    """
    out = given_path("--out", out)
    require_outside_caches(out)
    opened = [open_cache(given_path("cache", cache)) for cache in ([caches] if isinstance(caches, str | Path) else caches)]
    if not opened:
        raise InputError("merge: give one or more caches")
    found: dict[int, Path] = {}
    with cache_folder(out):
        remove_leftovers(shard_path(out, 0).parent)
        names = names_in(out)
        if METADATA_FILE in names:
            opened.insert(0, open_cache(out))
        elif any(not name.endswith(TEMPORARY) for name in names):
            raise OptionError(f"--out {out}: is not empty and holds no cache; give a new folder")
        first = opened[0]
        for cache in opened:
            if different := differences(first.metadata, cache.metadata):
                raise InputError(f"{cache.path}: belongs to another capture than {first.path}: {'; '.join(different)}")
            for path in cache.shards:
                _add(found, cache, path)
        write_metadata(out, first.metadata, keep_existing=True)
        for number, path in sorted(found.items()):
            target = shard_path(out, number)
            if path != target:
                write_bytes(target, _content(path))
        merged = open_cache(out)
        if not merged.missing:
            write_skipped(out, [entry for shard in merged.open_shards() for entry in shard.skipped])
    logger.info("%s: %d shards, %d of %d missing", out, len(merged.shards), merged.missing, merged.planned)
    return merged


def _add(found: dict[int, Path], cache: Cache, path: Path) -> None:
    """Note where the shard in `path` is, once it is known to be whole and not to contradict another one."""
    with cache.open_shard(path) as shard:
        number, planned = shard.number, cache.metadata["plan"]["shards"]
        if not 0 <= number < planned:
            raise InputError(f"{path}: is shard {number}, but its capture plans {planned}")
        verify_shard(shard)
        if number in found:
            with Shard(found[number], follow_links=True) as other:
                if not _same(shard, other):
                    raise InputError(
                        f"{path}: is shard {number} as is {other.path}, but with other values (made on another device?); "
                        "remove one of the two"
                    )
    found.setdefault(number, path)


def _content(path: Path) -> bytes:
    with PlainFile(path, follow_links=True) as file, refusals_told(path):  # a shard that was given may be a link
        return file.readall()


def _same(one: Shard, other: Shard) -> bool:
    """Whether two whole shards of one capture hold the same; what they say about where they were made may differ."""
    if (one.skipped, one.kept) != (other.skipped, other.kept) or (one.samples, one.tokens) != (other.samples, other.tokens):
        return False
    pieces = ((name, layer) for name in one.names for layer in (range(one.layers) if len(ARRAYS[name][1]) == 3 else [None]))
    return all(np.array_equal(one.read(name, layer), other.read(name, layer)) for name, layer in pieces)
