"""What a control found, in plain lines."""

import polars as pl

from ...data.options.evidence_settings import ControlSettings
from ...data.text import verb
from ..scores import Scores
from .pairing import OTHER_TASK, SAME_ROWS
from .sides import RANDOM_SPAN, Sides

_ATTENTION = {  # what the heads attend to less, by the kind of the control
    "null": "to a neutral one in its place",
    "shuffle": "to the same words shuffled",
    SAME_ROWS: "in the other prompts of the same rows",
    OTHER_TASK: "in the prompts of the other task",
    RANDOM_SPAN: "to random text of the same length",
}
_OTHERS = _ATTENTION | {  # the same of signals that are not attention to the task
    "null": "with a neutral question in its place",
    "shuffle": "with the same words shuffled",
    RANDOM_SPAN: "where random text of the same length counts as the task's",
}


def control_lines(heads: pl.DataFrame, signals: list[str], before: Scores, found: Sides, chosen: ControlSettings) -> list[str]:
    """The lines of a control: cautions, a line for each tested signal, attention to the task first, and what was done.

    Args:
        heads: `Control.heads`.
        signals: that were tested.
        before: the ranking.
        found: what was compared with what.
        chosen: how.
    """
    first = sorted(signals, key=lambda name: name != "task")
    lines = [*found.cautions, *(_signal(heads, name, before, found, chosen) for name in first), _tests(found, chosen)]
    if kept := [name for name in before.weights if name not in signals]:
        lines.append(f"{', '.join(kept)}: the same whatever text counts as the task's, so unchanged in the controlled ranking")
    top = before.top_k
    stay = heads.filter((pl.col("rank") <= top) & (pl.col("rank_controlled") <= top)).height
    return [*lines, f"ranked by the controlled signals, {stay} of the top {top} are among the top {top} again"]


def _signal(heads: pl.DataFrame, name: str, before: Scores, found: Sides, chosen: ControlSettings) -> str:
    significant, higher = pl.col(f"{name}_significant"), pl.col(f"{name}_controlled") > 0
    more, less = heads.filter(significant & higher), heads.filter(significant & ~higher)
    missing = before.top_k - more.filter(pl.col("rank") <= before.top_k).height
    units = "heads" if before.unit == "head" else "groups of heads"
    span = " and ".join(sorted(set(before.settings.task_span)))
    is_task = name == "task"
    what = (
        f"{verb('attend', len(more))} to the {span} more than {_ATTENTION[found.kind]}"
        if is_task
        else f"{verb('have', len(more))} a higher {name} than {_OTHERS[found.kind]}"
    )
    also = f", {len(less)} {'less' if is_task else 'a lower one'}" if chosen.two_sided else ""
    return (
        f"of {len(heads)} {units}, {len(more)} {what}{also} (false discovery rate {100 * chosen.fdr:g} %); "
        f"{missing} of the top {before.top_k} {verb('do', missing)} not"
    )


def _tests(found: Sides, chosen: ControlSettings) -> str:
    sided = "two-sided" if chosen.two_sided else "one-sided"
    left_out = f"; left out: {found.left_out}" if found.left_out else ""
    samples = f"{len(found.own.used):,} samples"
    if found.by_pairs:
        return f"paired t tests of {samples}, {sided}{left_out}"
    return f"Welch's t tests of {samples} and {len(found.control.used):,} of the control, {sided}"
