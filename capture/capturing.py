"""The capture from data file to cache: rows → prompts (→ chat) → tokens → batches → recorded reductions → shards."""

import logging
import time
from pathlib import Path

import polars as pl

from ..data.cache.folder import SHARDS_FOLDER, write_skipped
from ..data.files.whole_file import remove_leftovers
from ..data.options.settings import CaptureSettings
from .checking.selfcheck import checked_model
from .inputs.chat import in_chat
from .inputs.tokenising import Marker, Prompts, SkipLimit, encode_shard, encode_share, first_samples, without_special_tokens
from .job.ranks import Rank, this_rank
from .job.resume import Finished, finished_shards, require_same_capture, start_cache
from .model.chosen_model import chosen_model
from .model.device import computing_on, profile_of
from .writing.shards import Progress, ShardMaker
from .writing.space import require_space
from .writing.written_metadata import data_metadata, with_model

logger = logging.getLogger("headscore")


def captured(
    out: Path, settings: CaptureSettings, prompts: Prompts, overwrite: bool, progress: Progress | None
) -> pl.DataFrame:
    """Make those shards of this process's share that are not in the cache yet; see `headscore.capture` in `call.py`.

    Args:
        out: the cache folder.
        settings: of the capture.
        prompts: as `call.checked_prompts` gives them.
        overwrite: replace another capture.
        progress: called with (samples done, samples in all).

    Returns one line per sample that is stored by now. Raises InputError and RunError as `capture`.
    """
    started, rank = time.monotonic(), this_rank()
    remove_leftovers(out / SHARDS_FOLDER)
    if settings.device_map and rank.beside > 1:
        logger.warning(
            "--device-map: each of the %d processes of this machine spreads its model over all GPUs that it sees; "
            "start one, or give each GPUs of its own (CUDA_VISIBLE_DEVICES)", rank.beside,
        )  # fmt: skip
    chosen = chosen_model(settings, rank)
    tokenizer = chosen.tokenizer
    if settings.chat:
        prompts = in_chat(prompts, tokenizer, settings)
    share = encode_share(prompts, tokenizer, settings, rank)
    own, count, encoded = share.own, share.shards, share.encoded
    prompts = without_special_tokens(prompts, encoded, tokenizer)
    marker = Marker(tokenizer, prompts.maker.span_names)
    if not own:
        logger.info("%s: has %d shards, none of them for this process", out, count)
        return _frame([])
    in_order = (own.get(number) or encode_shard(prompts, number, tokenizer, settings) for number in range(count))
    first = first_samples(prompts, in_order, share.skipped, marker, settings)
    known_prompts = encoded or first
    metadata = data_metadata(settings, chosen.dtype, tokenizer, prompts, count, first)
    kept = require_same_capture(out, metadata, overwrite, own)
    require_space(out, own, kept, settings, chosen.config, profile_of(chosen.device).together)

    model = chosen.load(max(int(prompt.ids.max()) for prompt in known_prompts))
    logger.info("%s: %s on %s", settings.model, chosen.dtype, "several devices" if settings.device_map else chosen.device)
    limit = SkipLimit(settings, len(prompts.drawn), len(share.skipped))
    with computing_on(chosen.device):
        checked = checked_model(model, known_prompts, chosen.dtype, settings)
        checked.check.log()
        cache = start_cache(out, with_model(metadata, chosen.source, model, checked.check), overwrite, rank)
        made = ShardMaker(cache, own, marker, checked, settings, limit).run(progress)

    finished = finished_shards(cache)
    if finished.skipped:
        limit.check(len(finished.skipped), finished.skipped[0]["row"], finished.skipped[0]["reason"])  # of all processes
    logger.info("%d of %d shards made in %.1f s", made, len(own), time.monotonic() - started)
    finished.require(out, own)
    _tell_what_is_left(out, finished, count, rank)
    return _frame(finished.lines)


def _tell_what_is_left(out: Path, finished: Finished, shards: int, rank: Rank) -> None:
    """Log how many shards other processes have to make; of several processes that end, the last one says what comes next."""
    lines, skipped = finished.lines, finished.skipped
    if finished.missing:
        logger.info("%s: %d of %d shards are still to be made by other processes", out, len(finished.missing), shards)
    elif write_skipped(out, skipped) or rank.index == 0:  # two may end together
        logger.info(
            "%s: complete: %d samples, %d skipped; next: headscore score %s --out RESULTS", out, len(lines), len(skipped), out
        )


def _frame(lines: list[tuple[int, int, int]]) -> pl.DataFrame:
    schema = {"row": pl.Int64, "tokens": pl.Int64, "shard": pl.Int64}
    return pl.DataFrame(lines, schema=schema, orient="row").with_row_index("sample")
