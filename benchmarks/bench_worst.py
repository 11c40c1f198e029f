"""Measures what reading costs at most: `inspect --verify` and `score` on the worst shards that the format allows.

    python benchmarks/bench_worst.py --megabytes 10 100

Time and peak memory should grow no faster than the file. Each command runs in a process of its own; `score` runs with `--fresh`
and once more, when it keeps its measures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from headscore.data.cache.folder import shard_path, write_metadata
from headscore.data.cache.metadata import MAX_HEADS, MAX_LAYERS
from headscore.data.cache.shard import write_shard
from headscore.data.files.bounded_json import MAX_ELEMENTS
from headscore.data.options.settings import MAX_TOKENS
from headscore.data.prompts.templates import MAX_SPANS

Shape = tuple[int, int, int, int]  # layers, heads, samples, tokens of each
ATTENTION_BYTES, NORM_BYTES, TOKEN_BYTES, SAMPLE_BYTES = 2, 4 * 4, 5, 16


def long_samples(heads: int, size: int) -> list[Shape]:
    """A shard with samples as long as they may be, or one that is shorter."""
    tokens = size // (ATTENTION_BYTES * heads + TOKEN_BYTES)
    return [(1, heads, max(1, tokens // MAX_TOKENS), min(tokens, MAX_TOKENS))]


WORST: dict[str, Callable[[int], Iterator[Shape]]] = {
    "most layers": lambda size: iter([(MAX_LAYERS, 1, max(1, size // (MAX_LAYERS * 18)), 1)]),
    "most layers, many shards": lambda size: iter([(MAX_LAYERS, 1, 1, 1)] * (size // 127_000)),
    "smallest shards": lambda size: iter([(1, 1, 1, 1)] * (size // 5_700)),
    "samples of one token": lambda size: iter([(1, 1, size // (18 + TOKEN_BYTES + SAMPLE_BYTES), 1)]),
    "most heads": lambda size: iter([(1, MAX_HEADS, max(1, size // (18 * MAX_HEADS)), 1)]),
    "most heads in most layers": lambda size: iter(
        [(MAX_LAYERS, MAX_HEADS // MAX_LAYERS, max(1, size // (18 * MAX_HEADS)), 1)]
    ),
    "long samples": lambda size: iter(long_samples(1, size)),
    "long samples of many heads": lambda size: iter(long_samples(32, size)),
    "largest attributes": lambda size: iter([(1, 1, 1, 1)] * (size // (16 << 20) + 1)),
}


def written(folder: Path, shapes: list[Shape], attribute_bytes: int) -> Path:
    """A cache with shards of these shapes, all with as many layers and heads, and so many bytes of odd JSON in each."""
    layers, heads = shapes[0][:2]
    metadata: dict[str, Any] = {
        "format": "headscore-cache",
        "format_version": 1,
        "versions": {},
        "model": {"name": "worst"},
        "data": {},
        "templates": [],
        "span_names": ["question", *(f"span{number}" for number in range(1, MAX_SPANS))],
        "settings": {"queries": "last_token"},
        "attention": {"full_rows": True, "result_norms": True},
        "dims": {"layers": layers, "heads": heads},
        "layers": list(range(layers)),
        "plan": {"shards": len(shapes)},
        "example": {"row": 0, "pieces": []},
    }
    write_metadata(folder, metadata, keep_existing=False)
    lists = min(attribute_bytes // 4, MAX_ELEMENTS // 2 - 10_000)  # an empty one counts as two values, and there are others
    odd = {"odd": [[] for _ in range(lists)], "text": ["x" * max(0, attribute_bytes - 4 * lists)]}
    for number, (_, _, samples, tokens) in enumerate(shapes):
        arrays = {
            "samples/row": np.arange(samples),
            "samples/offset": np.arange(samples + 1) * tokens,
            "tokens/id": np.zeros(samples * tokens),
            "tokens/span": np.full(samples * tokens, (1 << MAX_SPANS) - 1),
            "layers/index": np.arange(layers),
            "last_token/attention": np.full((layers, heads, samples * tokens), 1 / tokens, np.float32),
        }
        if tokens > 1:  # half precision has no such small numbers
            arrays["last_token/attention"][:] = 0
            arrays["last_token/attention"][:, :, ::tokens] = 1
        norms = [f"{mode}/{norm}" for mode in ("last_token", "all_tokens") for norm in ("output_norm", "result_norm")]
        arrays |= dict.fromkeys(norms, np.ones((layers, heads, samples), np.float32))
        write_shard(shard_path(folder, number), number, arrays, metadata | (odd if attribute_bytes else {}), [])
    return folder


def measured(*arguments: str) -> dict[str, float]:
    """Seconds on the clock and of work, and peak memory in MB, of a command."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "headscore", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    work = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "work": round(work, 2),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--only", choices=WORST)
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else WORST:
        for megabytes in arguments.megabytes:
            with tempfile.TemporaryDirectory() as folder:
                attributes = min(16_000_000, megabytes * 1_000_000) if name == "largest attributes" else 0
                cache, shapes = Path(folder), list(WORST[name](megabytes * 1_000_000))
                with ProcessPoolExecutor(1) as apart:  # the memory of this process would count as that of the commands
                    apart.submit(written, cache, shapes, attributes).result()
                size = sum(path.stat().st_size for path in cache.rglob("*.h5"))
                time.sleep(2.1)  # what has just changed is not kept
                told = {
                    "verify": measured("inspect", "--verify", str(cache)),
                    "score fresh": measured("score", str(cache), "--fresh"),
                    "score": measured("score", str(cache)),
                }
            print(json.dumps({"worst": name, "mb": round(size / 1e6, 1), **told}), flush=True)


if __name__ == "__main__":
    main()
