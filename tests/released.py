"""The files that a release is made of, as they are in the working tree."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def copied_tree(folder: Path) -> Path:
    """A copy in `folder` of all files that git does not ignore; skips the test where there is no git checkout."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder
