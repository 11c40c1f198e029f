"""Which heads a task drives more than a control does: its signals compared with those of the control, head by head."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ...data.cache.folder import Cache, open_cache
from ...data.errors import OptionError
from ...data.files.whole_file import given_path
from ...data.options.evidence_settings import ControlSettings
from ...data.options.places import written_options, written_place
from ...data.options.settings import ScoreSettings, pick
from ...data.options.signatures import library_call
from ..frames import heads_frame, unit_frame
from ..means import Float
from ..outputs import CONTROL_FILE, RESULT_FILES, csv, results_folder, write_results
from ..recipe import Recipe, choose_recipe
from ..scores import DEFAULT_SIGNALS, Scores
from ..scoring import score_cache
from .control_lines import control_lines
from .sides import Sides, against_cache, against_stretch
from .t_tests import Difference, benjamini_hochberg, paired, unpaired

COLUMNS = ("", "_control", "_controlled", "_p", "_q", "_significant")  # of each signal, after its name


@dataclass(frozen=True, eq=False)
class Control:
    """A ranking compared with a control.

    Args:
        heads: one line per head: `layer`, `head`, `kv_head` (or `kv_head` alone), `rank` as `score` has it, `rank_controlled`
            by the controlled signals, and for each weighted signal that the control says something of: the signal's mean,
            `<signal>_control` (that of the control), `<signal>_controlled` (the first less the second), `<signal>_p`,
            `<signal>_q` and `<signal>_significant` (q at most `fdr`).
        scores: the heads ranked by the controlled signals.
        lines: what was found, in plain words.
        kind: of the control: `null`, `shuffle`, `same rows`, `other task`, or `random span`.
    """

    heads: pl.DataFrame
    scores: Scores
    lines: list[str]
    kind: str

    def __repr__(self) -> str:
        """What was found, as a console shows this object."""
        return "\n".join(self.lines)


@library_call(ScoreSettings, ControlSettings)
def control(
    cache: str | Path, out: str | Path | None = None, *, overwrite: bool = False, partial: bool = False, **options: Any
) -> Control:
    """Compare the signals of a cache with those of a control; the library call of `headscore control`. Needs no model.

    Args:
        cache: a cache folder or a single shard file, of the task's own prompts.
        out: gets the ranking by the controlled signals in the files of `score`, and the tests in control.csv; nothing is
            written if it is None.
        overwrite: replace the results of another run in `out`.
        partial: take what is there of captures that are not finished.
        options: the fields of ScoreSettings and ControlSettings, by the names and with the defaults of the command line.

    Per head and weighted signal the difference from the control is tested: by Student's t of pairs where both are of the same
    rows, by Welch's where they are of two tasks; over all heads, by Benjamini and Hochberg's procedure at `fdr`.

    Raises InputError for options or caches that cannot be used, where the two are of different models or have fewer than two
    samples to compare, and where `out` holds another run.
    """
    own = pick(ControlSettings, options)
    chosen = ControlSettings(**own)
    if (chosen.against is None) != chosen.random_span:
        raise OptionError("--against: give a cache that is the control, or --random-span, not both")
    settings = ScoreSettings(**{name: value for name, value in options.items() if name not in own})
    opened = open_cache(given_path("cache", cache))
    if out is None:
        return _control(opened, settings, chosen, partial)
    folder = given_path("--out", out)
    with results_folder(folder, (*RESULT_FILES, CONTROL_FILE)):
        found = _control(opened, settings, chosen, partial)
        given = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
        extra = {"cache": written_place("cache", opened.path, folder), "partial": partial, **written_options(given, folder)}
        write_results(folder, found.scores, extra, overwrite, {CONTROL_FILE: csv(found.heads)})
    return found


def _control(cache: Cache, settings: ScoreSettings, chosen: ControlSettings, partial: bool) -> Control:
    weighted = [name for name, weight in settings.weights.items() if weight]
    names = list(dict.fromkeys([*DEFAULT_SIGNALS, *weighted]))
    recipe = choose_recipe(cache, settings, partial)
    if chosen.against is None:
        found = against_stretch(cache, recipe, settings, names, chosen.seed)
    else:
        other = open_cache(given_path("--against", chosen.against))
        found = against_cache(cache, recipe, other, settings, names, partial)
    tested = [name for name in weighted if name in found.signals]
    if not tested:
        raise OptionError(
            f"--random-span: no weighted signal ({', '.join(weighted)}) depends on where the task's span stands; "
            "give one that does a weight, as in --weight task=1"
        )
    before = score_cache(cache, settings, partial=partial)
    means, differences = _compared(found, names, settings)
    ranked = heads_frame(recipe, {name: own - other for name, (own, other) in means.items()}, settings)
    after = dataclasses.replace(
        before, heads=ranked, samples=len(found.own.used), metadata=cache.metadata | {"control": _record(found)}
    )
    columns = _columns({name: means[name] for name in tested}, differences, chosen)
    heads = _heads(recipe, columns, before, after)
    lines = control_lines(heads, tested, before, found, chosen)
    return Control(heads, after, lines, found.kind)


def _compared(
    found: Sides, names: Sequence[str], settings: ScoreSettings
) -> tuple[dict[str, tuple[Float, Float]], dict[str, Difference]]:
    """The means [L,U] of each signal on both sides, over U heads or groups of heads, and the differences that can be tested.

    Of pairs both means are over those of which both values are defined. A signal that the control says nothing of stays as it
    is: its other mean is 0.
    """
    recipe, fold = found.own.recipe, 1
    if settings.by == "kv_head" and recipe.kv_heads:
        fold = recipe.heads // recipe.kv_heads
    means: dict[str, list[tuple[Float, Float]]] = {name: [] for name in names}
    parts: dict[str, list[Difference]] = {name: [] for name in found.signals}
    for layers in found.some_layers(len(names)):
        values, others = found.own.values(names, layers), found.control.values(found.signals, layers)
        for name in names:
            own = _of_groups(values[name], fold)
            if name not in others:
                means[name].append((_mean(own), np.zeros(own.shape[:2])))
                continue
            other = _of_groups(others[name], fold)
            if found.by_pairs:
                difference = own - other
                own, other = np.where(np.isnan(difference), np.nan, own), np.where(np.isnan(difference), np.nan, other)
            means[name].append((_mean(own), _mean(other)))
            parts[name].append(paired(difference) if found.by_pairs else unpaired(own, other))
    joined = {
        name: (np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])) for name, pairs in means.items()
    }
    return joined, {name: Difference.of_all(tests) for name, tests in parts.items()}


def _of_groups(values: Float, fold: int) -> Float:
    """The means [l,U,n] of so many neighbouring heads each, of values [l,H,n]."""
    layers, heads, samples = values.shape
    return values.reshape(layers, heads // fold, fold, samples).mean(axis=2)


def _mean(values: Float) -> Float:
    """The mean over the last axis of what is no NaN; NaN where there is nothing."""
    counts = (~np.isnan(values)).sum(axis=-1)
    return np.nansum(values, axis=-1) / np.where(counts > 0, counts, np.nan)


def _columns(
    means: Mapping[str, tuple[Float, Float]], differences: Mapping[str, Difference], chosen: ControlSettings
) -> dict[str, Float]:
    """What is known of each tested signal, [L,U] by column. Raises InputError where two signals would have the same column."""
    columns: dict[str, Float] = {}
    for name, (own, other) in means.items():
        p = differences[name].p(chosen.two_sided)
        q = benjamini_hochberg(p)
        found = (own, other, own - other, p, q, (q <= chosen.fdr).astype(np.float64))
        for suffix, values in zip(COLUMNS, found, strict=True):
            if f"{name}{suffix}" in columns:
                raise OptionError(f"--signal {name}: results have another column '{name}{suffix}'; use another name")
            columns[f"{name}{suffix}"] = values
    return columns


def _heads(recipe: Recipe, columns: Mapping[str, Float], before: Scores, after: Scores) -> pl.DataFrame:
    """`Control.heads`."""
    unit = before.unit
    frame = unit_frame(recipe, columns, unit)
    places = [name for name in frame.columns if name not in columns]
    flags = [name for name in columns if name.endswith(COLUMNS[-1])]
    ranks = (before.heads.select("layer", unit, "rank"), after.heads.select("layer", unit, rank_controlled="rank"))
    for each in ranks:
        frame = frame.join(each, on=["layer", unit], how="left", maintain_order="left")
    return frame.select(*places, "rank", "rank_controlled", *columns).with_columns(pl.col(flags).cast(pl.Boolean))


def _record(found: Sides) -> dict[str, Any]:
    """What config.yaml says about the control of its signals."""
    record: dict[str, Any] = {"kind": found.kind, "signals": found.signals, "samples": len(found.control.used)}
    if found.control.cache is not found.own.cache:
        record |= {key: found.control.cache.metadata[key] for key in ("data", "templates", "settings")}
    return record
