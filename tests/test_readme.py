"""README.md: its commands and its Python run, one after the other, on a tiny model; what it names is there."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import tiny

from headscore import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LINES = [line.split("  #")[0].strip() for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("headscore ")]
INLINE = re.findall(r"^`(headscore [^`]+)`", README, re.MULTILINE)
MODEL = "meta-llama/Llama-3.2-1B"
ROWS = 24


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader would be: with a data file of their own."""
    lines = tiny.ARC.read_text().splitlines()[:ROWS]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints, with the tiny model in the place of the README's."""
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace(MODEL, str(model))))
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    out, err = capsys.readouterr()
    assert leaving.value.code == 0, f"{command}\n{err}"
    return out


def test_its_commands_run_in_their_order(
    llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs = [command.split()[1] for command in COMMANDS]
    assert verbs == ["capture", "inspect", "score", "score", "report", "stability", "validate", "export"]
    printed = {command: run(command, llama, monkeypatch, capsys) for command in [*COMMANDS, *INLINE]}
    assert [command for command in printed if not printed[command]] == COMMANDS[:1], "all but a capture print what they found"
    for path in ("cache/cache.json", "results/report.html", "results/validation/verdicts.txt", "heads.csv", "card.md"):
        assert (folder / path).is_file(), path


def test_its_python_runs(llama: Path, folder: Path) -> None:
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    assert MODEL in code
    found: dict[str, object] = {}
    exec(code.replace(MODEL, str(llama)), found)
    assert len(found["scores"].heads) == 12  # type: ignore[attr-defined]


def test_a_run_prints_what_the_demos_output_looks_like(
    llama: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are those of SmolLM2-135M, which tests/test_notebook.py holds to the notebook; here it is the lines."""
    (shown,) = [block for kind, block in BLOCKS if block.startswith("rank  head")]
    printed = run(f"headscore run --model {llama} --max-samples 8 --no-report", llama, monkeypatch, capsys).splitlines()
    assert printed[0] == shown.splitlines()[0]
    same = re.compile(r"\d+ heads, \d+ samples; all results in headscore-results")
    assert same.fullmatch(printed[-1]) and same.fullmatch(shown.splitlines()[-1])


def test_what_it_installs_and_makes_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in [line.split()[1] for line in LINES if line.startswith("make ")]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = [shlex.split(line) for line in LINES if line.startswith("pip ")]
    assert len(installs) == 3
    for words in installs:
        assert words[:2] == ["pip", "install"]
        for name in re.findall(r"\[(\w+)\]", words[-1]):
            assert name in extras


def test_it_is_short_and_its_picture_small() -> None:
    assert len(README.splitlines()) <= 130
    assert (ROOT / "docs" / "report.png").stat().st_size <= 200_000
