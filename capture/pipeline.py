"""The capture from data file to cache: rows → prompts → tokens → batches → recorded reductions → shards."""

import logging
import time
from pathlib import Path
from typing import Any

import polars as pl

from ..data import cache as cache_format
from ..data.cache import Metadata
from ..data.errors import InputError
from ..data.files import output_folder
from ..data.settings import CaptureSettings
from . import models
from .identity import capture_metadata, differences
from .samples import read_prompts, tokenise_shards
from .selfcheck import self_check
from .shards import Progress, capture_shards

logger = logging.getLogger("headscore")


def capture(out: str | Path, *, overwrite: bool = False, progress: Progress | None = None, **options: Any) -> pl.DataFrame:
    """Run a model once over a data file and store what the scores need; the library call of `headscore capture`.

    out: the cache folder. If it already holds shards of the same capture, only the missing ones are made; `overwrite=True`
    replaces another capture. progress: called with (samples done, samples in all). options: the fields of CaptureSettings, by
    the names and with the defaults of the command line.

    Returns one line per stored sample: `sample`, `row` (0-based in the data file), `tokens`, `shard`.
    Raises InputError for options, data, model or an existing cache that cannot be used, RunError where the run fails.
    """
    settings, out = CaptureSettings(**options), Path(out)
    with output_folder(out):
        _require_own_folder(out)
        return _capture(out, settings, overwrite, progress)


def _capture(out: Path, settings: CaptureSettings, overwrite: bool, progress: Progress | None) -> pl.DataFrame:
    started = time.monotonic()
    device = models.resolve_device(settings.device)
    dtype = models.resolve_dtype(settings.dtype, device)
    prompts = read_prompts(settings)
    existing = _existing(out, overwrite)

    source = models.resolve(settings.model, settings.trust_remote_code)
    tokenizer = models.load_tokenizer(source)
    shards = tokenise_shards(prompts, tokenizer, settings)
    samples = [sample for shard in shards for sample in shard.samples]
    model = models.load_model(source, dtype, device)
    models.require_same_vocabulary(source, model, max(int(sample.ids.max()) for sample in samples))
    logger.info("%s: %s on %s", settings.model, dtype, device)
    check = self_check(model, samples, dtype, settings.queries)
    worst = max(check["largest_difference"].values())
    logger.info("self-check passed: within %.1g of the model's own eager attention", worst)

    metadata = capture_metadata(settings, dtype, model, tokenizer, prompts, shards, check)
    different = differences(existing, metadata) if existing else []
    if different and not overwrite:
        raise InputError(
            f"{out}: holds another capture: {'; '.join(different)}; use another --out, or --overwrite to start anew"
        )
    if existing is None or different:
        _start_cache(out, metadata)
    else:
        metadata = existing
    capture_shards(out, metadata, shards, model, settings, progress)
    skipped = [{"row": entry.row, "reason": entry.reason} for shard in shards for entry in shard.skipped]
    cache_format.write_skipped(out, skipped)
    logger.info("%s: %d samples in %.1f s, %d skipped", out, len(samples), time.monotonic() - started, len(skipped))
    lines = [(sample.row, len(sample.ids), number) for number, shard in enumerate(shards) for sample in shard.samples]
    schema = {"row": pl.Int64, "tokens": pl.Int64, "shard": pl.Int64}
    return pl.DataFrame(lines, schema=schema, orient="row").with_row_index("sample")


def _require_own_folder(out: Path) -> None:
    """Raises InputError where the folder holds something that is not a cache."""
    if any(out.iterdir()) and not (out / cache_format.METADATA_FILE).exists():
        raise InputError(f"--out {out}: is not empty and holds no cache; give a new folder")


def _existing(out: Path, overwrite: bool) -> Metadata | None:
    """The metadata of the cache in `out`, if any; with `overwrite` one that cannot be read counts as none."""
    try:
        return cache_format.read_metadata(out)
    except InputError:
        if overwrite:
            return None
        raise


def _start_cache(out: Path, metadata: Metadata) -> None:
    """Remove the shards of an earlier capture, if any, and write cache.json."""
    for old in (*(out / "shards").glob("*.h5"), out / cache_format.SKIPPED_FILE):
        old.unlink(missing_ok=True)
    cache_format.write_metadata(out, metadata)
