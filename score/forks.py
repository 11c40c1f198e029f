"""Refuses work in a forked process for which it lacks the threads of its parent, and would wait for ever."""

import functools
import os

from ..data.errors import RunError


def require_own_threads(what: str, library: str) -> None:
    """Note that this process uses a library with threads of its own, for `what`.

    Raises RunError in a process that was forked from one where the library had been used: a fork has none of its threads.
    """
    if _first_process(library) != os.getpid():
        raise RunError(f"{what}: {library} cannot work in a process forked from one where it did; start processes by 'spawn'")


@functools.cache  # which forked processes inherit
def _first_process(library: str) -> int:
    return os.getpid()
