"""Every command, option, signal, file and template stands in the docs, with the defaults that the code has."""

import dataclasses
import re
from pathlib import Path

import pytest
from typer.main import get_command

from headscore.cli import app
from headscore.data.metadata import METADATA_SHAPE, OPTIONAL_SHAPE
from headscore.data.settings import CaptureSettings, ScoreSettings, WorkSettings
from headscore.data.shard import ARRAYS
from headscore.data.styles import ALPACA, ARC, ROW_STYLES
from headscore.data.templates import BUILT_IN_TEMPLATES
from headscore.data.text_rows import TEXT_COLUMNS, TEXT_STYLE
from headscore.score.outputs import CHARTS, RESULT_FILES
from headscore.score.signals import SIGNALS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FORMAT = (ROOT / "docs" / "cache-format.md").read_text()
COMMANDS = get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_the_readme(name: str) -> None:
    assert f"`headscore {name}" in README
    for parameter in COMMANDS[name].params:
        for flag in parameter.opts:
            assert not flag.startswith("--") or f"`{flag}" in README, flag


@pytest.mark.parametrize("settings", [CaptureSettings, ScoreSettings, WorkSettings])
def test_the_readme_has_the_defaults(settings: type) -> None:
    for field in dataclasses.fields(settings):
        line = re.search(rf"^\| `--{field.name.replace('_', '-')}`.*$", README, re.MULTILINE)
        assert line, field.name
        default = field.default[0] if isinstance(field.default, tuple) else field.default
        shown = line[0].split("|")[2].strip().strip("`")
        assert shown == {"None": "", "False": "off", "True": "on"}.get(str(default), str(default)), line[0]


def test_templates_styles_and_signals_are_in_the_readme() -> None:
    for template in (ARC, ALPACA):
        assert f"```\n{template.text}\n```" in README, template.name
    for style in ROW_STYLES:
        assert f"| `{style.name}` | " in README
        assert sorted(style.templates) == sorted(BUILT_IN_TEMPLATES)
    assert f"| `{TEXT_STYLE}` | {', '.join(f'`{column}`' for column in TEXT_COLUMNS)} | " in README
    for name in BUILT_IN_TEMPLATES:
        assert f"Template `{name}`" in README
    for signal in SIGNALS:
        assert README.count(f"| `{signal}` |") == 2


def test_no_gap_is_left_in_the_readme() -> None:
    assert "@@" not in README


def test_the_result_files_are_in_the_readme() -> None:
    assert len(RESULT_FILES) == 7
    for name in CHARTS:
        assert f"`{name}`" in README and "`report.html`" in README
    for name in RESULT_FILES:
        assert f"| `{name}` |" in README


def test_the_format_page_has_every_array_and_key() -> None:
    for name, (dtype, axes) in ARRAYS.items():
        assert f"| `/{name}` | {dtype} | [{','.join(axes)}] |" in FORMAT
    for key in (
        *METADATA_SHAPE,
        *OPTIONAL_SHAPE,
        "format",
        "format_version",
        "self_check",
        "example",
        "shard",
        "skipped",
        "layers",
    ):
        assert f"| `{key}` |" in FORMAT


def test_the_readmes_tree_names_what_is_there() -> None:
    tree = re.search(r"## The code\n\n```\n(.*?)```", README, re.DOTALL)
    assert tree
    for line in tree[1].splitlines():
        assert (ROOT / line.split()[0]).exists(), line
