import faulthandler
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that share tiny matrices wait for each other most of the time

import exported
import psutil
import tiny
from cli_runs import run_cli  # noqa: F401 - a fixture
from eager import EagerModel
from hypothesis import settings
from report_pages import page  # noqa: F401 - a fixture

import headscore
from headscore.data.cache.reader import Shard

warnings.filterwarnings("ignore", message=".*fork.*")
settings.register_profile("headscore", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, derandomize=False, max_examples=5000)  # --hypothesis-profile=long
settings.load_profile("headscore")


@pytest.fixture(autouse=True, scope="session")
def _no_test_writes_to_the_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Other processes that tests start have it from here, too; models that were downloaded stay where they are.

    All workers have one such folder together, so that the default model is converted once.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("HF_HOME", str(home / "huggingface"))
    base = tmp_path_factory.getbasetemp()
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (together / "user-cache").mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(together / "user-cache")


@pytest.fixture(autouse=True)
def _young_caches_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring keeps its measures in `derived/`, as it does for users, whose caches are rarely as young as those of tests."""
    monkeypatch.setattr("headscore.score.kept.SETTLED_NS", 0)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with grouped-query attention, saved as a user would have it."""
    return tiny.save(tiny.build(tiny.CONFIGS["llama"]()), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama_eager(llama: Path) -> EagerModel:
    return EagerModel(llama)


@pytest.fixture(scope="session")
def cache(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An all_tokens cache of the tiny llama over 24 shipped questions, in three shards. Read only."""
    out = tmp_path_factory.mktemp("caches") / "all_tokens"
    headscore.capture(out, model=str(llama), max_samples=24, shard_size=10, queries="all_tokens", seed=7)
    return out


@pytest.fixture(scope="session")
def last_token_cache(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("caches") / "last_token"
    headscore.capture(out, model=str(llama), max_samples=8)
    return out


@pytest.fixture(scope="session")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a tiny model and of a ranking of its heads, for exports. Read only."""
    return exported.make(tmp_path_factory.mktemp("ranked"))


@pytest.fixture
def arrays_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the arrays that have been read from shards since."""
    names: set[str] = set()
    real = Shard.read
    spy = lambda shard, name, *which, **more: (names.add(name), real(shard, name, *which, **more))[1]  # noqa: E731
    monkeypatch.setattr(Shard, "read", spy)
    return names


SECONDS_TO_END = 120


def pytest_unconfigure() -> None:
    """Tell what keeps this process from ending, where something does, and end it: CI would wait for it for ever."""

    def give_up() -> None:
        time.sleep(SECONDS_TO_END)
        print(f"\nthe tests are done, but their process has not ended for {SECONDS_TO_END} s:", file=sys.stderr)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print(
            "its children:",
            [child.cmdline() for child in psutil.Process().children(recursive=True)],
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=give_up, daemon=True).start()
