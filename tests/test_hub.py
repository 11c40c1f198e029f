"""Models of the hub, over its real protocol: a small hub on the loopback address, asked by other processes.

huggingface_hub reads where the hub is, and whether it may be asked at all, when it is imported.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import adapters
import hub
import pytest
import tiny
from eager import EagerModel
from parity import assert_parity

import headscore
from headscore.data.cache.folder import open_cache

CAPTURES = """
import json, sys, time
import headscore
from headscore.data.cache.folder import open_cache
for out, options in json.loads(sys.argv[1]).items():
    started = time.monotonic()
    try:
        headscore.capture(out, max_samples=3, queries="all_tokens", **options)
        told = {"model": open_cache(__import__("pathlib").Path(out)).metadata["model"]}
    except headscore.HeadscoreError as error:
        told = {"error": str(error), "status": error.exit_status}
    print(json.dumps(told | {"seconds": time.monotonic() - started}))
"""

Captures = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("models")
    found = {f"v{seed}": tiny.save(tiny.build(tiny.CONFIGS["llama"](), seed), made / f"v{seed}") for seed in (1, 2)}
    found["lora"] = adapters.save(made / "lora", found["v2"])
    found["beside"] = Path(shutil.copytree(found["v1"], made / "beside"))
    shutil.copytree(found["lora"], found["beside"], dirs_exist_ok=True)
    for name in ("lora", "beside"):
        config = found[name] / "adapter_config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/tiny", "revision": "old"})
        )
    return found


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> Iterator[hub.Hub]:
    with hub.serving() as served:
        served.push("org/tiny", folders["v1"], "old", "v1.0")
        served.push("org/tiny", folders["v2"], "main")
        served.push("org/lora", folders["lora"], "main")
        served.push("org/beside", folders["beside"], "main")
        served.push("org/gated", folders["v1"], "main")
        served.gated.add("org/gated")
        yield served


@pytest.fixture
def captures(served: hub.Hub, tmp_path: Path) -> Captures:
    """Captures in a process of its own, whose hub's cache is this test's: what each gave, or the error."""

    def run(*captures: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        named = {str(tmp_path / f"c{i}"): options for i, options in enumerate(captures)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"} | environment
        command = [sys.executable, "-c", CAPTURES, json.dumps(named)]
        done = subprocess.run(command, env=kept | settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_revisions_are_what_they_say(captures: Captures, served: hub.Hub, folders: dict[str, Path], tmp_path: Path) -> None:
    old, new = (served.commit("org/tiny", name) for name in ("old", "main"))
    asked: list[dict[str, Any]] = [{}, {"revision": "main"}, {"revision": "v1.0"}, {"revision": old}]
    found = [told["model"] for told in captures(*({"model": "org/tiny"} | options for options in asked))]
    assert [(model["name"], model["revision"], model["commit"]) for model in found] == [
        ("org/tiny", None, new),
        ("org/tiny", "main", new),
        ("org/tiny", "v1.0", old),
        ("org/tiny", old, old),
    ]
    prints = [model["fingerprint"] for model in found]
    assert prints[0] == prints[1] != prints[2] == prints[3]
    for place, folder in ((1, "v2"), (2, "v1")):
        assert_parity(tmp_path / f"c{place}", EagerModel(folders[folder]))
    headscore.capture(tmp_path / "local", model=str(folders["v1"]), max_samples=3)
    assert open_cache(tmp_path / "local").metadata["model"]["fingerprint"] == prints[2]


def test_adapters_of_the_hub(captures: Captures, served: hub.Hub, folders: dict[str, Path], tmp_path: Path) -> None:
    """On a base that is given, on the one that the adapter names, at the revision it says, and beside the weights."""
    given, alone, beside, known = captures(
        {"model": "org/tiny", "adapter": "org/lora"},
        {"model": "org/lora"},
        {"model": "org/beside"},
        {"model": str(folders["v1"]), "adapter": "org/lora"},
    )
    assert given["model"]["fingerprint"] != alone["model"]["fingerprint"]
    assert alone["model"]["fingerprint"] == beside["model"]["fingerprint"] == known["model"]["fingerprint"]
    assert [told["model"]["adapter"]["name"] for told in (given, alone, beside)] == ["org/lora", "org/lora", "org/beside"]
    assert alone["model"]["adapter"]["base"] == "org/tiny" and alone["model"]["commit"] == served.commit("org/tiny", "old")
    assert_parity(tmp_path / "c0", EagerModel(adapters.merged(folders["v2"], folders["lora"])))
    assert_parity(tmp_path / "c1", EagerModel(adapters.merged(folders["v1"], folders["lora"])))


def test_what_the_hub_does_not_give_is_told_in_one_line(captures: Captures, folders: dict[str, Path]) -> None:
    wanted = {
        "model org/none: there is no such folder, and the hub has no such model": {"model": "org/none"},
        "model none: there is no such folder, and the hub has no such model": {"model": "none"},
        "model a..b/c: there is no such folder, and it is not a hub id": {"model": "a..b/c"},
        "model org/tiny: the hub has no revision 'new' of it": {"model": "org/tiny", "revision": "new"},
        "model org/tiny: the hub has no revision 'ffffffff": {"model": "org/tiny", "revision": "f" * 40},
        "model org/gated: the hub gives it only to those whom its owner let in": {"model": "org/gated"},
        "adapter org/none: there is no such folder, and the hub has no such model": {
            "model": "org/tiny",
            "adapter": "org/none",
        },
        "adapter org/tiny: is not an adapter: it has no adapter_config.json": {"model": "org/tiny", "adapter": "org/tiny"},
        "revision main: is for models of the hub": {"model": str(folders["v1"]), "revision": "main"},
    }
    for message, told in zip(wanted, captures(*wanted.values()), strict=True):
        assert told["error"].startswith(message) and "\n" not in told["error"] and len(told["error"]) < 300, told
        assert told["status"] == 2 and told["seconds"] < 60


def test_without_network_the_hubs_cache_is_used_and_nothing_is_waited_for(
    captures: Captures, served: hub.Hub, tmp_path: Path
) -> None:
    old = served.commit("org/tiny", "old")
    known = [{"model": "org/tiny"}, {"model": "org/tiny", "revision": "old"}, {"model": "org/lora"}]
    online = captures(*known)
    shutil.rmtree(tmp_path / "c0")
    with socket.socket() as silent:  # it takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        nowhere = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_ENDPOINT": nowhere}):
            unknown = [{"model": "org/none"}, {"model": "org/none", "revision": "f" * 40}]
            found = captures(*known, {"model": "org/tiny", "revision": old}, *unknown, **offline, HF_HUB_ETAG_TIMEOUT="1")
            assert [told["model"]["fingerprint"] for told in found[:3]] == [told["model"]["fingerprint"] for told in online]
            assert found[3]["model"]["fingerprint"] == online[1]["model"]["fingerprint"]
            assert found[4]["error"].startswith("model org/none: there is no such folder, and the hub")
            assert "org/none" in found[5]["error"] and "\n" not in found[5]["error"]
            assert max(told["seconds"] for told in found[4:]) < 60
