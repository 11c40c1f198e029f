"""What a capture writes about itself into `cache.json`; the same for every process that captures with the same settings."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedModel

from ...data.cache.metadata import FORMAT, FORMAT_VERSION, SPAN_RULE, CaptureFacts, Dims, Example, ExampleTokens, Metadata
from ...data.options.settings import CaptureSettings
from ...data.prompts.alignment import token_texts
from ...data.prompts.tokens import MarkedPiece, Sample, marked_text
from ..checking.check_result import SelfCheck
from ..inputs.tokenising import Prompts
from ..model import models
from ..model.sources import Source

EXAMPLE_TOKENS = 1000
EXAMPLES = 3  # samples whose tokens are kept as texts
TOKENS_OF_AN_EXAMPLE = 300
TOKENS_OF_THE_ONLY_EXAMPLE = 1000  # finding the texts takes time that grows with the square of the length


def data_metadata(
    settings: CaptureSettings, dtype: str, tokenizer: Any, prompts: Prompts, shards: int, first: Sequence[Sample]
) -> Metadata:
    """All that is known before the model is loaded; `first` are the samples of which some are shown as examples."""
    maker = prompts.maker
    options: CaptureFacts = {
        "max_samples": settings.max_samples,
        "max_length": settings.max_length,
        "seed": settings.seed,
        "queries": settings.queries,
        "dtype": dtype,
        "shard_size": settings.shard_size,
        "chat": {"system": settings.system, "generation_prompt": settings.generation_prompt} if settings.chat else None,
        "special_tokens": prompts.without,
        "spans": SPAN_RULE,
    }
    if prompts.kept:
        options["keep"] = list(prompts.kept)
    if settings.control:
        options["control"] = settings.control
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
        "settings": options,
        "plan": {"rows": len(prompts.drawn), "shards": shards},
        "example": _example(first[0], maker.span_names, tokenizer),
        "examples": _examples(first, tokenizer),
    }


def with_model(metadata: Metadata, source: Source, model: PreTrainedModel, check: SelfCheck) -> Metadata:
    """The metadata with what the model, where it came from and its self-check add."""
    fingerprint = models.model_fingerprint(model, source.adapter.sha256 if source.adapter else "")
    dims: Dims = {"layers": len(check.layers), "heads": check.heads}
    if check.kv_heads is not None:
        dims["kv_heads"] = check.kv_heads
    if check.head_dim is not None:
        dims["head_dim"] = check.head_dim
    if (width := models.hidden_size(model)) is not None:
        dims["hidden_size"] = width
    kind = {"type": model.config.get_text_config().model_type, "fingerprint": fingerprint}
    return metadata | {
        "model": metadata["model"] | source.origin() | kind,
        "dims": dims,
        "layers": check.layers,
        "projections": check.projections,
        "attention": {"way": check.way, "full_rows": check.full_rows, "result_norms": check.result_norms},
        "self_check": check.metadata(),
    }


def _example(sample: Sample, span_names: Sequence[str], tokenizer: Any) -> Example:
    """A sample's marked text; what is beyond EXAMPLE_TOKENS is replaced by an ellipsis, since metadata is to be small."""
    shown = Sample(sample.row, sample.ids[:EXAMPLE_TOKENS], sample.span[:EXAMPLE_TOKENS])
    rest: list[MarkedPiece] = [{"text": "…", "spans": []}] if len(sample.ids) > EXAMPLE_TOKENS else []
    return {"row": sample.row, "pieces": marked_text(shown, span_names, tokenizer) + rest}


def _examples(samples: Sequence[Sample], tokenizer: Any) -> list[ExampleTokens]:
    """The first short samples with the text of each token, for those who score, who have no tokenizer.

    Where none is short it is the shortest, unless even that is too long: every shard carries the metadata.
    """
    chosen = [sample for sample in samples if len(sample.ids) <= TOKENS_OF_AN_EXAMPLE][:EXAMPLES]
    shortest = min(samples, key=lambda sample: len(sample.ids))
    if not chosen and len(shortest.ids) <= TOKENS_OF_THE_ONLY_EXAMPLE:
        chosen = [shortest]
    return [{"row": sample.row, "tokens": token_texts(sample.ids, tokenizer)} for sample in chosen]
