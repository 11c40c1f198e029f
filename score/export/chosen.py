"""Which heads of a ranking an export is of, and what it must know about them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import polars as pl

from ... import __version__
from ...data.cache.metadata import MAX_HEADS, MAX_LAYERS
from ...data.cache.model_shape import ModelShape
from ...data.errors import InputError, OptionError
from ...data.options.export_settings import ChoiceSettings, ExportSettings, GroupBy
from ...data.options.settings import Unit
from ..outputs import CONFIG_FILE
from ..results import COMBINED, Results

Head = tuple[int, int]

# Of a record: arguments of a model may hold what is not for others.
_TOLD: Mapping[str, Sequence[str]] = {
    "model": ("name", "revision", "commit", "adapter", "type", "fingerprint", "tokenizer_fingerprint"),
    "data": ("path", "sha256", "rows", "style"),
    "control": ("kind", "signals", "samples", "data"),
}
_TOLD_INSIDE = ("name", "type", "sha256", "base", "path", "rows")
_RANKING = ("score_query_mode", "head_output", "task_span", "fusion", "norm_mode", "within", "by", "measure", "signal")


@dataclass(frozen=True)
class Chosen:
    """Heads, or groups of them, in the order of a ranking.

    Args:
        results: the ranking.
        settings: of the export.
        path: where it goes.
        unit: what the heads are: `head` or `kv_head`.
        heads: all of the ranking, best first: `layer`, `head` (or `kv_head`), `score`, `rank`.
        top: those that were chosen of them; all where none were.
    """

    results: Results
    settings: ExportSettings
    path: Path
    unit: Unit
    heads: pl.DataFrame
    top: pl.DataFrame

    @property
    def format(self) -> str:
        """The name of the format as options spell it."""
        return self.settings.format.replace("_", "-")

    @property
    def signal(self) -> str:
        """What the heads are ordered by: `combined`, or a signal, with - before it where it is turned around."""
        return self.settings.signal or COMBINED

    @property
    def pairs(self) -> list[Head]:
        """The (layer, head) or (layer, kv_head) that were chosen, best first."""
        return list(self.top.select("layer", self.unit).iter_rows())

    @property
    def query_heads(self) -> list[Head]:
        """The (layer, head) that were chosen, best first; of groups, all of their heads. Raises InputError as `shape`."""
        if self.unit == "head":
            return self.pairs
        shape = self.shape
        if shape.kv_heads is None:
            raise OptionError(f"--format {self.format}: {self.results.folder} does not say which heads are in a group")
        size = shape.heads // shape.kv_heads
        return [(layer, head) for layer, group in self.pairs for head in range(group * size, (group + 1) * size)]

    @cached_property
    def shape(self) -> ModelShape:
        """The model's shape; InputError where the ranking does not tell it, or tells another than its heads have."""
        shape, folder = self.results.shape, self.results.folder
        if shape is None:
            known = "is an imported list, which does not tell" if self.results.imported else "is too old to tell"
            again = "export a ranking of headscore score" if self.results.imported else "run headscore score on its cache again"
            raise OptionError(f"--format {self.format}: {folder} {known} the shape of the model; {again}")
        units = shape.heads if self.results.unit == "head" else shape.kv_heads
        expected = {(layer, unit) for layer in shape.layers for unit in range(units or 0)}
        if expected != set(self.results.heads.select("layer", self.results.unit).iter_rows()):
            raise InputError(f"{folder / CONFIG_FILE}: its record has another shape than its heads; run headscore score again")
        return shape

    def widths(self) -> tuple[int, int]:
        """D and M: the width of a head's z, and of the residual stream; InputError where either is not known."""
        shape = self.shape
        if shape.head_dim is None or shape.hidden_size is None:
            raise OptionError(
                f"--format {self.format}: {self.results.folder} does not tell how wide heads and residual stream are, or its "
                "layers differ in it"
            )
        return shape.head_dim, shape.hidden_size

    def require_top(self) -> None:
        """Raises InputError where no heads were chosen."""
        if self.settings.top_k is None and self.settings.top_k_per_layer is None:
            raise OptionError(f"--format {self.format}: writes chosen heads; give --top-k or --top-k-per-layer")

    def require_all(self) -> None:
        """Raises InputError where heads were chosen, of a format that is of all of them."""
        if self.settings.top_k is not None or self.settings.top_k_per_layer is not None:
            option = "--top-k" if self.settings.top_k is not None else "--top-k-per-layer"
            raise OptionError(
                f"--format {self.format}: writes all heads, of which its reader takes a share; leave out {option}"
            )

    def require_query_heads(self) -> None:
        """Raises InputError where groups are ranked, of a format that lists heads."""
        if self.unit != "head":
            advice = "leave out --by" if self.results.unit == "head" else "score with --by head"
            raise OptionError(f"--format {self.format}: lists query heads, and this is a ranking of groups of them; {advice}")

    def require_suffix(self, *suffixes: str) -> None:
        """Raises InputError where the path ends in none of these, by which the format's readers go."""
        if self.path.suffix.lower() not in suffixes:
            raise OptionError(f"--out {self.path}: a {self.format} file must end in {' or '.join(suffixes)}")

    def matrix(self) -> tuple[int, int]:
        """L and how many units each layer has, of formats that are matrices of them.

        Raises InputError where the layers are not 0…L−1, as those of hybrids, or a layer lacks some.
        """
        layers, units = (int(self.heads[name].max() or 0) + 1 for name in ("layer", self.unit))  # type: ignore[arg-type]
        there = set(self.heads["layer"])
        if missing := [layer for layer in range(layers) if layer not in there]:
            told = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            raise OptionError(
                f"--format {self.format}: has a line for every layer of the model, and layers {told} have no heads in the "
                "ranking; export a list, such as csv"
            )
        if not self.results.whole or len(self.heads) != layers * units:
            raise OptionError(f"--format {self.format}: needs all heads of the model, and {self.results.folder} has some")
        return layers, units

    def by_group(self) -> "Chosen":
        """The same as a ranking of groups of heads."""
        if self.unit == "kv_head":
            return self
        heads = _of_groups(self.heads, self.results, self.settings.group)
        return replace(self, unit="kv_head", heads=heads, top=_top(heads, self.settings, "groups of heads"))

    @property
    def provenance(self) -> dict[str, Any]:
        """What the export is of: a file that does not say so cannot be checked."""
        record, settings = self.results.record, self.settings
        chosen = {"top_k": settings.top_k, "top_k_per_layer": settings.top_k_per_layer}
        options = self.results.options
        told: dict[str, Any] = {
            "headscore": __version__,
            "format": self.format,
            **{key: _published(record[key], names) for key, names in _TOLD.items() if isinstance(record.get(key), dict)},
            **({"imported": self.results.imported} if self.results.imported else {}),
            "ranking": {name: options[name] for name in _RANKING if options.get(name)} | {"weights": self.results.weights},
            "signal": self.signal,
            "unit": self.unit,
            "of": len(self.heads),
            "chosen": {name: value for name, value in chosen.items() if value is not None} | {"heads": len(self.top)},
        }
        if self.unit != self.results.unit:
            told["group"] = self.settings.group
        return told | {key: record[key] for key in ("samples", "missing_shards") if key in record}


