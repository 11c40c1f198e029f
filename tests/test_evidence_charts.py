"""Charts of evidence hold the numbers of their frames, and are drawn without a warning."""

import warnings
from typing import Any

import polars as pl
import pytest

import headscore
from headscore.data.errors import InputError

pytest.importorskip("altair")

CURVE = pl.DataFrame(
    {
        "samples": [8, 16, 32],
        "k": [5, 5, 5],
        "overlap": [0.5, 0.7, 0.92],
        "low": [0.4, 0.6, 0.8],
        "high": [0.6, 0.8, 1.0],
        "fitted": [0.52, 0.7, 0.91],
        "chance": [0.1, 0.1, 0.1],
    }
)
HEADS = pl.DataFrame(
    {"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "rank_A": [1, 2, 3, 4], "rank_B": [2, 4, 1, None], "rank_C": [4, 3, 2, 1]}
)

CONTROL = HEADS.select("layer", "head").with_columns(
    task_controlled=pl.Series([0.2, -0.1, 0.0, None]), task_control=pl.Series([0.1, 0.2, 0.3, 0.4]), task_q=pl.lit(0.01)
)


def values_of(chart: Any) -> list[dict[str, Any]]:
    made = chart.to_dict()
    return made["datasets"][made["data"]["name"]]  # type: ignore[no-any-return]


def drawn(chart: object) -> str:
    converter = pytest.importorskip("vl_convert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return str(converter.vegalite_to_svg(chart.to_json()))  # type: ignore[attr-defined]


def test_the_curve_is_drawn_with_what_was_measured() -> None:
    chart = headscore.stability_chart(CURVE)
    assert values_of(chart) == CURVE.to_dicts()
    assert "share of the top 5 in common" in drawn(chart)


def test_heads_are_drawn_by_their_ranks_in_two_rankings() -> None:
    chart = headscore.compare_chart(HEADS, k=2)
    values = values_of(chart)
    assert [(v["name"], v["first"], v["second"], v["top"]) for v in values] == [
        ("L0H0", 1, 2, "both"),
        ("L0H1", 2, 4, "A alone"),
        ("L1H0", 3, 1, "B alone"),
    ], "what a list does not have is left out"
    assert "rank in B" in drawn(chart)
    assert len(values_of(headscore.compare_chart(HEADS.rename({"head": "kv_head"}), "A", "C"))) == 4


def test_a_map_shows_how_far_heads_are_above_the_control() -> None:
    chart = headscore.control_map(CONTROL)
    assert values_of(chart) == CONTROL.select("layer", "head", "task_controlled", "task_control", "task_q").to_dicts()
    assert "task less that of the control" in drawn(chart)


def test_frames_without_what_a_chart_needs_are_refused() -> None:
    with pytest.raises(InputError, match="the frame has no fitted"):
        headscore.stability_chart(CURVE.drop("fitted"))
    with pytest.raises(InputError, match="the frame has no rank_D"):
        headscore.compare_chart(HEADS, "A", "D")
    with pytest.raises(InputError, match="the frame has no lines"):
        headscore.stability_chart(CURVE.clear())
    with pytest.raises(InputError, match="the frame has no out_controlled, out_control, out_q"):
        headscore.control_map(CONTROL, "out")


@pytest.mark.parametrize("frame", [None, "x", pl.LazyFrame({"layer": [0]}), {"layer": [0]}, [1]])
@pytest.mark.parametrize("chart", ["stability_chart", "compare_chart", "control_map", "sweep_map", "effect_map", "heatmap"])
def test_what_is_no_frame_is_refused_in_one_line(chart: str, frame: Any) -> None:
    with pytest.raises(InputError, match=r"a chart: the frame is a .*, not a polars DataFrame"):
        getattr(headscore, chart)(frame)


def test_options_and_columns_of_other_types_are_refused_in_one_line() -> None:
    heads = pl.DataFrame({"layer": [0, 1], "head": [0, 0], "rank_A": [1, 2], "rank_B": [2, 1]})
    for k in (-4, 0, "a", None, True):
        with pytest.raises(InputError, match=r"k=.* is not a whole number of at least 1"):
            headscore.compare_chart(heads, k=k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the column rank_A is of String, not of numbers"):
        headscore.compare_chart(heads.cast({"rank_A": pl.String}))
    sweep = pl.DataFrame({"weight_a": [0.0, 1.0], "weight_b": [0.0, 1.0], "spearman": [0.5, 0.6], "shared": [1.0, 2.0]})
    with pytest.raises(InputError, match="are not two signals"):
        headscore.sweep_map(sweep, signals=("a",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"value=\['a'\] is not text"):
        headscore.sweep_map(sweep, ["a"])  # type: ignore[arg-type]


def test_signals_of_a_sweep_may_have_any_name() -> None:
    sweep = pl.DataFrame({"weight_a.b:c": [0.0, 1.0], "weight_d[0]": [0.0, 1.0], "spearman": [0.5, 0.6], "shared": [1.0, 2.0]})
    spec = headscore.sweep_map(sweep).to_dict()
    lines = next(iter(spec["datasets"].values())) if "datasets" in spec else spec["data"]["values"]
    used = [spec["encoding"][axis]["field"] for axis in "xy"]
    assert [[line[name] for name in used] for line in lines] == [[0, 0], [1, 1]] and not any(c in "".join(used) for c in ".:[")
    assert spec["encoding"]["x"]["title"] == "weight of a.b:c"
