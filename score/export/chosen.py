"""Which heads of a ranking an export is of, and what it must know about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ... import __version__
from ...data.cache.metadata import MAX_HEADS, MAX_LAYERS
from ...data.cache.model_shape import ModelShape
from ...data.errors import InputError, OptionError
from ...data.options.export_settings import ChoiceSettings, ExportSettings, GroupBy
from ...data.options.places import last_part
from ...data.options.settings import Unit
from ..outputs import CONFIG_FILE, HEADS_PARQUET
from ..ranking import TIE_DIGITS
from ..results import COMBINED, IMPORTED_KEY, Results
from ..scores import heads_or_groups

Head = tuple[int, int]

# Of a record: arguments of a model may hold what is not for others.
_TOLD: Mapping[str, Sequence[str]] = {
    "model": ("name", "revision", "commit", "adapter", "type", "fingerprint", "tokenizer_fingerprint"),
    "data": ("path", "sha256", "rows", "style"),
    "control": ("kind", "signals", "samples", "data"),
    IMPORTED_KEY: ("file", "format", "sha256", "heads", "whole"),
}
_PATHS = ("path", "data", "file")  # whose texts are paths
_OF_GROUPS = ("duo",)  # formats
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
        heads: all of the ranking, best first: `layer`, `head` (or `kv_head`), `score`, `rank`; where the record tells the
            model's shape, they are all of the model's.
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
        """The name of the format."""
        return self.settings.format

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
        """The model's shape; InputError where the ranking does not tell it."""
        shape, folder = self.results.shape, self.results.folder
        if shape is None:
            known = "is an imported list, which does not tell" if self.results.imported else "is too old to tell"
            again = "export a ranking of headscore score" if self.results.imported else "run headscore score on its cache again"
            raise OptionError(f"--format {self.format}: {folder} {known} the shape of the model; {again}")
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
            raise OptionError(f"--format {self.format}: needs all heads of the model, and {self.results.folder} has only some")
        return layers, units

    @property
    def provenance(self) -> dict[str, Any]:
        """What the export is of: a file that does not say so cannot be checked."""
        record, settings = self.results.record, self.settings
        chosen = {"top_k": settings.top_k, "top_k_per_layer": settings.top_k_per_layer}
        options = self.results.options
        told: dict[str, Any] = {
            "headscore": __version__,
            "format": self.format,
            **{key: _published(of, names) for key, names in _TOLD.items() if isinstance(of := record.get(key), dict)},
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

    A format that is of groups takes them, as `--by kv_head` does. Raises InputError for a signal or a number of heads that the
    ranking does not have, where all heads are alike, and where the table is damaged or not of the model that the record tells.
    """
    heads = _ordered(results, settings)
    if settings.by == "head" and results.unit == "kv_head":
        raise OptionError(f"--by head: {results.folder} ranks groups of heads; score with --by head")
    unit: Unit = results.unit
    if (settings.by == "kv_head" or settings.format in _OF_GROUPS) and unit == "head":
        heads, unit = _of_groups(heads, results, settings.group), "kv_head"
    top = _top(heads, settings, heads_or_groups(unit))
    return Chosen(results, settings, path, unit, heads, top)


def chosen_heads(results: Results, settings: ChoiceSettings) -> pl.DataFrame:
    """The heads, or groups of them, that are chosen of a ranking, best first: `layer`, `head` (or `kv_head`), `score`, `rank`.

    Raises InputError as `choose`.
    """
    return _top(_ordered(results, settings), settings, heads_or_groups(results.unit))


def _ordered(results: Results, settings: ChoiceSettings) -> pl.DataFrame:
    """All heads by the combined score or by one signal, best first; the table is a stranger's, so its numbers are checked."""
    signal = settings.signal or COMBINED
    name = signal.removeprefix("-")
    if not name:
        raise OptionError(f"--signal {signal!r}: is not the name of a signal; give one, with a leading - to reverse it")
    if signal == f"-{COMBINED}":
        raise OptionError(f"--signal {signal}: only a signal can be turned around")
    if not _is_sound(results.heads, results.unit):
        raise InputError(f"{results.folder / HEADS_PARQUET}: its table of heads is damaged; run headscore score again")
    _require_shape(results)
    frame = results.heads if signal == COMBINED else results.ranked({name: -1.0 if signal.startswith("-") else 1.0})
    heads = frame.select("layer", results.unit, pl.col(COMBINED).alias("score"), "rank").sort("rank")
    heads = heads.cast({"layer": pl.Int64, results.unit: pl.Int64, "score": pl.Float64, "rank": pl.Int64})
    if len(heads) > 1 and heads["score"].n_unique() == 1:
        raise OptionError(f"--signal {signal}: is the same in every head, so it puts none before another")
    return heads


def _is_sound(heads: pl.DataFrame, unit: Unit) -> bool:
    """Whether each line is another head, and the ranks are 1…n in the order of the scores."""
    whole = ("layer", unit, "rank")
    numbers = heads[COMBINED].dtype.is_numeric() and all(heads[name].dtype.is_integer() for name in whole)
    if not numbers or any(heads[name].has_nulls() for name in (*whole, COMBINED)):
        return False
    bounds = (("layer", MAX_LAYERS), (unit, MAX_HEADS))
    inside = all(int(heads[name].min()) >= 0 and int(heads[name].max()) < bound for name, bound in bounds)  # type: ignore[arg-type]
    scores, ranks = heads.sort("rank")[COMBINED].cast(pl.Float64), heads["rank"].sort().to_list()
    once = ranks == list(range(1, len(heads) + 1)) and not heads.select("layer", unit).is_duplicated().any()
    return inside and once and bool(scores.is_finite().all()) and _is_falling(scores)


def _is_falling(scores: pl.Series) -> bool:
    """Whether no score is above the one before it, but for rounding: those that agree in TIE_DIGITS digits are equal."""
    room = 10.0**-TIE_DIGITS * float(scores.abs().max() or 0)  # type: ignore[arg-type]
    return bool((scores.diff().drop_nulls() <= room).all())


def _require_shape(results: Results) -> None:
    """Raises InputError where the record tells a shape of the model that has other heads, or groups, than are ranked."""
    shape = results.shape
    units = None if shape is None else shape.heads if results.unit == "head" else shape.kv_heads
    if shape is None or units is None:
        return
    expected = {(layer, number) for layer in shape.layers for number in range(units)}
    if expected != set(results.heads.select("layer", results.unit).iter_rows()):
        raise InputError(
            f"{results.folder / CONFIG_FILE}: the heads do not fit the shape in its record; run headscore score again"
        )


def _of_groups(heads: pl.DataFrame, results: Results, how: GroupBy) -> pl.DataFrame:
    """Groups of heads by the mean or the largest score of theirs; equal ones by their best head."""
    if "kv_head" not in results.heads.columns or results.heads["kv_head"].has_nulls():
        raise OptionError(f"--by kv_head: {results.folder} does not say which heads share a key-value head")
    groups_of, shape = results.heads["kv_head"], results.shape
    is_sound = groups_of.dtype.is_integer() and bool(groups_of.is_between(0, MAX_HEADS - 1).all())
    if is_sound and shape is not None and shape.kv_heads is not None:
        is_sound = (results.heads["head"].cast(pl.Int64) // (shape.heads // shape.kv_heads)).equals(groups_of.cast(pl.Int64))
    if not is_sound:
        raise InputError(f"{results.folder / HEADS_PARQUET}: its column kv_head is damaged; run headscore score again")
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
    """What is said of model or data; of a path, which only its author's machine has, the last part."""
    return {name: _shared(told[name], name) for name in names if name in told}


def _shared(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return _published(value, _TOLD_INSIDE)
    if isinstance(value, list):
        return [_shared(each, name) for each in value]
    return last_part(value, name in _PATHS) if isinstance(value, str) else value
