"""Mutates the shard of a small cache, and checks that headscore stands it: the long version of test_fuzz_cache.py.

    python tests/fuzzing_cache.py --mutations 4000

Shards are written with old and new `libver`, with the indexes of chunks that HDF5 has. A mutation changes bytes of HDF5's own
structures: at random, to numbers that are often wrong, or to what stands elsewhere in the file; or it cuts the file. In half of
them the checksums of the structures are made right again, as an attacker would. To score, inspect and verify must end in 20 s
and 1 GB with the same scores or an error of headscore's own; where checksums were made right, with any scores. Mutations run in
child processes, many in each, so that a crash is seen.
"""

import argparse
import faulthandler
import io
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzzing import peak_bytes
from hdf5_structures import INTERESTING, Structure, metadata_places, repaired, structures

import headscore
from headscore.data.cache.folder import shard_path, write_metadata
from headscore.data.cache.shard import ARRAYS, write_shard
from headscore.data.errors import HeadscoreError

MAX_SECONDS, MAX_BYTES = 20, 1 << 30
IN_A_CHILD = 250  # mutations
UNLIMITED: dict[str, tuple[int, ...]] = {"none": (), "last": (-1,), "last two": (-1, -2)}  # the axes that may grow
LIBVERS = ("earliest", "v108", "v110", "latest")
KINDS = [*((libver, "none") for libver in LIBVERS), ("v110", "last"), ("latest", "last two")]  # the last two are refused
LAYERS, HEADS, LENGTHS = 3, 2, (4, 1, 7)

METADATA: dict[str, Any] = {
    "format": "headscore-cache",
    "format_version": 1,
    "versions": {},
    "model": {"name": "made by hand"},
    "data": {},
    "templates": [],
    "span_names": ["question", "choices"],
    "settings": {"queries": "last_token", "shard_size": 256},
    "attention": {"way": "recorded", "full_rows": True, "result_norms": True},
    "dims": {"layers": LAYERS, "heads": HEADS},
    "layers": list(range(LAYERS)),
    "plan": {"rows": 3, "shards": 1},
    "example": {"row": 0, "pieces": [{"text": "a b c d" * 400, "spans": ["question"]}]},  # large: kept in a heap
}


def base_cache(folder: Path) -> Path:
    """A cache of one shard, small enough that most of it is HDF5's own structures."""
    numbers, tokens = np.random.default_rng(0), sum(LENGTHS)
    dims = {"n": len(LENGTHS), "n+1": len(LENGTHS) + 1, "t": tokens, "L": LAYERS, "H": HEADS}
    arrays = {name: numbers.random([dims[axis] for axis in axes]) for name, (_, axes) in ARRAYS.items()}
    rows = [numbers.dirichlet(np.ones(length), size=(LAYERS, HEADS)) for length in LENGTHS]
    arrays |= {
        "samples/row": np.arange(len(LENGTHS)),
        "samples/offset": np.cumsum([0, *LENGTHS]),
        "tokens/id": np.arange(tokens),
        "tokens/span": np.arange(tokens) % 3,
        "layers/index": np.arange(LAYERS),
        "last_token/attention": np.concatenate(rows, axis=2),
    }
    write_shard(shard_path(folder, 0), 0, arrays, METADATA, [])
    write_metadata(folder, METADATA, keep_existing=False)
    return folder


def rewritten(shard: Path, libver: str, unlimited: tuple[int, ...]) -> bytes:
    """The same shard in the structures of another HDF5."""
    content = io.BytesIO()
    with shard.open("rb") as file, h5py.File(file) as old, h5py.File(content, "w", libver=(libver, "latest")) as new:
        for key in old.attrs:
            new.attrs.create(key, old.attrs[key], dtype=old.attrs.get_id(key).dtype)
        for name in ARRAYS:
            if name in old:
                shape = old[name].shape
                axes = {len(shape) + axis for axis in unlimited if len(shape) + axis >= 0}
                most = tuple(None if axis in axes else length for axis, length in enumerate(shape))
                new.create_dataset(name, data=old[name], chunks=old[name].chunks, maxshape=most, fletcher32=True)
    return content.getvalue()


