"""The verbs that compose the rooms: score with a report; capture, then score; and validate a ranking on its model."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data.cache.folder import Cache, cache_folder, open_cache, require_known_spans
from .data.errors import InputError, OptionError
from .data.files.journal import Journal
from .data.files.plain import require_own
from .data.files.whole_file import given_path
from .data.options.configuration import CACHE_FOLDER
from .data.options.places import written_options, written_place
from .data.options.settings import (
    BootstrapSettings,
    CaptureSettings,
    RunSettings,
    ScoreSettings,
    ValidateSettings,
    WorkSettings,
    pick,
)
from .data.options.signatures import library_call
from .score.head_sets import counts_of, head_sets
from .score.outputs import options_config, require_same_run, results_folder, write_results
from .score.report.vega import missing_packages, require_packages
from .score.results import COMBINED, IMPORTED_KEY, Results, read_results
from .score.scores import Scores
from .score.scoring import score_cache
from .score.validated import (
    Measured,
    Validation,
    outcome_frame,
    ranking_options,
    require_statistics_alone,
    set_frame,
    validation_of,
)
from .score.validation_files import (
    ALL_FILES,
    JOURNAL_FILE,
    is_validation,
    read_measured,
    require_no_ranking,
    write_measured,
    write_validation,
)

if TYPE_CHECKING:
    from .capture.model.layers import AttentionLayer

logger = logging.getLogger("headscore")

DEFAULT_OUT = "headscore-results"


@library_call(ScoreSettings, BootstrapSettings, WorkSettings)
def score(
    cache: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
    report: bool = False,
    executor: Executor | None = None,
    **options: Any,
) -> Scores:
    """Rank the heads of a captured model; the library call of `headscore score`. Needs neither torch nor the model.

    Args:
        cache: a cache folder or a single shard file.
        out: where the result files go; nothing is written if it is None.
        overwrite: replace the results of another run in `out`.
        partial: score what is there of a capture that is not finished, and say so in the results.
        report: also write report.html and charts/ to `out`, as `report` does.
        executor: does the work on shards instead of processes of our own, such as `distributed.Client().get_executor()`.
        options: the fields of ScoreSettings, BootstrapSettings and WorkSettings, by the names and with the defaults of the
            command line.

    Raises InputError for options or a cache that cannot be used, and where `out` holds another run.
    """
    if report:
        require_packages("a report")
        if out is None:
            raise OptionError("--report: needs a folder for it; give --out")
    work, settings = WorkSettings(**pick(WorkSettings, options)), ScoreSettings(**pick(ScoreSettings, options))
    bootstrap = BootstrapSettings(**pick(BootstrapSettings, options))
    path = given_path("cache", cache)
    folder = None if out is None else given_path("--out", out)
    opened = open_cache(path.absolute() if work.dask or executor else path)
    if folder is None:
        return score_cache(opened, settings, work, partial, executor, bootstrap)
    with results_folder(folder):
        scores = score_cache(opened, settings, work, partial, executor, bootstrap)
        extra = {"cache": written_place("cache", path, folder), "partial": partial, **vars(bootstrap)}
        write_results(folder, scores, extra, overwrite)
        if report:
            _write_report(folder, opened, scores)
    return scores


@library_call(ScoreSettings, BootstrapSettings, WorkSettings)
def report(cache: str | Path, out: str | Path, *, overwrite: bool = False, partial: bool = False, **options: Any) -> Scores:
    """Rank the heads of a captured model and show them in one offline page; the library call of `headscore report`.

    Args:
        cache: as in `score`.
        out: gets the result files of `score`, report.html, and its charts as PNG and SVG in charts/.
        overwrite: as in `score`, like all other options.

    Needs `headscore[report]`. Raises InputError as `score`, and where a package is missing.
    """
    return score(cache, given_path("--out", out), overwrite=overwrite, partial=partial, report=True, **options)


@library_call(RunSettings)
def run(
    out: str | Path = DEFAULT_OUT,
    *,
    overwrite: bool = False,
    report: bool = True,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Scores:
    """Capture a model over a data file and rank its heads.

    Args:
        out: gets the cache in `cache/` and the result files of `score`; shards that are already there are kept.
        overwrite: replace another run in `out`.
        report: make report.html and charts/ too, where `headscore[report]` is installed.
        progress: called with (samples done, samples in all).
        options: the fields of RunSettings; with none, the default model on the shipped questions.

    Raises InputError and RunError as `capture` and `score` do, and InputError under a launcher of several processes.
    """
    from .capture.call import capture_prompts, checked_prompts  # here, as scoring alone needs none of it
    from .capture.job.ranks import this_rank

    if this_rank().world > 1:
        raise InputError("run: is for one process; under a launcher use `headscore capture`, then `headscore score`")
    settings = RunSettings(**options)
    if report and not missing_packages():
        require_packages("a report")
    chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    folder = given_path("--out", out)
    bootstrap = BootstrapSettings(**pick(BootstrapSettings, chosen))
    extra = {**written_options(pick(CaptureSettings, chosen), folder), **vars(bootstrap)}
    with results_folder(folder):
        # what would stop the scoring is better known now than after the capture
        scoring = ScoreSettings(**pick(ScoreSettings, chosen))
        require_same_run(folder, options_config(scoring, extra, folder), overwrite)
        require_own(folder, folders=(CACHE_FOLDER,))
        with cache_folder(folder / CACHE_FOLDER):
            prompts = checked_prompts(settings)
            require_known_spans(settings.task_span, prompts.maker.span_names, str(prompts.path))
            capture_prompts(folder / CACHE_FOLDER, settings, prompts, overwrite, progress)
        cache = open_cache(folder / CACHE_FOLDER)
        scores = score_cache(cache, scoring, bootstrap=bootstrap)
        write_results(folder, scores, extra, overwrite)
        if report and (missing := missing_packages()):
            logger.warning("no report is made, as it needs %s: pip install 'headscore[report]'", " and ".join(missing))
        elif report:
            _write_report(folder, cache, scores)
    return scores


@library_call(ValidateSettings)
def validate(
    results: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    report: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Validation:
    """See what the model loses without the heads that a ranking puts first; the library call of `headscore validate`.

    Heads are taken out by setting their z where it enters the output projection: the first k, the last k, and random draws of
    as many heads in each layer as the first k have there. What the model loses is measured on rows that were not captured:
    the divergence of its next token, and the nll of and accuracy over the answers, where the rows have any.

    Args:
        results: a folder of results of `score`, `report` or `run`. Or one that `validate` wrote: then its statistics are made
            anew, with other `bootstrap`, `level` and `seed`, without the model.
        out: gets the outcomes as soon as they are known, so that the same command goes on after a stop; then the tables.
            Another ranking of the same model and rows may go there, too: sets that it shares are not run again.
        overwrite: forget outcomes of another model or of other rows that are in `out`.
        report: also write validation.html to `out`, one offline page with the curves and maps. Needs `headscore[report]`.
        progress: called with (rows run, rows in all).
        options: the fields of ValidateSettings, by the names and with the defaults of the command line.

    Raises InputError for options, results, data or a model that cannot be used, for a model other than the one that was
    captured, and where a package is missing; RunError where the run fails.
    """
    if report:
        require_packages("a report")
    settings = ValidateSettings(**options)
    place, folder = given_path("results", results), given_path("--out", out)
    with results_folder(folder, ALL_FILES):
        require_no_ranking(folder)
        if is_validation(place):
            measured = read_measured(place)
            require_statistics_alone(place, measured, settings)
        else:
            measured = _measured(read_results(place), folder, settings, overwrite, progress)
        found = validation_of(measured, settings)
        write_measured(folder, measured)
        chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        write_validation(folder, found, written_options({"results": place, **chosen}, folder))
        if report:
            _write_validation_page(folder, found, settings.level)
        logger.info("%s: validation written", folder)
    return found


def _measured(
    ranking: Results, folder: Path, settings: ValidateSettings, overwrite: bool, progress: Callable[[int, int], None] | None
) -> Measured:
    """Run the model of a ranking without the sets of heads that its validation needs."""
    from .capture import set_runs, validating  # here, as they load torch

    opened = None
    if ranking.imported is not None and (settings.fit_weights or set(settings.signal) - {COMBINED}):
        option = "--fit-weights" if settings.fit_weights else "--signal"
        raise OptionError(f"{option}: the ranking is an imported list, which has no signals; leave it out")
    if ranking.imported is not None:  # the model says which heads there are, and so what a share of them is
        opened = validating.opened_for(validating.record_of_list(ranking.record, settings), settings)
        listed = len(ranking.heads)
        ranking, counts = _of_model(ranking, opened.layers, settings)
        opened.facts[IMPORTED_KEY] = opened.facts[IMPORTED_KEY] | {
            "whole": listed == len(ranking.heads)
        }  # which no list can tell
    else:
        counts = counts_of(settings.k, len(ranking.heads))
    units = len(ranking.heads)
    signals = [COMBINED, *(name for name in dict.fromkeys(settings.signal) if name != COMBINED)]
    sets = [each for name in signals for each in head_sets(ranking.order(name), name, counts, settings.draws, settings.seed)]
    singles = sorted(ranking.order()) if settings.single else []
    opened = opened or validating.opened_for(ranking.record, settings)
    journal = Journal(folder / JOURNAL_FILE, opened.subject, overwrite=overwrite)
    heads = [set_runs.heads_of(each.units, ranking.unit, opened) for each in sets]
    alone = [set_runs.heads_of([unit], ranking.unit, opened) for unit in singles]
    records = set_runs.run_sets(opened, [*heads, *alone], journal, progress)
    keys = [set_runs.set_key(each) for each in heads]
    choices = [question.answers.choices or None for question in opened.questions]
    rows = [question.row for question in opened.questions]
    outcomes = outcome_frame(list(zip(sets, keys, strict=True)), records, rows, choices, set_runs.INTACT)
    single = set_runs.single_frame(opened, ranking.unit, singles, alone, records) if singles else None
    gradient = set_runs.gradient_frame(opened, ranking.unit, sorted(ranking.order())) if settings.gate_gradient else None
    facts = {
        **opened.facts,
        "noise_floor": set_runs.noise_floor(records),
        "unit": ranking.unit,
        "units": units,
        "signals": ranking.signals,
        "k": counts,
        "draws": settings.draws,
        "seed": settings.seed,
        "overlapping_draws": sum(each.set == "draw" and each.shared > 0 for each in sets),
        "ranking": ranking_options(ranking.options),
    }
    return Measured(outcomes, set_frame(sets, ranking.unit), ranking.heads, single, gradient, facts)


def _of_model(
    ranking: Results, layers: "Mapping[int, AttentionLayer]", settings: ValidateSettings
) -> tuple[Results, list[int]]:
    """An imported list as a ranking of all heads of the model, and how many are taken out: none that it does not list."""
    listed = len(ranking.heads)
    whole = ranking.of_model({layer: each.heads if ranking.unit == "head" else each.kv_heads for layer, each in layers.items()})
    counts = counts_of(settings.k, len(whole.heads))
    if len(whole.heads) == listed:
        return whole, counts
    if settings.k == ValidateSettings().k:  # what was not asked for need not be there
        return whole, sorted({*(count for count in counts if count < listed), listed})
    if counts[-1] > listed:
        raise OptionError(f"--k: {counts[-1]} is more than the {listed} heads of the imported list; give at most {listed}")
    return whole, counts


def _write_report(folder: Path, cache: Cache, scores: Scores) -> None:
    from .score.report.page import write_report  # here, as Altair takes half a second to load

    write_report(folder, cache, scores)


def _write_validation_page(folder: Path, found: Validation, level: float) -> None:
    from .score.report.validation_page import write_validation_page  # here, as Altair takes half a second to load

    write_validation_page(folder, found, level)
