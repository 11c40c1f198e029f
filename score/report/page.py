"""Writes report.html, one file that opens offline, and its charts as PNG and SVG."""

import logging
from pathlib import Path
from typing import Any

import altair as alt
from altair.utils import schemapi

from ...data.cache.folder import Cache
from ...data.cache.metadata import SkippedRow
from ...data.files.whole_file import write_text
from ..outputs import REPORT_FILE
from ..scores import Scores
from . import maps, top_views, views
from .attended import attended
from .columns import Column, any_column, field, layer_columns, raw_columns
from .drawing import DATA, drawn, write_charts
from .found import Found, found_beside
from .frame import fitted, framed, place, section
from .marks import Ranking
from .parts import colours
from .sections import captured, escaped, lead, skipped_section, tokens_panel
from .texts import reading

logger = logging.getLogger("headscore")

MOST_HEADS_WITH_TOKENS = 100
_EXAMPLES = 3
_TOKEN_BYTES = 100_000
_ABOUT = "<h2>About these scores</h2>"
_TABLE_DIGITS = 4
_COMBINED = any_column("combined", (), "zscore")


def write_report(folder: Path, cache: Cache, scores: Scores) -> None:
    """Write report.html and charts/*.svg, *.png to `folder`, each whole or not at all.

    What folders in `folder` hold of validation, control, stability, sweep and compare is shown, too.

    Raises InputError where a shard is damaged, RunError where a chart cannot be drawn or the disk refuses.
    """
    with schemapi.debug_mode(False):  # the tests validate these charts, with every option
        tokens, skipped = _counted(cache)
        shown, found = _Shown(scores), found_beside(folder)
        panel, levels = tokens_panel(_attended(cache, scores), scores.unit)
        sections = _chart_sections(shown)
        order = [sections.pop("combined"), sections.pop("top_heads"), found.html, *sections.values(), panel]
        page = framed(
            f"headscore: {scores.metadata['model'].get('name', '')}",
            lead(scores, found.missing),
            "".join([*order, _ABOUT, captured(scores, tokens), skipped_section(skipped)]),
            {**_page_data(shown, found), "levels": levels},
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
        self.grid = maps.HeadGrid.of(scores.heads)
        weighted = list(self.ranking.weights)
        others = [name for name in scores.signals if name not in weighted]
        self.weighted, self.others = raw_columns(weighted), raw_columns(others)
        self.in_layer = layer_columns(weighted)
        self.heads = drawn(scores.heads, self.ranking, tuple(others))
        self.combined_digits = scores.combined_digits

    def views(self) -> dict[str, Any]:
        """The charts of the page by their ids: each as wide as its place, on the data that the page gives them."""
        data, grid, ranking = alt.NamedData(DATA), self.grid, self.ranking
        mapped = [_COMBINED, *self.weighted, *self.in_layer, *self.others]
        profiles = list(zip(self.weighted, colours(), strict=False))
        return {
            **{_map_id(column): maps.map_chart(data, grid, column, ranking, fluid=True) for column in mapped},
            "top-combined": top_views.combined_chart(data, grid, ranking),
            **{
                _top_id(column): top_views.values_chart(data, grid, column, ranking, colour, named=self.many)
                for column, colour in profiles
            },
            "entropy_and_task": views.scatter_chart(data, grid, True, ranking),
            **{_profile_id(column): views.profile_chart(data, grid, column, ranking, colour) for column, colour in profiles},
            **{_profile_id(column): views.profile_chart(data, grid, column, ranking) for column in self.others},
        }

    @property
    def many(self) -> bool:
        """Whether there are too many columns of top heads for one line of them."""
        return len(self.weighted) > 3

    def values(self) -> dict[str, list[Any]]:
        """The heads by column, and the table's columns once more where they have another field."""
        values = self.heads.to_dict(as_series=False)
        return values | {field(column.name): values[column.name] for column in self._in_table()}

    def table(self) -> list[dict[str, Any]]:
        """The columns of the table of top heads: the field that sorts, the one that shows, and to which one it reaches where it
        is a range; title and decimals; whether it holds only while the sliders stand where they started, and whether it needs a
        wide screen.
        """
        decimals = self.combined_digits
        stable: list[dict[str, Any]] = [
            {"field": "rank_low", "shown": "rank_low", "to": "rank_high", "title": "ranks", "digits": 0, "given": True},
            {"field": "low", "shown": "low", "to": "high", "title": "scores", "digits": decimals, "given": True, "wide": True},
            {"field": "p_top", "shown": "p_top", "title": "p_top", "digits": 2, "given": True},
        ]
        more = {"digits": _TABLE_DIGITS, "wide": self.ranking.stable}
        return [
            {"field": "rank", "shown": "place", "title": "rank"},
            {"field": "name", "shown": "name", "title": self.grid.unit},
            {"field": "combined", "shown": "combined", "title": "combined", "digits": decimals},
            *(stable if self.ranking.stable else []),
            *({"field": field(each.name), "shown": field(each.name), "title": each.label, **more} for each in self._in_table()),
        ]

    def _in_table(self) -> list[Column]:
        return [*self.weighted, *(column for column in self.others if column.name == views.SINK)]


def _map_id(column: Column) -> str:
    return "combined" if column == _COMBINED else f"{'layer' if column.in_layer else 'map'}-{field(column.name)}"


def _top_id(column: Column) -> str:
    return f"top-{field(column.name)}"


def _profile_id(column: Column) -> str:
    return f"profile-{field(column.name)}"


def _page_data(shown: _Shown, found: Found) -> dict[str, Any]:
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
        "given": shown.ranking.given(),
        "heads": shown.values(),
        "columns": shown.table(),
        "charts": specs,
        "found": found.charts,
    }