def mutated(content: bytes, found: list[Structure], places: np.ndarray, seed: int) -> tuple[bytes, bool, str]:
    """The file with a mutation, whether checksums were made right, and what was done."""
    randomly = random.Random(seed)
    repair = bool(found) and randomly.random() < 0.5
    if randomly.random() < 0.05:
        return content[: randomly.randrange(len(content))], False, "cut"
    made = bytearray(content)
    told = []
    for _ in range(randomly.choice([1, 1, 1, 2, 4])):
        if repair:
            structure = randomly.choice(found)
            place = randomly.randrange(structure.start + 4, structure.stop)
        else:
            place = int(places[randomly.randrange(len(places))])
        width = randomly.choice([1, 1, 2, 4, 8])
        kind = randomly.choice(["bit", "bytes", "number", "elsewhere"])
        if kind == "bit":
            new = bytes([made[place] ^ 1 << randomly.randrange(8)])
        elif kind == "bytes":
            new = randomly.randbytes(width)
        elif kind == "number":
            values = [*INTERESTING, len(content), randomly.randrange(len(content))]
            new = (randomly.choice(values) % (1 << 8 * width)).to_bytes(width, "little")
        else:
            start = int(places[randomly.randrange(len(places))])
            new = bytes(made[start : start + 8])
        new = new[: len(made) - place]
        made[place : place + len(new)] = new
        told.append(f"{kind} {place}+{len(new)}")
    return repaired(bytes(made), found) if repair else bytes(made), repair, ", ".join(told)


def outcome(cache: Path) -> Any:
    """The scores, or "refused"; anything but an error of headscore's own is raised."""
    try:
        return headscore.score(cache, fresh=True).raw
    except HeadscoreError as error:
        if "\n" in str(error):
            raise ValueError("an error of several lines") from error
        return "refused"


def prepare(folder: Path) -> None:
    """A cache, and beside it its shard in all kinds of structures, with where these are."""
    cache = base_cache(folder / "cache")
    for number, (libver, unlimited) in enumerate(KINDS):
        content = rewritten(shard_path(cache, 0), libver, UNLIMITED[unlimited])
        (folder / f"{number}.h5").write_bytes(content)
        places = [[structure.start, structure.stop] for structure in structures(content)]
        (folder / f"{number}.json").write_text(json.dumps({"libver": libver, "unlimited": unlimited, "structures": places}))


def child(folder: Path, first: int, stop: int) -> None:
    """Run mutations `first` to `stop`; two lines of JSON for each."""
    faulthandler.enable()
    cache = folder / "cache"
    path = shard_path(cache, 0)
    files = [(folder / f"{number}.h5").read_bytes() for number in range(len(KINDS))]
    known = [json.loads((folder / f"{number}.json").read_text()) for number in range(len(files))]
    places = [metadata_places(content) for content in files]
    path.write_bytes(files[0])
    right = headscore.score(cache, fresh=True).raw
    for number in range(first, stop):
        which = number % len(files)
        found = [Structure(*pair) for pair in known[which]["structures"]]
        content, repair, told = mutated(files[which], found, places[which], number)
        line = {"number": number, "libver": known[which]["libver"], "unlimited": known[which]["unlimited"], "repaired": repair}
        print(json.dumps(line | {"what": told}), flush=True)
        path.write_bytes(content)
        faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
        scores = outcome(cache)
        named = [bool(headscore.inspect(cache, verify=verify)["damaged"]) for verify in (False, True)][1]
        faulthandler.cancel_dump_traceback_later()
        refused = isinstance(scores, str)
        memory = peak_bytes()
        end = {"refused": refused, "other": not refused and not scores.equals(right), "named": named, "memory": memory}
        print(json.dumps(end), flush=True)


def run(mutations: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """What became of each mutation: what it was, with `refused`, `other`, `named`, `memory`, or else `crashed`."""
    number, last = first, first + mutations
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        while number < last:
            command = [sys.executable, __file__, "--child", folder, str(number), str(min(last, number + IN_A_CHILD))]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            if not lines:
                raise RuntimeError(f"the child did not start: {done.stderr}")
            for before, after in itertools.zip_longest(lines[::2], lines[1::2]):
                yield before | (after or {"crashed": done.returncode, "stderr": done.stderr[-3000:]})
                number = before["number"] + 1
            if done.returncode and len(lines) % 2 == 0:
                yield before | {"crashed": done.returncode, "stderr": f"at its end: {done.stderr[-3000:]}"}


def faults(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mutations that a command did not stand."""
    return [
        line
        for line in lines
        if "crashed" in line
        or (line["other"] and not line["repaired"])
        or (line["refused"] and not line["named"])
        or line["memory"] > MAX_BYTES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=4000)
    parser.add_argument("--first", type=int, default=0, help="number of the first one; each number is one mutation")
    parser.add_argument("--child", nargs=3)
    arguments = parser.parse_args()
    if arguments.child:
        child(Path(arguments.child[0]), *map(int, arguments.child[1:]))
        return
    lines = list(run(arguments.mutations, arguments.first))
    counts = Counter("crashed" if "crashed" in line else "refused" if line["refused"] else "same" for line in lines)
    memory = max((line.get("memory", 0) for line in lines), default=0)
    for fault in faults(lines):
        print(json.dumps(fault))
    print(json.dumps({**counts, "mutations": len(lines), "faults": len(faults(lines)), "peak_mb": memory >> 20}))
    raise SystemExit(bool(faults(lines)))


if __name__ == "__main__":
    main()
