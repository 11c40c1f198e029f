"""Keeps a pass from leaving anything in the model: each pass finds it as it was loaded.

Some models remember: dynamic NTK keeps the frequencies of the longest pass so far, and remote code may keep tables of cosines.
What a later pass computes would then depend on what was run before it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_MAX_COPIED_BYTES = 1 << 20  # a larger buffer (a causal mask, say) is put back if it was replaced, but not if it was written to
_CONTAINERS = (list, dict, set)
_PLAIN = (int, float, str, tuple, type(None), Tensor, *_CONTAINERS)  # bool is an int
_OF_TORCH = vars(nn.Module()).keys()  # hooks, parameters and the like


class ModelState:
    """What a pass may change in a model: buffers, and plain attributes of its modules with what lists, dicts and sets hold."""

    def __init__(self, model: nn.Module):
        remembering = (module for module in model.modules() if not type(module).__module__.startswith("torch.nn"))
        self._modules = [(module, _attributes(module)) for module in remembering]
        self._contents = [
            (value, value.copy()) for _, before in self._modules for value in before.values() if isinstance(value, _CONTAINERS)
        ]
        buffers = [(module, name) for module in model.modules() for name in module._buffers]
        self._buffers = [(module, name, module._buffers[name]) for module, name in buffers]
        small = (b for *_, b in self._buffers if b is not None and b.numel() * b.element_size() <= _MAX_COPIED_BYTES)
        self._copies = [(buffer, buffer.clone()) for buffer in small]

    def restore(self) -> None:
        """Put everything back as it was when this object was made."""
        for module, name, buffer in self._buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        with torch.no_grad():
            for buffer, copy in self._copies:
                buffer.copy_(copy)
        for module, before in self._modules:
            for name in _attributes(module).keys() - before.keys():
                del module.__dict__[name]
            for name, value in before.items():
                if module.__dict__.get(name, before) is not value:
                    module.__dict__[name] = value
        for container, contents in self._contents:
            if isinstance(container, list):
                container[:] = contents
            else:
                container.clear()
                container.update(contents)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """After this context the model's state is what it was before."""
    state = ModelState(model)
    try:
        yield
    finally:
        state.restore()


def _attributes(module: nn.Module) -> dict[str, Any]:
    own = module.__dict__.items()
    return {name: value for name, value in own if isinstance(value, _PLAIN) and name not in _OF_TORCH}
