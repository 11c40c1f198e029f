"""Reads back what `headscore score` wrote: the heads of a ranking, and what it was made of."""

import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import polars as pl

from ..data.cache.metadata import MAX_HEADS, has_shape
from ..data.cache.model_shape import ModelShape, shape_of
from ..data.errors import HeadscoreError, InputError, OptionError, one_line
from ..data.files.foreign import foreign_faults_told
from ..data.files.plain import read_plain
from ..data.files.strict_yaml import read_yaml
from ..data.options.settings import RECORD_KEY, Fusion, NormMode, Unit, Within
from .outputs import CONFIG_FILE, HEADS_PARQUET
from .ranking import rank

COMBINED = "combined"  # the name of the fused score among signals
_MAX_BYTES = 1 << 30
_RANKING_OPTIONS = ("fusion", "norm_mode", "within")
_CONFIG_SHAPE = {**dict.fromkeys((*_RANKING_OPTIONS, "by"), str), **dict.fromkeys(("lambda_ent", "lambda_task"), (int, float))}
_RECORD_SHAPE = {
    "model": {"name": str},
    "data": {"path": str},
    "settings": {"max_samples": int, "max_length": int, "seed": int},
    "templates": [{"name": str, "text": str}],
}
IMPORTED_KEY = "imported"  # of the record of a list that others have made
_MAPPINGS = ("model", "data", "settings", "control")  # of a record, where they are there
_IMPORTED_SHAPE = {IMPORTED_KEY: {"file": str, "format": str, "sha256": str, "whole": bool}}


