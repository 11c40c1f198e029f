"""Capture, then score: the library call of `headscore run`."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from .capture.pipeline import capture
from .capture.ranks import this_rank
from .capture.samples import read_prompts
from .capture.shards import Progress
from .data.cache import open_cache, require_known_spans
from .data.errors import InputError
from .data.settings import CaptureSettings, RunSettings, ScoreSettings, pick
from .score.outputs import options_config, require_same_run, results_folder, write_results
from .score.pipeline import Scores, compute_scores, write_report
from .score.report.vega import missing_packages

logger = logging.getLogger("headscore")

DEFAULT_OUT = "headscore-results"
CACHE_FOLDER = "cache"


def run(
    out: str | Path = DEFAULT_OUT,
    *,
    overwrite: bool = False,
    report: bool = True,
    progress: Progress | None = None,
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
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in pick(CaptureSettings, chosen).items()}
    extra = {key: str(v) if isinstance(v, Path) else v for key, v in given.items() if v is not None and v != []}
    with results_folder(folder):
        # what would stop the scoring is better known now than after the capture
        require_same_run(folder, options_config(ScoreSettings(**pick(ScoreSettings, chosen)), extra), overwrite)
        prompts = read_prompts(CaptureSettings(**pick(CaptureSettings, chosen)))
        require_known_spans(settings.task_span, prompts.maker.span_names, str(prompts.path))
        capture(folder / CACHE_FOLDER, overwrite=overwrite, progress=progress, **pick(CaptureSettings, chosen))
        cache = open_cache(folder / CACHE_FOLDER)
        scores = compute_scores(cache, ScoreSettings(**pick(ScoreSettings, chosen)))
        write_results(folder, scores, extra, overwrite)
        if report and (missing := missing_packages()):
            logger.warning("no report is made, as it needs %s: pip install 'headscore[report]'", " and ".join(missing))
        elif report:
            write_report(folder, cache, scores)
    return scores
