"""Runs the tests that need a GPU and a short benchmark there, and prints one JSON line with what came of them.

python benchmarks/gpu_check.py
"""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
BENCH = "--random-weights llama-3.2-1b --device cuda --dtype bf16 --rounds 3 --ways plain base ours shared ours_all"
RUNS = {
    "equal lengths": f"{BENCH} --lengths 128 1024 --samples 1024 --batch-size 64",
    "real rows": f"{BENCH} --data samples --samples 1024 --batch-size 64",
}


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("gpu-check: there is no GPU here that torch can use")
    command = [sys.executable, "-m", "pytest", "-rs", "-s", "tests/test_cuda.py"]
    tests = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(tests.stdout, tests.stderr[-2000:], flush=True)
    lines = tests.stdout.strip().splitlines()
    found = {
        "gpu": torch.cuda.get_device_name(),
        "versions": {name: version(name) for name in ("headscore", "torch", "transformers")},
        "tests": lines[-1] if lines else f"exit status {tests.returncode}",
        "failed": [line for line in lines if line.startswith("FAILED")],
        "throughput": re.findall(r"throughput.*tokens/s", tests.stdout),
    }
    for name, options in RUNS.items():
        run = subprocess.run(
            [sys.executable, "benchmarks/bench_capture.py", *options.split()], cwd=ROOT, capture_output=True, text=True
        )
        print(run.stdout, run.stderr[-2000:], flush=True)
        found[name] = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else run.stderr[-500:]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
