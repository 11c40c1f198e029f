"""Tells how large a cache will be before the model is loaded, and stops where the disk has no room for it."""

import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...data.cache.folder import shard_files
from ...data.cache.kept_columns import stored_bytes
from ...data.cache.layout import too_large
from ...data.cache.shard import shard_bytes
from ...data.errors import OptionError
from ...data.options.settings import CaptureSettings
from ..inputs.tokenising import EncodedShard
from ..model.memory import free_bytes

logger = logging.getLogger("headscore")

METADATA_BYTES = 1 << 16  # more than a shard's attributes and HDF5's own structures take


def require_space(
    out: Path,
    shards: Mapping[int, EncodedShard],
    kept: Collection[int],
    settings: CaptureSettings,
    config: Any,
    together: int = 0,
) -> None:
    """Log the size of the shards that are to be made and the free space.

    Args:
        out: the cache folder.
        shards: this process's, by number.
        kept: numbers of the shards that stay. The others are replaced, so their space counts as free.
        settings: of the capture.
        config: the model's configuration. Where it does not give the numbers of layers and heads, the space is not checked,
            which the log says.
        together: tokens of the shards that are run together.

    Raises InputError where the space is too little, memory does not hold the shards in hand, or a shard would have more tokens
    than the format allows.
    """
    text = config.get_text_config()
    try:
        layers, heads = (getattr(text, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    except RuntimeError:  # transformers refuses to name one number where layers differ in it
        layers, heads = None, None
    missing = [shard for number, shard in shards.items() if number not in kept]
    _require_small(missing, heads if type(heads) is int else 1)
    free = shutil.disk_usage(out).free
    if type(layers) is not int or type(heads) is not int:
        unknown = "the model's configuration does not tell their size"
        logger.info("%s: %d shards to make, %s free; %s", out, len(missing), human_size(free), unknown)
        return
    lengths = [[len(prompt.ids) for prompt in shard.prompts] for shard in missing]
    sizes = [shard_bytes(settings.queries, len(each), sum(each), layers, heads) + METADATA_BYTES for each in lengths]
    _require_memory(sizes, sum(map(sum, lengths)), together, max(map(len, lengths), default=1))
    needed = sum(sizes) + sum(stored_bytes(shard.kept) for shard in missing)
    logger.info("%s: about %s in %d shards to make, %s free", out, human_size(needed), len(missing), human_size(free))
    replaced = sum(path.stat().st_size for path in shard_files(out) if int(path.stem) not in kept)
    if needed > free + replaced:
        raise OptionError(
            f"--out {out}: about {human_size(needed)} are needed for {len(missing)} shards and {human_size(free)} are free; "
            "make room, give another --out, or fewer --max-samples"
        )


def _require_memory(sizes: Sequence[int], tokens: int, together: int, rows: int) -> None:
    """Raises InputError where memory does not hold shards of such sizes: those in hand three times, and a file."""
    largest = max(sizes, default=0)
    in_hand = max(largest, sum(sizes) * min(together, tokens) // max(1, tokens))
    needed, free = 3 * in_hand + largest, free_bytes(torch.device("cpu"))
    logger.info("about %s of main memory for the shards in hand, %s free", human_size(needed), human_size(free))
    if needed > free:
        advice = f"--shard-size {max(1, rows * free // (2 * needed))}, or " if rows > 1 else ""
        raise OptionError(
            f"--shard-size: the shards in hand need about {human_size(needed)} of main memory, and {human_size(free)} are free "
            f"for this process; give {advice}a smaller --max-length"
        )


def _require_small(shards: Iterable[EncodedShard], heads: int) -> None:
    """Raises InputError where a shard would have more tokens than the format allows."""
    for lengths in ([len(prompt.ids) for prompt in shard.prompts] for shard in shards):
        if fault := too_large(max(lengths, default=0), sum(lengths), heads):
            raise OptionError(f"--max-length, --shard-size: a shard would have {fault}; lower one of them")


def human_size(count: int) -> str:
    """Bytes for people: '61.2 MB', '1.2 GB'."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
