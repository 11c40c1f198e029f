"""What was recorded of a batch, on its way from the model's device to the host, and there."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Recorded:
    """What was recorded of a batch, on the host: `arrays` [L,B,H,T] or [L,B,H] by their names in the cache.

    finite [B]: whether all of a sample's values are finite; `layers`: the model's number of each of the L layers.
    """

    arrays: dict[str, npt.NDArray[Any]]
    finite: npt.NDArray[np.bool_]
    layers: list[int]

    def first_fault(self, position: int) -> str:
        """The first array and layer in which the sample at `position` of the batch has a value that is not finite."""
        for name, values in self.arrays.items():
            broken = ~np.isfinite(values[:, position]).reshape(len(self.layers), -1).all(axis=1)
            if broken.any():
                return f"NaN or infinite '{name}' from layer {self.layers[int(broken.argmax())]} on"
        return "no fault"


@dataclass(frozen=True)
class Recording:
    """What was recorded of a batch, on its way to the host."""

    arrays: dict[str, Tensor]
    finite: Tensor
    layers: list[int]
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, found: dict[str, Tensor], layers: list[int]) -> Self:
        """What was found in the layers, [L,B,…] each, on its way; on a GPU this waits for nothing."""
        # No value is negative, so that the maximum shows NaN and infinity too.
        largest = torch.stack([v.amax(dim=(0, *range(2, v.ndim))).float() for v in found.values()])
        finite = torch.isfinite(largest).all(0)
        arrays = {name: _to_host(v) for name, v in found.items()}
        on_host = _to_host(finite)
        event = torch.cuda.Event(blocking=True) if finite.device.type == "cuda" else None
        if event:
            event.record(torch.cuda.current_stream(finite.device))
        return cls(arrays, on_host, layers, event)

    def finish(self) -> Recorded:
        """Wait until all has arrived."""
        if self.arrived:
            self.arrived.synchronize()
        return Recorded({name: v.numpy() for name, v in self.arrays.items()}, self.finite.numpy(), self.layers)


def _to_host(values: Tensor) -> Tensor:
    """The tensor in the host's memory; from a GPU it is on its way there when this returns."""
    if values.device.type == "cuda":
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    return values.cpu()


def wider_dtype(dtype: str) -> str:
    """How a message goes on about values that are not finite: what to try first, where there is a wider dtype."""
    return "" if dtype == "fp32" else "give a wider --dtype (bf16, fp32), or "
