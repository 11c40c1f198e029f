"""Executors that spread the shards of a cache: processes of this machine, or the workers of a Dask cluster."""

import contextlib
import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ..data.errors import HeadscoreError, InputError, OptionError, RunError, one_line
from ..data.options.settings import WorkSettings

SECONDS_TO_CONNECT = 10
MAX_ON_WINDOWS = 61


@contextlib.contextmanager
def executor_of(settings: WorkSettings, given: Any = None) -> Iterator[Executor | None]:
    """The executor that is given, or that the settings ask for; None where this process does the work.

    Raises InputError where what is given is none, or Dask is not installed or not reached, RunError where a worker fails.
    """
    if given is not None:
        with _given(given) as executor:
            yield executor
    elif settings.dask:
        with _dask(settings.dask) as executor:
            yield executor
    elif settings.workers > 1:
        with _processes(settings.workers) as executor:
            yield executor
    else:
        yield None


@contextlib.contextmanager
def _given(executor: Any) -> Iterator[Executor]:
    if not isinstance(executor, Executor):
        raise InputError(f"executor: expected a concurrent.futures.Executor, got {executor!r:.80}")
    try:
        yield executor
    except BrokenExecutor as error:
        raise RunError(f"executor: a worker ended unexpectedly: {one_line(error)[:160]}") from error


@contextlib.contextmanager
def _processes(count: int) -> Iterator[Executor]:
    if sys.platform == "win32" and count > MAX_ON_WINDOWS:
        raise OptionError(f"--workers: {count} is more than the {MAX_ON_WINDOWS} that Windows allows")
    # Not forked: a fork of a process with polars' threads may hang. Threads would be slower, as numpy's calls are short.
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, spawn, initializer=_prepare_process) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise RunError(
            "--workers: a process ended unexpectedly: out of memory (then use fewer), or a script that calls "
            "headscore.score outside of `if __name__ == '__main__':`"
        ) from error


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the parent's


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise OptionError("--dask: needs dask.distributed: pip install 'headscore[cluster]'") from error
    with _connected(Client, address) as client, client.get_executor(pure=False) as executor:
        try:
            yield executor
        except HeadscoreError:
            raise
        except Exception as error:  # whatever a worker raises, such as one that has no headscore
            raise RunError(f"--dask {address}: a worker failed: {type(error).__name__}: {one_line(error)[:200]}") from error


def _connected(client: Any, address: str) -> Any:
    """A client of the scheduler at `address`, once it has a worker.

    Connecting is left to a thread, as it would wait for ever for something that takes connections but never answers.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def connect() -> None:
        try:
            made = client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
            made.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
            answers.put(made)
        except Exception as error:  # told below
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=3 * SECONDS_TO_CONNECT)
    except queue.Empty:
        answer = TimeoutError("no answer")
    if isinstance(answer, Exception):
        raise OptionError(f"--dask {address}: no Dask scheduler with workers answers there: {one_line(answer)[:160]}")
    return answer
