"""Writes the files of an analysis: each whole or not at all, and never over what another run has left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.errors import OptionError
from ...data.files.whole_file import write_bytes, write_text
from ..outputs import CONFIG_FILE, HEADS_PARQUET, require_same_run, yaml_text
from ..validation_files import is_validation


def write_analysis(
    folder: Path,
    files: Mapping[str, bytes | str | None],
    config: dict[str, Any],
    *,
    how_to_repeat: str,
    overwrite: bool,
) -> None:
    """Write the files of an analysis to `folder`, and last of all config.yaml, which says that they are of one run.

    Args:
        folder: that can be written, as within `results_folder`.
        files: contents by name; what is None is removed.
        config: the options, and the record.
        how_to_repeat: the command.
        overwrite: replace what another run has left.

    Raises InputError as `require_free`.
    """
    require_free(folder, list(files), config, overwrite)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_bytes(folder / name, content.encode() if isinstance(content, str) else content)
    write_text(folder / CONFIG_FILE, f"# Repeats this run: {how_to_repeat}\n{yaml_text(config)}")


def require_free(folder: Path, files: Sequence[str], config: dict[str, Any], overwrite: bool) -> None:
    """Raises InputError where a folder holds a ranking or a validation, or an analysis with other options."""
    if (folder / HEADS_PARQUET).exists() or is_validation(folder):
        raise OptionError(f"--out {folder}: holds the results of another command; give the analysis a folder of its own")
    require_same_run(folder, config, overwrite, [CONFIG_FILE, *files])
