"""docs/signals.md: every number in its table is what headscore gives, and every command and block in it runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_caches import write_cache

import headscore
from headscore.score.signal_sources import built_in_signals

PAGE = (Path(__file__).parent.parent / "docs" / "signals.md").read_text()
TABLE = re.findall(r"^\| `(\w+)` \| (.+?) \| (-?[\d.]+) \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's head: one layer, one head, one prompt of four tokens."""
    rows, norms = np.array([[[0.5, 0.25, 0.25, 0]]]), np.array([[[2.0]]])
    folder = tmp_path_factory.mktemp("by_hand")
    return write_cache(folder, rows, norms, [4, 1, 1, 4], [4])


def test_the_table_is_right(by_hand: Path) -> None:
    scores = headscore.score(by_hand)
    spans = {"mass_choices", "mass_special"}  # of the same kind as those in the table
    assert {name for name, *_ in TABLE} == set(scores.signals) - spans, "every built-in signal is worked by hand"
    for name, _, value in TABLE:
        assert scores.heads[name][0] == pytest.approx(float(value), abs=5e-5), name


def test_every_signal_says_what_it_is() -> None:
    for name, function in built_in_signals().items():
        first, *rest = (function.__doc__ or "").split("\n\n")
        assert first.endswith(".") and rest and "ange " in rest[0], f"{name}: one sentence, then its range and edges"


def test_the_blocks_of_python_run(by_hand: Path, tmp_path: Path) -> None:
    own, library = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_signals.py").write_text(own)
    heads = headscore.score(by_hand, signals=tmp_path / "my_signals.py", weight={"contrast": 1}).heads
    assert heads["contrast"].to_list() == [0.5]
    found: dict[str, headscore.Scores] = {}
    exec(library.replace('"cache"', repr(str(by_hand))), found)
    assert found["scores"].heads["parked"].to_list() == [0.0]


@pytest.mark.parametrize("line", re.findall(r"^headscore score CACHE .*$", PAGE, re.MULTILINE))
def test_the_commands_run(by_hand: Path, line: str) -> None:
    command = [str(by_hand) if word == "CACHE" else word for word in shlex.split(line)[1:]]
    done = subprocess.run([sys.executable, "-m", "headscore", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 heads, 1 samples" in done.stdout
