"""What takes a ranking to other tools and needs both capture/ and score/: exports (one needs the model) and head masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .data.errors import InputError
from .data.files.whole_file import given_path, output_folder, write_bytes
from .data.files.whole_folder import whole_folder
from .data.head_parts import Groups
from .data.options.export_settings import ChoiceSettings, ExportSettings
from .data.options.signatures import library_call
from .score.export.chosen import choose, chosen_heads
from .score.export.formats import FORMATS
from .score.export.written import PROVENANCE_FILE, Exported, json_bytes, require_writable, write_export
from .score.results import read_results

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl
    from transformers import PreTrainedModel

    from .capture.ablating.head_masks import HeadMasks


@library_call(ExportSettings)
def export(results: str | Path, out: str | Path, *, overwrite: bool = False, **options: Any) -> Exported:
    """Write a ranking in a format that other tools load; the library call of `headscore export`. Only `checkpoint` needs torch.

    Args:
        results: a folder of results, of `score`, `run`, `control` or `import_list`.
        out: the file or folder, written whole or not at all. Its provenance is in it, or in a file beside it with its name and
            `.headscore.json`.
        overwrite: replace the file that `out` names, or the folder that an earlier export left there.
        options: the fields of ExportSettings, by the names and with the defaults of the command line.

    Raises InputError for options or results that cannot be used, where the format cannot say truly what is asked for, and where
    something is in the way.
    """
    settings = ExportSettings(**options)
    place, path = given_path("results", results), given_path("--out", out)
    require_writable(path)
    chosen = choose(read_results(place), settings, path)
    provenance = chosen.provenance
    with output_folder(path.parent):
        if settings.format == "checkpoint":
            from .capture.ablating.zeroed import write_checkpoint  # here, as it loads torch

            chosen.require_top()
            heads = chosen.query_heads
            with whole_folder(path, PROVENANCE_FILE, overwrite=overwrite) as folder:
                provenance["loaded"] = write_checkpoint(folder, chosen.results.record, heads, settings)
                write_bytes(folder / PROVENANCE_FILE, json_bytes({**provenance, "zeroed": heads}))
            meaning = (
                f"the model with the columns of W_O of {len(heads)} query heads set to zero: head-selective, and what "
                "headscore.ablated gives; nothing is smaller or faster"
            )
        else:
            content = FORMATS[settings.format](chosen)
            write_export(path, content, provenance, overwrite=overwrite)
            meaning = content.meaning
    return Exported(path, chosen.format, chosen.pairs, meaning, provenance)


@library_call(ChoiceSettings)
def head_masks(
    results: "str | Path | Iterable[tuple[int, int]] | pl.DataFrame",
    model: "PreTrainedModel",
    *,
    groups: Groups = "whole",
    **options: Any,
) -> "HeadMasks":
    """Find which rows and columns of a model's projections are those of chosen heads, to train or prune these alone.

    Args:
        results: a folder of results, or the heads themselves: pairs (layer, head), or a frame with such columns, such as
            `Scores.top()`, then without options.
        model: a causal language model of transformers, without adapters.
        groups: which rows of W_K and W_V count, as heads share them: `whole`, those of groups all of whose heads are chosen, so
            that what other heads compute stays as it is; or `any`, those of groups with at least one.
        options: the fields of ChoiceSettings, by the names and with the defaults of the command line: which heads of a folder
            of results are meant.

    Returns `rows`, bool [out] by the path of the module, of the query, key and value projections; and `columns`, bool [in], of
    the output projections. Raises InputError for heads that the model lacks, where none are chosen, and where its modules are
    not split by heads.
    """
    from .capture.ablating.head_masks import masks_of  # here, as it loads torch

    if groups not in get_args(Groups):
        raise InputError(f"head_masks: groups={groups!r:.40} is not one of {', '.join(get_args(Groups))}")
    if not callable(getattr(model, "named_modules", None)):
        raise InputError(f"head_masks: model={model!r:.40} is not a model; load one with transformers and give that")
    settings = ChoiceSettings(**options)
    if isinstance(results, str | Path):
        if settings.top_k is None and settings.top_k_per_layer is None:
            raise InputError("head_masks: which heads of the results? Give --top-k or --top-k-per-layer")
        heads = chosen_heads(read_results(given_path("results", results)), settings)
        return masks_of(model, heads, groups)
    if options:
        raise InputError("head_masks: options choose heads of a folder of results; give that, or the heads alone")
    return masks_of(model, results, groups)
