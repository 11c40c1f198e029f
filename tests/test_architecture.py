"""The rules that the folders stand for: imports go one way, and torch stays where it belongs."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import headscore
from headscore.data.options import settings

ROOT = Path(__file__).parent.parent
ROOMS = {"data": {"data"}, "capture": {"capture", "data"}, "score": {"score", "data"}}
TORCH = ("torch", "transformers", "accelerate", "tokenizers")
ORDER = {  # of a room's folders: each may import those before it
    "data": ("files", "options", "prompts", "cache"),
    "capture": ("job", "inputs", "model", "recording", "checking", "writing", "ablating"),
}
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
TOP = [
    ROOT / name
    for name in (
        "__init__.py",
        "__main__.py",
        "cli.py",
        "options.py",
        "pipeline.py",
        "exporting.py",
        "terminal.py",
        "terminal_scores.py",
    )
]


def imported(path: Path) -> set[str]:
    """Full names of everything a file imports, relative imports resolved from the root package."""
    package = list(path.relative_to(ROOT).parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - (node.level - 1)] if node.level else []
            stem = ".".join(["headscore", *above] if node.level else []) or ""
            base = ".".join(part for part in (stem, node.module) if part)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def room_of(name: str) -> str | None:
    match = re.match(r"headscore\.(\w+)", name)
    return match[1] if match and match[1] in ROOMS else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    names = imported(path)
    room = path.relative_to(ROOT).parts[0]
    assert {room_of(name) for name in names} - {None} <= ROOMS[room]
    if room != "capture":
        assert not {name for name in names if name.split(".")[0] in TORCH}
    assert not {name for name in names if name.startswith(("headscore.cli", "headscore.pipeline", "headscore.exporting"))}
    if room == "score" and path.parent.name != "report":
        assert not {name for name in names if name.startswith("headscore.score.report")}, "scores know nothing of charts"


@pytest.mark.parametrize("room", ORDER)
def test_folders_of_a_room_use_only_those_before_them(room: str) -> None:
    folders = {path.name for path in (ROOT / room).iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ORDER[room])
    for place, folder in enumerate(ORDER[room]):
        names = {name for path in (ROOT / room / folder).glob("*.py") for name in imported(path)}
        assert names
        assert not {
            name for name in names if name.startswith(tuple(f"headscore.{room}.{later}." for later in ORDER[room][place + 1 :]))
        }


def test_what_needs_no_torch_is_apart() -> None:
    """Some folders of capture/ say so in their first line. What they import is of these folders and of data/ alone, so it holds
    for all that comes with them. The command line reads options, data and ranks without torch, and fails at once where it can.
    """
    without = [path.parent for path in (ROOT / "capture").glob("*/__init__.py") if path.read_text().endswith(' No torch."""\n')]
    assert {folder.name for folder in without} == {"inputs", "job"}
    allowed = ("headscore.data", *(f"headscore.capture.{folder.name}" for folder in without))
    for path in (path for folder in without for path in folder.glob("*.py")):
        names = imported(path)
        assert not {name for name in names if name.split(".")[0] in (*TORCH, "peft", "gguf")}, path
        assert all(name.startswith((*allowed, "headscore.__version__")) for name in names if name.startswith("headscore.")), (
            path
        )
    modules = [path for folder in without for path in folder.glob("*.py")] + [ROOT / "capture" / "call.py", ROOT / "cli.py"]
    names = [".".join(["headscore", *path.relative_to(ROOT).with_suffix("").parts]) for path in modules]
    program = f"import sys, {', '.join(names)}; print([name for name in {TORCH} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_folder_with_code_is_packaged() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).parts for path in MODULES}
    assert all((ROOT.joinpath(*parts) / "__init__.py").is_file() for parts in folders)
    assert sorted(packages) == sorted([".".join(["headscore", *parts]) for parts in folders | {()}])


def test_the_check_sees_relative_imports() -> None:
    assert "headscore.data.cache.reader" in imported(ROOT / "score" / "measures.py")
    assert room_of("headscore.data.cache.reader.Shard") == "data"


def test_nothing_unsafe_is_used() -> None:
    for path in MODULES + TOP:
        text = path.read_text()
        assert not re.search(r"\bpickle\b|yaml\.load\(|(?<!\.)\beval\(|(?<!\.)\bexec\(|torch\.load\(|allow_pickle", text), path
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), path


