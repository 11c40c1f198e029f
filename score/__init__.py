"""Turns a cache into a ranking of heads, with polars and numpy alone: no model, no torch.

The package is also the library call: `headscore.score("cache", lambda_task=2.0)` is `headscore.pipeline.score`.
"""

from ..data.callable_package import make_callable

make_callable(__name__, "headscore.pipeline:score")
