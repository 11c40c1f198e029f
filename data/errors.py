"""The errors that headscore raises on purpose: one line each, with what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable
from typing import Self

from .voice import spoken


class HeadscoreError(Exception):
    """Any failure that headscore foresaw; its message is one line for the user.

    It is written in terms of the command line's options. A reader of the library is told of parameters: `str(error)` says
    `top_k` where `message` says `--top-k`. What is made of it for another message, or a file, is made of `message`.
    """

    exit_status = 1
    of_command_line = False  # whether it speaks of options wherever it is read

    @property
    def message(self) -> str:
        """The message as it was written."""
        return " ".join(map(str, self.args))

    def retold(self, message: str) -> Self:
        """An error of the same cause with another message, for one who knows more of where it happened."""
        return type(self)(message)

    def __str__(self) -> str:
        return self.message if self.of_command_line else spoken(self.message)


class InputError(HeadscoreError):
    """Something the user gave cannot be used: an option, a file, a row, a model or a cache (exit status 2)."""

    exit_status = 2


class OptionError(InputError):
    """An option or parameter cannot be used: its value, or that it is given together with others."""


class NewerFormatError(InputError):
    """A cache or shard of a newer format, which a newer headscore reads; it is whole, so nothing is made again in its place."""


class DamagedShardError(InputError):
    """A shard file that could be read and is not whole; the capture that it belongs to makes it again."""


class ForeignShardError(InputError):
    """A file with a shard's name that is not this cache's shard; unlike a damaged one, it is never replaced unasked."""


class UnfitRowError(HeadscoreError):
    """A row that is to be left out and counted, while the others are used; the message is the reason alone."""


class RunError(HeadscoreError):
    """The input was fine but the work failed: out of memory, a failed self-check, a full disk (exit status 1)."""


class UnreadableFileError(RunError):
    """A file that the system does not let us read: no permission, a disk error, a stale handle, too many open files.

    It may be whole, so it is neither called damaged nor replaced.
    """


def one_line(error: BaseException) -> str:
    """The message of `error` folded into one line (libraries' messages often have many); its type if it has none."""
    message = error.message if isinstance(error, HeadscoreError) else str(error)
    return " ".join(message.split()) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the known name that is most like one that is not, to stand before a list of them; empty if none is."""
    nearest = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{nearest[0]}'? " if nearest else ""


def typed_line(error: BaseException) -> str:
    """The type of `error` and at most 300 characters of its message, in one line."""
    return f"{type(error).__name__}: {one_line(error)[:300]}"


def printable(text: str) -> str:
    """`text` with everything escaped that could drive a terminal; it may come from a stranger's file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
