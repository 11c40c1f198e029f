"""Chooses how many tokens a batch may have: on a GPU by measuring what two small batches take of its free memory."""

import logging
from collections.abc import Callable, Collection

import psutil
import torch

from ..job.ranks import this_rank
from .device import profile_of

logger = logging.getLogger("headscore")

SHARE_OF_FREE = 0.7  # the rest is for what a fit over two batches does not see, such as fragmentation


def fitting_tokens(run: Callable[[int], object], tokens: int, devices: Collection[torch.device]) -> int:
    """How many tokens a batch may have, padding included: at most `enough_tokens`, but at least one prompt.

    On a GPU, batches of one and of two prompts are run, and their peaks of memory tell what a prompt takes. Elsewhere nothing
    is run.

    Args:
        run: runs a batch of a number of prompts. Where it raises OutOfMemoryError for two, only one fits.
        tokens: of each of those prompts.
        devices: those that the model is on.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        return max(tokens, profile_of(next(iter(devices))).enough_tokens)
    run(1)  # what is made once, such as the kernels' workspaces, is not a batch's
    one = _peaks(run, 1, gpus)
    try:
        two = _peaks(run, 2, gpus)
    except torch.OutOfMemoryError:
        return tokens
    prompts = min(free_bytes(gpu) / max(1, two[gpu] - one[gpu]) for gpu in gpus)
    fitting = min(profile_of(gpus[0]).enough_tokens, int(prompts * SHARE_OF_FREE) * tokens)
    logger.info("batches of up to %d tokens: what fits into the free memory", max(tokens, fitting))
    return max(tokens, fitting)


def _peaks(run: Callable[[int], object], count: int, gpus: Collection[torch.device]) -> dict[torch.device, int]:
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    run(count)
    return {gpu: torch.cuda.max_memory_allocated(gpu) for gpu in gpus}


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate: what the device has free, and on a GPU what torch holds but does not use.

    Processes of one launcher that share the device have the same part of what is free.
    """
    beside = this_rank().beside
    if device.type != "cuda":
        return psutil.virtual_memory().available // beside
    free, _ = torch.cuda.mem_get_info(device)
    free //= max(1, -(-beside // max(1, torch.cuda.device_count())))
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