def test_importing_headscore_imports_nothing_else() -> None:
    heavy = ("headscore.", "numpy", "polars", "h5py", "yaml", "typer", "rich", "torch")
    program = f"import sys, headscore; print([m for m in sys.modules if m.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scoring_imports_nothing_it_does_not_use(cache: Path, tmp_path: Path) -> None:
    unused = ("torch", "transformers", "distributed", "rich", "altair", "headscore.capture.call")
    program = (
        "import sys; from headscore.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {unused} if name in sys.modules], file=sys.stderr)"
    )
    command = ["score", str(cache), "--out", str(tmp_path / "r")]
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr


def test_what_tests_share_is_in_modules_of_their_own() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        assert not [name for name in imported(path) if name.startswith("test_")], path.name


def test_no_modules_import_each_other() -> None:
    """Not even in functions, or for types alone."""
    files = {".".join(["headscore", *path.relative_to(ROOT).with_suffix("").parts]): path for path in MODULES + TOP}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {name: {other for other in imported(path) & files.keys() if other != name} for name, path in files.items()}
    for name in graph:  # a name of a package may be a function of its own
        graph[name] -= {package for package in graph[name] if files[package].name == "__init__.py"}
    assert "headscore.score.report.page" in graph["headscore.pipeline"], "in a function"
    assert "headscore.data.cache.reader" in graph["headscore.data.cache.folder"], "for type checkers"
    graphlib.TopologicalSorter(graph).prepare()


def test_public_names_are_there_and_calls_share_their_folders_names() -> None:
    for name in headscore.__all__:
        assert getattr(headscore, name) is not None
    importlib.import_module("headscore.capture.recording.batches")
    importlib.import_module("headscore.score.signals")
    assert callable(headscore.capture) and callable(headscore.score)
    assert headscore.capture.recording.batches.batch_counts and headscore.score.signals.out
    with pytest.raises(AttributeError):
        _ = headscore.nonsense


def test_settings_are_the_same_in_run_as_in_its_parts() -> None:
    run = settings.RunSettings()
    for part in (settings.CaptureSettings(), settings.ScoreSettings()):
        for name in part.__dataclass_fields__:
            assert getattr(run, name) == getattr(part, name)
    assert settings.RunSettings(score_query_mode="all_tokens").queries == "all_tokens"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_ent": float("nan")}, "lambda_ent: nan is not a finite number"),
        ({"lambda_ent": "x"}, "lambda_ent: expected float, got 'x'"),
        ({"top_k": 2.5}, "top_k: expected int, got 2.5"),
        ({"top_k": True}, "top_k: expected int, got True"),
        ({"top_k": 0}, "top_k: 0 is not a number of at least 1"),
        ({"norm_mode": "minmax"}, "norm_mode: 'minmax' is not one of zscore, percentile, ratio, none"),
        ({"norm_mode": 3}, "norm_mode: 3 is not one of zscore"),
        ({"task_span": []}, "task_span: expected one or more names"),
        ({"task_span": [3]}, "task_span: expected one or more names"),
        ({"signals": ""}, "signals: expected a path, got ''"),
        ({"weight": {"lift": "much"}}, "weight lift: 'much' is not a finite number"),
        ({"weight": {"lift": float("inf")}}, "weight lift: inf is not a finite number"),
        ({"weight": {"lift": True}}, "weight lift: True is not a finite number"),
        ({"weight": ["lift"]}, "weight: expected NAME=VALUE, got 'lift'"),
        ({"weight": ["lift=1", "lift=2"]}, "weight: 'lift' appears twice"),
        ({"weight": 3}, "weight: expected NAME=VALUE, got 3"),
        ({"weight": {"ent": 2.0}, "lambda_ent": 1.0}, "weight ent=2: lambda_ent says 1; give one"),
        ({"weight": {"out": 0.0}, "lambda_ent": 0, "lambda_task": 0}, "weight: every weight is 0"),
        ({"measure": {"two words": "sink"}}, "measure: 'two words' is not a name"),
    ],
)
def test_settings_refuse_what_is_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(headscore.InputError) as error:
        settings.ScoreSettings(**options)
    assert message in str(error.value)
