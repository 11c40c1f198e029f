"""The verbs that compose the rooms: score with a report, and capture, then score."""

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from .data.cache import Cache, cache_folder, open_cache, require_known_spans
from .data.configuration import CACHE_FOLDER
from .data.errors import InputError
from .data.files import given_path
from .data.places import written_options, written_place
from .data.plain import require_own
from .data.settings import CaptureSettings, RunSettings, ScoreSettings, WorkSettings, pick
from .data.signatures import library_call
from .score.outputs import options_config, require_same_run, results_folder, write_results
from .score.report.vega import missing_packages, require_packages
from .score.scores import Scores
from .score.scoring import score_cache

logger = logging.getLogger("headscore")

DEFAULT_OUT = "headscore-results"


@library_call(ScoreSettings, WorkSettings)
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
        options: the fields of ScoreSettings and WorkSettings, by the names and with the defaults of the command line.

    Raises InputError for options or a cache that cannot be used, and where `out` holds another run.
    """
    if report:
        require_packages("a report")
        if out is None:
            raise InputError("--report: needs a folder for it; give --out")
    work = WorkSettings(**pick(WorkSettings, options))
    settings = ScoreSettings(**{name: value for name, value in options.items() if name not in pick(WorkSettings, options)})
    path = given_path("cache", cache)
    folder = None if out is None else given_path("--out", out)
    opened = open_cache(path.absolute() if work.dask or executor else path)
    if folder is None:
        return score_cache(opened, settings, work, partial, executor)
    with results_folder(folder):
        scores = score_cache(opened, settings, work, partial, executor)
        extra = {"cache": written_place("cache", path, folder), "partial": partial}
        write_results(folder, scores, extra, overwrite)
        if report:
            _write_report(folder, opened, scores)
    return scores


@library_call(ScoreSettings, WorkSettings)
def report(cache: str | Path, out: str | Path, *, overwrite: bool = False, partial: bool = False, **options: Any) -> Scores:
    """Rank the heads of a captured model and show them in one offline page; the library call of `headscore report`.

    Args:
        cache: as in `score`.
        out: gets the result files of `score`, report.html, and its charts as PNG and SVG in charts/.
        overwrite: as in `score`, and so are the others.

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
    from .capture.ranks import this_rank

    if this_rank().world > 1:
        raise InputError("run: is for one process; under a launcher use `headscore capture`, then `headscore score`")
    settings = RunSettings(**options)
    if report and not missing_packages():
        require_packages("a report")
    chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    folder = given_path("--out", out)
    extra = written_options(pick(CaptureSettings, chosen), folder)
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
        scores = score_cache(cache, scoring)
        write_results(folder, scores, extra, overwrite)
        if report and (missing := missing_packages()):
            logger.warning("no report is made, as it needs %s: pip install 'headscore[report]'", " and ".join(missing))
        elif report:
            _write_report(folder, cache, scores)
    return scores


def _write_report(folder: Path, cache: Cache, scores: Scores) -> None:
    from .score.report.page import write_report  # here, as Altair takes half a second to load

    write_report(folder, cache, scores)
