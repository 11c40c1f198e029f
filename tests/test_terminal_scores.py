"""The table and the map that a ranking ends with on a terminal: each head is a cell, and the top heads are marked."""

import dataclasses
import io
import os
import pty
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from rich.text import Text

from headscore import cli
from headscore.data.options.settings import ScoreSettings, Unit
from headscore.score.ranking import rank
from headscore.score.scores import Scores
from headscore.terminal_scores import MARKS, VIRIDIS, show_scores

Cell = tuple[int, int]
BRIGHTEST = tuple(int(part) for part in VIRIDIS[-1])
SUMMARY = "all results in [bold]here"
SHAPES = {"smollm2": (30, 9), "16x32": (16, 32), "wide": (32, 40), "tall": (80, 64), "odd": (61, 7), "one head": (1, 1)}


def made_up(layers: int, heads: int, top: int = 20, first_layer: int = 0, unit: Unit = "head", ties: int = 1) -> Scores:
    """Scores of which so many at a time are the same; every second layer has attention if `first_layer` is not 0."""
    number = first_layer + np.arange(layers, dtype=np.int32) * (2 if first_layer else 1)
    places = {"layer": np.repeat(number, heads), unit: np.tile(np.arange(heads, dtype=np.int32), layers)}
    combined = np.random.default_rng(0).permutation(layers * heads) // ties / 2 + 1
    ranked = rank(pl.DataFrame(places | {"out": combined}), {"out": 1}, unit=unit, fusion="sum", norm_mode="none")
    signals = {"out": pl.col("combined") * 2, "ent": -pl.col("combined"), "task": pl.col("combined") / 1000}
    settings = ScoreSettings(by=unit, top_k=min(top, layers * heads))
    return Scores(ranked.with_columns(**signals), 7, {}, "", settings, {"model": {}})


def shown(scores: Any, width: int, **options: Any) -> tuple[list[Text], Console]:
    """The printed lines with their styles."""
    options = {"force_terminal": True, "color_system": "truecolor", "_environ": {}} | options
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    show_scores(scores, 10, [], SUMMARY, console)
    lines = [Text.from_ansi(line) for line in console.file.getvalue().split("\n")]  # type: ignore[attr-defined]
    assert all(line.cell_len <= width for line in lines[:-2]), "the summary's paths stay whole"
    return lines, console


def map_lines(lines: list[Text]) -> list[Text]:
    first, last = [index for index, line in enumerate(lines) if not line.plain][:2]
    return lines[first + 1 : last]


def cells(lines: list[Text], console: Console, gutter: int, heads: int) -> tuple[dict[Cell, Any], set[Cell]]:
    """The colour of every head by line of the model and head, and the marked ones."""
    body = map_lines(lines)[1:-1]
    width = (len(body[0].plain) - gutter) // heads
    colours: dict[Cell, Any] = {}
    marked = set()

    def rgb(colour: Any) -> tuple[int, ...]:
        return tuple(colour.get_truecolor())

    for number, line in enumerate(body):
        assert len(line.plain) == gutter + width * heads
        for head in range(heads):
            start = gutter + head * width
            text, style = line.plain[start : start + width], line.get_style_at_offset(console, start)
            if width == 2:
                colours[number, head] = rgb(style.bgcolor)
                marked |= {(number, head)} if text.strip() else set()
            elif text == "▀":
                colours[2 * number, head] = rgb(style.color)
                colours |= {(2 * number + 1, head): rgb(style.bgcolor)} if style.bgcolor else {}
            else:
                upper_and_lower = next(where for where, mark in MARKS.items() if mark == text)
                places = {(2 * number + lower, head) for lower, is_marked in enumerate(upper_and_lower) if is_marked}
                marked |= places
                colours |= {(2 * number + lower, head): None for lower in (0, 1)} | dict.fromkeys(places, rgb(style.bgcolor))
    return colours, marked


def top_cells(scores: Scores) -> dict[Cell, int]:
    layers = scores.combined["layer"].unique(maintain_order=True).to_list()
    return {(layers.index(layer), head): rank for layer, head, _, rank in scores.topk_global.iter_rows()}


