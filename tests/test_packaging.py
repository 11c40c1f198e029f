"""What is released: one wheel for every platform, an sdist that is the whole repository, one version."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from released import ROOT, copied_tree

import headscore

NOT_IN_THE_WHEEL = ("tests", "benchmarks", "docs", ".ci")
MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], Path]:
    """The names of all files of the tree, and a folder with the wheel and the sdist that are made of it."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("released")
    tree = copied_tree(folder / "tree")
    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    build = "from setuptools.build_meta import build_sdist, build_wheel; build_sdist('..'); build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, check=True)
    return names, folder


def test_the_wheel_is_for_every_platform_and_has_every_file_of_the_package(released: tuple[set[str], Path]) -> None:
    names, folder = released
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"headscore-{headscore.__version__}-py3-none-any.whl"
    package = {
        name
        for name in names
        if name.split("/")[0] not in NOT_IN_THE_WHEEL and ("/" in name or Path(name).suffix in (".py", ".pyi", ".typed"))
    }
    assert len({Path(name).parent for name in package}) > 10
    with zipfile.ZipFile(wheel) as opened:
        inside = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert inside == {f"headscore/{name}" for name in package}


def test_the_sdist_is_the_whole_repository(released: tuple[set[str], Path]) -> None:
    names, folder = released
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        inside = {member.name.partition("/")[2] for member in opened if member.isfile()}
    inside = {name for name in inside if not name.startswith("headscore.egg-info/")}
    assert inside - MADE_BY_SETUPTOOLS == names


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = headscore.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in cited
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    date = re.search(r"^date-released: (.+)$", cited, re.MULTILINE)
    assert newest and date and newest[1] in ("Unreleased", f"{version} — {date[1]}")
