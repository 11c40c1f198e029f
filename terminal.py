"""What the user sees while work goes on: log lines and progress, on a terminal and elsewhere."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .data.errors import printable
from .data.text import OneLine

if TYPE_CHECKING:
    from .score.scores import Scores

SECONDS_BETWEEN_LINES = 10

Show = Callable[[int, int], None]
logger = logging.getLogger("headscore")


def show_log(label: str) -> None:
    """Send headscore's log lines to stderr, each after `label` if there is one, and what others warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(logging.Formatter(f"{label}: %(message)s" if label else "%(message)s")))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {' '.join(str(message).split())}"
    logger.setLevel(logging.INFO)


@contextmanager
def progress(doing: str, alone: bool, what: str = "samples") -> Iterator[Show]:
    """Yields what to call with (done, in all), counted in `what`: it shows them with the rate and the time left.

    A bar on a terminal; elsewhere, and where this process is not `alone` on its terminal, a log line every ten seconds.
    """
    if alone and sys.stderr.isatty():
        with _bar(doing, what) as show:
            yield show
    else:
        yield _lines(doing, what)


@contextmanager
def _bar(doing: str, what: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    handler = RichHandler(console=console, show_path=False, show_level=False, show_time=False)
    handler.setFormatter(OneLine(logging.Formatter("%(message)s")))
    logging.getLogger().handlers = [handler]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(doing, total=None, speed="", visible=False)
        start: list[float] = []

        def show(done: int, total: int) -> None:
            start[:] = start or [time.monotonic(), done]
            rate = (done - start[1]) / max(time.monotonic() - start[0], 1e-9)
            bar.update(task, completed=done, total=total, speed=f"{rate:.1f} {what}/s", visible=True)

        yield show


def _lines(doing: str, what: str) -> Show:
    first: list[float] = []
    last = [time.monotonic()]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        first[:] = first or [now, done]
        if now - last[0] >= SECONDS_BETWEEN_LINES and done > first[1]:
            last[0] = now
            rate = (done - first[1]) / (now - first[0])
            logger.info("%s %d/%d %s, %.1f %s/s, %.0f s left", doing, done, total, what, rate, what, (total - done) / rate)

    return show


def table_lines(scores: "Scores", shown: int) -> Iterator[str]:
    """The first `shown` heads as lines of plain text, with the signals that are weighted."""
    cells = table_cells(scores, shown)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        first, head, *rest = line
        values = "".join(f"  {cell:>{max(8, width)}}" for cell, width in zip(rest, widths[2:], strict=True))
        yield f"{first:>{max(4, widths[0])}}  {head:<{max(7, widths[1])}}{values}".rstrip()


def table_cells(scores: "Scores", shown: int) -> list[tuple[str, ...]]:
    """The same as cells, titles first: rank, with `=` where others have the same combined score, head, combined, signals.

    With a bootstrap, also the range of the rank and the share of replicates in which the head is among the top, with `?` where
    that is a coin toss.
    """
    from .score.scores import head_name, shown_rank

    names, stable = list(scores.weights), "p_top" in scores.heads.columns
    lines = scores.top(min(shown, len(scores.heads))).to_dicts()
    values = [tuple(f"{line[name]:.4f}" for name in names) for line in lines]
    digits = scores.combined_digits
    named = [(shown_rank(scores, line), head_name(line, scores.unit), f"{line['combined']:.{digits}f}") for line in lines]
    stability = [_stability(line) if stable else () for line in lines]
    titles = ("rank", scores.unit, "combined", *(("ranks", "p_top") if stable else ()), *map(printable, names))
    return [titles, *(name + range_ + value for name, range_, value in zip(named, stability, values, strict=True))]


def _stability(line: Mapping[str, Any]) -> tuple[str, str]:
    from .score.evidence.checks import COIN_TOSS

    tossed = COIN_TOSS[0] <= line["p_top"] <= COIN_TOSS[1]
    return f"{line['rank_low']}-{line['rank_high']}", f"{line['p_top']:.2f}{'?' if tossed else ''}"