@pytest.mark.parametrize("first_layer", [0, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_every_head_is_a_cell_and_the_top_heads_are_marked(shape: tuple[int, int], first_layer: int) -> None:
    layers, heads = shape
    scores = made_up(layers, heads, first_layer=first_layer)
    lines, console = shown(scores, 80)
    last = scores.combined["layer"][-1]
    colours, marked = cells(lines, console, len(f"L{last}") + 1, heads)
    ranks = top_cells(scores)
    assert {cell for cell in colours if cell[0] < layers} == {(layer, head) for layer in range(layers) for head in range(heads)}
    assert len(colours) == layers * heads or layers % 2, "beside a marked head the last line may have a cell too many"
    assert marked == set(ranks)
    assert colours[min(ranks, key=lambda cell: ranks[cell])] == BRIGHTEST


def test_brighter_is_higher() -> None:
    scores = made_up(16, 32)
    colours, _ = cells(*shown(scores, 80), 4, 32)
    values = scores.combined["combined"].to_numpy().reshape(16, 32)
    light = np.array([np.dot((0.2126, 0.7152, 0.0722), colours[cell]) for cell in np.ndindex(16, 32)])
    assert (np.diff(light[np.argsort(values, axis=None)]) > -1).all(), "rounded to whole numbers"
    assert colours[tuple(np.argwhere(values == values.min())[0])] == tuple(int(part) for part in VIRIDIS[0])


def test_cells_of_two_columns_show_the_rank() -> None:
    scores = made_up(30, 9)
    body = map_lines(shown(scores, 80)[0])[1:-1]
    shown_ranks = {(layer, head): body[layer].plain[4 + 2 * head :][:2].strip() for layer, head in np.ndindex(30, 9)}
    assert {cell: int(rank) for cell, rank in shown_ranks.items() if rank} == top_cells(scores)
    body = map_lines(shown(made_up(30, 9, 270), 80)[0])[1:-1]
    assert sum(line.plain.count("**") for line in body) == 270 - 99, "ranks of three digits"


def test_labels_and_legend() -> None:
    lines = map_lines(shown(made_up(30, 9), 80)[0])
    assert lines[0].plain == "     0         5" and lines[1].plain.startswith("L0  ") and lines[6].plain.startswith("L5  ")
    assert lines[-1].plain == "layers down, heads across; combined 1.00        135.50; numbered: top 20"
    lines = map_lines(shown(made_up(80, 64), 80)[0])
    assert lines[0].plain == "    0         10        20        30        40        50        60"
    assert lines[6].plain.startswith("L10 ") and len(lines) == 42
    assert lines[-1].plain == "two layers a line; combined 1.00        2560.50; top 20: ' upper . lower : both"
    assert map_lines(shown(made_up(50, 7, first_layer=3), 80)[0])[6].plain.startswith("L23  "), "the model's own number"


@pytest.mark.parametrize("width", [20, 40, 67, 68, 80, 131, 132, 263])
@pytest.mark.parametrize("shape", [(30, 9), (80, 64), (24, 128), (1, 11)])
def test_the_map_fits_any_width_or_says_what_it_needs(shape: tuple[int, int], width: int) -> None:
    layers, heads = shape
    lines, _ = shown(made_up(layers, heads), width)
    text = " ".join(" ".join(line.plain for line in lines).split())
    needed = len(f"L{layers - 1}") + 1 + heads
    if width < needed:
        assert f"no map: {heads} heads a layer need a terminal of {needed} columns, this one has {width}" in text
    else:
        assert "no map" not in text and len(map_lines(lines)) > layers / 2


@pytest.mark.parametrize("shape", [(30, 9), (80, 64), (1, 1)])
@pytest.mark.parametrize("options", [{"no_color": True}, {"color_system": None}, {"color_system": "standard"}])
def test_without_colours_shades_and_marks_tell_the_same(shape: tuple[int, int], options: dict[str, Any]) -> None:
    layers, heads = shape
    scores = made_up(layers, heads)
    lines, console = shown(scores, 80, **options)
    assert "\x1b[38" not in console.file.getvalue() and "\x1b[48" not in console.file.getvalue()  # type: ignore[attr-defined]
    body = [line.plain for line in map_lines(lines)[1:-1]]
    gutter, columns = len(f"L{layers - 1}") + 1, 2 if heads < 38 and layers <= 40 else 1
    assert len(body) == layers and all(len(line) == gutter + columns * heads for line in body)
    values = scores.combined["combined"].to_numpy().reshape(layers, heads)
    scaled = (values - values.min()) / max(values.max() - values.min(), 1)
    top = top_cells(scores)
    for layer, head in np.ndindex(layers, heads):
        text = body[layer][gutter + columns * head : gutter + columns * (head + 1)]
        if (layer, head) in top:
            assert text == ("*" if columns == 1 else f"{top[layer, head]:>2}")
        else:
            assert text == " ░▒▓█"[round(scaled[layer, head] * 4)] * columns


def test_the_table_has_the_top_heads_and_text_is_shown_as_it_is() -> None:
    scores = made_up(30, 9)
    lines, _ = shown(scores, 80)
    for head, line in zip(scores.topk_global.iter_rows(), lines[1:11], strict=False):
        layer, number, combined, place = head
        signals = [f"{combined * 2:.4f}", f"{-combined:.4f}", f"{combined / 1000:.4f}"]
        assert line.plain.split() == [str(place), f"L{layer}H{number}", f"{combined:.2f}", *signals]
    assert lines[0].plain.split() == ["rank", "head", "combined", "out", "ent", "task"] and not lines[11].plain
    assert lines[-2].plain == SUMMARY
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    show_scores(scores, 3, [], "results in a\x1b[2Jb", console)
    assert "results in a\\x1b[2Jb" in console.file.getvalue()  # type: ignore[attr-defined]


def test_ties_are_shown_as_ties() -> None:
    scores = made_up(8, 6, ties=3)
    lines, _ = shown(scores, 80)
    assert [line.plain.split()[0] for line in lines[1:11]] == ["1=", "1=", "1=", "4=", "4=", "4=", "7=", "7=", "7=", "10="]
    body = map_lines(lines)[1:-1]
    numbers = [int(cell) for line in body for place in range(3, 15, 2) if (cell := line.plain[place : place + 2].strip())]
    assert sorted(numbers) == sorted(scores.top()["tied_rank"].to_list()), "on the map heads that tie have one number"


def test_groups_of_heads_and_other_signals_have_their_names() -> None:
    lines, _ = shown(made_up(30, 3, unit="kv_head"), 80)
    assert lines[0].plain.split()[:3] == ["rank", "kv_head", "combined"]
    assert re.fullmatch(r"L\d+G[012]", lines[1].plain.split()[1])
    scores = made_up(2, 2)
    strange = scores.heads.with_columns(pl.col("task").alias("mass_[red]a\x1b[2J"))
    settings = ScoreSettings(lambda_ent=0, lambda_task=0)
    object.__setattr__(settings, "weight", {"mass_[red]a\x1b[2J": -1.0})
    lines, console = shown(dataclasses.replace(scores, heads=strange, settings=settings), 80)
    assert lines[0].plain.split() == ["rank", "head", "combined", "out", "mass_[red]a\\x1b[2J"]
    assert "\x1b[2J" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("fusion", "shown_as"), [("rank", "2.50"), ("rrf", "2.5000"), ("sum", "2.5000")])
def test_small_scores_keep_their_decimals(fusion: Any, shown_as: str) -> None:
    scores = dataclasses.replace(made_up(2, 2), settings=ScoreSettings(fusion=fusion, top_k=4))
    lines, _ = shown(scores, 80)
    assert lines[1].plain.split()[2] == shown_as
    assert f"combined {'1.00' if fusion == 'rank' else '1.0000'}" in map_lines(lines)[-1].plain
    assert f"<td>{shown_as}</td>" in scores._repr_html_()


PLAIN = """\
rank  head     combined       out       ent      task
   1  L1H1         2.50    5.0000   -2.5000    0.0025
   2  L0H0         2.00    4.0000   -2.0000    0.0020
   3  L1H0         1.50    3.0000   -1.5000    0.0015
   4  L0H1         1.00    2.0000   -1.0000    0.0010

4 heads, 7 samples; all results in results
"""


def test_what_is_no_terminal_gets_plain_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    cli._print_scores(made_up(2, 2), Path("results"))
    assert capsys.readouterr().out == PLAIN


@pytest.mark.parametrize(
    "variables", [{"TERM": "xterm-256color"}, {"TERM": "xterm-256color", "NO_COLOR": "1"}, {"TERM": "dumb"}]
)
def test_score_on_a_terminal(cache: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """The command itself, on a terminal of its own."""
    process, terminal = pty.fork()
    if not process:  # pragma: no cover
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLORTERM", "FORCE_COLOR")}
        command = [sys.executable, "-m", "headscore", "score", str(cache), "--out", str(tmp_path / "r")]
        os.execve(sys.executable, command, kept | variables | {"COLUMNS": "80"})
    text = b""
    while True:
        try:
            if not (read := os.read(terminal, 1 << 16)):
                break
        except OSError:  # how Linux says that the other side was closed
            break
        text += read
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, text
    assert "layers down, heads across" in text.decode() and "12 heads, 24 samples; all results in" in text.decode()
    assert (b"48;5;" in text) == (variables == {"TERM": "xterm-256color"})