def choose(results: Results, settings: ExportSettings, path: Path) -> Chosen:
    """The heads of a ranking that an export is of.

    Args:
        results: the ranking.
        settings: of the export.
        path: where it goes, for messages.

    Raises InputError for a signal or a number of heads that the ranking has not, and where all heads are alike.
    """
    heads = _ordered(results, settings)
    if settings.by == "head" and results.unit == "kv_head":
        raise OptionError(f"--by head: {results.folder} ranks groups of heads; score with --by head")
    unit: Unit = results.unit
    if settings.by == "kv_head" and unit == "head":
        heads, unit = _of_groups(heads, results, settings.group), "kv_head"
    top = _top(heads, settings, "heads" if unit == "head" else "groups of heads")
    return Chosen(results, settings, path, unit, heads, top)


def chosen_heads(results: Results, settings: ChoiceSettings) -> pl.DataFrame:
    """The heads, or groups of them, that are chosen of a ranking, best first: `layer`, `head` (or `kv_head`), `score`, `rank`.

    Raises InputError as `choose`.
    """
    return _top(_ordered(results, settings), settings, "heads")


def _ordered(results: Results, settings: ChoiceSettings) -> pl.DataFrame:
    """All heads by the combined score or by one signal, best first; the table is a stranger's, so its numbers are checked."""
    signal = settings.signal or COMBINED
    name = signal.removeprefix("-")
    if signal == f"-{COMBINED}":
        raise OptionError(f"--signal {signal}: only a signal can be turned around")
    frame = results.heads if signal == COMBINED else results.ranked({name: -1.0 if signal.startswith("-") else 1.0})
    kinds = {"layer": pl.Int64, results.unit: pl.Int64, "score": pl.Float64, "rank": pl.Int64}
    heads = frame.select("layer", results.unit, pl.col(COMBINED).alias("score"), "rank")
    if any(not heads[column].dtype.is_numeric() for column in heads.columns):
        raise InputError(f"{results.folder}: its heads have columns that are no numbers; run headscore score again")
    heads = heads.cast(kinds, strict=False)  # type: ignore[arg-type]
    bounds = (("layer", MAX_LAYERS), (results.unit, MAX_HEADS))
    is_sound = (
        not any(heads[column].has_nulls() for column in kinds)
        and all(int(heads[column].min()) >= 0 and int(heads[column].max()) < bound for column, bound in bounds)  # type: ignore[arg-type]
        and not heads.select("layer", results.unit).is_duplicated().any()
        and bool(heads["score"].is_finite().all())
    )
    if not is_sound:
        raise InputError(f"{results.folder}: its table of heads is damaged; run headscore score again")
    if len(heads) > 1 and heads["score"].n_unique() == 1:
        raise OptionError(f"--signal {signal}: is the same in every head, so it puts none before another")
    return heads.sort("rank", "layer", results.unit)


