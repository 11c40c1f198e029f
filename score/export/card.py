"""A card for a ranking that is published: README.md with the metadata that dataset hubs show."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ...data.errors import HeadscoreError, printable
from ...data.files.plain import names_in, read_plain
from ..evidence.null import null_of_record
from ..outputs import HEADS_PARQUET, yaml_text
from ..scores import head_name, heads_or_groups
from ..validated import Measured
from ..validation_files import is_validation, read_measured
from .chosen import Chosen
from .written import Content

_SHOWN = 20
_MAX_FOLDERS = 200  # that are looked into for a validation
_MAX_VERDICTS = 1 << 16
# What Markdown, or a hub, would take for more than text: signs anywhere, what begins a list or a line, and addresses.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&@$^])")
_BEGINNING = re.compile(r"^(\d*)([-+.)=])")
_ADDRESS = re.compile(r"(?i)(\b(?:https?|ftp)(?=:)|\bwww(?=\.))")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ROWS = (1000, 10_000, 100_000)
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M")


def card(chosen: Chosen) -> Content:
    """README.md: YAML between two lines of ---, then model, data, settings, the first heads, and what these are worth."""
    chosen.require_suffix(".md")
    provenance = chosen.provenance
    text = f"---\n{yaml_text(_metadata(chosen, provenance))}---\n\n" + "\n".join(_lines(chosen, provenance)) + "\n"
    meaning = "a page about the ranking, for the folder that is published; licence and language are left for its author to say"
    return Content(text.encode(), meaning, told_inside=True)


def _metadata(chosen: Chosen, provenance: Mapping[str, Any]) -> dict[str, Any]:
    name = provenance.get("model", {}).get("name")
    size = _SIZES[sum(len(chosen.heads) >= bound for bound in _ROWS)]
    return {
        "pretty_name": f"Attention heads of {name or 'a model'} by headscore",
        "tags": ["headscore", "attention-heads", "interpretability"],
        "size_categories": [size],
        **({"base_model": name} if isinstance(name, str) and _HUB_ID.fullmatch(name) else {}),
        "configs": [{"config_name": "default", "data_files": HEADS_PARQUET}],
        "headscore": provenance,
    }


def _lines(chosen: Chosen, provenance: Mapping[str, Any]) -> Iterator[str]:
    model, data, record = provenance.get("model", {}), provenance.get("data", {}), chosen.results.record
    units = heads_or_groups(chosen.unit)
    yield f"# Attention heads of {_escaped(model.get('name') or 'a model')}"
    yield ""
    how = f"headscore {provenance['headscore']}"
    yield f"A ranking of {len(chosen.heads)} {units} by which of them a task drives, made with {how}."
    yield ""
    yield from _table(("", ""), _facts(chosen, model, data, record))
    yield ""
    yield "## The first"
    yield ""
    first = (chosen.top if len(chosen.top) < len(chosen.heads) else chosen.heads.head(_SHOWN)).to_dicts()
    names = [(str(line["rank"]), head_name(line, chosen.unit), f"{line['score']:.6g}") for line in first]
    yield from _table(("rank", "head" if chosen.unit == "head" else "group", "score"), names)
    yield ""
    yield "The score orders heads, and has no unit. It is no measure of what the model needs."
    yield ""
    yield "## What it is worth"
    yield ""
    verdicts = _verdicts(chosen)
    if verdicts:
        yield "What the model loses without the first heads, beside random heads of the same layers (`headscore validate`):"
        yield ""
        yield from (f"- {_escaped(line)}" for line in verdicts)
    else:
        yield "Whether the model needs these heads has not been tested: `headscore validate` does."
    if found := list(_evidence(record)):
        yield ""
        yield "To be read with:"
        yield ""
        yield from (f"- {_escaped(line)}" for line in found)


def _facts(
    chosen: Chosen, model: Mapping[str, Any], data: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    adapter = model.get("adapter")
    yield "model", _escaped(_told(model.get("name"), model.get("fingerprint")))
    if isinstance(adapter, Mapping):
        yield "adapter", _escaped(_told(adapter.get("name"), adapter.get("sha256")))
    yield "data", _escaped(_told(data.get("path"), data.get("sha256")))
    if imported := chosen.results.imported:
        yield "imported from", _escaped(_told(imported["file"], imported["sha256"]))
    settings = record.get("settings") if isinstance(record.get("settings"), Mapping) else {}
    for name in ("max_samples", "max_length", "seed", "queries", "dtype", "control"):
        if isinstance(settings, Mapping) and settings.get(name) is not None:
            yield name, _escaped(settings[name])
    if isinstance(record.get("samples"), int):
        yield "samples", str(record["samples"])
    yield "ordered by", _escaped(chosen.signal)
    if weights := chosen.results.weights:
        yield "weights", _escaped(", ".join(f"{name} {weight:g}" for name, weight in weights.items()))
    for name in ("fusion", "norm_mode", "within", "task_span"):
        if (value := chosen.results.options.get(name)) is not None:
            yield name, _escaped(", ".join(map(str, value)) if isinstance(value, list) else value)


def _table(titles: Sequence[str], lines: Any) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def _told(name: Any, fingerprint: Any) -> str:
    return f"{name or 'unknown'}" + (f" [{fingerprint!s:.12}]" if fingerprint else "")


def _evidence(record: Mapping[str, Any]) -> Iterator[str]:
    checks, null = record.get("checks"), record.get("null")
    if isinstance(checks, Mapping):
        yield from (str(line) for line in checks.values())
    if found := null_of_record(null):
        yield found.line


def _verdicts(chosen: Chosen) -> list[str]:
    """What validations of this very order, in the folder of results or beside it, say; nothing where there is none."""
    folder = chosen.results.folder
    found = {}
    for place in (folder, folder.absolute().parent):
        for name in sorted(names_in(place))[:_MAX_FOLDERS]:
            if lines := _verdicts_in(place / name, chosen):
                found[name] = lines
    if len(found) == 1:
        return next(iter(found.values()))
    return [f"{name}: {line}" for name, lines in found.items() for line in lines]


def _verdicts_in(folder: Path, chosen: Chosen) -> list[str]:
    """The lines on the chosen order in a validation of it; of a folder that is none, or cannot be read, nothing."""
    try:
        if not is_validation(folder):
            return []
        measured = read_measured(folder)
        if not _is_of(chosen, measured):
            return []
        lines = (read_plain(folder / "verdicts.txt", _MAX_VERDICTS) or b"").decode(errors="replace").splitlines()
    except (HeadscoreError, OSError, pl.exceptions.PolarsError):
        return []
    own = [line for line in lines if line.startswith(f"{chosen.signal}, top ")]
    return [*(line for line in lines if line.startswith("CAUTION: ")), *own] if own else []


def _is_of(chosen: Chosen, measured: Measured) -> bool:
    """Whether a validation ran the model of a ranking, and took out the first heads, or groups, of the chosen order."""
    facts, model = measured.facts, chosen.results.model
    fingerprints = facts.get("model_fingerprint"), model.get("fingerprint")
    same = fingerprints[0] == fingerprints[1] if all(fingerprints) else facts.get("model") == model.get("name")
    if facts["unit"] != chosen.unit or facts["units"] != len(chosen.heads) or facts["other_model"]:
        return False
    if chosen.results.imported is None and not same:
        return False
    tops = measured.sets.filter(set="top", signal=chosen.signal)
    order = list(chosen.heads.select("layer", chosen.unit).iter_rows())
    taken = {k: set(top.select("layer", chosen.unit).iter_rows()) for (k,), top in tops.group_by("k")}
    return bool(taken) and all(heads == set(order[:k]) for k, heads in taken.items())


def _escaped(value: Any) -> str:
    """Any text as one line of Markdown that shows it as it is."""
    text = _MARKDOWN.sub(r"\\\1", printable(" ".join(str(value).split())))
    return _BEGINNING.sub(r"\1\\\2", _ADDRESS.sub(r"\1\\", text))
