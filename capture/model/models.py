"""Loads the model and its tokenizer from where `sources.py` found them, with an adapter merged where there is one."""

import hashlib
import itertools
import json
import logging
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from ...data.errors import InputError, OptionError, RunError, typed_line
from ...data.files.foreign import crashes, foreign_faults_told
from ...data.prompts.swelling import require_short_insertions
from ..job.ranks import Rank
from .adapters import merged
from .gguf import without_progress_bars
from .hub import refusal
from .out_of_memory import is_out_of_memory
from .sources import Source

logger = logging.getLogger("headscore")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOKENIZER = "tokenizer.json"
MAX_TOKEN_ID = 1 << 22  # to write a vocabulary down takes time and memory for each number up to the highest
_PATH = "_headscore_path"  # attribute of a decoder
_FINGERPRINT_VALUES = 4096  # taken from each parameter at most
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "architectures")  # parts of a configuration


def resolve_device(name: str, rank: Rank) -> torch.device:
    """The device of `--device`; auto is the GPU where there is one, and each process of a machine takes the next GPU.

    Raises InputError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and rank.world > 1 and torch.cuda.device_count():
        name = f"cuda:{rank.local % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device: unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise OptionError(f"--device: {name} asked for, but this machine has {count} CUDA device{'s' * (count != 1)}")
    if device.type == "cpu" and device.index:
        raise OptionError(f"--device: {name}: there is one CPU; give cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"--device: {name} cannot be used on this machine; expected auto, cpu, cuda or cuda:N") from error
    return device


def resolve_dtype(name: str, device: torch.device) -> str:
    """fp32, fp16 or bf16; auto is fp32 except on a GPU, where it is bf16 if the GPU has it, else fp16."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def load_tokenizer(source: Source) -> Any:
    """The tokenizer that was saved with the adapter, else the model's; InputError where there is none that can be used."""
    options, location = source.options(), source.location
    if source.adapter and source.adapter.has_tokenizer:
        options, location = {"trust_remote_code": source.trust_remote_code}, str(source.adapter.folder)
        logger.info("%s: its own tokenizer is used", source.adapter.told)
    elif source.pin:
        source.pin.file(TOKENIZER)  # so that it is there to be tried
    told = source.adapter.told if location != source.location and source.adapter else f"--model {source.name}"
    if crashes(lambda: AutoTokenizer.from_pretrained(location, **options | {"local_files_only": True})):
        raise InputError(f"{told}: its tokenizer cannot be loaded: it crashes the tokenizers library")
    with foreign_faults_told(f"{told}: its tokenizer cannot be loaded", _why):
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        highest = max(tokenizer.get_vocab().values(), default=0)
        require_short_insertions(tokenizer, f"{told}: its tokenizer cannot be used: ")
    if not 0 <= highest <= MAX_TOKEN_ID:
        raise InputError(f"{told}: its tokenizer has a token of number {highest}, and a model has at most {MAX_TOKEN_ID}")
    return tokenizer


def _why(error: BaseException) -> str:
    return refusal(error) or typed_line(error)


def load_config(source: Source) -> Any:
    """The model's configuration; InputError where there is none, or it is of another kind of model."""
    with foreign_faults_told(f"--model {source.name}", _why_not_loaded, hold_stderr=False):
        config = AutoConfig.from_pretrained(source.location, **source.options())
    if getattr(config, "is_encoder_decoder", False):
        raise OptionError(f"--model {source.name}: {config.model_type} is an encoder-decoder, not a causal language model")
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if not causal and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise OptionError(f"--model {source.name}: {config.model_type} is a vision-language model, not a causal language model")
    return config


def _why_not_loaded(error: BaseException) -> str:
    return refusal(error) or f"cannot be loaded as a causal language model: {typed_line(error)}"


