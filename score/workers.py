"""Spreads the shards of a cache over processes of this machine or the workers of a Dask cluster."""

import atexit
import contextlib
import gc
import itertools
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ..data.errors import HeadscoreError, InputError, RunError, one_line
from ..data.settings import WorkSettings
from .sums import Spread

SECONDS_TO_CONNECT = 10
AT_ONCE = 2  # shards that a process has: one that it works on, and the next


@contextlib.contextmanager
def workers(settings: WorkSettings) -> Iterator[Spread]:
    """A function like `map`, whose results come in the order of the shards, whoever makes them.

    Since the caller adds them up in that order, the number of workers changes no bit of the result. Raises InputError where
    Dask is not installed or not reached, RunError where a worker fails.
    """
    if settings.dask:
        with _dask(settings.dask) as spread:
            yield spread
    elif settings.workers > 1:
        with _processes(settings.workers) as spread:
            yield spread
    else:
        yield map


@contextlib.contextmanager
def _processes(count: int) -> Iterator[Spread]:
    """`count` processes, of which this one is the last: it would only wait while the others start."""
    import multiprocessing  # here, as most runs need none of it
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    def spread(work: Any, items: Iterable[Any]) -> Iterator[Any]:
        rest = iter(items)
        pending: deque[Future[Any]] = deque()
        for mine in rest:
            own: Future[Any] = Future()
            waiting = sum(not future.done() for future in pending)
            given = itertools.islice(rest, max(0, AT_ONCE * (count - 1) - waiting))
            pending += [own, *(pool.submit(work, item) for item in given)]
            try:
                own.set_result(work(mine))
            except Exception as error:  # raised where its turn is, so that it is the same error whoever is faster
                own.set_exception(error)
            while pending and pending[0].done():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    # Not forked: a fork of a process with polars' threads may hang. Threads would be slower, as numpy's calls are short.
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count - 1, spawn, initializer=_prepare_process) as pool:
            try:
                yield spread
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise RunError(
            "--workers: a process ended before its time: out of memory (then use fewer), or a script that calls "
            "headscore.score outside of `if __name__ == '__main__':`"
        ) from error


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the parent's
    atexit.register(gc.freeze)  # the parent waits for its end, which is sooner without a last look through all objects


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Spread]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise InputError("--dask: needs dask.distributed: pip install 'headscore[cluster]'") from error
    client = _connected(Client, address)

    def spread(work: Any, items: Iterable[Any]) -> Iterator[Any]:
        futures = client.map(work, list(items), pure=False)
        try:
            for future in futures:
                yield future.result()
        except HeadscoreError:
            raise
        except Exception as error:  # whatever a worker raises, such as one that has no headscore
            raise RunError(f"--dask {address}: a worker failed: {type(error).__name__}: {one_line(error)[:200]}") from error
        finally:
            client.cancel(futures)

    with client:
        yield spread


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
        raise InputError(f"--dask {address}: no Dask scheduler with workers is reached there: {one_line(answer)[:160]}")
    return answer
