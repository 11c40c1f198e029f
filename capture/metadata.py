"""What a capture writes about itself into `cache.json`; the same for every process that captures with the same settings."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedModel

from ..data.metadata import FORMAT, FORMAT_VERSION, Metadata
from ..data.settings import CaptureSettings
from ..data.tokens import Sample, marked_text
from . import models
from .samples import Prompts

EXAMPLE_TOKENS = 1000


def data_metadata(
    settings: CaptureSettings, dtype: str, tokenizer: Any, prompts: Prompts, shards: int, first: Sample
) -> Metadata:
    """All that is known before the model is loaded; `first` is the sample that is shown as an example."""
    maker = prompts.maker
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": {name: version(name) for name in ("headscore", "torch", "transformers")},
        "model": {
            "name": settings.model,
            "arguments": settings.model_arguments(),
            "tokenizer_fingerprint": models.tokenizer_fingerprint(tokenizer),
        },
        "data": {"path": settings.data, "sha256": prompts.sha256, "rows": prompts.rows_in_file, "style": maker.style},
        "templates": [{"name": t.name, "text": t.text} for t in (*maker.templates, prompts.chat) if t],
        "span_names": list(maker.span_names),
        "settings": {
            "max_samples": settings.max_samples,
            "max_length": settings.max_length,
            "seed": settings.seed,
            "queries": settings.queries,
            "dtype": dtype,
            "shard_size": settings.shard_size,
            "compression": settings.compression,
            "chat": {"system": settings.system, "generation_prompt": settings.generation_prompt} if settings.chat else None,
        },
        "plan": {"rows": len(prompts.drawn), "shards": shards},
        "example": _example(first, maker.span_names, tokenizer),
    }


def with_model(metadata: Metadata, model: PreTrainedModel, check: dict[str, Any]) -> Metadata:
    """The metadata with what the model and its self-check add."""
    kind = {"type": model.config.get_text_config().model_type, "fingerprint": models.model_fingerprint(model)}
    return metadata | {
        "model": metadata["model"] | kind,
        "dims": {"layers": len(check["layers"]), "heads": check["heads"], "kv_heads": check["kv_heads"]},
        "layers": check["layers"],
        "attention": check["attention"],
        "self_check": {name: check[name] for name in ("rows", "largest_difference", "shared_prefixes")},
    }


def _example(sample: Sample, span_names: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """A sample's marked text; what is beyond EXAMPLE_TOKENS is replaced by an ellipsis, since metadata is to be small."""
    shown = Sample(sample.row, sample.ids[:EXAMPLE_TOKENS], sample.span[:EXAMPLE_TOKENS])
    rest = [{"text": "…", "spans": []}] if len(sample.ids) > EXAMPLE_TOKENS else []
    return {"row": sample.row, "pieces": marked_text(shown, span_names, tokenizer) + rest}
