"""What a validation found, in plain lines."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from ..data.errors import InputError
from .validation_table import ALPHA

TITLES = {"kl": "KL", "nll": "NLL", "acc": "accuracy"}  # of the metrics that verdicts are made of

RANDOM = "random heads of the same layers"

Line = Mapping[str, Any]


def verdicts(table: pl.DataFrame, units: int) -> list[str]:
    """One line per signal and k: what the top k costs, what random heads of the same layers do, and whether that is chance.

    KL and loss count, and accuracy where the intact model is above chance; a line at the end says so where it is not. p is that
    of `validation_table`, on its own and over all k of the signal. It is not corrected for several signals or metrics.

    Args:
        table: of `validation_table`.
        units: how many heads, or groups of them, the model has.
    """
    if units < 1:
        raise InputError(f"units: {units} is not a number of at least 1")
    used = table.filter(pl.col("metric").is_in(list(TITLES)) & ((pl.col("metric") != "acc") | pl.col("above_chance")))
    lines = []
    for (signal, k), of_one in used.group_by("signal", "k", maintain_order=True):
        first, *others = [_sentence(line) for line in of_one.to_dicts()]
        sentences = [first, *(other.replace(RANDOM, "random heads") for other in others)]
        lines.append(f"{signal}, top {k} ({100 * k / units:.3g} %): {'. '.join(sentences)}")
    return [*lines, *_on_draws(used), *_on_accuracy(table)]


def _sentence(line: Line) -> str:
    """One metric's part of a line, such as `KL 1.07 [0.93, 1.22]; random heads …; p 0.19, …: no better than chance`."""
    form = _form(line)
    own = f"{TITLES[line['metric']]} {form(line['top'])}{_interval(form, line)}"
    if not line["draws_count"]:
        return f"{own}; no random heads to compare with"
    random = f"{RANDOM} {form(line['draws'])} ({form(line['draws_min'])} to {form(line['draws_max'])})"
    over_all = f", {line['p_holm']:.2g} over all k" if line["p_holm"] != line["p"] else ""
    return f"{own}; {random}; p {line['p']:.2g}{over_all}: {_conclusion(line)}"


def _conclusion(line: Line) -> str:
    if line["is_noise"]:
        return "nothing beyond the noise floor"
    if line["p_holm"] <= ALPHA:
        return "the model needs these heads more than others of their layers"
    if line["p"] <= ALPHA:
        return "more than chance at this k alone"
    if line["draws_count"] == round(1 / line["p"]) - 1:  # no draw is as bad
        return f"more than any of the {line['draws_count']} draws, which are too few to tell"
    if _is_below(line):
        return f"the model needs these heads less than any of the {line['draws_count']} draws"
    return "no better than chance"


def _is_below(line: Line) -> bool:
    """Whether the top is less harmful than every draw."""
    return line["top"] > line["draws_max"] if line["metric"] == "acc" else line["top"] < line["draws_min"]


def _form(line: Line) -> Callable[[float], str]:
    """How a line's numbers are written: two digits of the largest, at least two decimals, a sign where it can be either."""
    largest = max(abs(value) for value in (line["top"], line["draws_min"], line["draws_max"]) if value is not None)
    decimals = max(2, 1 - math.floor(math.log10(largest))) if largest else 2
    sign = "" if line["metric"] == "kl" else "+"
    return lambda value: f"{value:{sign}z.{decimals}f}"


def _interval(form: Callable[[float], str], line: Line) -> str:
    ends = (line["top_low"], line["top_high"])
    return "" if None in ends else f" [{', '.join(map(form, ends))}]"


def _on_draws(used: pl.DataFrame) -> Iterator[str]:
    """That there were too few draws for any p to be small enough over all k, where one was so on its own."""
    compared = used.filter(pl.col("draws_count") > 0)
    for _, of_signal in compared.group_by("signal", "metric", maintain_order=True):
        draws, tests = of_signal["draws_count"][0], len(of_signal)
        least = 1 / (draws + 1)
        if tests * least > ALPHA and (of_signal["p"] <= ALPHA).any():
            yield (
                f"{draws} draws give no p below {least:.2g}, which is {min(1, tests * least):.2g} over {tests} k: "
                f"take {round(tests / ALPHA) - 1} or more to show what holds over all k"
            )
            return


def _on_accuracy(table: pl.DataFrame) -> Iterator[str]:
    for line in table.filter((pl.col("metric") == "acc") & ~pl.col("above_chance").fill_null(False)).head(1).to_dicts():
        if line["chance"] is None:
            yield f"accuracy of the intact model, {line['intact']:.2f}: not used, as chance is not known"
        else:
            yield f"accuracy of the intact model, {line['intact']:.2f}, is not above chance, {line['chance']:.2f}: not used"