def _chart_sections(shown: _Shown) -> dict[str, str]:
    width = max(320, 46 * shown.grid.heads + 60)
    map_ = f'<div style="flex: 1 1 {width}px; max-width:{width}px">{place("combined")}</div>'
    table = '<div class="scroll"><table id="top-heads-table"><thead></thead><tbody></tbody></table></div>'
    ranges = (
        " Ranks and scores (5 to 95 %) and p_top, the share of replicates in which the head is among the top k, are of the "
        "bootstrap, by the weights and k that were given; ? marks a coin toss."
    )
    top = (
        f"<div><h3>Top heads</h3><p>Click a column's name to sort by it, a line to mark the head in every chart. 1= is a tie."
        f'{ranges if shown.ranking.stable else ""} <button id="csv">Download as CSV</button></p>{table}</div>'
    )
    pairs = "".join(_signal(*pair) for pair in zip(shown.weighted, shown.in_layer, strict=True))
    profiles = "".join(place(_profile_id(column)) for column in shown.weighted)
    other_maps = _folded("maps", [_signal(column) for column in shown.others])
    other_profiles = _folded("profiles", [place(_profile_id(column)) for column in shown.others])
    bodies = {
        "combined": f'<div id="sliders"></div><div class="beside">{map_}{top}</div>',
        "top_heads": _top_columns(shown),
        "signal_maps": f'<div class="pairs">{pairs}</div>{other_maps}',
        "entropy_and_task": place("entropy_and_task"),
        "layer_profiles": f'<div class="profiles">{profiles}</div>{other_profiles}',
    }
    return {name: section(*reading(name, shown.ranking), body) for name, body in bodies.items()}


def _top_columns(shown: _Shown) -> str:
    """The small columns of the top heads, beside each other."""
    levels = zip(shown.ranking.null_levels(), top_views.NULL_COLOURS, strict=False)
    null = "".join(f'<i class="swatch" style="background:{colour}"></i>{escaped(name)} ' for name, colour in levels)
    captions = {"combined": f"<b>combined score</b> {f'random ranks would give: {null}' if null else ''}"}
    for column in shown.weighted:
        level = shown.ranking.uniform.get(column.name)
        uniform = "" if level is None else f" uniform: {level:.3g}"
        captions[field(column.name)] = f"<b>{escaped(column.label)}</b>{uniform}"
    parts = "".join(f'<div><p class="caption">{text}</p>{place(f"top-{name}")}</div>' for name, text in captions.items())
    return f'<div class="columns{" many" if shown.many else ""}" style="--columns:{len(shown.weighted)}">{parts}</div>'


def _signal(*columns: Column) -> str:
    """What a signal is, and its maps."""
    caption = f'<p class="caption"><b>{escaped(columns[0].label)}</b> {escaped(columns[0].description)}</p>'
    places = "".join(place(_map_id(column)) for column in columns)
    return f'<div>{caption}<div class="pair">{places}</div></div>'


def _folded(kind: str, parts: list[str]) -> str:
    """Charts that are drawn once the reader unfolds them."""
    summary = f"<summary>other signals, which weigh nothing here: {len(parts)}</summary>"
    return f'<details>{summary}<div class="{kind}">{"".join(parts)}</div></details>' if parts else ""


def _counted(cache: Cache) -> tuple[int, list[SkippedRow]]:
    """The number of tokens of all prompts, and the skipped rows."""
    counted = [(shard.tokens, shard.skipped) for shard in cache.open_shards()]
    skipped = [entry for _, entries in counted for entry in entries]
    return sum(tokens for tokens, _ in counted), sorted(skipped, key=lambda entry: entry["row"])


def _attended(cache: Cache, scores: Scores) -> list[dict[str, Any]]:
    """What the first heads of all attend to in the samples whose token texts the cache has: as many as there is room for."""
    tokens = sum(len(example["tokens"]) for example in cache.metadata.get("examples", [])[:_EXAMPLES])
    count = max(1, min(MOST_HEADS_WITH_TOKENS, len(scores.heads), _TOKEN_BYTES // max(1, tokens)))
    top = scores.top(count).select("layer", scores.unit).rows()
    heads, groups = cache.metadata["dims"]["heads"], cache.metadata["dims"].get("kv_heads")
    return attended(cache, top, _EXAMPLES, heads // groups if scores.unit == "kv_head" and groups else 1)
