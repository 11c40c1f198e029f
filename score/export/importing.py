"""Makes a folder of results of a list of heads that others have published: `headscore import`."""

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import polars as pl

from ... import __version__
from ...data.errors import OptionError
from ...data.files.whole_file import given_path, remove, write_bytes, write_text
from ...data.options.export_settings import ImportFormat, ImportSettings
from ...data.options.settings import RECORD_KEY, Unit
from ...data.options.signatures import library_call
from ...data.text import require_text
from ..outputs import (
    CONFIG_FILE,
    CONTROL_FILE,
    HEADS_CSV,
    HEADS_PARQUET,
    LOG_FILE,
    REPORT_FILES,
    RESULT_FILES,
    csv,
    require_same_run,
    results_folder,
    yaml_text,
)
from ..results import IMPORTED_KEY, Results, read_results
from ..validation_files import is_validation
from .published import Scored, read_list

logger = logging.getLogger("headscore")

FILES = (HEADS_CSV, HEADS_PARQUET, CONFIG_FILE, LOG_FILE)
# The others list chosen heads: even where these make a rectangle, a file cannot show that a model has no more.
_OF_ALL: Sequence[ImportFormat] = ("duo", "retrieval_head")


@library_call(ImportSettings)
def import_list(file: str | Path, out: str | Path, *, overwrite: bool = False, **options: Any) -> Results:
    """Make a folder of results of a published list of heads; the library call of `headscore import`. Needs no model.

    Args:
        file: the list; of duo also the folder that it is in.
        out: gets heads.parquet, heads.csv and config.yaml, for `compare`, `validate` and `export`.
        overwrite: replace another list in `out`, or a ranking with all that is of it.
        options: the fields of ImportSettings, by the names and with the defaults of the command line.

    Raises InputError where the file is no such list, and where `out` holds something else.
    """
    format = ImportSettings(**options).format
    if format is None:
        raise OptionError(f"--format: give one of {', '.join(get_args(ImportFormat))}")
    path, folder = given_path("file", file), given_path("--out", out)
    require_text("file", path)
    unit, lines, content = read_list(path, format)
    heads = _heads(unit, lines)
    facts = {
        "file": path.name,
        "format": format,
        "sha256": hashlib.sha256(content).hexdigest(),
        "heads": len(lines),
        "whole": format in _OF_ALL and _is_whole(lines),
    }
    config = {"by": unit, RECORD_KEY: {"headscore": __version__, IMPORTED_KEY: facts}}
    with results_folder(folder, FILES):
        if is_validation(folder):
            raise OptionError(f"--out {folder}: holds a validation; give the list a folder of its own")
        require_same_run(folder, config, overwrite)
        # heads.parquet comes last: its presence says that the others are of one list, and without it the same may run again.
        for name in (HEADS_PARQUET, *((*RESULT_FILES, *REPORT_FILES, CONTROL_FILE) if overwrite else ())):
            remove(folder / name)
        header = f"# Repeats this: headscore import FILE --as {format} --out NEW_FOLDER\n"
        write_text(folder / CONFIG_FILE, header + yaml_text(config))
        write_text(folder / HEADS_CSV, csv(heads))
        table = io.BytesIO()
        heads.write_parquet(table)
        write_bytes(folder / HEADS_PARQUET, table.getbuffer())
        logger.info("%s: %d %s imported from %s", folder, len(lines), "heads" if unit == "head" else "KV heads", path)
    return read_results(folder)


def _heads(unit: Unit, lines: Sequence[Scored]) -> pl.DataFrame:
    """The list as a ranking: higher scores first, equal ones by layer and head."""
    frame = pl.DataFrame(lines, schema={"layer": pl.Int32, unit: pl.Int32, "combined": pl.Float64}, orient="row")
    ordered = frame.sort(["combined", "layer", unit], descending=[True, False, False])
    ranks = ordered.with_columns(
        rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64),
        tied_rank=pl.col("combined").rank("min", descending=True).cast(pl.Int64),
    )
    return ranks.with_columns(layer_rank=pl.col("rank").rank("ordinal").over("layer").cast(pl.Int64)).sort("layer", unit)


def _is_whole(lines: Sequence[Scored]) -> bool:
    """Whether the list has equally many heads in every layer, and leaves no number out: then it has all of a model."""
    layers, heads = (max(line[place] for line in lines) + 1 for place in (0, 1))
    return layers > 1 and heads > 1 and len(lines) == layers * heads