def load_model(
    source: Source,
    dtype: str,
    device: torch.device,
    device_map: str | None = None,
    *,
    quantised: bool = False,
    with_head: bool = False,
) -> PreTrainedModel:
    """The decoder in evaluation mode, with the adapter merged into it.

    Args:
        source: where the model comes from.
        dtype: fp32, fp16 or bf16.
        device: that it is moved to.
        device_map: how it is spread over several devices instead, as transformers takes it.
        quantised: whether its linear layers are quantised, so that only transformers can place them on a device.
        with_head: give the whole model, with its language-modelling head, instead of the decoder.

    Raises InputError for what is not a causal language model and where weights are missing (transformers would go on with
    random ones), RunError where the model does not fit in memory.
    """
    if quantised and source.adapter:  # merged weights would be quantised again, and the adapter rounded away with it
        raise InputError(f"{source.adapter.told}: cannot be merged into a quantised model; give one that is not as --model")
    options = {**source.model_options(), "dtype": DTYPES[dtype], "output_loading_info": True}
    # Quantised weights cannot be moved afterwards; others need not pass through the memory of the machine. An adapter is merged
    # there, in the model's own precision.
    straight = quantised or (device.type == "cuda" and not source.adapter)
    placed: Any = device_map or ({"": device} if straight else None)
    with foreign_faults_told(f"--model {source.name}", _why_not_loaded, hold_stderr=False):
        try:
            with without_progress_bars():
                model, loaded = cast(Any, AutoModelForCausalLM.from_pretrained(source.location, device_map=placed, **options))
            _require_all_weights(source, model, loaded, with_head)
            whole = (merged(model, source.adapter) if source.adapter else model).eval()
            wanted = whole if with_head else decoder_of(whole)
            _require_no_offload(source, wanted)
            return wanted if placed else cast(PreTrainedModel, cast(nn.Module, wanted).to(device))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"--model {source.name}: does not fit in the memory of {device} as {dtype}; "
                "--device-map auto spreads it over several GPUs"
            ) from error


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its language-modelling head, itself where it has none; some name another part as their decoder.

    It remembers its path in the whole model.
    """
    decoder = model.get_decoder()
    whole = decoder is model or not isinstance(decoder, PreTrainedModel)
    decoder = cast(PreTrainedModel, model.base_model if whole else decoder)
    if decoder is not model or not hasattr(decoder, _PATH):  # it may be called on what it gave
        setattr(decoder, _PATH, next(name for name, module in model.named_modules() if module is decoder))
    return decoder


def path_in_whole(decoder: PreTrainedModel) -> str:
    """Where a decoder that was loaded is in the model with its head, such as `model`; empty where it is all of it."""
    return str(getattr(decoder, _PATH, ""))


def hidden_size(model: PreTrainedModel) -> int | None:
    """The width of the residual stream as the configuration tells it, None where it does not."""
    try:
        size = getattr(model.config.get_text_config(), "hidden_size", None)
    except RuntimeError:  # transformers refuses to name one number where layers differ in it
        return None
    return size if type(size) is int else None


def _require_no_offload(source: Source, model: PreTrainedModel) -> None:
    """Raises RunError where a device map left weights outside the GPUs, from where every batch would fetch them again."""
    outside = sum(parameter.device.type == "meta" for parameter in model.parameters())
    if outside:
        raise RunError(
            f"--model {source.name}: does not fit on the GPUs that this process sees: {outside} of its weights would have to "
            "stay in main memory or on disk; use more GPUs or a smaller --dtype"
        )


def _require_all_weights(source: Source, model: PreTrainedModel, loaded: dict[str, Any], with_head: bool) -> None:
    """Raises InputError where the files lack weights of the decoder, or of the language-modelling head where it is needed."""
    output = None if with_head else model.get_output_embeddings()
    head = next((name for name, module in model.named_modules() if output is not None and module is output), None)
    missing = [name for name in loaded["missing_keys"] if head is None or not name.startswith(f"{head}.")]
    missing += [str(entry[0] if isinstance(entry, tuple) else entry) for entry in loaded["mismatched_keys"]]
    if missing:
        raise OptionError(
            f"--model {source.name}: {len(missing)} weights of the model are not in its files or have another shape, "
            f"such as {sorted(missing)[0]}"
        )
    if loaded["unexpected_keys"]:
        names = sorted(loaded["unexpected_keys"])
        logger.warning("%s: %d weights in its files are not used, such as %s", source.name, len(names), names[0])


def require_same_vocabulary(source: Source, model: PreTrainedModel, highest_id: int) -> None:
    """Raises InputError where the tokenizer makes token ids that the model has no embedding for."""
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    if highest_id >= rows:
        raise OptionError(
            f"--model {source.name}: its tokenizer makes token {highest_id}, but the model knows {rows}: they do not match; "
            "give a model with its own tokenizer"
        )


def first_not_finite(model: PreTrainedModel) -> str | None:
    """The name of the first parameter or buffer that holds NaN or infinite values, None if there is none.

    Buffers count too, as some models keep there what was trained; but one may hold -inf, for masks.
    """
    for name, values in itertools.chain(model.named_parameters(), model.named_buffers()):
        if values.is_floating_point():
            usual = values.float()  # of float8, too, which has no isfinite
            masks = usual.isneginf() & (not isinstance(values, nn.Parameter))
            if not bool((usual.isfinite() | masks).all()):
                return name
    return None


def model_fingerprint(model: PreTrainedModel, adapter_sha256: str = "") -> str:
    """Hex sha256 over the configuration and over every parameter's name, shape, dtype and up to 4096 evenly spaced values.

    Two trainings of a model differ in it; it is no proof against a crafted copy. adapter_sha256: of the adapter that was merged
    into it, which may have changed none of those values.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode() + adapter_sha256.encode())
    for name, parameter in model.named_parameters():
        values: Tensor = parameter.detach().flatten()
        values = values[:: max(1, -(-len(values) // _FINGERPRINT_VALUES))]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex sha256 over the tokenizer's full definition where it has one, else over its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with foreign_faults_told("--model: its tokenizer cannot be written down"):
        text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()
