"""Runs a model over a data file once and stores reduced per-sample head tensors; the only part that needs torch.

The package is also the library call: `headscore.capture(out=..., model=..., data=...)` is `headscore.capture.call.capture`.
"""

from ..data.callable_package import make_callable

make_callable(__name__, "headscore.capture.call:capture")
