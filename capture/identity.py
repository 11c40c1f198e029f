"""What a capture is: the metadata of its cache, and whether an existing cache is of the same capture."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedModel

from ..data import cache as cache_format
from ..data.cache import Metadata
from ..data.settings import CaptureSettings
from ..data.tokens import Sample, marked_text
from . import models
from .samples import Prompts, ShardSamples

EXAMPLE_TOKENS = 1000


def capture_metadata(
    settings: CaptureSettings,
    dtype: str,
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Prompts,
    shards: Sequence[ShardSamples],
    check: dict[str, Any],
) -> Metadata:
    """The content of cache.json; the same for every process that captures with the same settings."""
    maker = prompts.maker
    config = model.config.get_text_config()
    first = next(shard.samples[0] for shard in shards if shard.samples)
    return {
        "format": cache_format.FORMAT,
        "format_version": cache_format.FORMAT_VERSION,
        "versions": {name: version(name) for name in ("headscore", "torch", "transformers")},
        "model": {
            "name": settings.model,
            "type": config.model_type,
            "fingerprint": models.model_fingerprint(model),
            "tokenizer_fingerprint": models.tokenizer_fingerprint(tokenizer),
        },
        "data": {"path": settings.data, "sha256": prompts.sha256, "rows": prompts.rows_in_file, "style": maker.style},
        "templates": [{"name": template.name, "text": template.text} for template in maker.templates],
        "span_names": list(maker.span_names),
        "settings": {
            "max_samples": settings.max_samples,
            "max_length": settings.max_length,
            "seed": settings.seed,
            "queries": settings.queries,
            "dtype": dtype,
            "shard_size": settings.shard_size,
            "compression": settings.compression,
        },
        "dims": {"layers": len(check["layers"]), "heads": check["heads"], "kv_heads": check["kv_heads"]},
        "layers": check["layers"],
        "plan": {"rows": len(prompts.drawn), "shards": len(shards)},
        "self_check": {name: check[name] for name in ("rows", "largest_difference")},
        "example": _example(first, maker.span_names, tokenizer),
    }


def _example(sample: Sample, span_names: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """A sample's marked text; what is beyond EXAMPLE_TOKENS is replaced by an ellipsis, since metadata is to be small."""
    shown = Sample(sample.row, sample.ids[:EXAMPLE_TOKENS], sample.span[:EXAMPLE_TOKENS])
    rest = [{"text": "…", "spans": []}] if len(sample.ids) > EXAMPLE_TOKENS else []
    return {"row": sample.row, "pieces": marked_text(shown, span_names, tokenizer) + rest}


_SAME = (
    ("model", "fingerprint"),
    ("model", "tokenizer_fingerprint"),
    ("data", "sha256"),
    ("templates",),
    ("dims",),
    ("layers",),
    ("span_names",),
    ("plan",),
    *(("settings", name) for name in ("max_samples", "max_length", "seed", "queries", "dtype", "shard_size", "compression")),
)


def differences(existing: Metadata, wanted: Metadata) -> list[str]:
    """What makes two captures different ones, one phrase per difference."""

    def at(metadata: Metadata, keys: Sequence[str]) -> Any:
        value: Any = metadata
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    pairs = [(" ".join(keys), at(existing, keys), at(wanted, keys)) for keys in _SAME]
    return [f"{name} was {old!s:.40}, now {new!s:.40}" for name, old, new in pairs if old != new]
