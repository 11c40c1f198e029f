"""What `run` and `score` end with on a terminal: a table of the top heads, and a map of all heads by layer and head.

A head is one cell of the map, coloured by its combined score and marked if it is among the top heads. Where they fit, cells are
two columns wide and show the rank; else two layers share a line, in half blocks. Terminals of fewer than 256 colours, and those
asked for none, get shades of characters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from .data.errors import printable
from .terminal import table_cells

if TYPE_CHECKING:
    import polars as pl

    from .score.scores import Scores

MOST_LINES = 40  # of a map with one layer a line
SWATCH = 6  # cells of the legend's scale
SHADES = (" ░▒▓█", " .-+#")  # from low to high, and where there is only ASCII
HALF_BLOCK = "▀"
MARKS = {(True, False): "'", (False, True): ".", (True, True): ":"}  # of two layers in one line: the upper, the lower, both

# The colour map viridis at ten even steps: its lightness rises steadily, also for eyes and printers without colour.
VIRIDIS = np.array(
    [
        (0x44, 0x01, 0x54),
        (0x48, 0x28, 0x78),
        (0x3E, 0x49, 0x89),
        (0x31, 0x68, 0x8E),
        (0x26, 0x82, 0x8E),
        (0x1F, 0x9E, 0x89),
        (0x35, 0xB7, 0x79),
        (0x6E, 0xCE, 0x58),
        (0xB5, 0xDE, 0x2B),
        (0xFD, 0xE7, 0x25),
    ],
    float,
)
DARK_UP_TO = 0.6  # values on whose colour white is easier to read than black


def show_scores(scores: "Scores", shown: int, told: Sequence[str], summary: str, console: Console | None = None) -> None:
    """Print the first `shown` heads as a table, the map of all heads where it fits, what is `told` of them, and `summary`."""
    console = console or Console(highlight=False)
    console.print(_table(scores, shown))
    console.print()
    top = scores.top().select("layer", scores.unit, "tied_rank")
    head_map = HeadMap(scores.combined, top, scores.combined_digits)
    for line in head_map.lines(console):
        console.print(line)
    console.print()
    for text in told:
        console.print(Text(printable(text)))
    if told:
        console.print()
    console.print(Text(printable(summary)), soft_wrap=True)  # paths stay whole


def _table(scores: "Scores", shown: int) -> RichTable:
    titles, *lines = table_cells(scores, shown)
    table = RichTable(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in titles:
        table.add_column(Text(name), justify="left" if name == titles[1] else "right", no_wrap=True)
    for rank, head, *values in lines:
        table.add_row(rank, Text(head, "bold"), *values)
    return table


@dataclass(frozen=True)
class Layout:
    """How the cells of a map are drawn: columns of a head, layers of a line, columns of the labels, colours or `shades`."""

    columns: int
    layers: int
    gutter: int
    shades: str | None


class HeadMap:
    """The combined scores of all heads as cells.

    Args:
        combined: layer, head, combined, sorted by layer and head.
        top: layer, head and rank of the heads to be marked; heads that tie have the same rank.
        digits: decimals of the combined score.
    """

    def __init__(self, combined: "pl.DataFrame", top: "pl.DataFrame", digits: int):
        self.layers: list[int] = combined["layer"].unique(maintain_order=True).to_list()
        self.values: npt.NDArray[np.float64] = combined["combined"].to_numpy().reshape(len(self.layers), -1)
        self.heads = self.values.shape[1]
        index = {layer: place for place, layer in enumerate(self.layers)}
        self.ranks = {(index[layer], head): rank for layer, head, rank in top.iter_rows()}
        self.digits = digits

    def lines(self, console: Console) -> Iterator[Text]:
        """The map with its header and legend; one line that says what width it needs where the terminal has less."""
        layout = self._layout(console)
        needed = layout.gutter + layout.columns * self.heads
        if needed > console.width:
            yield Text(f"no map: {self.heads} heads a layer need a terminal of {needed} columns, this one has {console.width}")
            return
        yield Text(self._header(layout, console.width), "dim")
        for first in range(0, len(self.layers), layout.layers):
            labelled = first % (5 * layout.layers) == 0
            line = Text(no_wrap=True).append((f"L{self.layers[first]}" if labelled else "").ljust(layout.gutter), "dim")
            for head in range(self.heads):
                line.append(*(self._cell(layout, first, head) if layout.layers == 1 else self._two_cells(first, head)))
            yield line
        yield self._legend(layout)

    def _layout(self, console: Console) -> Layout:
        gutter = len(f"L{self.layers[-1]}") + 1
        coloured = console.color_system in ("256", "truecolor") and not console.no_color
        ascii_only = console.options.ascii_only
        shades = None if coloured else SHADES[ascii_only]
        wide = gutter + 2 * self.heads <= console.width
        if wide and len(self.layers) <= MOST_LINES:
            return Layout(2, 1, gutter, shades)
        return Layout(1, 2 if coloured and not ascii_only else 1, gutter, shades)

    def _header(self, layout: Layout, width: int) -> str:
        """The number of every fifth or tenth head, over the last column of its cell, or from its only one on."""
        header = ""
        for head in range(0, self.heads, 5 if layout.columns == 2 else 10):
            column = layout.gutter + head * layout.columns
            start = column + 2 - len(str(head)) if layout.columns == 2 else column
            if start + len(str(head)) <= width:
                header = header.ljust(start) + str(head)
        return header

    def _cell(self, layout: Layout, layer: int, head: int) -> tuple[str, Style]:
        value, rank = self._scaled[layer, head], self.ranks.get((layer, head))
        if rank is None:
            mark = ""
        elif layout.columns == 1:
            mark = "*"
        else:
            mark = f"{rank:>2}" if rank < 100 else "**"
        if layout.shades is None:
            return mark or " " * layout.columns, _marked(value) if mark else Style(bgcolor=_colour(value))
        return mark or _shade(value, layout.shades) * layout.columns, Style(bold=bool(mark))

    def _two_cells(self, layer: int, head: int) -> tuple[str, Style]:
        """Two layers in one character; where one is marked, it has the colour of that one alone."""
        both = range(layer, min(layer + 2, len(self.layers)))
        values = [self._scaled[place, head] for place in both]
        marked = [(place, head) in self.ranks for place in both]
        if any(marked):
            return MARKS[marked[0], marked[-1] and len(marked) == 2], _marked(values[0] if marked[0] else values[1])
        lower = _colour(values[1]) if len(values) == 2 else None
        return HALF_BLOCK, Style(color=_colour(values[0]), bgcolor=lower)

    def _legend(self, layout: Layout) -> Text:
        legend = Text("two layers a line" if layout.layers == 2 else "layers down, heads across")
        legend.append(f"; combined {self.values.min():.{self.digits}f} ")
        for value in np.linspace(0, 1, SWATCH):
            shade = _shade(value, layout.shades) if layout.shades else " "
            legend.append(shade, Style() if layout.shades else Style(bgcolor=_colour(value)))
        legend.append(f" {self.values.max():.{self.digits}f}; ")
        if layout.layers == 2:
            return legend.append(f"top {len(self.ranks)}: ' upper . lower : both")
        return legend.append(f"{'numbered' if layout.columns == 2 else '*'}: top {len(self.ranks)}")

    @cached_property
    def _scaled(self) -> npt.NDArray[np.float64]:
        """The values from 0, the lowest, to 1, the highest; all 1 where they are the same."""
        low, high = self.values.min(), self.values.max()
        return (self.values - low) / (high - low) if high > low else np.ones(self.values.shape)


def _colour(value: float) -> Color:
    steps: Sequence[float] = np.linspace(0, 1, len(VIRIDIS)).tolist()
    return Color.from_rgb(*(round(float(np.interp(value, steps, part))) for part in VIRIDIS.T))


def _marked(value: float) -> Style:
    """A character that stands out from the colour of `value`."""
    return Style(color="#ffffff" if value < DARK_UP_TO else "#000000", bgcolor=_colour(value), bold=True)


def _shade(value: float, shades: str) -> str:
    return shades[round(value * (len(shades) - 1))]
