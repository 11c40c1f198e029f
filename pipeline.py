"""Capture, then score: the library call of `headscore run`."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .capture.call import capture_prompts, checked_prompts
from .capture.ranks import this_rank
from .data.cache import open_cache, require_known_spans
from .data.configuration import CACHE_FOLDER
from .data.errors import InputError
from .data.files import output_folder
from .data.places import written_options
from .data.settings import CaptureSettings, RunSettings, ScoreSettings, pick
from .data.signatures import library_call
from .score.outputs import options_config, require_same_run, results_folder, write_results
from .score.pipeline import Scores, compute_scores, write_report
from .score.report.vega import missing_packages

logger = logging.getLogger("headscore")

DEFAULT_OUT = "headscore-results"


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

    out: gets the cache in `cache/` and the result files of `score`; shards that are already there are kept. overwrite: replace
    another run in `out`. report: make report.html and charts/ too, where `headscore[report]` is installed. options: the fields
    of RunSettings; with none, the default model on the shipped questions.

    Raises InputError and RunError as `capture` and `score` do, and InputError under a launcher of several processes.
    """
    if this_rank().world > 1:
        raise InputError("run: is for one process; under a launcher use `headscore capture`, then `headscore score`")
    settings = RunSettings(**options)
    chosen = dataclasses.asdict(settings)
    folder = Path(out)
    extra = written_options(pick(CaptureSettings, chosen), folder)
    with results_folder(folder):
        # what would stop the scoring is better known now than after the capture
        require_same_run(folder, options_config(ScoreSettings(**pick(ScoreSettings, chosen)), extra), overwrite)
        prompts = checked_prompts(settings)
        require_known_spans(settings.task_span, prompts.maker.span_names, str(prompts.path))
        with output_folder(folder / CACHE_FOLDER):
            capture_prompts(folder / CACHE_FOLDER, settings, prompts, overwrite, progress)
        cache = open_cache(folder / CACHE_FOLDER)
        scores = compute_scores(cache, ScoreSettings(**pick(ScoreSettings, chosen)))
        write_results(folder, scores, extra, overwrite)
        if report and (missing := missing_packages()):
            logger.warning("no report is made, as it needs %s: pip install 'headscore[report]'", " and ".join(missing))
        elif report:
            write_report(folder, cache, scores)
    return scores
