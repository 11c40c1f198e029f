"""Finds what `--model`, `--revision` and `--adapter` name: a folder, a .gguf file, the default model or a hub id."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.errors import InputError
from ..data.settings import DEFAULT_MODEL
from .adapters import CONFIG, FILES, Adapter, read_adapter
from .gguf import converted, default_gguf
from .hub import Pin, pin

logger = logging.getLogger("headscore")

MODEL_CONFIG = "config.json"
_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?"
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

    A model's place may hold an adapter instead of a model, which is merged into the base that it names, or beside it.

    Raises InputError for what does not exist, holds no model or adapter, or needs peft where that is not installed.
    """
    source = _found("--model", name, revision)
    source = replace(source, trust_remote_code=trust_remote_code, arguments=arguments or {})
    own = _own_adapter(source)
    if own is None:
        return replace(source, adapter=_of_base(_given_adapter(adapter), name)) if adapter else source
    if adapter and _given_adapter(adapter).folder.resolve() != own.folder.resolve():
        raise InputError(f"--adapter {adapter}: --model {name} holds an adapter already; give the model without it")
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
    base, advice = adapter.config.base_model_name_or_path, f"give --model BASE --adapter {source.name}"
    if not base:
        raise InputError(f"--model {source.name}: is an adapter that does not say of which model; {advice}")
    try:
        found = _found("its base", base, adapter.config.revision)
    except InputError as error:
        raise InputError(f"--model {source.name}: is an adapter, and {error}; {advice}") from error
    if not _holds_model(found):
        raise InputError(f"--model {source.name}: is an adapter, and its base {base} is no model; {advice}")
    logger.info("--model %s: is an adapter; it is merged into its base, %s", source.name, base)
    return replace(source, location=found.location, pin=found.pin, adapter=replace(adapter, base=base))


def _found(option: str, name: str, revision: str | None) -> Source:
    """Where a model, or what may be one, is."""
    location = _local(option, name)
    if location is None:
        pinned = pin(f"{option} {name}", name, revision)
        return Source(name, name, False, pin=pinned)
    if revision and option == "--model":  # that of an adapter's base may have been left over
        raise InputError(f"--revision {revision}: is for models of the hub, and --model {name} is on this machine")
    return Source(name, location, False)


def _local(option: str, name: str) -> str | None:
    """The file or folder that a name stands for; None for a hub id."""
    if name == DEFAULT_MODEL:
        return str(converted(default_gguf()))
    path = expanded(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InputError(f"{option} {name}: file not found")
        return str(converted(path))
    if path.is_dir():
        if not (path / MODEL_CONFIG).is_file() and not (path / CONFIG).is_file():
            raise InputError(f"{option} {name}: is not a model folder: it has no {MODEL_CONFIG}{_checkpoints(path)}")
        return str(path)
    if path.exists() or not re.fullmatch(_HUB_ID, name):
        raise InputError(f"{option} {name}: no such model: expected '{DEFAULT_MODEL}', a folder, a .gguf file or a hub id")
    return None


def expanded(name: str) -> Path:
    """A path with `~` put in full; an unknown user's is left alone, unlike `Path.expanduser` does."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - as said


def _checkpoints(folder: Path) -> str:
    """What to say of a trainer's folder: where its checkpoints are, the latest first."""
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if path.is_dir()]
    latest = sorted((step for step in steps if step.isdecimal()), key=int, reverse=True)
    return (
        f"; give one of its checkpoints: {', '.join(str(folder / f'checkpoint-{step}') for step in latest)}" if latest else ""
    )


def _holds_model(source: Source) -> bool:
    return bool(source.pin.file(MODEL_CONFIG)) if source.pin else (Path(source.location) / MODEL_CONFIG).is_file()


def _own_adapter(source: Source) -> Adapter | None:
    """The adapter in the place that `--model` names, if there is one."""
    told = f"--model {source.name}"
    if source.pin:
        return read_adapter(told, source.name, source.pin.folder(*FILES)) if source.pin.file(CONFIG) else None
    folder = Path(source.location)
    return read_adapter(told, source.name, folder) if (folder / CONFIG).is_file() else None


def _given_adapter(name: str) -> Adapter:
    """What `--adapter` names."""
    told, path = f"--adapter {name}", expanded(name)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise InputError(f"{told}: is not an adapter folder: it has no {CONFIG}{_checkpoints(path)}")
        return read_adapter(told, name, path)
    if path.exists() or not re.fullmatch(_HUB_ID, name):
        raise InputError(f"{told}: no such adapter: expected a folder or a hub id")
    pinned = pin(told, name)
    if not pinned.file(CONFIG):
        raise InputError(f"{told}: is not an adapter: it has no {CONFIG}")
    return read_adapter(told, name, pinned.folder(*FILES))
