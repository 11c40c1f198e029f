"""Seconds, peak memory and page faults of a call, on a CPU or with CUDA."""

import ctypes
import gc
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Spent:
    """What a call took: seconds, the peak memory in MiB over what was held before it, and pages the system had to hand out."""

    seconds: float
    peak_mib: float
    page_faults: int


def timed(way: Callable[[], None], device: torch.device) -> Spent:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = reset_peak()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    with torch.inference_mode():
        way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else status("VmHWM")
    return Spent(seconds, (peak - before) / 2**20, faults)


def reset_peak() -> int:
    """Give freed memory back and begin the count of the peak anew; bytes resident now (0 where there is no Linux)."""
    if sys.platform != "linux":
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def machine(device: str) -> str:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return f"{platform.machine()}, {name}, torch {torch.__version__}"
