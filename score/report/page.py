"""Writes report.html, one file that opens offline, and its charts as PNG and SVG."""

import logging
from pathlib import Path
from typing import Any

import altair as alt
from altair.utils import schemapi

from ...data.cache import Cache
from ...data.files import write_text
from ..outputs import REPORT_FILE
from ..scores import Scores
from . import views
from .attended import attended
from .columns import Column, any_column, field, norm_columns, raw_columns
from .drawing import DATA, drawn, write_charts
from .frame import fitted, framed, place, section
from .marks import Ranking
from .sections import captured, escaped, skipped_section, tokens_section
from .texts import reading

logger = logging.getLogger("headscore")

HEADS_WITH_TOKENS = 6
_TABLE_DIGITS = 4
_COMBINED = any_column("combined", (), "zscore")


def write_report(folder: Path, cache: Cache, scores: Scores) -> None:
    """Write report.html and charts/*.svg, *.png to `folder`, each whole or not at all.

    Raises InputError where a shard is damaged, RunError where a chart cannot be drawn or the disk refuses.
    """
    with schemapi.debug_mode(False):  # the tests validate these charts, with every option
        tokens, skipped = _counted(cache)
        shown = _Shown(scores)
        sections = _chart_sections(shown) | {"tokens": tokens_section(_attended(cache, scores), scores.unit)}
        sections["skipped"] = skipped_section(skipped)
        page = framed(
            f"headscore: {scores.metadata['model'].get('name', '')}",
            captured(scores, tokens),
            "".join(sections.values()),
            _page_data(shown),
            script="page.js",
            besides="They are also in charts/ as PNG and SVG.",
        )
        write_text(folder / REPORT_FILE, page)
        write_charts(folder, scores.heads, shown.ranking)
    logger.info("%s: report written", folder / REPORT_FILE)


# --------------------------------------------------------------------------------------------------------------- the page


class _Shown:
    """What the page shows: first the signals that are weighted, then all others, which the reader may unfold."""

    def __init__(self, scores: Scores):
        self.ranking = Ranking.of(scores)
        self.grid = views.Grid.of(scores.heads)
        weighted = list(self.ranking.weights)
        others = [name for name in scores.signals if name not in weighted]
        self.weighted, self.others = raw_columns(weighted), raw_columns(others)
        self.normalised = norm_columns(weighted, self.ranking.norm_mode)
        self.heads = drawn(scores.heads, self.ranking, tuple(others))
        self.combined_digits = scores.combined_digits

    def views(self) -> dict[str, Any]:
        """The charts of the page by their ids: each as wide as its place, on the data that the page gives them."""
        data, grid, ranking = alt.NamedData(DATA), self.grid, self.ranking
        maps = [_COMBINED, *self.weighted, *self.normalised, *self.others]
        profiles = zip(self.weighted, views.colours(), strict=False)
        return {
            **{_map_id(column): views.map_chart(data, grid, column, ranking, fluid=True) for column in maps},
            "top_heads": views.bars_chart(data, grid, ranking),
            "entropy_and_task": views.scatter_chart(data, grid, True, ranking),
            **{_profile_id(column): views.profile_chart(data, grid, column, ranking, colour) for column, colour in profiles},
            **{_profile_id(column): views.profile_chart(data, grid, column, ranking) for column in self.others},
            "profile-count": views.count_chart(data, grid, ranking),
        }

    def values(self) -> dict[str, list[Any]]:
        """The heads by column, and the table's columns once more where they have another field."""
        values = self.heads.to_dict(as_series=False)
        return values | {field(column.name): values[column.name] for column in self._in_table()}

    def table(self) -> list[dict[str, Any]]:
        """The columns of the table of top heads: the field that sorts, the one that shows, title and decimals."""
        return [
            {"field": "rank", "shown": "place", "title": "rank"},
            {"field": "name", "shown": "name", "title": self.grid.unit},
            {"field": "combined", "shown": "combined", "title": "combined", "digits": self.combined_digits},
            *(
                {"field": field(column.name), "shown": field(column.name), "title": column.label, "digits": _TABLE_DIGITS}
                for column in self._in_table()
            ),
        ]

    def _in_table(self) -> list[Column]:
        return [*self.weighted, *(column for column in self.others if column.name == views.SINK)]


