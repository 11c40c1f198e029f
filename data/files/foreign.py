"""The one place where what a foreign library throws becomes an error of ours.

A tokenizer, polars, transformers and peft raise whatever they stumble over in a broken file. What is written in Rust panics
besides: it prints a report of its own to stderr and raises what is no Exception.
"""

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

from ..errors import HeadscoreError, InputError, typed_line

_PANIC = ("pyo3_runtime", "PanicException")  # each library in Rust has a class of its own by this name

_one_at_a_time = threading.Lock()


def crashes(action: Callable[[], object]) -> bool:
    """Whether what a library does ends a forked copy of this process; errors that it raises do not count.

    Rust ends the process where memory is refused, and where a panic meets another. Where no process can be forked safely it is
    not tried, and this is False.
    """
    if sys.platform != "linux":
        return False
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            logging.disable()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def foreign_faults_told(
    what: str, describe: Callable[[BaseException], str] = typed_line, *, hold_stderr: bool = True
) -> Iterator[None]:
    """Within this context what a library raises becomes an InputError.

    Errors of ours, an interrupt, an exit and a lack of memory stay what they are.

    Args:
        what: the file or option at fault, and what failed: the beginning of the message.
        describe: makes the rest of the message of what was raised; its type and its first words if not given.
        hold_stderr: hold back what is printed to stderr, and drop it where it is the report of a panic, as the error says it.
            Not for what takes long and shows its progress there.
    """
    try:
        with _panics_unprinted() if hold_stderr else contextlib.nullcontext():
            yield
    except (HeadscoreError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise InputError(f"{what}: {describe(error)}") from error


def is_panic(error: BaseException | None) -> bool:
    """Whether an error is a Rust panic, or was raised while one was handled."""
    while error is not None:
        if (type(error).__module__, type(error).__name__) == _PANIC:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and drops it where a panic ends the context.

    One thread does so at a time; what others write meanwhile is only late. Where there is no such descriptor, nothing is held.
    """
    with contextlib.ExitStack() as stack:
        if not _one_at_a_time.acquire(blocking=False):
            yield
            return
        stack.callback(_one_at_a_time.release)
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:  # a closed stderr, a full disk
            yield
            return
        stack.callback(os.close, stderr)
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            os.dup2(stderr, 2)
            if not panicked:
                held.seek(0)
                _write_all(2, held.read())


def _write_all(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads stderr
        while content:
            content = content[os.write(descriptor, content) :]
