"""The charts as views of data that is given, or named where a page or a file has it: what charts.py makes of frames.

A layered chart is made in one call, with all that it has: each change afterwards would have Altair copy all of it.
"""

import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import altair as alt

from ..signals import SIGNALS, SINK
from .marks import INK, MARK, PICKED, PICKED_ONLY, TOP, Ranking, ranked, top_only

TITLES = {
    "combined": "combined score",
    "out_raw": "out: norm of z",
    "ent_raw": "ent: −entropy (nats)",
    "task_raw": "task: attention mass",
    "out_z": "out, normalised",
    "ent_z": "ent, normalised",
    "task_z": "task, normalised",
    SINK: "mass on the first token",
}
SIGNAL_COLOURS = {"out": "#0072B2", "ent": "#E69F00", "task": "#009E73"}  # Okabe and Ito's, told apart by all
_MANY = 1000  # heads from which on points are small
_WHOLE = alt.Axis(labelExpr="datum.value == floor(datum.value) ? format(datum.value, 'd') : ''")
_LAYERS = alt.X("layer:Q", title="layer", axis=_WHOLE, scale=alt.Scale(nice=False, zero=False, padding=6))
_TITLE_WIDTH = 72  # characters
READING = {
    "combined": (
        "Combined score of every head",
        "A cell is a head; brighter means that the task drives it more, and a white dot marks the top k.",
    ),
    "signal_maps": (
        "The three signals",
        "Raw means over the samples, and below them normalised within each layer; higher always means that the task drives the "
        "head more. White dots are the top k.",
    ),
    "entropy_and_task": (
        "Entropy against task mass",
        "A point is a head; to the left its attention is focused, further up more of it goes to the task's tokens, and "
        "brighter points rest on the first token (a sink). Rings mark the top k.",
    ),
    "layer_profiles": (
        "Signals by layer",
        "The line is the mean of a layer's heads, the band their range; dots are the top k heads, which the last chart counts.",
    ),
    "top_heads": (
        "What the top heads' scores are made of",
        "A bar is a head and its length the combined score; the parts are its ranks within the layer by each signal, weighted.",
    ),
}


def map_chart(data: Any, shape: tuple[int, int], column: str, live: Ranking | None, fluid: bool = False) -> alt.LayerChart:
    """`heatmap` of data that is given or named; shape: L, H. fluid: as wide as its place on a page."""
    layers, heads = shape
    wide, high = _step(heads, 520, 24), _step(layers, 480, 16)
    cell = f"min(width / {heads}, {high})" if fluid else f"{min(wide, high)}"
    place: dict[str, Any] = {
        "x": alt.X("head:O", title="head", axis=alt.Axis(labelOverlap=True, labelSeparation=4, labelAngle=0, ticks=False)),
        "y": alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, ticks=False)),
    }
    diverging = column.endswith("_z")
    scale = alt.Scale(scheme="blueorange", domainMid=0) if diverging else alt.Scale(scheme="viridis")
    legend = alt.Legend(
        title=f"{TITLES.get(column, column)} (higher: driven more)", orient="top", titleLimit=0, gradientThickness=10
    )
    base = alt.Chart().encode(**place)
    cells = base.mark_rect(cursor="pointer").encode(
        color=alt.Color(f"{column}:Q", scale=scale, legend=legend),
        tooltip=_tooltip(column, *(["rank"] if live else [])),
    )
    marks = [cells.add_params(PICKED)]
    if live:
        dot = {"shape": "circle", "filled": True, "fill": "white", "stroke": "black", "strokeWidth": 1, "opacity": 1}
        dot["size"] = alt.ExprRef(f"max(36, min(90, pow({cell} * 0.5, 2)))")
        marks.append(top_only(base).mark_point(**dot))
    outline = base.mark_rect(fill=None, stroke=MARK, strokeWidth=2.5)
    marks.append(outline.transform_filter(PICKED_ONLY))
    title = _title(*READING["combined"]) if column == "combined" else alt.Undefined  # the legend says what the others show
    size = {"width": "container", "height": layers * high} if fluid else {"width": {"step": wide}, "height": {"step": high}}
    return ranked(alt.layer(*marks, data=data, title=title, **size), live)


