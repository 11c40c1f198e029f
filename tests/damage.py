"""Damages a cache, one bit, cut, swap or edit at a time, and checks that nobody is fooled by it.

The suite runs a short version on a tiny cache (test_cache.py). The long version damages a copy of any cache:

    python tests/damage.py CACHE --flips 300 --truncations 50 --swaps 50 --edits 100

A flipped bit in array data, and any truncation, must be named by `inspect --verify` and be made again by a resumed
capture. A flipped bit elsewhere must be named or change nothing. The same goes for shards in each other's places and
for a `cache.json` with a changed byte. Nothing but an error of headscore's own may be raised, in 20 s, and no score
may change: neither of the cache, with what was kept of it before or without, nor of what it is merged into.
"""

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import headscore
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.cache.shard import ARRAYS
from headscore.data.errors import HeadscoreError, InputError
from headscore.data.options.settings import METADATA_FILE
from headscore.score import kept


@dataclass
class Report:
    damaged: int = 0
    in_array_data: int = 0
    named: int = 0
    fooled: int = 0  # not named, though in array data, or a score that changed
    slowest: float = 0.0  # seconds


def damage(cache: Path, flips: int, truncations: int, swaps: int = 0, edits: int = 0, seed: int = 0) -> Report:
    """Damage a copy of the cache; see above."""
    random, report, messages = np.random.default_rng(seed), Report(), []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("headscore").addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            copy = open_cache(Path(shutil.copytree(cache, Path(folder) / "copy")))
            for path, content, in_data in damages(list(copy.shards), flips, truncations, random):
                whole, right = path.read_bytes(), headscore.score(path).raw
                path.write_bytes(content(whole))
                messages.clear()
                listed = headscore.inspect(copy.path, verify=True)["damaged"]
                named = len(listed) == 1 and path.name in listed[0]
                made_again = copy.skipped_in_whole(int(path.stem)) is None and path.name in messages[0]
                fooled = (named != made_again) or (in_data and not named)
                try:
                    fooled |= not headscore.score(path).raw.equals(right)
                except InputError as error:
                    fooled |= path.name not in str(error)
                path.write_bytes(whole)
                report.damaged += 1
                report.in_array_data += in_data
                report.named += named
                report.fooled += fooled
            damage_folder(copy.path, swaps, edits, random, report)
    finally:
        logging.getLogger("headscore").removeHandler(handler)
    return report


def damage_folder(cache: Path, swaps: int, edits: int, random: np.random.Generator, report: Report) -> None:
    """Damage what belongs to no single shard; measures are kept of the whole cache before."""
    kept.SETTLED_NS = 0
    right = headscore.score(cache).raw
    for number in range(swaps + edits):
        paths = [cache / METADATA_FILE]
        if number < swaps:
            shards = open_cache(cache).shards
            first = int(random.integers(len(shards)))
            paths = [shards[first], shards[(first + int(random.integers(1, len(shards)))) % len(shards)]]
        whole = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(whole), strict=True):
            path.write_bytes(content if number < swaps else edited(content, random))
        started = time.monotonic()
        found = [outcome(cache, fresh) for fresh in (False, True)] + [merged_outcome(cache)]
        report.slowest = max(report.slowest, time.monotonic() - started)
        report.damaged += 1
        report.named += found[1] is None
        report.fooled += any(scores is not None and not scores.equals(right) for scores in found)
        for path, content in zip(paths, whole, strict=True):
            path.write_bytes(content)


def outcome(cache: Path, fresh: bool) -> Any:
    """The scores, or None where they are refused."""
    try:
        headscore.inspect(cache, verify=True)
        return headscore.score(cache, fresh=fresh).raw
    except HeadscoreError:
        return None


def merged_outcome(cache: Path) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        try:
            headscore.merge([cache], Path(folder) / "merged")
        except HeadscoreError:
            return None
        return outcome(Path(folder) / "merged", fresh=True)


def edited(content: bytes, random: np.random.Generator) -> bytes:
    """A text with a digit, a letter or a sign changed, left out or doubled."""
    place, how = int(random.integers(len(content))), int(random.integers(4))
    if how == 0:
        return flipped(content, place * 8 + int(random.integers(7)))
    middle = [b"", content[place : place + 1] * 2, b"7", b'"'][how]
    return content[:place] + middle + content[place + 1 :]


Content = Callable[[bytes], bytes]


def damages(
    shards: list[Path], flips: int, truncations: int, random: np.random.Generator
) -> Iterator[tuple[Path, Content, bool]]:
    """Which shard, what becomes of its bytes, and whether array data is hit."""
    for _ in range(flips):
        path = shards[int(random.integers(len(shards)))]
        bit = int(random.integers(0, path.stat().st_size * 8))
        yield path, lambda whole, bit=bit: flipped(whole, bit), any(bit // 8 in places for places in data_places(path))
    for _ in range(truncations):
        path = shards[int(random.integers(len(shards)))]
        length = int(random.integers(0, path.stat().st_size))
        yield path, lambda whole, length=length: whole[:length], True


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def data_places(path: Path) -> list[range]:
    """The bytes of a shard file that hold array values, checksums included."""
    with path.open("rb") as content, h5py.File(content) as file:  # HDF5 would lock a file that it opens by itself
        arrays = [file[name].id for name in ARRAYS if name in file]
        chunks = [array.get_chunk_info(i) for array in arrays for i in range(array.get_num_chunks())]
        return [range(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in chunks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--truncations", type=int, default=50)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    numbers = arguments.flips, arguments.truncations, arguments.swaps, arguments.edits
    report = damage(arguments.cache, *numbers, seed=arguments.seed)
    print(json.dumps(asdict(report)))
    raise SystemExit(bool(report.fooled))


if __name__ == "__main__":
    main()


def change(cache: Path, do: Callable[[h5py.File], None]) -> None:
    with h5py.File(shard_path(cache, 0), "r+", libver=("v110", "v110"), locking=False) as file:
        do(file)
