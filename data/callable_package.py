"""Lets a package's name be the name of its library call too: `headscore.score` is a folder and a function."""

import importlib
import sys
import types
from typing import Any


def make_callable(package: str, function: str) -> None:
    """Make the imported `package` callable: the call goes to its `pipeline.<function>`, which is loaded on first use."""

    class CallablePackage(types.ModuleType):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(f"{package}.pipeline"), function)(*args, **options)

    sys.modules[package].__class__ = CallablePackage