def map_columns(columns: Sequence[str]) -> list[str]:
    """Those of `columns` that `signal_maps` shows."""
    return [c for kind in ("raw", "z") for name in SIGNALS if (c := f"{name}_{kind}") in columns]


def maps_chart(data: Any, shape: tuple[int, int], columns: Sequence[str], live: Ranking | None) -> alt.ConcatChart:
    """`signal_maps` of data that is given or named."""
    maps = [map_chart(alt.Undefined, shape, column, live) for column in map_columns(columns)]
    title = _title(*READING["signal_maps"])
    return _beside(maps, columns=3, data=data, title=title).resolve_scale(color="independent")


def profiles_chart(data: Any, columns: Sequence[str], live: Ranking | None) -> alt.ConcatChart:
    """`layer_profiles` of data that is given or named."""
    charts: list[Any] = [profile_chart(alt.Undefined, name, live) for name in SIGNALS if f"{name}_raw" in columns]
    charts += [count_chart(alt.Undefined, live)] if live else []
    return _beside(charts, columns=2, data=data, title=_title(*READING["layer_profiles"]))


def _beside(charts: list[Any], **properties: Any) -> alt.ConcatChart:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Automatically deduplicated")  # it is meant: one click marks a head in all
        return alt.concat(*charts, **properties)


