"""What is different between devices, and how torch computes on one while a capture runs."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class DeviceProfile:
    """How work is cut for a kind of device.

    Args:
        enough_tokens: of a batch; a larger one is no faster, token by token.
        batch_overhead: the time that a batch takes however small it is, in tokens that take as long.
        ahead: batches that are launched before the results of one are waited for.
        pad_to: batches are padded to a multiple of this number of tokens, for which a device has faster kernels.
        together: tokens of the shards that are run together, so that their batches fill; one shard at a time if 0.
        checked_ahead: shards whose spot checks are launched after each batch, and waited for after the next one; 0 for all that
            are complete, waited for at once.
        block_bytes: of one temporary of `all_tokens`, which is worked on block by block: what stays in a cache, or keeps a
            device busy for longer than it takes to launch it.
        compile_from: tokens of a capture for which compiling that work, half a minute, is likely to pay.
    """

    enough_tokens: int
    batch_overhead: int
    ahead: int
    pad_to: int
    together: int
    checked_ahead: int
    block_bytes: int
    compile_from: float = math.inf


PROFILES = {
    "cpu": DeviceProfile(
        enough_tokens=768, batch_overhead=60, ahead=0, pad_to=1, together=0, checked_ahead=0, block_bytes=4 << 20
    ),
    "cuda": DeviceProfile(
        enough_tokens=32_768,
        batch_overhead=2000,
        ahead=2,
        pad_to=8,
        together=262_144,
        checked_ahead=2,
        block_bytes=512 << 20,
        compile_from=30_000_000,
    ),
}
_OTHERS = DeviceProfile(
    enough_tokens=32_768, batch_overhead=1000, ahead=0, pad_to=1, together=0, checked_ahead=0, block_bytes=64 << 20
)

# Without cuDNN's, which builds a plan for each new shape, and nearly every batch has one: tens of milliseconds each time.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def profile_of(device: torch.device) -> DeviceProfile:
    """The profile of a kind of device."""
    return PROFILES.get(device.type, _OTHERS)


def sent_to(device: torch.device, values: Tensor) -> Tensor:
    """A tensor of the host on a device; to a GPU it is on its way when this returns, which waits for nothing."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Within this context torch computes on a device as a capture needs it; afterwards all is as before.

    Products of float32 matrices are exact to float32: TF32 would round queries and keys to 10 bits. On a GPU attention
    uses kernels that take any shape, and the GPU is made the current device, which some kernels ask for.
    """
    before = torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision("highest")
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            stack.enter_context(sdpa_kernel(_ATTENTION))
        yield
