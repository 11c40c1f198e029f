"""Tells whether an error means that memory ran out, or that a GPU has stopped."""

import torch

_OUT_OF_MEMORY = (  # what says so in a RuntimeError of torch
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out.

    On the CPU torch raises a plain RuntimeError then, and so do the libraries of a GPU that is shared with others.
    """
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or told


def has_stopped_device(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a fault of a GPU, after which that process cannot use it any more."""
    told = isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)
    return error is not None and (told or has_stopped_device(error.__cause__))