def scatter_chart(data: Any, with_sink: bool, live: Ranking | None) -> alt.LayerChart:
    """`entropy_and_task` of data that is given or named."""
    base = alt.Chart().encode(
        x=alt.X("entropy:Q", title="entropy of the attention in nats (left: focused)", scale=alt.Scale(zero=False)),
        y=alt.Y("task_raw:Q", title="attention mass on the task's tokens", scale=alt.Scale(zero=False)),
        tooltip=_tooltip("entropy", "task_raw", *([SINK] if with_sink else []), *(["rank"] if live else [])),
    )
    size, opacity = (45, 0.9) if live is None or live.heads < _MANY else (18, 0.6)  # rings must show among many points
    points = base.mark_circle(size=size, opacity=opacity, stroke=INK, strokeWidth=0.6, cursor="pointer")
    if with_sink:
        legend = alt.Legend(title=TITLES[SINK], orient="top", titleLimit=0, gradientThickness=10, gradientOpacity=1)
        points = points.encode(color=alt.Color(f"{SINK}:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=legend))
    marks = [points.add_params(PICKED)]
    if live:
        marks.append(top_only(base).mark_point(size=90, stroke=INK, strokeWidth=1.5, cursor="pointer"))
    marks.append(base.transform_filter(PICKED_ONLY).mark_point(size=220, stroke=MARK, strokeWidth=3))
    entropy = alt.CalculateTransform(calculate="-datum.ent_raw", **{"as": "entropy"})
    title = _title(*READING["entropy_and_task"])
    return ranked(alt.layer(*marks, data=data, title=title, transform=[entropy], width=520, height=340), live)


def profile_chart(data: Any, signal: str, live: Ranking | None) -> alt.LayerChart:
    """One signal's part of `layer_profiles`, of data that is given or named."""
    column, colour = f"{signal}_raw", SIGNAL_COLOURS[signal]
    title = TITLES[column]
    base = alt.Chart().encode(x=_LAYERS)
    band = base.mark_area(opacity=0.25, color=colour).encode(
        y=alt.Y(f"min({column}):Q", title=title, scale=alt.Scale(zero=signal != "ent")), y2=alt.Y2(f"max({column}):Q")
    )
    line = base.mark_line(color=colour, strokeWidth=2).encode(y=alt.Y(f"mean({column}):Q"))
    heads = base.encode(y=alt.Y(f"{column}:Q"), tooltip=_tooltip(column, *(["rank"] if live else [])))
    marks = [band, line]
    if live:
        dots = top_only(heads).mark_point(
            filled=True, size=40, fill=colour, stroke=INK, strokeWidth=0.8, opacity=1, cursor="pointer"
        )
        marks.append(dots.add_params(PICKED))
        marks.append(heads.transform_filter(PICKED_ONLY).mark_point(size=180, stroke=MARK, strokeWidth=3))
    return ranked(alt.layer(*marks, data=data, width=340, height=180), live)


def count_chart(data: Any, live: Ranking | None) -> alt.Chart:
    """How many of the top k each layer has: the last part of `layer_profiles`."""
    bars = alt.Chart(data).encode(
        x=_LAYERS,
        y=alt.Y("sum(is_top):Q", title="heads in the top k", axis=_WHOLE),
    )
    bars = bars.mark_bar(width=alt.ExprRef("3"), color="#888888").transform_calculate(is_top=f"{TOP} ? 1 : 0")
    return ranked(bars, live, first=True).properties(width=340, height=180)


def bars_chart(data: Any, live: Ranking) -> alt.Chart:
    """`top_heads` of data that is given or named."""
    names = [f"{weight}rank({name})" for name, weight in zip(SIGNALS, ("", "λ_ent · ", "λ_task · "), strict=True)]
    weights = dict(zip(names, ("1", "lambda_ent", "lambda_task"), strict=True))
    colour = alt.Color(
        "part:N",
        title=None,
        sort=names,
        scale=alt.Scale(domain=names, range=list(SIGNAL_COLOURS.values())),
        legend=alt.Legend(orient="top", columns=3, labelLimit=0, symbolType="square"),
    )
    base = alt.Chart().encode(
        y=alt.Y("name:N", title=None, sort=alt.SortField("rank"), axis=alt.Axis(ticks=False, labelLimit=0))
    )
    bars = (
        top_only(base)
        .transform_fold([f"rank_{name}" for name in SIGNALS], as_=["signal", "signal_rank"])
        .transform_calculate(
            part=" : ".join(f"datum.signal == 'rank_{s}' ? '{n}'" for s, n in zip(SIGNALS, names, strict=True)) + " : ''",
            share=" : ".join(f"datum.part == '{n}' ? {w} * datum.signal_rank" for n, w in weights.items()) + " : 0",
            order=f"indexof({names!r}, datum.part)",
        )
        .mark_bar(cursor="pointer", strokeWidth=2.5)
        .encode(
            x=alt.X("sum(share):Q", title="combined score (higher: driven more)"),
            color=colour,
            order=alt.Order("order:Q"),
            detail=[alt.Detail("layer:O"), alt.Detail("head:O"), alt.Detail("rank:Q")],
            stroke=alt.condition(PICKED_ONLY, alt.value(MARK), alt.value(None)),
            tooltip=[
                *(alt.Tooltip(field) for field in ("name:N", "rank:Q", "part:N")),
                alt.Tooltip("sum(share):Q", title="adds"),
            ],
        )
        .add_params(PICKED)
    )
    return ranked(bars, live, first=True).properties(
        data=data, title=_title(*READING["top_heads"]), width=520, height={"step": 16}
    )


def _step(count: int, most: int, largest: int) -> float:
    return max(4, min(largest, most // count))


def _tooltip(*columns: str) -> list[Any]:
    shown = {"rank": alt.Tooltip("rank:Q"), "entropy": alt.Tooltip("entropy:Q", title="entropy (nats)", format=".4f")}
    others = [shown.get(c, alt.Tooltip(f"{c}:Q", title=TITLES.get(c, c), format=".4f")) for c in columns]
    return [alt.Tooltip("name:N"), *others]


def _title(title: str, reading: str) -> alt.Title:
    return alt.Title(title, subtitle=textwrap.wrap(reading, _TITLE_WIDTH), anchor="start")
