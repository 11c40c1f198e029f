"""The capture from data file to cache: rows → prompts (→ chat) → tokens → batches → recorded reductions → shards."""

import logging
import time
from pathlib import Path

import polars as pl

from ..data.cache import SHARDS_FOLDER, write_skipped
from ..data.files import remove_leftovers
from ..data.settings import CaptureSettings
from . import models
from .chat import in_chat
from .device import computing_on, profile_of
from .metadata import data_metadata, with_model
from .ranks import this_rank
from .resume import finished_shards, require_same_capture, start_cache
from .samples import Marker, Prompts, SkipLimit, encode_shard, encode_share, first_samples, without_special_tokens
from .selfcheck import checked_model
from .shards import Progress, ShardMaker
from .sources import resolve
from .space import require_space

logger = logging.getLogger("headscore")


def captured(
    out: Path, settings: CaptureSettings, prompts: Prompts, overwrite: bool, progress: Progress | None
) -> pl.DataFrame:
    """Make this process's share of the shards of a cache that are not there yet; see `headscore.capture` in `call.py`.

    prompts: as `call.checked_prompts` gives them. Returns one line per sample that is stored by now.
    """
    started, rank = time.monotonic(), this_rank()
    remove_leftovers(out / SHARDS_FOLDER)
    device = models.resolve_device(settings.device, rank)
    if settings.device_map and rank.beside > 1:
        logger.warning(
            "--device-map: each of the %d processes of this machine spreads its model over all GPUs that it sees; "
            "start one, or give each GPUs of its own (CUDA_VISIBLE_DEVICES)", rank.beside,
        )  # fmt: skip
    dtype = models.resolve_dtype(settings.dtype, device)
    source = resolve(
        settings.model, settings.trust_remote_code, settings.model_arguments(), settings.revision, settings.adapter
    )
    config = models.load_config(source)
    tokenizer = models.load_tokenizer(source)
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
    prompts_to_check = encoded or first
    metadata = data_metadata(settings, dtype, tokenizer, prompts, count, first)
    kept = require_same_capture(out, metadata, overwrite, own)
    require_space(out, own, kept, settings, config, profile_of(device).together)

    quantised = bool(getattr(config, "quantization_config", None) or source.arguments.get("quantization_config"))
    with computing_on(device):  # what a model's code makes as it loads may go to the current device
        model = models.load_model(source, dtype, device, settings.device_map, quantised=quantised)
    models.require_same_vocabulary(source, model, max(int(prompt.ids.max()) for prompt in prompts_to_check))
    logger.info("%s: %s on %s", settings.model, dtype, "several devices" if settings.device_map else device)
    with computing_on(device):
        checked = checked_model(model, prompts_to_check, dtype, settings)
        checked.check.log()
        cache = start_cache(out, with_model(metadata, source, model, checked.check), overwrite, rank)
        limit = SkipLimit(settings, len(prompts.drawn), len(share.skipped))
        made = ShardMaker(cache, own, marker, checked, settings, limit).run(progress)

    finished = finished_shards(cache)
    lines, skipped = finished.lines, finished.skipped
    if skipped:
        limit.check(len(skipped), skipped[0]["row"], skipped[0]["reason"])  # with those of other processes
    seconds = time.monotonic() - started
    logger.info("%d of %d shards made in %.1f s", made, len(own), seconds)
    finished.require(out, own)
    if finished.missing:
        logger.info("%s: %d of %d shards are still to be made by other processes", out, len(finished.missing), count)
    elif write_skipped(out, skipped) or rank.index == 0:  # of several processes, the last one (or two that end together)
        logger.info(
            "%s: complete: %d samples, %d skipped; next: headscore score %s --out RESULTS", out, len(lines), len(skipped), out
        )
    return _frame(lines)


def _frame(lines: list[tuple[int, int, int]]) -> pl.DataFrame:
    schema = {"row": pl.Int64, "tokens": pl.Int64, "shard": pl.Int64}
    return pl.DataFrame(lines, schema=schema, orient="row").with_row_index("sample")