@dataclass(frozen=True)
class Results:
    """A ranking as its result files hold it.

    Args:
        folder: where it was read from.
        heads: `Scores.heads`.
        unit: what is ranked: `head` or `kv_head`.
        options: those of the ranking by their names.
        record: what config.yaml says about the cache, or about the list that was imported.
        shape: of the model; None where the record does not tell it.
    """

    folder: Path
    heads: pl.DataFrame
    unit: Unit
    options: Mapping[str, object]
    record: Mapping[str, object]
    shape: ModelShape | None = None

    @property
    def imported(self) -> Mapping[str, object] | None:
        """What the record says about the list that others have made; None for a ranking of a cache."""
        found = self.record.get(IMPORTED_KEY)
        return found if isinstance(found, dict) else None

    @property
    def model(self) -> Mapping[str, object]:
        """What the record says about the model; empty where it says nothing."""
        found = self.record.get("model")
        return found if isinstance(found, dict) else {}

    @property
    def whole(self) -> bool:
        """Whether all heads of the model are there."""
        return self.imported is None or bool(self.imported["whole"])

    @property
    def signals(self) -> list[str]:
        """The names of all signals."""
        columns = set(self.heads.columns)
        return [name for name in self.heads.columns if {f"{name}_norm", f"{name}_rank"} <= columns]

    def order(self, signal: str = COMBINED) -> list[tuple[int, int]]:
        """All (layer, unit), the one that is driven most first, by the combined score or by one signal alone.

        A `-` before a signal turns it around. Raises InputError for one that the ranking does not have.
        """
        name, weight = signal.removeprefix("-"), -1.0 if signal.startswith("-") else 1.0
        ranked = self.heads if signal == COMBINED else self.ranked({name: weight})
        return [(int(layer), int(unit)) for layer, unit in ranked.sort("rank").select("layer", self.unit).iter_rows()]

    def ranked(self, weights: Mapping[str, float]) -> pl.DataFrame:
        """The heads ranked by other weights, in the ranking's own way; InputError for a signal that it lacks."""
        if missing := [name for name in weights if name not in self.signals]:
            has = ", ".join(self.signals) or "none"
            raise OptionError(f"--signal {missing[0]}: {self.folder} has no such signal; it has {has}")
        frame = self.heads.select("layer", self.unit, *(pl.col(name) for name in weights))
        options: Mapping[str, Any] = self.options  # as `rank` takes them, or refuses them
        return rank(frame, dict(weights), unit=self.unit, **{name: options[name] for name in _RANKING_OPTIONS})

    def of_model(self, units: Mapping[int, int]) -> "Results":
        """An imported list as a ranking of all heads of a model: those that it does not list come last, in a random order.

        They all have the score below the lowest. units: how many heads, or groups of them, each layer of the model has.
        Raises InputError where the list has a head that the model does not have.
        """
        every = {(layer, unit) for layer, count in units.items() for unit in range(count)}
        own = set(self.heads.select("layer", self.unit).iter_rows())
        what = "head" if self.unit == "head" else "group of heads"
        if strange := sorted(own - every):
            raise InputError(
                f"{self.folder}: lists {what} {strange[0][1]} of layer {strange[0][0]}, which the model does not have"
            )
        rest = sorted(every - own)
        random.Random(len(every)).shuffle(rest)
        if not rest:
            return self
        last = pl.DataFrame(rest, schema={"layer": pl.Int32, self.unit: pl.Int32}, orient="row")
        below = float(self.heads[COMBINED].min()) - 1  # type: ignore[arg-type]
        heads = pl.concat([self.heads.select("layer", self.unit, COMBINED, "rank").sort("rank"), last], how="diagonal")
        ranked = heads.with_columns(pl.col(COMBINED).fill_null(below), rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
        return replace(self, heads=ranked.sort("layer", self.unit))

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every signal that has one; none in a list that was imported."""
        if self.imported is not None:
            return {}
        options: Mapping[str, Any] = self.options
        default = {"out": 1.0, "ent": options["lambda_ent"], "task": options["lambda_task"]}
        return {name: weight for name, weight in {**default, **(options.get("weight") or {})}.items() if weight}


def read_results(folder: Path) -> Results:
    """The ranking in a folder of results.

    Raises InputError where there is none, a file of it is damaged, or it is of an unfinished run.
    """
    path = folder / CONFIG_FILE
    try:
        config = read_yaml(path)
    except HeadscoreError as error:
        raise error.retold(f"{folder}: holds no results of headscore score: {error.message}") from error
    record: Any = config.get(RECORD_KEY) if isinstance(config, dict) else None
    imported = isinstance(record, dict) and IMPORTED_KEY in record
    if not has_shape(record, _IMPORTED_SHAPE if imported else _RECORD_SHAPE) or not has_shape(
        config, {"by": str} if imported else _CONFIG_SHAPE
    ):
        raise InputError(f"{path}: was not written by headscore score; run it again with --overwrite")
    _require_usable(config, path)
    content = read_plain(folder / HEADS_PARQUET, _MAX_BYTES)
    if content is None:
        raise InputError(f"{folder}: has no {HEADS_PARQUET}; run headscore score again")
    with foreign_faults_told(f"{folder / HEADS_PARQUET}: is damaged"):
        heads = pl.read_parquet(io.BytesIO(content))
    unit: Unit = config["by"]
    if not {"layer", unit, COMBINED, "rank"} <= set(heads.columns) or not 0 < len(heads) <= MAX_HEADS:
        raise InputError(f"{folder / HEADS_PARQUET}: is not a table of heads; run headscore score again")
    options = {name: value for name, value in config.items() if name != RECORD_KEY}
    return Results(folder, heads, unit, options, record, shape_of(record, str(path)))


def _require_usable(config: Mapping[str, Any], path: Path) -> None:
    """Raises InputError where an option of the ranking is none that there is, or a value is none that other files can hold."""
    try:
        json.dumps(config, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        what = f"holds what JSON cannot, such as a date, a set or .nan: {one_line(error)[:120]}"
        raise InputError(f"{path}: {what}; run headscore score again with --overwrite") from error
    record, choices = config[RECORD_KEY], {"by": Unit, "fusion": Fusion, "norm_mode": NormMode, "within": Within}
    wrong = [name for name, known in choices.items() if name in config and config[name] not in get_args(known)]
    wrong += [f"{RECORD_KEY}.{name}" for name in _MAPPINGS if not isinstance(record.get(name, {}), dict)]
    weights = config.get("weight")
    if weights is not None and not (isinstance(weights, dict) and all(type(each) in (int, float) for each in weights.values())):
        wrong.append("weight")
    if not wrong and not isinstance(record.get("model", {}).get("name", ""), str):
        wrong.append(f"{RECORD_KEY}.model.name")
    if wrong:
        raise InputError(f"{path}: '{wrong[0]}' is not as headscore score writes it; run it again with --overwrite")
