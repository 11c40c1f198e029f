"""Turns a cache into a ranking of heads, with polars and numpy alone: no model, no torch.

The package is also the library call: `headscore.score("cache", lambda_task=2.0)` is `headscore.score.pipeline.score`.
"""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """Lets the folder's name be the name of the library call as well."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from .pipeline import score

        return score(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
