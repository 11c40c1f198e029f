"""Kills a capture again and again at random moments and checks that nothing finished is lost or made twice.

The suite runs a short version on a tiny model (test_kills.py). The long version runs any model over any data:

    python tests/kills.py --kills 50 -- --model smollm2-135m --data DATA.jsonl --max-samples 1500 --shard-size 8

Half of the kills come at a random time after the start, half when a shard's temporary file appears, so while it is written.
After each kill every file with a shard's name must be whole, and every shard that was whole before must be the same file. After
the last kill the command runs to its end, and the cache must equal, array by array, one that was made without a kill.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from headscore.data.cache.folder import open_cache, shard_files
from headscore.data.cache.reader import Shard, verify_shard
from headscore.data.files.whole_file import TEMPORARY


@dataclass
class Report:
    kills: int = 0
    while_writing: int = 0  # kills that left a half-written file
    before_first_shard: int = 0
    shards: int = 0
    made_twice: int = 0


def kill_again_and_again(options: list[str], out: Path, kills: int, seconds: float, seed: int = 0) -> Report:
    """Start a capture `kills` times and kill it, at most `seconds` after its start; then let it finish.

    Every other kill waits for a temporary file instead, the first to third that appears.
    """
    randomly = random.Random(seed)
    report = Report()
    for number in range(kills):
        before, left = finished(out), set(out.rglob(f"*{TEMPORARY}"))
        process = start(options, out)
        if number % 2:
            wait_for_temporary_files(process, out, randomly.randint(1, 3))
        else:
            wait(process, randomly.uniform(0, seconds))
        if process.poll() is not None:
            raise RuntimeError(f"the capture ended before kill {number}: give more rows, or fewer kills")
        process.send_signal(signal.SIGKILL)
        process.wait()
        report.kills += 1
        report.while_writing += bool(set(out.rglob(f"*{TEMPORARY}")) - left)
        after = finished(out)
        report.before_first_shard += not after
        report.made_twice += sum(after.get(name) != file for name, file in before.items())
        for path in shard_files(out):
            with Shard(path) as shard:
                verify_shard(shard)
    before = finished(out)
    if start(options, out).wait():
        raise RuntimeError("the last capture failed")
    after = finished(out)
    report.made_twice += sum(after[name] != file for name, file in before.items())
    report.shards = len(after)
    if behind := list(out.rglob(f"*{TEMPORARY}")):
        raise RuntimeError(f"left behind: {behind}")
    return report


def start(options: list[str], out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "headscore", "capture", "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def wait_for_temporary_files(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Return as soon as the `count`-th temporary file of a shard is seen; the folder is looked at all the time."""
    seen = set((out / "shards").glob("*"))
    while process.poll() is None and count > 0:
        time.sleep(0.0003)
        new = set((out / "shards").glob(f".*{TEMPORARY}")) - seen
        count -= len(new)
        seen |= new


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Name, inode and time of every file with a shard's name."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shard_files(out)}


def differing_arrays(one: Path, other: Path) -> list[str]:
    """The arrays in which two caches differ in any bit."""
    different = []
    for left, right in zip(open_cache(one).shards, open_cache(other).shards, strict=True):
        with Shard(left) as a, Shard(right) as b:
            different += [f"{left.name} {name}" for name in a.names if not np.array_equal(a.read(name), b.read(name))]
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=15, help="latest random moment after the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="+", help="options of headscore capture, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        report = kill_again_and_again(arguments.options, killed, arguments.kills, arguments.seconds, arguments.seed)
        if start(arguments.options, whole).wait():
            raise RuntimeError("the uninterrupted capture failed")
        different = differing_arrays(killed, whole)
    print(json.dumps(asdict(report) | {"differing_arrays": len(different)}))
    sys.exit(bool(different or report.made_twice))


if __name__ == "__main__":
    main()
