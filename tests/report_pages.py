"""Caches and reports for the tests of the page, and what the page shows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser
from made_caches import write_cache

HOSTILE = "<script>alert(1)</script><b>bold</b>@@css@@ &amp; \u202e"


def made(folder: Path, layers: int, heads: int, levels: int = 0, seed: int = 0) -> Path:
    """A cache of random heads; with few `levels` of their values nearly all tie."""
    random, samples, tokens = np.random.default_rng(seed), 4, 8
    rows = random.dirichlet(np.full(tokens, 0.4), size=(layers, heads, samples))
    out = random.gamma(2, 1, (layers, heads, samples))
    if levels:
        kinds = random.dirichlet(np.full(tokens, 0.4), size=levels)[random.integers(levels, size=(layers, heads, 1))]
        rows, out = np.broadcast_to(kinds, rows.shape), np.broadcast_to(np.floor(out[..., :1]), out.shape)
    flat = (np.floor(rows * 1024) / 1024).reshape(layers, heads, samples * tokens)
    return write_cache(folder, flat, out, ([8] + [1] * 3 + [2] * 4) * samples, [tokens] * samples)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.size(1280, 900)
        yield opened


def set_slider(page: Browser, name: str, value: float) -> None:
    """Move a slider as a hand does: through its element."""
    page.run(
        f"""(async () => {{
            const input = document.querySelector('#sliders input[name="{name}"]');
            input.value = {value};
            input.dispatchEvent(new Event("input"));
            await headscore.settled();
        }})()"""
    )


def marked(page: Browser, unit: str = "head") -> list[list[int]]:
    """The heads that the map marks, by rank."""
    heads = "headscore.rankedHeads().filter(h => h.rank <= headscore.main.signal('k')).sort((a, b) => a.rank - b.rank)"
    return page.run(f"{heads}.map(h => [h.layer, h.{unit}])")


def dots(page: Browser, view: str) -> int:
    """How many dots of the top k are drawn on a map."""
    return page.run(f"document.querySelectorAll('#{view} .mark-symbol.role-mark.layer_1_marks path').length")


def column_of_table(page: Browser, column: int) -> list[str]:
    return page.run(f"[...document.querySelectorAll('#top-heads-table tbody tr')].map(r => r.cells[{column}].textContent)")


def page_data(out: Path) -> tuple[str, Any]:
    """The page, and what its script reads."""
    text = (out / "report.html").read_text()
    return text, json.loads(re.search(r'id="page-data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