def _of_groups(heads: pl.DataFrame, results: Results, how: GroupBy) -> pl.DataFrame:
    """Groups of heads by the mean or the largest score of theirs; equal ones by their best head."""
    if "kv_head" not in results.heads.columns or results.heads["kv_head"].has_nulls():
        raise OptionError(f"--by kv_head: {results.folder} does not say which heads share a key-value head")
    members = results.heads.select(pl.col("layer", "head", "kv_head").cast(pl.Int64))
    score = pl.col("score").mean() if how == "mean" else pl.col("score").max()
    groups = heads.join(members, on=["layer", "head"]).group_by("layer", "kv_head").agg(score, _best=pl.col("rank").min())
    ordered = groups.sort(["score", "_best"], descending=[True, False])
    return ordered.select("layer", "kv_head", "score", rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))


def _top(heads: pl.DataFrame, settings: ChoiceSettings, what: str) -> pl.DataFrame:
    if settings.top_k is not None:
        if settings.top_k > len(heads):
            raise OptionError(f"--top-k: {settings.top_k} is more than the {len(heads)} {what} there are")
        return heads.head(settings.top_k)
    if (k := settings.top_k_per_layer) is None:
        return heads
    if k > (fewest := min(heads.group_by("layer").len()["len"].to_list())):
        raise OptionError(f"--top-k-per-layer: {k} is more than the {fewest} {what} that a layer has in the ranking")
    return heads.filter(pl.col("rank").rank("ordinal").over("layer") <= k)


def counts_in_layers(pairs: Sequence[Head]) -> dict[int, int]:
    """How many heads were chosen in each layer that has any, by layer, ascending."""
    counts: dict[int, int] = {}
    for layer, _ in sorted(pairs):
        counts[layer] = counts.get(layer, 0) + 1
    return counts


def _published(told: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What is said of model or data; of a path that only its author's machine has, the last part."""
    made = {}
    for name in (name for name in names if name in told):
        value = told[name]
        inner = _published(value, _TOLD_INSIDE) if isinstance(value, Mapping) else value
        made[name] = _last_part(inner) if isinstance(inner, str) else inner
    return made


def _last_part(text: str) -> str:
    is_path = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith((".", "~"))
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if is_path else text
