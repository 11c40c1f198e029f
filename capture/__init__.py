"""Runs a model over a data file once and stores reduced per-sample head tensors; the only part that needs torch.

The package is also the library call: `headscore.capture(out=..., model=..., data=...)` is `headscore.capture.pipeline.capture`.
"""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """Lets the folder's name be the name of the library call as well."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from .pipeline import capture

        return capture(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
