"""What other commands found of a ranking, as sections of its report: where their folders lie in the report's own."""

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.errors import HeadscoreError, InputError
from ...data.files.foreign import foreign_faults_told
from ...data.files.plain import kind_of, names_in
from .found_kinds import KINDS, MOST_OF_A_KIND, MOST_SHOWN, Kind, lines_of
from .frame import fitted, place, section
from .sections import escaped

_LINES = 4  # of text before it is folded
_MOST_NAMES = 1000  # that a folder is looked through for
_MOST_VALUES = 1 << 14  # lines of data in one chart


@dataclass(frozen=True)
class Found:
    """The sections as HTML, their charts by the ids of their places, and what was not looked at."""

    html: str
    charts: dict[str, dict[str, Any]]
    missing: list[str]


def found_beside(folder: Path) -> Found:
    """What the folders in `folder` hold of validation, control, stability, sweep and compare.

    A folder that cannot be read or shown is reported in a line of its section.
    """
    html, missing = "", []
    charts: dict[str, dict[str, Any]] = {}
    inside = _folders(folder)
    for kind in KINDS:
        folders = [path for path in inside if _is_file(path / kind.file)]
        if not folders:
            missing.append(f"{kind.asked} (headscore {kind.command})")
            continue
        body = ""
        for path in folders[:MOST_OF_A_KIND]:
            body += f"<h3>{escaped(path.name)}</h3>{_shown(kind, path, charts)}"
        if more := [path.name for path in folders[MOST_OF_A_KIND:]]:
            body += f'<p class="faint">not shown: {escaped(", ".join(more[:MOST_SHOWN]))}</p>'
        html += section(kind.title, f"{kind.reading} (headscore {kind.command})", body)
    return Found(html, charts, missing)


def _folders(folder: Path) -> list[Path]:
    paths = [folder / name for name in sorted(names_in(folder))[:_MOST_NAMES]]
    return [path for path in paths if kind_of(path) == stat.S_IFDIR]


def _is_file(path: Path) -> bool:
    with contextlib.suppress(HeadscoreError):  # in a folder that the system does not let us into
        return kind_of(path) == stat.S_IFREG
    return False


def _shown(kind: Kind, path: Path, charts: dict[str, dict[str, Any]]) -> str:
    """The lines and charts of one folder as HTML; the charts are added to `charts`."""
    try:
        with foreign_faults_told(f"{path}: cannot be shown"):
            lines = lines_of(path / kind.text) if kind.text else []
            more, own = kind.charts(path)
            specs = {caption: _packed(fitted(chart.to_dict(validate=False))) for caption, chart in own.items()}
    except HeadscoreError as error:
        return f'<p class="warning">{escaped(error)}</p>'
    told = [f"<li>{escaped(line)}</li>" for line in [*lines, *more]]
    html = f'<ul class="told">{"".join(told[:_LINES])}</ul>' if told else ""
    if rest := told[_LINES:]:
        html += f'<details><summary>{len(rest)} more lines</summary><ul class="told">{"".join(rest)}</ul></details>'
    parts = ""
    for caption, spec in specs.items():
        name = f"found-{len(charts)}"
        charts[name] = spec
        parts += f'<div><p class="caption">{escaped(caption)}</p>{place(name)}</div>'
    return f'{html}<div class="maps">{parts}</div>'


def _packed(spec: dict[str, Any]) -> dict[str, Any]:
    """A chart with its data by column, which takes less room."""
    for name, values in spec.get("datasets", {}).items():
        if len(values) > _MOST_VALUES:
            raise InputError(f"{len(values)} values are too many to draw")
        if values and values[0]:
            spec["datasets"][name] = {column: [line.get(column) for line in values] for column in values[0]}
    return spec
