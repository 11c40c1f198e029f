"""Turns a GGUF file into a safetensors folder, once: dequantising takes most of a minute, so the result is kept."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ...data.errors import OptionError, one_line
from ...data.files.foreign import foreign_faults_told
from ...data.files.whole_file import locks_work, user_cache
from ...data.prompts.rows import file_sha256

logger = logging.getLogger("headscore")


def converted(gguf: Path) -> Path:
    """A folder with the GGUF file's model as fp32 safetensors and its tokenizer; made once per content of the file.

    Of several processes one makes it and the others wait; where files cannot be locked, each makes its own and the first stays.
    Raises InputError where that folder cannot be written, or there is no home for it.
    """
    final = user_cache() / "models" / f"{gguf.stem}-{file_sha256(gguf)[:16]}"
    temporary = final.with_name(f".converting-{final.name}")
    try:
        if final.is_dir():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        if not locks_work(final.parent):
            _convert_whole(gguf, temporary.with_name(f"{temporary.name}-{uuid4().hex}"), final)
            return final
        lock = FileLock(f"{temporary}.lock")
        lock.acquire()
    except OSError as error:
        raise OptionError(
            f"--model {gguf.name}: is kept as safetensors in {final.parent}, which cannot be written ({one_line(error)}); "
            "set XDG_CACHE_HOME to a folder that can"
        ) from error
    with lock:
        if not final.is_dir():
            _convert_whole(gguf, temporary, final)
    return final


def _convert_whole(gguf: Path, temporary: Path, final: Path) -> None:
    """Make `final` whole or not at all, by way of `temporary`, which nobody else uses."""
    logger.info("converting %s to safetensors in %s (once, about a minute for a small model)", gguf.name, final)
    try:
        with foreign_faults_told(f"--model {gguf}: cannot be converted", hold_stderr=False):
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
            _convert(gguf, temporary)
            try:
                temporary.rename(final)
            except OSError:
                if not final.is_dir():  # else another process was faster, where there are no locks
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **options)
    # The weights are plain fp32 now; while they still count as quantised, save_pretrained refuses them.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silences transformers' own bars for what takes a second or two."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
