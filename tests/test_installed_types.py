"""Type checkers know the library's calls where it is installed from a wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from released import copied_tree


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel of this tree holds, unpacked."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    tree = copied_tree(folder / "tree")
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=tree, capture_output=True, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def test_type_checkers_know_the_options_of_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    assert (installed / "headscore" / "py.typed").is_file()
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-headscore.*]\nignore_errors = True\n"
        "[mypy-polars.*,numpy.*,h5py.*,altair.*,yaml.*,torch.*,transformers.*,typer.*]\n"
        "follow_imports = skip\nignore_missing_imports = True\n"
    )
    right = [
        "import headscore",
        'headscore.score("c", lambda_task=1, task_span=["a"], weight={"ent": 2.0}, norm_mode="ratio").combined',
        'headscore.capture("o", model="m", model_kwargs={"a": 1}, progress=lambda done, total: None)',
        'headscore.report("c", "o", overwrite=True, workers=2)',
        "headscore.run(top_k=3)",
        'headscore.merge(["a"], "b").missing',
        'headscore.inspect("c", verify=True)["samples"]',
        'headscore.scan_cache("c").collect()',
        "headscore.InputError.exit_status",
    ]
    wrong = {
        'headscore.score("c", lamda_task=1)': 'did you mean "lambda_task"?',
        'headscore.score("c", norm_mode="zcore")': "incompatible type",
        'headscore.score("c", top_k="3")': "incompatible type",
        'headscore.capture("o", max_sample=3)': 'did you mean "max_samples"?',
        'headscore.report("c")': 'Missing positional argument "out"',
        "headscore.run(shardsize=3)": 'did you mean "shard_size"?',
        'headscore.inspect("c", verfy=True)': 'did you mean "verify"?',
        "headscore.scores": 'has no attribute "scores"',
    }
    (tmp_path / "script.py").write_text("\n".join([*right, *wrong]))
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"MYPYPATH": str(installed), "PATH": ""})
    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(found) == len(wrong), done.stdout + done.stderr
    for number, (line, message) in enumerate(zip(found, wrong.values(), strict=True), start=len(right) + 1):
        assert line.startswith(f"script.py:{number}: ") and message in line, line
