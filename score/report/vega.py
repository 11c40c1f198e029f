"""Vega as one piece of JavaScript, from the vl-convert package, and whether that and Altair are there."""

import contextlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ...data.errors import InputError, RunError
from ...data.files import write_text

_PACKAGES = {"altair": "altair", "vl_convert": "vl-convert-python"}
_PROGRAM = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
_LEAST_BYTES = 500_000  # a file that was cut off is none


def missing_packages() -> list[str]:
    """What a report needs and is not installed."""
    return [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]


def require_packages(what: str) -> None:
    """Raises InputError, saying what to install, where a report cannot be made."""
    if missing := missing_packages():
        raise InputError(f"{what}: needs {' and '.join(missing)}: pip install 'headscore[report]'")


@contextlib.contextmanager
def vega_bundle() -> Iterator["Bundle"]:
    """Vega, Vega-Lite and Vega-Embed as JavaScript, being made beside whatever else is done in this context.

    Putting it together takes three seconds and holds the interpreter's lock, so another process does it, once for each version
    of vl-convert: it is kept in the user's cache folder.
    """
    path = _kept_at()
    process = None if _read(path) else subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE)
    try:
        yield Bundle(path, process)
    finally:
        if process:
            with process:  # closes its pipe and waits for it
                process.kill()


class Bundle:
    """The JavaScript, once it is asked for."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes] | None"):
        self._path, self._process = path, process

    def text(self) -> str:
        """The code. Raises RunError where it could not be made."""
        if not self._process:
            return _read(self._path) or ""
        code = self._process.communicate()[0].decode()
        if self._process.returncode or len(code) < _LEAST_BYTES:
            raise RunError("the report's JavaScript cannot be put together: vl-convert failed")
        with contextlib.suppress(RunError):  # a home that cannot be written
            write_text(self._path, code)
        return code


def _kept_at() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "headscore" / f"vega-{importlib.metadata.version('vl-convert-python')}.js"


def _read(path: Path) -> str | None:
    try:
        code = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return code if len(code) >= _LEAST_BYTES else None
