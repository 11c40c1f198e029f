"""Finds what `--model`, `--revision` and `--adapter` name: a folder, a .gguf file, the default model or a hub id."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...data.errors import InputError, OptionError
from ..inputs.local import ADAPTER_CONFIG, MODEL_CONFIG, local_adapter, local_model
from .adapters import FILES, Adapter, read_adapter
from .gguf import converted
from .hub import Pin, pin

logger = logging.getLogger("headscore")

_NOWHERE = "applied-by-headscore"  # a folder that no model has


@dataclass(frozen=True)
class Source:
    """Where model, tokenizer and adapter are loaded from, and the name the user gave."""

    name: str
    location: str
    trust_remote_code: bool
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of `--model-kwargs`, for the model itself
    pin: Pin | None = None  # where the model is on the hub
    adapter: Adapter | None = None

    def options(self) -> dict[str, Any]:
        """What every `from_pretrained` of the model's own files is given."""
        return {"trust_remote_code": self.trust_remote_code, **(self.pin.options() if self.pin else {})}

    def model_options(self) -> dict[str, Any]:
        """What `from_pretrained` of the model is given besides: no attention of its own choice, and no adapter.

        A configuration may ask for an attention that is not installed. transformers would add an adapter that it finds beside
        the weights, without merging it.
        """
        offline = {"local_files_only": True} if self.pin and self.pin.local_only else {}
        return {
            **self.arguments,
            **self.options(),
            "_attn_implementation": None,
            "adapter_kwargs": {"subfolder": _NOWHERE, **offline},
        }

    def origin(self) -> dict[str, Any]:
        """What `cache.json` says about where it came from."""
        return {
            "revision": self.pin and self.pin.revision.initial,
            "commit": self.pin and self.pin.revision.resolved,
            "adapter": self.adapter and self.adapter.record(),
        }


def resolve(
    name: str,
    trust_remote_code: bool = False,
    arguments: Mapping[str, Any] | None = None,
    revision: str | None = None,
    adapter: str | None = None,
) -> Source:
    """Find what the options name; converts a GGUF file on its first use, and asks the hub for what is there.

    A model's place may hold an adapter: beside a model, or instead of one; then it is merged into the base that it names.

    Raises InputError for what does not exist, holds no model or adapter, or needs peft where that is not installed.
    """
    source = _found("--model", name, revision)
    source = replace(source, trust_remote_code=trust_remote_code, arguments=arguments or {})
    own = _own_adapter(source)
    if own is None:
        return replace(source, adapter=_of_base(_given_adapter(adapter), name)) if adapter else source
    if adapter and _given_adapter(adapter).folder.resolve() != own.folder.resolve():
        raise OptionError(f"--adapter {adapter}: --model {name} holds an adapter already; give the model without it")
    if _holds_model(source):
        logger.info("--model %s: the adapter beside its weights is merged into them", name)
        return replace(source, adapter=own)
    return _with_base(source, own)


def _of_base(adapter: Adapter, model: str) -> Adapter:
    """The adapter, after saying so where it names another base; the same model has other names on other machines."""
    named = adapter.config.base_model_name_or_path
    if named and named != model:
        logger.info("%s: was trained on %s, and is merged into %s", adapter.told, named, model)
    return adapter


def _with_base(source: Source, adapter: Adapter) -> Source:
    """The source of the model that an adapter says it was trained on."""
    base, advice = adapter.config.base_model_name_or_path, f"give the base as --model and {source.name} as --adapter"
    if not base:
        raise OptionError(f"--model {source.name}: is an adapter that does not say of which model; {advice}")
    try:
        found = _found("its base", base, adapter.config.revision)
    except InputError as error:
        raise OptionError(f"--model {source.name}: is an adapter, and {error.message}; {advice}") from error
    if not _holds_model(found):
        raise OptionError(f"--model {source.name}: is an adapter, and its base {base} is not a model; {advice}")
    logger.info("--model %s: is an adapter; it is merged into its base, %s", source.name, base)
    return replace(source, location=found.location, pin=found.pin, adapter=replace(adapter, base=base))


def _found(option: str, name: str, revision: str | None) -> Source:
    """Where a model, or what may be one, is."""
    path = local_model(option, name, revision if option == "--model" else None)  # that of a base may have been left over
    if path is None:
        pinned = pin(f"{option} {name}", name, revision)
        return Source(name, name, False, pin=pinned)
    return Source(name, str(path if path.is_dir() else converted(path)), False)


def _holds_model(source: Source) -> bool:
    return bool(source.pin.file(MODEL_CONFIG)) if source.pin else (Path(source.location) / MODEL_CONFIG).is_file()


def _own_adapter(source: Source) -> Adapter | None:
    """The adapter in the place that `--model` names, if there is one."""
    told = f"--model {source.name}"
    if source.pin:
        return read_adapter(told, source.name, source.pin.folder(*FILES)) if source.pin.file(ADAPTER_CONFIG) else None
    folder = Path(source.location)
    return read_adapter(told, source.name, folder) if (folder / ADAPTER_CONFIG).is_file() else None


def _given_adapter(name: str) -> Adapter:
    """What `--adapter` names."""
    told, path = f"--adapter {name}", local_adapter(name)
    if path is not None:
        return read_adapter(told, name, path)
    pinned = pin(told, name)
    if not pinned.file(ADAPTER_CONFIG):
        raise InputError(f"{told}: is not an adapter: it has no {ADAPTER_CONFIG}")
    return read_adapter(told, name, pinned.folder(*FILES))