def _map_id(column: Column) -> str:
    return "combined" if column == _COMBINED else f"map-{field(column.name)}"


def _profile_id(column: Column) -> str:
    return f"profile-{field(column.name)}"


def _page_data(shown: _Shown) -> dict[str, Any]:
    """What the page's script needs."""
    specs = {name: fitted(chart.to_dict(validate=False)) for name, chart in shown.views().items()}
    for name, spec in specs.items():
        for parameter in spec["params"]:
            if "bind" in parameter and name == "combined":
                parameter["bind"]["element"] = "#sliders"
            else:
                parameter.pop("bind", None)
    return {
        "main": "combined",
        "unit": shown.grid.unit,
        "parameters": [*shown.ranking.named_parameters().values(), "k"],
        "heads": shown.values(),
        "columns": shown.table(),
        "charts": specs,
    }


def _chart_sections(shown: _Shown) -> dict[str, str]:
    width = max(320, 46 * shown.grid.heads + 60)
    map_ = f'<div style="flex: 1 1 {width}px; max-width:{width}px">{place("combined")}</div>'
    table = '<div class="scroll"><table id="top-heads-table"><thead></thead><tbody></tbody></table></div>'
    top = (
        "<div><h3>Top heads</h3><p>A line is a head of the top k; click a column's name to sort by it, and a line to mark the "
        f"head in every chart. Heads of the same combined score share a rank, as in 1=.</p>{table}</div>"
    )
    maps = "".join(_signal(*pair) for pair in zip(shown.weighted, shown.normalised, strict=True))
    profiles = "".join(place(_profile_id(column)) for column in shown.weighted) + place("profile-count")
    other_maps = _folded("maps", [_signal(column) for column in shown.others])
    other_profiles = _folded("profiles", [place(_profile_id(column)) for column in shown.others])
    bodies = {
        "combined": f'<div id="sliders"></div><div class="beside">{map_}{top}</div>',
        "top_heads": place("top_heads"),
        "signal_maps": f'<div class="maps">{maps}</div>{other_maps}',
        "entropy_and_task": place("entropy_and_task"),
        "layer_profiles": f'<div class="profiles">{profiles}</div>{other_profiles}',
    }
    return {name: section(*reading(name, shown.ranking), body) for name, body in bodies.items()}


def _signal(*columns: Column) -> str:
    """What a signal is, and its maps."""
    caption = f'<p class="caption"><b>{escaped(columns[0].label)}</b> {escaped(columns[0].description)}</p>'
    return f"<div>{caption}{''.join(place(_map_id(column)) for column in columns)}</div>"


def _folded(kind: str, parts: list[str]) -> str:
    """Charts that are drawn once the reader unfolds them."""
    summary = f"<summary>{len(parts)} other signals, which weigh nothing here</summary>"
    return f'<details>{summary}<div class="{kind}">{"".join(parts)}</div></details>' if parts else ""


def _counted(cache: Cache) -> tuple[int, list[dict[str, Any]]]:
    """The number of tokens of all prompts, and the skipped rows."""
    counted = [(shard.tokens, shard.skipped) for shard in cache.open_shards()]
    skipped = [entry for _, entries in counted for entry in entries]
    return sum(tokens for tokens, _ in counted), sorted(skipped, key=lambda entry: entry["row"])


def _attended(cache: Cache, scores: Scores) -> list[dict[str, Any]]:
    """What the first heads of all attend to in the samples whose token texts the cache has."""
    top = scores.top().head(HEADS_WITH_TOKENS).select("layer", scores.unit).rows()
    heads, groups = cache.metadata["dims"]["heads"], cache.metadata["dims"].get("kv_heads")
    return attended(cache, top, group=heads // groups if scores.unit == "kv_head" and groups else 1)
