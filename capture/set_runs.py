"""Runs an opened model without sets of heads, writes each outcome down at once, and puts outcomes into tables."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from ..data.errors import OptionError
from ..data.files.journal import Journal
from .ablating.ablation import heads_of_groups
from .ablating.evaluator import Head
from .ablating.readings import Outcomes
from .validating import Opened

logger = logging.getLogger("headscore")

METRICS = tuple(field.name for field in dataclasses.fields(Outcomes))
INTACT, AGAIN = "intact", "again"

Progress = Callable[[int, int], None]


def run_sets(
    opened: Opened, sets: Sequence[Sequence[Head]], journal: Journal, progress: Progress | None = None
) -> dict[str, dict[str, list[float | None]]]:
    """The outcomes of the intact model, twice, and without each set of heads, by `set_key`; what the journal has is not run.

    Args:
        opened: the model and its questions.
        sets: the heads of each; in their order sets that fill batches are run together, whatever the journal has of them.
        journal: gets every outcome as soon as it is known.
        progress: called with (rows run, rows in all).
    """
    evaluator, rows = opened.evaluator, len(opened.questions)
    distinct = list({set_key(heads): heads for heads in sets}.items())
    size = evaluator.sets_at_once()
    together = [distinct[start : start + size] for start in range(0, len(distinct), size)]
    left = [chunk for chunk in together if any(key not in journal.records for key, _ in chunk)]
    if not left and {INTACT, AGAIN} <= journal.records.keys():
        return journal.records
    if opened.subject["ablation"] == "mean":
        evaluator.find_means()
    started = time.monotonic()
    intact = evaluator.intact()
    seconds = time.monotonic() - started
    total = sum(map(len, left))
    logger.info("%d rows take %.1f s; %d sets of heads will take about %s", rows, seconds, total, _duration(total * seconds))
    for key, run in ((INTACT, lambda: intact), (AGAIN, evaluator.again)):
        if key not in journal.records:
            journal.add(key, _record(run()))
    done = 0
    for chunk in left:
        outcomes = evaluator.without([heads for _, heads in chunk])
        for (key, _), outcome in zip(chunk, outcomes, strict=True):
            if key not in journal.records:
                journal.add(key, _record(outcome))
        done += len(chunk)
        if progress:
            progress(done * rows, total * rows)
    return journal.records


def set_key(heads: Sequence[Head]) -> str:
    """A name for a set of heads, in whatever order they are given: `3.7 5.0` for heads 7 of layer 3 and 0 of layer 5."""
    return " ".join(f"{layer}.{head}" for layer, head in sorted(set(heads)))


def heads_of(units: Sequence[tuple[int, int]], unit: str, opened: Opened) -> list[Head]:
    """The heads of some units, which are heads or groups of them."""
    return list(units) if unit == "head" else heads_of_groups(units, opened.layers)


def noise_floor(records: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, float]:
    """By metric how far two runs of the intact model differ: in any row; for accuracies, in the share of rows."""
    floors = {}
    for name in METRICS:
        pairs = zip(records[INTACT][name], records[AGAIN][name], strict=True)
        differences = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        floors[name] = (np.mean if name.startswith("acc") else np.max)(differences).item() if differences else 0.0
    return floors


def single_frame(
    opened: Opened,
    unit: str,
    units: Sequence[tuple[int, int]],
    heads: Sequence[Sequence[Head]],
    records: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> pl.DataFrame:
    """The outcomes of heads, or groups of them, that were each taken out alone: `layer`, unit, `row`, and each metric."""
    rows = [question.row for question in opened.questions]
    frames = []
    for (layer, number), own in zip(units, heads, strict=True):
        values = records[set_key(own)]
        frame = pl.DataFrame({"row": rows, **values}, schema={"row": pl.Int64, **dict.fromkeys(METRICS, pl.Float64)})
        frames.append(frame.select(pl.lit(layer, pl.Int64).alias("layer"), pl.lit(number, pl.Int64).alias(unit), pl.all()))
    return pl.concat(frames)


def gradient_frame(opened: Opened, unit: str, units: Sequence[tuple[int, int]]) -> pl.DataFrame:
    """∂nll/∂gate of each head, or of one gate on all heads of a group: `layer`, unit, `row`, `gradient`.

    Raises InputError where no row has an answer.
    """
    gradients = opened.evaluator.gate_gradients()
    if not gradients:
        raise OptionError("--gate-gradient: no row has an answer, so there is no nll to take the gradient of")
    lines = [
        (layer, number, opened.questions[question].row, float(sum(by_layer[layer][head] for _, head in own)))
        for layer, number in units
        for own in [heads_of([(layer, number)], unit, opened)]
        for question, by_layer in sorted(gradients.items())
    ]
    return pl.DataFrame(
        lines, schema={"layer": pl.Int64, unit: pl.Int64, "row": pl.Int64, "gradient": pl.Float64}, orient="row"
    )


def _record(outcomes: Outcomes) -> dict[str, list[float | None]]:
    return {name: [None if np.isnan(x) else float(x) for x in getattr(outcomes, name)] for name in METRICS}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
