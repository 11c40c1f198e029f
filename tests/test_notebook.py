"""docs/example.ipynb: it was executed, agrees with the README, and its code runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NOTEBOOK = ROOT / "docs" / "example.ipynb"


def notebook_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_was_executed_and_agrees_with_the_readme() -> None:
    cells = notebook_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}, "neither errors nor warnings"
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}
    shown = [output.get("data", {}) for output in outputs]
    last = ["".join(cell["source"]).splitlines()[-1] for cell in cells]
    charts = [
        line for line in last if re.match(r"headscore\.(heatmap|top_heads|entropy_and_task|\w+_(maps?|profiles|chart))\(", line)
    ]
    assert sum("image/png" in data for data in shown) == len(charts) > 5
    table = next("".join(data["text/html"]) for data in shown if "text/html" in data)
    example = re.search(r"```\nrank  head .*?\n(.*?)\n\n", README, re.DOTALL)
    assert example and [line.split()[1] for line in example[1].splitlines()] == re.findall(r"<td>(L\d+H\d+)</td>", table)


def test_the_notebooks_code_runs(tmp_path: Path) -> None:
    """On few prompts, which is quicker."""
    code = "\n".join("".join(cell["source"]) for cell in notebook_cells())
    few = code.replace('data="samples"', 'data="samples", max_samples=4')
    assert few != code
    done = subprocess.run([sys.executable, "-c", few], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 samples, ") and (tmp_path / "notebook-results" / "report.html").exists()
