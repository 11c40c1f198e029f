"""Loads the model and its tokenizer: a hub id, a local folder, a .gguf file, or the default model.

A GGUF file is dequantised once and kept as safetensors in the user's cache folder, since that takes most of a minute.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..data.errors import HeadscoreError, InputError, RunError, typed_line
from ..data.settings import DEFAULT_MODEL
from .gguf import converted, default_gguf, without_progress_bars
from .ranks import Rank

logger = logging.getLogger("headscore")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FINGERPRINT_VALUES = 4096  # taken from each parameter at most
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "architectures")  # parts of a configuration


@dataclass(frozen=True)
class Source:
    """Where model and tokenizer are loaded from, and the name the user gave."""

    name: str
    location: str
    trust_remote_code: bool
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of `--model-kwargs`, for the model itself

    def options(self) -> dict[str, Any]:
        """What every `from_pretrained` call is given."""
        return {"trust_remote_code": self.trust_remote_code}


def resolve(name: str, trust_remote_code: bool = False, arguments: Mapping[str, Any] | None = None) -> Source:
    """Find what `--model` names; converts a GGUF file on its first use.

    Raises InputError for a path that does not exist or holds no model.
    """
    return Source(name, _location(name), trust_remote_code, arguments or {})


def _location(name: str) -> str:
    if name == DEFAULT_MODEL:
        return str(converted(default_gguf()))
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - unlike Path's, it leaves an unknown user alone
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InputError(f"--model {name}: file not found")
        return str(converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"--model {name}: is not a model folder: it has no config.json")
        return str(path)
    if path.exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
        raise InputError(f"--model {name}: no such model: expected '{DEFAULT_MODEL}', a folder, a .gguf file or a hub id")
    return name


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
        raise InputError(f"--device: unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"--device: {name} asked for, but this machine has {count} CUDA device{'s' * (count != 1)}")
    if device.type == "cpu" and device.index:
        raise InputError(f"--device: {name}: there is one CPU; give cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device: {name} cannot be used on this machine; expected auto, cpu, cuda or cuda:N") from error
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
    """The model's tokenizer; InputError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(source.location, **source.options())
    except Exception as error:  # a broken file makes transformers raise whatever it stumbles over
        raise InputError(f"--model {source.name}: its tokenizer cannot be loaded: {typed_line(error)}") from error


def load_config(source: Source) -> Any:
    """The model's configuration; InputError where there is none, or it is of an encoder-decoder."""
    try:
        config = AutoConfig.from_pretrained(source.location, **source.options())
    except Exception as error:  # as above
        raise InputError(f"--model {source.name}: cannot be loaded as a causal language model: {typed_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"--model {source.name}: {config.model_type} is an encoder-decoder, not a causal language model")
    return config


def load_model(
    source: Source, dtype: str, device: torch.device, device_map: str | None = None, *, quantised: bool = False
) -> PreTrainedModel:
    """The decoder without its language-modelling head, in evaluation mode, on the device or spread by the device map.

    quantised: whether its linear layers are to be of another kind, which only transformers knows how to place.

    Raises InputError for what is not a causal language model and where weights are missing (transformers would go on with
    random ones), RunError where the model does not fit in memory.
    """
    options = {**source.arguments, **source.options(), "dtype": DTYPES[dtype], "output_loading_info": True}
    placed: Any = device_map or ({"": device} if quantised else None)  # quantised weights cannot be moved afterwards
    try:
        with without_progress_bars():
            model, loaded = cast(Any, AutoModelForCausalLM.from_pretrained(source.location, device_map=placed, **options))
        _require_all_weights(source, model, loaded)
        decoder = _decoder(model).eval()
        _require_no_offload(source, decoder)
        return decoder if placed else decoder.to(device)
    except HeadscoreError:
        raise
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"--model {source.name}: does not fit in the memory of {device} as {dtype}; "
            "--device-map auto spreads it over several GPUs"
        ) from error
    except Exception as error:  # as above; torch raises RuntimeError for weights of another shape
        raise InputError(f"--model {source.name}: cannot be loaded as a causal language model: {typed_line(error)}") from error


def _decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its language-modelling head; some architectures name another part, or the whole, as their decoder."""
    decoder = model.get_decoder()
    whole = decoder is model or not isinstance(decoder, PreTrainedModel)
    return cast(PreTrainedModel, model.base_model) if whole else decoder


def _require_no_offload(source: Source, model: PreTrainedModel) -> None:
    """Raises RunError where a device map left weights outside the GPUs, from where every batch would fetch them again."""
    outside = sum(parameter.device.type == "meta" for parameter in model.parameters())
    if outside:
        raise RunError(
            f"--model {source.name}: does not fit on the GPUs that this process sees: {outside} of its weights would have to "
            "stay in main memory or on disk; use more GPUs or a smaller --dtype"
        )


def _require_all_weights(source: Source, model: PreTrainedModel, loaded: dict[str, Any]) -> None:
    """Raises InputError where the files lack weights of the decoder; the language-modelling head is not needed."""
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    missing = [name for name in loaded["missing_keys"] if head is None or not name.startswith(f"{head}.")]
    missing += [str(entry[0] if isinstance(entry, tuple) else entry) for entry in loaded["mismatched_keys"]]
    if missing:
        raise InputError(
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
        raise InputError(
            f"--model {source.name}: its tokenizer makes token {highest_id}, but the model knows {rows}: they do not match"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; on the CPU torch raises a plain RuntimeError then."""
    cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or cpu


def model_fingerprint(model: PreTrainedModel) -> str:
    """Hex sha256 over the configuration and over every parameter's name, shape, dtype and up to 4096 evenly spaced values.

    Two trainings of a model differ in it; it is no proof against a crafted copy.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        values: Tensor = parameter.detach().flatten()
        values = values[:: max(1, -(-len(values) // _FINGERPRINT_VALUES))]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex sha256 over the tokenizer's full definition where it has one, else over its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()
