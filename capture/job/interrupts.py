"""Lets Ctrl-C finish the shard in hand instead of throwing its samples away."""

import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

logger = logging.getLogger("headscore")

TERMINATED = 128 + signal.SIGTERM


class Interrupts:
    """Within this context the first Ctrl-C only asks to stop; the second, or a SIGTERM, stops at once.

    "At once" raises KeyboardInterrupt or SystemExit in the main thread, so that what is being written is still finished.
    Outside the main thread, where Python has no signals, this does nothing.
    """

    def __init__(self) -> None:
        self._asked = self._told = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGINT, self._on_interrupt), (signal.SIGTERM, self._on_terminate)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # started with nohup, or not Python's to handle
                    self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def asked_to_stop(self) -> bool:
        """Whether there was a Ctrl-C."""
        return self._asked

    def tell(self) -> None:
        """Say once in the log that there was a Ctrl-C; a signal handler must not write."""
        if self._asked and not self._told:
            self._told = True
            logger.warning("stopping after the shard in hand; Ctrl-C again drops it and stops at once")

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        sys.exit(TERMINATED)
