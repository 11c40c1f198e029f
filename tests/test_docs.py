"""Every command, option, signal, file and template stands in the docs, with the defaults that the code has."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from headscore.cli import app
from headscore.data.cache.metadata import METADATA_SHAPE, OPTIONAL_SHAPE
from headscore.data.cache.shard import ARRAYS
from headscore.data.options.evidence_settings import CompareSettings, ControlSettings, Effect, StabilitySettings, SweepSettings
from headscore.data.options.export_settings import ExportSettings, ImportSettings
from headscore.data.options.settings import (
    BUILT_IN_TEMPLATES,
    DEFAULT_WEIGHTS,
    BootstrapSettings,
    CaptureSettings,
    ScoreSettings,
    ValidateSettings,
    WorkSettings,
)
from headscore.data.prompts.styles import ALPACA, ARC, ROW_STYLES
from headscore.data.prompts.text_rows import TEXT_COLUMNS, TEXT_STYLE
from headscore.data.voice import option_flag
from headscore.score.evidence.agreeing import LAYERS_SCHEMA, PAIRS_SCHEMA
from headscore.score.evidence.checks import CHECK_NAMES
from headscore.score.evidence.compare import RESULT_FILES as COMPARE_FILES
from headscore.score.evidence.settings_grid import CHOICES
from headscore.score.evidence.stability import RESULT_FILES as STABILITY_FILES
from headscore.score.evidence.stability import SCHEMA as STABILITY_COLUMNS
from headscore.score.evidence.sweep import RESULT_FILES as SWEEP_FILES
from headscore.score.evidence.sweep import RESULTS as SWEEP_RESULTS
from headscore.score.outputs import CHARTS, RESULT_FILES
from headscore.score.recipe import BOOTSTRAP_COLUMNS
from headscore.score.validation_files import ALL_FILES as VALIDATION_FILES
from headscore.score.validation_table import SCHEMA as VALIDATION_COLUMNS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
MANUAL = (DOCS / "manual.md").read_text()
DATA = (DOCS / "data.md").read_text()
FORMAT = (DOCS / "cache-format.md").read_text()
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]
COMMANDS = get_command(app).commands

OWN_SETTINGS = {  # of a command, those whose options stand in its section of the manual
    "capture": [CaptureSettings],
    "score": [ScoreSettings, BootstrapSettings, WorkSettings],
    "validate": [ValidateSettings],
    "control": [ControlSettings],
    "compare": [CompareSettings],
    "stability": [StabilitySettings],
    "sweep": [SweepSettings],
    "export": [ExportSettings],
    "import": [ImportSettings],
}


def section(name: str) -> str:
    """What the manual says about a command."""
    return MANUAL.split(f"\n### `headscore {name}`\n")[1].split("\n## ")[0].split("\n### ")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_the_manual_by_its_whole_name(name: str) -> None:
    assert section(name) and f"(#headscore-{name})" in MANUAL.split("## Commands")[0], "has a section that is in the contents"
    for parameter in COMMANDS[name].params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            assert not flag.startswith("--") or re.search(rf"(?<![\w-]){flag}(?![\w-])", MANUAL), flag


@pytest.mark.parametrize(("name", "settings"), [(name, each) for name, own in OWN_SETTINGS.items() for each in own])
def test_the_manual_has_the_defaults(name: str, settings: type) -> None:
    shared = {field.name for field in dataclasses.fields(CaptureSettings)} if settings is ValidateSettings else set()
    for field in dataclasses.fields(settings):
        flag = option_flag(field.name)
        line = re.search(rf"^\| `{flag}`.*$", section(name), re.MULTILINE)
        if line is None and field.name in shared:
            assert f"`{flag}`" in section(name)
            continue
        assert line, field.name
        default = next(iter(field.default), None) if isinstance(field.default, tuple) else field.default
        shown = line[0].split("|")[2].strip().strip("`")
        assert shown == {"None": "", "False": "off", "True": "on"}.get(str(default), str(default)), line[0]
        assert all(f"`{alias}`" in line[0] for alias in field.metadata["aliases"]), line[0]


def test_templates_and_styles_are_on_the_page_on_data() -> None:
    for template in (ARC, ALPACA):
        assert f"```\n{template.text}\n```" in DATA, template.name
    for style in ROW_STYLES:
        assert f"| `{style.name}` | " in DATA
        assert sorted(style.templates) == sorted(BUILT_IN_TEMPLATES)
    assert f"| `{TEXT_STYLE}` | {', '.join(f'`{column}`' for column in TEXT_COLUMNS)} | " in DATA
    for name in BUILT_IN_TEMPLATES:
        assert f"Template `{name}`" in DATA


def test_the_signals_of_the_default_ranking_are_in_the_readme_and_the_manual() -> None:
    for signal in DEFAULT_WEIGHTS:
        assert f"`{signal}`, " in README and MANUAL.count(f"| `{signal}` |") == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading in it."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The names by which headings are linked: lower case, no marks, blanks as dashes."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_on_validation_has_every_file_and_column() -> None:
    page = (DOCS / "validation.md").read_text()
    for name in VALIDATION_FILES:
        assert f"`{name}`" in page, name
    for column in VALIDATION_COLUMNS:
        assert f"`{column}`" in page, column


def test_the_page_on_comparing_has_every_file_and_column() -> None:
    page = (DOCS / "compare.md").read_text()
    columns = [*PAIRS_SCHEMA, *LAYERS_SCHEMA, *STABILITY_COLUMNS, "moved", "signal", "mean_a", "mean_b", "change", "relative"]
    for name in (*COMPARE_FILES, *STABILITY_FILES, *columns, *get_args(Effect)):
        assert f"`{name}`" in page, name


def test_the_page_on_sweeps_has_every_file_and_column() -> None:
    page = (DOCS / "sweep.md").read_text()
    for name in (*SWEEP_FILES, *CHOICES, *SWEEP_RESULTS, "weight_<signal>", "rank", "times", "share"):
        assert f"`{name}`" in page, name


def test_the_page_on_evidence_has_every_column_and_check() -> None:
    page = (DOCS / "evidence.md").read_text()
    for name in (*BOOTSTRAP_COLUMNS, "<signal>_rank_low", "<signal>_rank_high", "task_length_r", *CHECK_NAMES):
        assert f"`{name}`" in page, name


def test_no_gap_is_left_in_any_page() -> None:
    assert not [page.name for page in PAGES if "@@" in page.read_text()]


def test_the_result_files_are_in_the_manual() -> None:
    for name in CHARTS:
        assert f"`{name}`" in MANUAL and "`report.html`" in MANUAL
    for name in RESULT_FILES:
        assert re.search(rf"^\| (`[\w.]+`, )?`{re.escape(name)}`", MANUAL, re.MULTILINE), name


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


def test_the_map_of_the_code_names_what_is_there() -> None:
    tree = re.search(r"## The map\n\n.*?```\n(.*?)```", (DOCS / "architecture.md").read_text(), re.DOTALL)
    assert tree
    for line in (line for line in tree[1].splitlines() if not line.startswith(" ")):
        assert (ROOT / line.split()[0]).exists(), line
