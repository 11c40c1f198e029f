"""The kinds of what other commands found of a ranking: how their files are known, read and charted. All of it is untrusted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ...data.cache.metadata import MAX_HEADS
from ...data.errors import InputError
from ...data.files.bounded_json import parse_json
from ...data.files.foreign import foreign_faults_told
from ...data.files.plain import kind_of, read_plain
from ...data.files.strict_yaml import read_yaml
from ..evidence import compare, stability, sweep
from ..evidence.head_lists import csv_columns
from ..outputs import CONFIG_FILE, CONTROL_FILE
from ..scores import heads_or_groups
from ..validation_files import FACTS_FILE
from ..validation_table import SCHEMA as VALIDATION
from .columns import finite
from .drawing import rounded
from .evidence_charts import compare_chart, control_map, stability_chart, sweep_map
from .validation_charts import EFFECTS, METRICS, effect_map, validation_chart

MOST_OF_A_KIND = 3  # folders, signals, pairs
MOST_LINES = 1 << 14  # of a chart; the largest models of today have 16,128 heads
MOST_SHOWN = 12  # lines of text from one folder
_MAX_BYTES = 32 << 20
_MAX_TEXT = 1 << 16
_EFFECTS = {"layer": pl.Int64, "effect": pl.String, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}

Charts = dict[str, Any]  # by their captions


@dataclass(frozen=True)
class Kind:
    """A kind of evidence.

    Args:
        command: that makes it.
        file: by which its folder is known.
        title: of its section, a question.
        reading: how its charts are read.
        asked: the question in a few words.
        text: the file with its lines; empty where there is none.
        charts: makes them of a folder.
    """

    command: str
    file: str
    title: str
    reading: str
    asked: str
    text: str
    charts: Callable[[Path], tuple[list[str], Charts]]


def lines_of(path: Path) -> list[str]:
    """The first lines of a text file; none where there is no file."""
    lines = (read_plain(path, _MAX_TEXT) or b"").decode(errors="replace").splitlines()
    return [*lines[:MOST_SHOWN], *([f"… and {len(lines) - MOST_SHOWN} more lines"] if len(lines) > MOST_SHOWN else [])]


def _table(path: Path, schema: Mapping[str, Any], most: int = MOST_LINES) -> pl.DataFrame:
    """The columns of a CSV file that `schema` has, all of which must be there; what is empty is null."""
    content = read_plain(path, _MAX_BYTES)
    if content is None:
        raise InputError(f"{path}: does not exist")
    columns = csv_columns(path, content)
    if missing := [name for name in schema if name not in columns]:
        raise InputError(f"{path}: has no column {missing[0]}")
    texts = pl.DataFrame({name: columns[name] for name in schema}, schema=dict.fromkeys(schema, pl.String))
    if texts.is_empty():
        raise InputError(f"{path}: has no lines")
    _require_few(path, texts, most)
    with foreign_faults_told(f"{path}: is damaged"):
        return finite(rounded(texts.select(_cast(name, dtype) for name, dtype in schema.items())))


def _require_few(path: Path, frame: pl.DataFrame, most: int = MOST_LINES) -> None:
    """Raises InputError for more lines than are drawn, before a chart is made of them."""
    if frame.height > most:
        raise InputError(f"{path}: {frame.height} values are too many to draw")


def _cast(name: str, dtype: Any) -> pl.Expr:
    text = pl.when(pl.col(name) != "").then(pl.col(name))
    if dtype == pl.Boolean:  # any other word is a fault, as in a column of numbers
        words = {"True": True, "False": False, "true": True, "false": False}
        return text.replace_strict(words, return_dtype=pl.Boolean).alias(name)
    return text.cast(dtype)


def _names(path: Path) -> list[str]:
    """The columns of a CSV file."""
    return list(csv_columns(path, read_plain(path, _MAX_BYTES) or b""))


def _unit(names: Sequence[str]) -> str:
    return "head" if "head" in names else "kv_head"


def _validation(folder: Path) -> tuple[list[str], Charts]:
    facts = parse_json(read_plain(folder / FACTS_FILE, _MAX_BYTES) or b"")
    units = facts.get("units") if isinstance(facts, dict) else None
    if not isinstance(units, int) or units < 1:
        raise InputError(f"{folder / FACTS_FILE}: was not written by headscore validate")
    table, charts = _table(folder / "validation.csv", VALIDATION), {}
    for signal in table["signal"].unique(maintain_order=True).to_list()[:MOST_OF_A_KIND]:
        for metric in METRICS:
            lines = table.filter(metric=metric)
            counts = not lines["above_chance"].eq(False).any()
            if counts and signal in lines["signal"]:
                charts[f"{signal}: {METRICS[metric]}"] = validation_chart(table, units, signal, metric)
    if kind_of(folder / "effects.csv"):
        unit = _unit(_names(folder / "effects.csv"))
        effects = _table(folder / "effects.csv", {**_EFFECTS, unit: pl.Int64}, len(EFFECTS) * MOST_LINES)
        found = [name for name in EFFECTS if name in effects["effect"]]
        for name in found:
            _require_few(folder / "effects.csv", effects.filter(effect=name))
        charts |= {f"each head alone: {EFFECTS[name].label}": effect_map(effects, name, fluid=True) for name in found}
    return [], charts


def _control(folder: Path) -> tuple[list[str], Charts]:
    path = folder / CONTROL_FILE
    names = _names(path)
    signals = [name.removesuffix("_significant") for name in names if name.endswith("_significant")]
    unit = _unit(names)
    units = heads_or_groups(unit)
    places = {"layer": pl.Int64, unit: pl.Int64, "rank": pl.Int64}
    values = {f"{name}_{kind}": pl.Float64 for name in signals for kind in ("control", "controlled", "q")}
    frame = _table(path, places | values | {f"{name}_significant": pl.Boolean for name in signals})
    config = read_yaml(folder / CONFIG_FILE)
    record = config.get("record") if isinstance(config, dict) else None
    control = record.get("control") if isinstance(record, dict) else None
    lines, charts = [f"control: {control.get('kind', '')}"] if isinstance(control, dict) else [], {}
    top = config.get("top_k") if isinstance(config, dict) and isinstance(config.get("top_k"), int) else 20
    for name in sorted(signals, key=lambda name: name != "task")[:MOST_OF_A_KIND]:
        above = frame.filter(pl.col(f"{name}_significant") & (pl.col(f"{name}_controlled") > 0))
        missing = frame.filter(pl.col("rank") <= top).height - above.filter(pl.col("rank") <= top).height
        lines.append(f"{name}: {len(above)} of {len(frame)} {units} are above the control; {missing} of the top {top} are not")
        charts[f"{name} less that of the control"] = control_map(frame, name, fluid=True)
    return lines, charts


def _stability(folder: Path) -> tuple[list[str], Charts]:
    curve = _table(folder / "stability.csv", stability.SCHEMA)
    return [], {"share of the top that two captures have in common": stability_chart(curve)}


def _sweep(folder: Path) -> tuple[list[str], Charts]:
    path = folder / "sweep.csv"
    weights = [name for name in _names(path) if name.startswith("weight_")]
    table = _table(
        path, dict.fromkeys([*weights, *sweep.RESULTS], pl.Float64), MAX_HEADS
    )  # the chart has the best of each cell
    if sum(table[name].n_unique() > 1 for name in weights) < 2:
        return ["no map, as fewer than two weights were varied"], {}
    return [], {"agreement with the reference, by the weights": sweep_map(table)}


def _compare(folder: Path) -> tuple[list[str], Charts]:
    pairs = _table(folder / "compare.csv", {"a": pl.String, "b": pl.String, "k": pl.Int64}).to_dicts()[:MOST_OF_A_KIND]
    path = folder / "compare_heads.csv"
    ranks = {f"rank_{pair[name]}" for pair in pairs for name in "ab"}
    if any(pair["k"] is None for pair in pairs):
        raise InputError(f"{folder / 'compare.csv'}: has no k in some line")
    heads = _table(path, dict.fromkeys(("layer", _unit(_names(path)), *sorted(ranks)), pl.Int64))
    return [], {f"ranks in {p['a']} and {p['b']}": compare_chart(heads, p["a"], p["b"], p["k"]) for p in pairs}


KINDS = (
    Kind(
        "validate",
        FACTS_FILE,
        "Does the model need these heads?",
        "What it loses without the top heads (blue, with the interval), the bottom (orange) and random heads of the same "
        "layers (grey). Orange cells are heads that it needs.",
        "whether the model needs them",
        "verdicts.txt",
        _validation,
    ),
    Kind(
        "control",
        CONTROL_FILE,
        "Is it about this task?",
        "Each head's signal less that of a control; orange is above it.",
        "whether it is about this task",
        "",
        _control,
    ),
    Kind(
        "stability",
        "stability.csv",
        "Would other samples give the same top?",
        "What two captures of other rows share of their tops, by how many samples they have; dashed: chance, dotted: 0.9.",
        "how many samples it takes",
        stability.RESULT_FILES[0],
        _stability,
    ),
    Kind(
        "sweep",
        "sweep.csv",
        "Does it depend on the weights?",
        "How far the ranking by other weights agrees with the reference.",
        "what the weights do",
        sweep.RESULT_FILES[0],
        _sweep,
    ),
    Kind(
        "compare",
        "compare.csv",
        "Does it agree with other rankings?",
        "A head's rank in one and in the other; those at the lower left are first in both.",
        "whether other rankings agree",
        compare.RESULT_FILES[0],
        _compare,
    ),
)
