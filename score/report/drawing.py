"""Draws charts as SVG and PNG, in a process of its own beside whatever else is done."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from ...data.errors import RunError

# The first drawing starts the JavaScript engine, which takes most of a second: while the charts are still being made. What is
# waited for until then, and the page's JavaScript, come first.
_PROGRAM = """
import os, pathlib, sys, vl_convert
os.nice(5)
vl_convert.vegalite_to_svg('{"mark": "point"}')
for line in sys.stdin:
    path = pathlib.Path(line.strip())
    svg = vl_convert.vegalite_to_svg(path.read_text(encoding="utf-8"))
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    path.with_suffix(".png").write_bytes(vl_convert.svg_to_png(svg, scale=float(sys.argv[1])))
"""


class Drawer:
    """A process that draws the charts it is given, one after the other. Use it as a context manager.

    scale: pixels of a PNG for each of the chart.
    """

    def __init__(self, scale: float):
        self._folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-c", _PROGRAM, str(scale)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=self._folder.name, text=True)
        self._names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def draw(self, specs: Mapping[str, dict[str, Any]], datasets: str) -> None:
        """Have charts drawn, by their names; returns at once. datasets: what they show, as JSON that is made once for all."""
        for name, spec in specs.items():
            text = f'{json.dumps(spec)[:-1]}, "datasets": {datasets}}}'
            (Path(self._folder.name) / f"{name}.json").write_text(text, encoding="utf-8")
            self._names.append(name)
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):  # `drawn` tells
                self._process.stdin.write("".join(f"{name}.json\n" for name in specs))
                self._process.stdin.flush()

    def drawn(self) -> Iterator[tuple[str, str, bytes]]:
        """Each chart once all are drawn: its name, SVG and PNG. Raises RunError where one cannot be drawn."""
        self._process.communicate()
        if self._process.returncode:
            raise RunError("a chart cannot be drawn: vl-convert failed")
        for name in self._names:
            path = Path(self._folder.name) / name
            yield name, path.with_suffix(".svg").read_text(encoding="utf-8"), path.with_suffix(".png").read_bytes()
