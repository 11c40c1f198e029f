"""How fast caches are scored, each time by a whole `headscore score` process, from a warm page cache.

    python benchmarks/bench_score.py                  # synthetic caches: 1,024 rows, and 2 GB of pattern rows
    python benchmarks/bench_score.py --shape llama-3.2-1b --size 4
    python benchmarks/bench_score.py --cache CACHE    # your own; its derived/ is removed

What is measured, as medians over rounds, with everything in each round once so that ratios are of neighbours in time:

first            nothing is kept yet: all pattern rows are read, checksums verified, and measures made of them
lambda           another weight: the means are kept; what remains is start-up
span             another --task-span: measures are kept, signals are made of them anew
signal           a signal of one's own over the measures
fusion           another --fusion
gb_s             bytes of half-precision pattern rows over the seconds of a first score, the whole process
of_read          the time that one process needs to read the rows with their checksums and do nothing else (the ceiling for one
                 process), over the time of a first score less its start-up
memory_mb        the peak of the largest process
one_layer        bytes that `scan_cache` reads for one layer of a cache with L layers, times L, over the bytes of all layers

Not covered: disks (the files are read once before each round), networks.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from shapes import PRESETS

from headscore.data.cache.folder import Cache, open_cache, shard_path, write_metadata
from headscore.data.cache.shard import write_shard
from headscore.score.kept import DERIVED_FOLDER, SETTLED_NS
from headscore.score.scan import scan_cache

SHAPES = {name: (config["num_hidden_layers"], config["num_attention_heads"]) for name, config in PRESETS.items()}
SHARD_SIZE = 256  # capture's default
SETTINGS = {"queries": "last_token", "dtype": "fp32", "shard_size": SHARD_SIZE, "seed": 0}


def synthetic_cache(folder: Path, shape: tuple[int, int], samples: int, tokens: int, distinct: int = 4) -> Path:
    """A cache of `samples` prompts of about `tokens` tokens, through headscore's own writer; `distinct` shards are repeated."""
    layers, heads = shape
    shards = -(-samples // SHARD_SIZE)
    metadata: dict[str, Any] = {
        "format": "headscore-cache",
        "format_version": 1,
        "versions": {},
        "model": {"name": "synthetic"},
        "data": {},
        "templates": [],
        "span_names": ["question", "choices", "template", "special"],
        "settings": SETTINGS,
        "attention": {"way": "recorded", "full_rows": True, "result_norms": True},
        "dims": {"layers": layers, "heads": heads},
        "layers": list(range(layers)),
        "plan": {"rows": samples, "shards": shards},
        "example": {"row": 0, "pieces": []},
    }
    write_metadata(folder, metadata, keep_existing=False)
    random = np.random.default_rng(0)
    made = [synthetic_arrays(random, layers, heads, tokens) for _ in range(min(distinct, shards))]
    for number in range(shards):
        arrays = made[number % len(made)]
        arrays["samples/row"] = np.arange(SHARD_SIZE) + number * SHARD_SIZE
        write_shard(shard_path(folder, number), number, arrays, metadata, [])
    time.sleep(SETTLED_NS / 1e9)  # what changed this recently is not kept
    return folder


def synthetic_arrays(random: np.random.Generator, layers: int, heads: int, tokens: int) -> dict[str, np.ndarray]:
    lengths = random.integers(tokens // 2, tokens * 3 // 2 + 1, SHARD_SIZE)
    offsets = np.cumsum([0, *lengths])
    weights = np.exp(random.normal(0, 2, (layers, heads, offsets[-1])))
    sums = np.add.reduceat(weights, offsets[:-1], axis=2)
    place = np.concatenate([np.arange(length) / length for length in lengths])
    norms = random.random((layers, heads, SHARD_SIZE))
    names = [f"{mode}/{norm}" for mode in ("last_token", "all_tokens") for norm in ("output_norm", "result_norm")]
    return {
        "samples/offset": offsets,
        "tokens/id": np.zeros(offsets[-1]),
        "tokens/span": np.where((place > 0.2) & (place < 0.4), 1, 4),
        "layers/index": np.arange(layers),
        "last_token/attention": weights / np.repeat(sums, lengths, axis=2),
        **dict.fromkeys(names, norms),
    }


def score_process(cache: Path, out: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak memory in MB (of the largest process) of one `headscore score`."""
    command = [sys.executable, "-m", "headscore", "score", str(cache), "--out", str(out), "--overwrite", *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return seconds, usage.ru_maxrss / 1024


def row_bytes(cache: Cache) -> int:
    return sum(2 * shard.layers * shard.heads * shard.tokens for shard in cache.open_shards())


def seconds_to_read(path: Path) -> float:
    started = time.perf_counter()
    for shard in open_cache(path).open_shards():
        for block in shard.blocks():
            for layer in range(shard.layers):
                shard.read("last_token/attention", layer, block)
    return time.perf_counter() - started


def bytes_scanned(path: Path, layer: int | None) -> int:
    """What the system read for one layer's entropy, or for that of all; nothing that is kept is used."""
    frame = scan_cache(path, fresh=True).select("layer", "entropy")
    frame = frame if layer is None else frame.filter(pl.col("layer") == layer).select("layer", "entropy")
    frame.collect()  # which also reads the libraries it needs
    before = _bytes_read()
    frame.collect()
    return _bytes_read() - before


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])  # rchar, also from the page cache


def rounds_of(path: Path, out: Path, rounds: int, workers: list[int], elsewhere: Executor) -> dict[str, Any]:
    """The figures of one cache."""
    cache = open_cache(path)
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        for shard in cache.shards:
            with shard.open("rb") as file:
                while file.read(1 << 20):
                    pass
        others = {
            "lambda": ("--lambda-task", f"{2 + number}"),
            "span": ("--task-span", "choices"),
            "signal": ("--signal", f"own = mass_question * {number + 2} - sink", "--weight", "own=1"),
            "fusion": ("--fusion", "rrf"),
        }
        for count in workers:
            shutil.rmtree(path / DERIVED_FOLDER, ignore_errors=True)
            took, memory = score_process(path, out, "--workers", str(count))
            found.setdefault(f"first_s_workers_{count}", []).append(took)
            found.setdefault(f"memory_mb_workers_{count}", []).append(memory)
        for name, options in others.items():
            found.setdefault(f"{name}_s", []).append(score_process(path, out, *options)[0])
        found.setdefault("read_s", []).append(elsewhere.submit(seconds_to_read, path).result())
    median = {name: statistics.median(values) for name, values in found.items()}
    size, layers = row_bytes(cache) / 1e9, cache.metadata["dims"]["layers"]
    one, all_layers = (elsewhere.submit(bytes_scanned, path, layer).result() for layer in (0, None))
    result: dict[str, Any] = {"rows_gb": size, "read_gb_s": size / median["read_s"], "one_layer": one * layers / all_layers}
    result |= {name: median[f"{name}_s"] for name in others}
    for count in workers:
        first = found[f"first_s_workers_{count}"]
        net = [(r / (a - b)) for r, a, b in zip(found["read_s"], first, found["lambda_s"], strict=True)]
        result[f"workers_{count}"] = {
            "first": statistics.median(first),
            "gb_s": size / statistics.median(first),
            "of_read": statistics.median(net),
            "memory_mb": median[f"memory_mb_workers_{count}"],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, action="append", help="measure this cache; its derived/ is removed")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="of the synthetic caches")
    parser.add_argument("--rows", type=int, default=1024, help="rows of the small synthetic cache")
    parser.add_argument("--size", type=float, default=2.0, help="GB of pattern rows in the large synthetic cache; 0 for none")
    parser.add_argument("--tokens", type=int, default=128, help="mean tokens of a synthetic prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    # What takes memory is done in another process: the peak of this one would be counted as that of the processes it starts.
    elsewhere = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, elsewhere:
        caches = dict(zip(map(str, arguments.cache or ()), arguments.cache or (), strict=True))
        if not caches:
            shape = SHAPES[arguments.shape]
            large = round(arguments.size * 1e9 / (2 * shape[0] * shape[1] * arguments.tokens))
            for name, samples in {"small": arguments.rows, "large": large}.items():
                if samples:
                    made = elsewhere.submit(synthetic_cache, Path(folder) / name, shape, samples, arguments.tokens)
                    caches[name] = made.result()
        figures: dict[str, Any] = {}
        for name, path in caches.items():
            figures[name] = rounds_of(path, Path(folder) / "out", arguments.rounds, arguments.workers, elsewhere)
            its = figures[name]
            print(f"{name}: {its['rows_gb']:.2f} GB of rows, which one process reads at {its['read_gb_s']:.2f} GB/s")
            for count in arguments.workers:
                first = its[f"workers_{count}"]
                print(
                    f"  first, --workers {count}: {first['first']:.2f} s, {first['gb_s']:.2f} GB/s, {first['of_read']:.2f} of "
                    f"one reader, {first['memory_mb']:.0f} MB"
                )
            print("  another " + ", ".join(f"{kind} {its[kind]:.2f} s" for kind in ("lambda", "span", "signal", "fusion")))
            print(f"  one layer of scan_cache: {its['one_layer']:.2f} of its share of the bytes")
    print(json.dumps({"benchmark": "score", "rounds": arguments.rounds, **figures}))


if __name__ == "__main__":
    main()
