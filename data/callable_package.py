"""Lets a package's name be the name of its library call too: `headscore.score` is a folder and a function."""

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


class CallablePackage(types.ModuleType):
    """A package that is called like the function that `make_callable` gave it, and has its signature and documentation."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return _function(self)(*arguments, **options)

    def __reduce__(self) -> tuple[Callable[[str], types.ModuleType], tuple[str]]:
        return importlib.import_module, (self.__name__,)  # so that it is sent to another process, and copied, by its name

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self))


def make_callable(package: str, function: str) -> None:
    """Make the imported `package` callable: the call goes to `function`, as `package.module:name`, loaded on first use."""
    _functions[package] = function
    sys.modules[package].__class__ = CallablePackage


def _function(package: types.ModuleType) -> Any:
    module, _, name = _functions[package.__name__].partition(":")
    return getattr(importlib.import_module(module), name)


_functions: dict[str, str] = {}  # what stands behind each package
_documentation = property(lambda package: _function(package).__doc__)
CallablePackage.__doc__ = _documentation  # type: ignore[assignment] # of its instances: what `help` shows
