"""Makes the shards of a cache: batch by batch through the model, each shard written while the next is computed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data import cache as cache_format
from ..data.cache import Array, Metadata
from ..data.errors import InputError, RunError, one_line
from ..data.settings import CaptureSettings
from ..data.tokens import Sample
from .attention import Recorder, recording
from .batches import Batch, pad, plan_batches
from .models import is_out_of_memory
from .samples import ShardSamples

logger = logging.getLogger("headscore")

Progress = Callable[[int, int], None]
BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}


def capture_shards(
    out: Path,
    metadata: Metadata,
    shards: Sequence[ShardSamples],
    model: PreTrainedModel,
    settings: CaptureSettings,
    progress: Progress | None,
) -> None:
    """Make every shard that is not there whole. One is written while the next is computed, so at most two are in memory."""
    recorder = Recorder(settings.queries == "all_tokens")
    budget = settings.batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cpu"])
    total, done = sum(len(shard.samples) for shard in shards), 0
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer, recording(model, recorder), torch.inference_mode():
        for number, shard in enumerate(shards):
            samples = shard.samples
            path = cache_format.shard_path(out, number)
            if _is_whole(path, cache_format.Cache(out, metadata, (path,), len(shards))):
                done += len(samples)
            else:
                arrays = _empty_arrays(samples, metadata)
                for index in plan_batches([len(s.ids) for s in samples], budget, settings.batch_size):
                    for batch, recorded in _run_batch(model, recorder, pad(samples, index)):
                        _place(arrays, batch, recorded)
                        done += len(batch.index)
                        if progress:
                            progress(done, total)
                skipped = [{"row": entry.row, "reason": entry.reason} for entry in shard.skipped]
                if writing:
                    writing.result()
                writing = writer.submit(cache_format.write_shard, path, number, arrays, metadata, skipped)
            if progress:
                progress(done, total)
        if writing:
            writing.result()


def _is_whole(path: Path, cache: cache_format.Cache) -> bool:
    """Whether a finished shard of this capture is there, undamaged; any other is named in the log and made again."""
    if not path.exists():
        return False
    try:
        with cache_format.Shard(path) as shard:
            cache.require_own(shard)
            cache_format.verify_shard(shard)
    except InputError as error:
        logger.warning("%s; it is made again", error)
        return False
    return True


def _empty_arrays(samples: Sequence[Sample], metadata: Metadata) -> dict[str, Array]:
    """The shard's arrays: those known before the model runs filled, the others zero."""
    lengths = [len(sample.ids) for sample in samples]
    dims = {"n": len(samples), "n+1": len(samples) + 1, "t": sum(lengths)}
    dims |= {"L": metadata["dims"]["layers"], "H": metadata["dims"]["heads"]}
    arrays = {
        name: np.zeros([dims[axis] for axis in cache_format.ARRAYS[name][1]], cache_format.ARRAYS[name][0])
        for name in cache_format.array_names(metadata["settings"]["queries"])
    }
    arrays["layers/index"][:] = metadata["layers"]
    arrays["samples/offset"][1:] = np.cumsum(lengths)
    arrays["samples/row"][:] = [sample.row for sample in samples]
    if samples:
        arrays["tokens/id"][:] = np.concatenate([sample.ids for sample in samples])
        arrays["tokens/span"][:] = np.concatenate([sample.span for sample in samples])
    return arrays


def _run_batch(model: PreTrainedModel, recorder: Recorder, batch: Batch) -> Iterator[tuple[Batch, dict[str, Array]]]:
    """Run a batch and yield it with what was recorded; where memory runs out, its halves, down to one sample."""
    try:
        recorder.start(batch.lengths)
        model(input_ids=batch.ids.to(model.device), use_cache=False)
        recorded = recorder.take()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise RunError(
                f"{model.config.model_type}: failed on {len(batch.index)} samples: {one_line(error)[:300]}"
            ) from error
        if len(batch.index) == 1:
            raise RunError(
                f"out of memory on {model.device} with a single sample of {batch.lengths.max()} tokens; "
                "lower --max-length, or use a smaller --dtype"
            ) from error
    else:
        yield batch, recorded
        return
    recorder.clear()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    logger.warning("out of memory with %d samples; going on with half as many", len(batch.index))
    middle = len(batch.index) // 2
    for half in (slice(None, middle), slice(middle, None)):
        longest = int(batch.lengths[half].max())
        yield from _run_batch(model, recorder, Batch(batch.index[half], batch.ids[half, :longest], batch.lengths[half]))


def _place(arrays: dict[str, Array], batch: Batch, recorded: dict[str, Array]) -> None:
    """Copy a batch's results [L,B,H,…] to where its samples stand in the shard's arrays."""
    offsets = arrays["samples/offset"]
    for name, values in recorded.items():
        for position, i in enumerate(batch.index):
            if values.ndim == 4:
                start, stop = offsets[i], offsets[i + 1]
                arrays[name][:, :, start:stop] = values[:, position, :, : stop - start]
            else:
                arrays[name][:, :, i] = values[:, position]
