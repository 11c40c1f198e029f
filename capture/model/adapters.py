"""Merges a PEFT adapter into the model that it was trained on, and makes sure that all of it was merged.

peft goes on where weights are missing, with the ones that an untrained adapter has; here that is an error.
"""

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from ...data.errors import InputError, one_line, typed_line
from ...data.files.foreign import foreign_faults_told
from ...data.files.strict_json import parse_strictly
from ...data.prompts.rows import file_sha256
from ..inputs.local import ADAPTER_CONFIG as CONFIG

logger = logging.getLogger("headscore")

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
TOKENIZER = "tokenizer_config.json"
FILES = (CONFIG, WEIGHTS, "*token*", "vocab.*", "merges.txt", "*.model", "chat_template*")  # what is wanted from the hub

_NOT_OF_THE_VALUES = ("base_model_name_or_path", "revision", "peft_version", "inference_mode", "task_type", "auto_mapping")


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, and its configuration as peft reads it."""

    told: str  # the option and what it was given, for messages
    name: str
    folder: Path
    kind: str  # as peft calls it, such as LORA
    config: Any
    sha256: str  # of its weights and of what its configuration says about them, wherever it is
    base: str | None = None  # where `--model` named the adapter: the model it was found to be of

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved with it, which may have tokens that the base's does not have."""
        return (self.folder / TOKENIZER).is_file()

    def record(self) -> dict[str, Any]:
        """What `cache.json` says about it."""
        return {"name": self.name, "type": self.kind, "sha256": self.sha256, "base": self.base}


def read_adapter(told: str, name: str, folder: Path) -> Adapter:
    """The adapter in a folder that has an adapter_config.json; nothing of it is loaded yet.

    Raises InputError where peft is not installed, a file is missing or broken, or the adapter is of a kind that is no change
    of weights.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError(f"{told}: holds an adapter, for which peft is needed: pip install 'headscore[peft]'") from error
    content = _content(told, folder / CONFIG)
    kind = content.get("peft_type")
    if not isinstance(kind, str) or kind not in peft.PeftType.__members__:
        raise InputError(f"{told}: its {CONFIG} has a peft_type that peft {peft.__version__} does not know: {kind!r:.40}")
    if content.get("megatron_config"):  # then peft imports the module that the file names
        raise InputError(f"{told}: is an adapter for Megatron's layers, which headscore does not load")
    if content.get("layer_replication"):  # peft would merge what it adds to the copies of a layer into one
        raise InputError(f"{told}: replicates layers of its base (layer_replication), and cannot be merged into it")
    with foreign_faults_told(f"{told}: its {CONFIG} cannot be read"), _warnings_logged(told):
        config = peft.PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or kind in ("ADAPTION_PROMPT", "XLORA"):
        raise InputError(f"{told}: is a {kind} adapter, which is no change of weights and cannot be merged into the model")
    if not (folder / WEIGHTS).is_file():
        pickled = f"; {PICKLED} is pickled, which may run code: save it as safetensors" if (folder / PICKLED).exists() else ""
        raise InputError(f"{told}: has no {WEIGHTS}{pickled}")
    values = {key: value for key, value in content.items() if key not in _NOT_OF_THE_VALUES}
    values = {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in values.items()}  # were sets
    told_values = json.dumps(values, sort_keys=True)
    sha256 = hashlib.sha256(f"{file_sha256(folder / WEIGHTS)} {told_values}".encode()).hexdigest()
    return Adapter(told, name, folder, kind, config, sha256)


def _content(told: str, path: Path) -> dict[str, Any]:
    try:
        content = parse_strictly(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{told}: its {path.name} cannot be read: {typed_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{told}: its {path.name} holds no JSON object")
    return content


def merged(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The model with the adapter merged into its weights: what is added is computed in float32, the sum kept in their dtype.

    Raises InputError where the adapter does not fit the model, lacks weights, or has some that the model has no place for.
    """
    import peft

    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    adapter.config.inference_mode = True
    try:
        with _warnings_logged(adapter.told):
            _fit_embeddings(model, adapter)
            adapted = peft.PeftModel(model, adapter.config)
            renamed = getattr(model, "_checkpoint_conversion_mapping", {})
            loaded = adapted.load_adapter(str(adapter.folder), "default", torch_device="cpu", key_mapping=renamed)
            _require_all(adapter, loaded)
            _untie(model)
            plain = cast(PreTrainedModel, cast(Any, adapted).merge_and_unload())
    except (InputError, torch.OutOfMemoryError):
        raise
    except KeyError as error:
        raise InputError(f"{adapter.told}: its files lack the weights {one_line(error)}") from error
    except Exception as error:  # as above
        raise InputError(f"{adapter.told}: cannot be merged into the model: {typed_line(error)}") from error
    if any(type(module).__module__.startswith("peft.") for module in plain.modules()):
        raise InputError(f"{adapter.told}: a {adapter.kind} adapter cannot be merged into the model")
    for name, parameter in plain.named_parameters():  # peft keeps whole modules that were trained in float32
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    return plain


def _fit_embeddings(model: PreTrainedModel, adapter: Adapter) -> None:
    """Give the model as many embeddings as the adapter has, where tokens were added before it was trained."""
    embeddings = model.get_input_embeddings()
    holding = [name for name, module in model.named_modules() if getattr(module, "weight", None) is embeddings.weight]  # tied
    parts = ("", "base_layer.", "modules_to_save.")
    whole = {f"base_model.model.{name}.{part}weight" for name in holding for part in parts}
    try:
        with safe_open(adapter.folder / WEIGHTS, "pt") as weights:
            rows = {weights.get_slice(key).get_shape()[0] for key in whole.intersection(weights.keys())}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{adapter.told}: its {WEIGHTS} cannot be read: {typed_line(error)}") from error
    before = len(cast(torch.Tensor, embeddings.weight))
    if rows and rows != {before}:
        logger.info("%s: has embeddings of %d tokens, the model of %d: it gets the adapter's", adapter.told, min(rows), before)
        model.resize_token_embeddings(min(rows), mean_resizing=False)  # the new ones are overwritten


def _untie(model: PreTrainedModel) -> None:
    """Give an adapted language-modelling head weights of its own: what is merged into it would change the embeddings too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        layer = cast(Any, head.get_base_layer())
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())


def _require_all(adapter: Adapter, loaded: Any) -> None:
    # The bank of VB-LoRA is one parameter that is seen in every layer, and in the file once.
    missing = sorted(name for name in loaded.missing_keys if "vblora_vector_bank" not in name)
    if missing:
        raise InputError(f"{adapter.told}: {len(missing)} of its weights are not in {WEIGHTS}, such as {missing[0]}")
    # Embeddings that were trained as a whole are in the file twice where tokens were added to them.
    twice = ".modules_to_save." if adapter.config.modules_to_save else None
    if unexpected := sorted(name for name in loaded.unexpected_keys if not twice or twice not in name):
        raise InputError(
            f"{adapter.told}: {len(unexpected)} of its weights have no place in the model, such as {unexpected[0]}; "
            "it is of another model, or its configuration is of another adapter"
        )


@contextlib.contextmanager
def _warnings_logged(told: str) -> Iterator[None]:
    """Within this context what peft warns of is logged, in one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told_to_users = [warning for warning in caught if not issubclass(warning.category, DeprecationWarning | FutureWarning)]
    for text in dict.fromkeys(one_line(cast(Warning, warning.message))[:300] for warning in told_to_users):
        logger.warning("%s: peft: %s", told, text)
