"""The command line: each command turns its options into one library call and prints what it returns."""

import errno
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .capture.job.ranks import this_rank
from .data.errors import HeadscoreError, InputError, RunError, one_line, printable, typed_line
from .data.files.foreign import is_panic
from .data.files.whole_file import given_path
from .data.limits import require_address_space
from .data.options.evidence_settings import CompareSettings, ControlSettings, StabilitySettings, SweepSettings
from .data.options.export_settings import ExportSettings, ImportSettings
from .data.options.settings import (
    BootstrapSettings,
    CaptureSettings,
    RunSettings,
    ScoreSettings,
    ValidateSettings,
    WorkSettings,
)
from .data.text import json_text
from .data.voice import speaking_of_options
from .options import DEBUG, OVERWRITE, PARTIAL, QUIET, GroupedCommand, completes, summary, with_options
from .terminal import progress, show_log, table_lines

if TYPE_CHECKING:
    from .score.scores import Scores

TOP_HEADS_SHOWN = 10
INTERRUPTED = 130  # the shells' exit status after Ctrl-C

app = typer.Typer(
    name="headscore",
    help="Which attention heads does a task already drive? Capture once with the model, score as often as you like without.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-"), "help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a foreseen error is one line on stderr and exit status 2 (bad input) or 1 (failed run)."""
    debug = "--debug" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path need not be text
    try:
        with speaking_of_options():
            status = app(standalone_mode=False) if len(sys.argv) != 3 or not completes(*sys.argv[1:]) else 0
    except HeadscoreError as error:
        if debug:
            error.of_command_line = True  # for the traceback, which is shown outside of this context
            raise
        _fail(one_line(error), error.exit_status)
    except typer.TyperException as error:  # an unknown option, a value of the wrong type
        _fail(" ".join(error.format_message().split()), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        status = 1
    except ModuleNotFoundError as error:
        if debug or error.name not in ("torch", "transformers"):
            raise
        _fail(f"this command needs {error.name}: pip install 'headscore[capture]'", 2)
    except OSError as error:  # a full disk, a path that is too long: nothing is left half-written, see data/files/whole_file.py
        if debug:
            raise
        _fail(one_line(error), 2 if error.errno == errno.ENAMETOOLONG else 1)
    except MemoryError as error:
        if debug:
            raise
        _fail(f"not enough memory: {one_line(error)}", 1)
    except (ImportError, RuntimeError) as error:  # how a lack of memory shows to the loader, and where a thread is started
        if debug or not _lacks_resources(error):
            raise
        _fail(f"not enough memory or threads: {one_line(error)}", 1)
    except BaseException as error:
        if debug or not is_panic(error):
            raise
        _fail(f"a library failed: {typed_line(error)}", 1)
    if status == INTERRUPTED:  # which typer returns after Ctrl-C
        _fail("interrupted; the same command continues where it stopped", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _lacks_resources(error: Exception) -> bool:
    """Whether an error says that the system gave no more memory, or no more threads."""
    return any(sign in str(error) for sign in ("can't start new thread", "failed to map segment", "annot allocate memory"))


def _fail(message: str, status: int) -> None:
    print(f"headscore: error: {printable(message)}", file=sys.stderr)
    sys.exit(status)


def _cache(text: Any) -> Path:
    return given_path("cache", text)


def _out(text: Any) -> Path:
    return given_path("--out", text)


def _results(text: Any) -> Path:
    return given_path("results", text)


def _file(text: Any) -> Path:
    return given_path("file", text)


def _ranking(text: Any) -> Path:
    return given_path("rankings", text)


_CACHE: dict[str, Any] = {"parser": _cache, "show_default": False}
_RESULTS: dict[str, Any] = {"parser": _results, "show_default": False}
_FILE: dict[str, Any] = {"parser": _file, "show_default": False}
_RANKINGS: dict[str, Any] = {"parser": _ranking, "show_default": False}
_OUT: dict[str, Any] = {"parser": _out, "metavar": "<path>"}  # pathlib would take an empty text for the folder one is in

_CACHE_GIVEN = Annotated[Path, typer.Argument(help="Cache folder or shard file.", **_CACHE)]
_OUT_OR_NONE = Annotated[
    Path | None,
    typer.Option("--out", "--output-dir", help="Folder of the files; if not given, none are written.", **_OUT),
]
_RESULTS_MADE = Annotated[
    Path, typer.Option("--out", "--output-dir", help="Folder of the results.", **_OUT, show_default=False)
]

# ------------------------------------------------------------------------------------------------------------- commands


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Add a command to the command line, with its summary in full."""
    return app.command(cls=GroupedCommand, short_help=summary(function))(function)


@app.callback(invoke_without_command=True)
def _headscore(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
    require_address_space(context.invoked_subcommand)
    show_log(this_rank().label() if context.invoked_subcommand == "capture" else "")


@command
@with_options(RunSettings)
def run(
    *,
    out: Annotated[Path, typer.Option("--out", "--output-dir", help="Folder for the cache and the results.", **_OUT)] = Path(
        "headscore-results"
    ),
    report: Annotated[bool, typer.Option("--report/--no-report", help="Make report.html and its charts.")] = True,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    **options: Any,
) -> None:
    """Capture, score and report in one go; with no arguments, the default model on the shipped questions."""
    from .pipeline import run as library_run

    with progress("capturing", alone=this_rank().world == 1) as show:
        scores = library_run(out=out, report=report, overwrite=overwrite, progress=show, **options)
    _print_scores(scores, out, quiet)


@command
@with_options(CaptureSettings)
def capture(
    *,
    out: Annotated[Path, typer.Option("--out", "--output-dir", help="Folder of the cache.", **_OUT, show_default=False)],
    overwrite: OVERWRITE = False,
    **options: Any,
) -> None:
    """Run the model once over a data file and store what the scores need."""
    from .capture.call import capture as library_capture

    with progress("capturing", alone=this_rank().world == 1) as show:
        library_capture(out=out, overwrite=overwrite, progress=show, **options)


@command
@with_options(ScoreSettings, BootstrapSettings, WorkSettings)
def score(
    *,
    cache: _CACHE_GIVEN,
    out: _OUT_OR_NONE = None,
    report: Annotated[bool, typer.Option("--report", help="Also make report.html and its charts.")] = False,
    partial: PARTIAL = False,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    **options: Any,
) -> None:
    """Rank the heads of a captured model; needs neither the model nor torch."""
    from .pipeline import score as library_score

    _print_scores(
        library_score(cache=cache, out=out, report=report, partial=partial, overwrite=overwrite, **options), out, quiet
    )


@command
@with_options(ScoreSettings, BootstrapSettings, WorkSettings)
def report(
    *,
    cache: _CACHE_GIVEN,
    out: _RESULTS_MADE,
    partial: PARTIAL = False,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    **options: Any,
) -> None:
    """Rank the heads of a captured model and show them in one offline page: report.html, and its charts as PNG and SVG."""
    from .pipeline import report as library_report

    _print_scores(library_report(cache=cache, out=out, partial=partial, overwrite=overwrite, **options), out, quiet)


@command
@with_options(ValidateSettings)
def validate(
    *,
    results: Annotated[Path, typer.Argument(help="Folder that score or validate wrote.", **_RESULTS)],
    out: Annotated[Path, typer.Option("--out", "--output-dir", help="Folder of the validation.", **_OUT, show_default=False)],
    report: Annotated[bool, typer.Option("--report", help="Also make validation.html, a page with curves and maps.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget outcomes of another model or other rows in --out.")
    ] = False,
    **options: Any,
) -> None:
    """Test whether the model needs the heads that a ranking puts first more than random heads of the same layers."""
    from .pipeline import validate as library_validate

    with progress("validating", alone=this_rank().world == 1, what="rows") as show:
        found = library_validate(results=results, out=out, report=report, overwrite=overwrite, progress=show, **options)
    for line in found.verdicts:
        print(printable(line))
    print(f"\nall tables in {printable(str(out))}")


@command
@with_options(ScoreSettings, ControlSettings)
def control(
    *,
    cache: _CACHE_GIVEN,
    out: _OUT_OR_NONE = None,
    partial: PARTIAL = False,
    overwrite: OVERWRITE = False,
    **options: Any,
) -> None:
    """Test which heads a task drives more than a control does: other prompts, or other text in the same prompts."""
    from .score.evidence.control import control as library_control

    found = library_control(cache=cache, out=out, partial=partial, overwrite=overwrite, **options)
    for line in found.lines:
        print(printable(line))
    print("\nheads by the controlled signals, which are differences from the control:")
    for line in table_lines(found.scores, min(found.scores.top_k, TOP_HEADS_SHOWN)):
        print(printable(line))
    if out:
        print(f"\nall results in {printable(str(out))}")


@command
@with_options(ScoreSettings, CompareSettings)
def compare(
    *,
    rankings: Annotated[
        list[Path],
        typer.Argument(help="Caches, folders of results or of validations, or files that list heads.", **_RANKINGS),
    ],
    out: _OUT_OR_NONE = None,
    partial: PARTIAL = False,
    overwrite: OVERWRITE = False,
    **options: Any,
) -> None:
    """Say how far rankings agree: of caches, results, single heads taken out, or lists that others have made."""
    from .score.evidence.compare import compare as library_compare

    found = library_compare(rankings=rankings, out=out, partial=partial, overwrite=overwrite, **options)
    _print_evidence(found.lines, found.table(), out)


@command
@with_options(ScoreSettings, StabilitySettings)
def stability(
    *,
    cache: _CACHE_GIVEN,
    out: _OUT_OR_NONE = None,
    partial: PARTIAL = False,
    overwrite: OVERWRITE = False,
    **options: Any,
) -> None:
    """Say how many samples the top of a ranking needs: how much of it two captures of that size share."""
    from .score.evidence.stability import stability as library_stability

    found = library_stability(cache=cache, out=out, partial=partial, overwrite=overwrite, **options)
    _print_evidence(found.lines, found.table(), out)


@command
@with_options(ScoreSettings, WorkSettings, SweepSettings)
def sweep(
    *,
    cache: _CACHE_GIVEN,
    out: _OUT_OR_NONE = None,
    overwrite: OVERWRITE = False,
    partial: PARTIAL = False,
    **options: Any,
) -> None:
    """Say how far a ranking depends on its weights: rank by every setting of a grid, and compare."""
    from .score.evidence.sweep import sweep as library_sweep

    found = library_sweep(cache=cache, out=out, partial=partial, overwrite=overwrite, **options)
    _print_evidence(found.lines, found.table(), out)


@command
@with_options(ExportSettings, configurable=False)
def export(
    *,
    results: Annotated[Path, typer.Argument(help="Folder that score, control or import wrote.", **_RESULTS)],
    out: Annotated[Path, typer.Option("--out", help="The file or folder that is written.", **_OUT, show_default=False)],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file --out, or the folder that an earlier export left.")
    ] = False,
    **options: Any,
) -> None:
    """Write a ranking in a format that other tools load: for finetuning, KV caches, pruning, or a paper."""
    from .exporting import export as library_export

    print(printable(str(library_export(results=results, out=out, overwrite=overwrite, **options))))


@app.command("import", cls=GroupedCommand, short_help="Make a folder of results from a list that others have published.")
@with_options(ImportSettings, configurable=False)
def import_list(
    *,
    file: Annotated[Path, typer.Argument(help="The list; for duo also its folder.", **_FILE)],
    out: _RESULTS_MADE,
    overwrite: OVERWRITE = False,
    **options: Any,
) -> None:
    """Make a folder of results from a list of heads that others have published, for compare, validate and export."""
    from .score.export.importing import import_list as library_import

    found = library_import(file=file, out=out, overwrite=overwrite, **options)
    print(printable(f"{len(found.heads)} {'heads' if found.unit == 'head' else 'KV heads'}; results in {out}"))


@command
def inspect(
    cache: Annotated[Path, typer.Argument(help="Cache folder or shard file.", **_CACHE)],
    verify: Annotated[bool, typer.Option("--verify", help="Read every array back and check it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: DEBUG = False,
) -> None:
    """Show what a cache holds: model, data, template, dims, samples, skipped rows, and an example with its spans."""
    from .data.cache.inspection import HOW_TO_COMPLETE, facts_text
    from .data.cache.inspection import inspect as library_inspect

    facts = library_inspect(cache, verify=verify)
    print(json_text(facts, indent=2) if as_json else facts_text(facts))
    shards = facts["shards"]
    if facts["damaged"]:
        raise InputError(f"{cache}: {len(facts['damaged'])} of {shards['there']} shards are damaged; {HOW_TO_COMPLETE} again")
    if facts["unreadable"]:
        raise RunError(f"{cache}: {len(facts['unreadable'])} of {shards['there']} shards cannot be read, and may be whole")
    if verify and shards["missing"]:
        raise InputError(f"{cache}: shards {shards['missing']} of {shards['planned']} are missing; {HOW_TO_COMPLETE}")


@command
def merge(
    caches: Annotated[list[Path], typer.Argument(help="Cache folders or shard files of one capture.", **_CACHE)],
    out: Annotated[Path, typer.Option("--out", "--output-dir", help="Folder of the merged cache.", **_OUT, show_default=False)],
    debug: DEBUG = False,
) -> None:
    """Merge the shards of one capture that were made in different places into one cache."""
    from .data.cache.merging import merge as library_merge

    library_merge(caches, out)


@command
@with_options(ScoreSettings)
def signals(
    *,
    cache: Annotated[Path | None, typer.Argument(help="Cache folder or shard file.", **_CACHE)] = None,
    **options: Any,
) -> None:
    """List the signals that heads can be ranked by, what each is made of, and whether a cache has it."""
    from .score.listing import measures
    from .score.listing import signals as library_signals

    listed = library_signals(cache=cache, **options)
    width = max(map(len, listed["signal"]))
    for name, needs, there, what in listed.iter_rows():
        print(printable(f"{name:<{width}}  {'' if there is None else 'yes  ' if there else 'no   '}{what} [{needs}]"))
    if cache:
        print(f"\nA signal of your own may be made of: {printable(', '.join(measures(cache, **options)))}")


@command
def version() -> None:
    """Print the version."""
    from . import __version__

    print(__version__)


# ---------------------------------------------------------------------------------------------------------------- output


def _print_scores(scores: "Scores", out: Path | None, quiet: bool = False) -> None:
    """The top heads as a table, how far to trust it, and where the results are; on a terminal with a map of all heads."""
    from .score.scores import heads_or_groups

    partial = f" (PARTIAL: shards {scores.missing_shards} are missing)" if scores.missing_shards else ""
    where = f"; all results in {out}" if out else ""
    summary = f"{len(scores.heads)} {heads_or_groups(scores.unit)}, {scores.samples} samples{partial}{where}"
    told = [] if quiet else scores.told
    shown = min(scores.settings.top_k or TOP_HEADS_SHOWN, TOP_HEADS_SHOWN)
    if sys.stdout.isatty():
        from .terminal_scores import show_scores  # here, as rich takes time to load

        show_scores(scores, shown, told, summary)
        return
    for line in [*table_lines(scores, shown), "", *told, *([""] if told else []), summary]:
        print(printable(line))


def _print_evidence(lines: Iterable[str], table: Iterable[str], out: Path | None) -> None:
    """What an analysis found in plain sentences, a table, and where its files are."""
    for line in lines:
        print(printable(line))
    print()
    for line in table:
        print(printable(line))
    if out:
        print(f"\nall tables in {printable(str(out))}")
