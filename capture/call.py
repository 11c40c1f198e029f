"""The library call of `headscore capture`, which checks what it can before it loads torch, as that takes seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.cache.folder import cache_folder, require_outside_caches
from ..data.errors import OptionError
from ..data.files.whole_file import given_path
from ..data.options.settings import CaptureSettings
from ..data.options.signatures import library_call
from ..data.text import logged_in_one_line
from .inputs.local import local_adapter, local_model, require_device_name
from .inputs.tokenising import Prompts, read_prompts

if TYPE_CHECKING:
    import polars as pl


@library_call(CaptureSettings)
def capture(
    out: str | Path, *, overwrite: bool = False, progress: Callable[[int, int], None] | None = None, **options: Any
) -> "pl.DataFrame":
    """Run a model once over a data file and store what the scores need; the library call of `headscore capture`.

    Args:
        out: the cache folder. If it holds shards of the same capture, only the missing ones are made. Under a launcher of
            several processes (torchrun, accelerate launch, srun or mpirun) each makes its share of the shards.
        overwrite: replace another capture that is in the folder.
        progress: called with (samples done, samples in all) of this process.
        options: the fields of CaptureSettings, by the names and with the defaults of the command line.

    Returns one line per sample that is stored by now: `sample`, `row` (0-based in the data file), `tokens`, `shard`.
    Raises InputError for options, data, model or an existing cache that cannot be used, RunError where the run fails.
    """
    folder, settings = given_path("--out", out), CaptureSettings(**options)
    require_outside_caches(folder)
    with cache_folder(folder):
        return capture_prompts(folder, settings, checked_prompts(settings), overwrite, progress)


def checked_prompts(settings: CaptureSettings) -> Prompts:
    """The prompts of a capture whose device, data, template, model and adapter are right as far as is known without torch.

    Raises InputError where they are not.
    """
    if settings.device_map and settings.device != "auto":
        raise OptionError("--device-map: chooses the devices itself; leave out --device")
    require_device_name(settings.device)
    prompts = read_prompts(settings)
    local_model("--model", settings.model, settings.revision)
    if settings.adapter:
        local_adapter(settings.adapter)
    return prompts


def capture_prompts(
    out: Path,
    settings: CaptureSettings,
    prompts: Prompts,
    overwrite: bool,
    progress: Callable[[int, int], None] | None,
) -> "pl.DataFrame":
    """Capture prompts that `checked_prompts` gave; see `capture`."""
    from .capturing import captured  # here, as it loads torch

    with logged_in_one_line("transformers", "huggingface_hub", "peft"):
        return captured(out, settings, prompts, overwrite, progress)
