"""validation.html: its charts hold the numbers of the tables, its texts are escaped, and the command line makes it."""

import dataclasses
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from altair.utils import schemapi
from made_validation import made

import headscore
from headscore.data.errors import InputError, printable
from headscore.data.options.settings import ValidateSettings
from headscore.score.report.marks import INK
from headscore.score.report.validation_page import charts, write_validation_page
from headscore.score.validated import validation_of
from headscore.score.validation_files import REPORT_FILE, write_measured

HOSTILE = "<script>alert(1)</script></script><b>@@css@@ & \u202e\"'\\"
METRICS = ("kl", "nll", "acc")
LINES = ("top", "top_low", "top_high", "bottom", "draws", "draws_min", "draws_max", "p")
FEW = ValidateSettings(bootstrap=100)


def written(folder: Path, found: headscore.Validation) -> tuple[str, Any]:
    """The page, and what its script reads."""
    write_validation_page(folder, found, 0.95)
    text = (folder / REPORT_FILE).read_text()
    return text, json.loads(re.search(r'id="page-data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]


def values_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return spec["datasets"][spec["data"]["name"]]  # type: ignore[no-any-return]


def test_the_charts_have_the_numbers_of_the_tables(tmp_path: Path) -> None:
    found = validation_of(made(), FEW)
    text, data = written(tmp_path, found)
    assert found.effects is not None and data["config"]["background"] == "transparent"
    maps = [f"map-{effect}" for effect in ("kl", "nll", "gate_gradient")]
    assert list(data["charts"]) == [f"curve-{place}-{metric}" for place in range(2) for metric in METRICS] + maps
    assert all(f'id="{name}"' in text for name in data["charts"]) and "url" not in json.dumps(data["charts"])
    for place, signal in enumerate(("combined", "out")):
        for metric in METRICS:
            lines = found.table.filter(signal=signal, metric=metric)
            shown = values_of(data["charts"][f"curve-{place}-{metric}"])
            assert [line["share"] for line in shown] == pytest.approx([100 * 2 / 12, 100 * 4 / 12])
            assert [{name: line[name] for name in LINES} for line in shown] == lines.select(LINES).to_dicts()
    for name in maps:
        lines = found.effects.filter(effect=name.removeprefix("map-")).drop("effect")
        assert values_of(data["charts"][name]) == lines.to_dicts()


def test_a_curve_has_a_band_three_lines_an_interval_and_the_intact_line() -> None:
    found = validation_of(made(), FEW)
    with schemapi.debug_mode(True):
        specs = {name: chart.to_dict() for name, chart in charts(found).items()}
    for name in ("curve-0-kl", "curve-1-acc"):
        band, intact, *lines, interval = specs[name]["layer"]
        assert band["mark"]["type"] == "area" and band["encoding"]["y2"]["field"] == "draws_max"
        assert intact["mark"]["type"] == "rule" and intact["encoding"]["y"]["datum"] == 0
        assert [line["encoding"]["y"]["field"] for line in lines] == ["draws", "bottom", "top"]
        assert {line["mark"]["type"] for line in lines} == {"line"} and interval["mark"]["type"] == "rule"
        assert (interval["encoding"]["y"]["field"], interval["encoding"]["y2"]["field"]) == ("top_low", "top_high")
        assert "log" not in json.dumps(specs[name])
    for metric in METRICS:
        scales = [specs[f"curve-{place}-{metric}"]["layer"][0]["encoding"]["y"]["scale"] for place in range(2)]
        lines = found.table.filter(metric=metric)
        low, high = scales[0]["domain"]
        assert scales[0] == scales[1], "one scale for all signals"
        assert low <= min(0, lines["top_low"].min(), lines["draws_min"].min()) <= max(0, lines["top_high"].max()) <= high


def test_signed_effects_have_zero_in_the_middle_and_one_colour_for_what_is_needed() -> None:
    found = validation_of(made(), FEW)
    assert found.effects is not None
    colours = {
        name: chart.to_dict()["layer"][0]["encoding"]["color"]["scale"]
        for name, chart in charts(found).items()
        if "map" in name
    }
    assert colours["map-kl"] == {"scheme": "viridis"}
    for effect in ("nll", "gate_gradient"):
        most = found.effects.filter(effect=effect)["mean"].abs().max()
        scale = colours[f"map-{effect}"]
        assert (scale["scheme"], scale["domain"], scale["domainMid"]) == ("blueorange", [-most, most], 0)
        assert scale["reverse"] == (effect == "gate_gradient"), "a needed head's gradient is negative"


@pytest.mark.parametrize(("ks", "draws"), [((2,), 3), ((2, 4), 0)])
def test_a_single_k_and_no_draws_are_drawn(ks: tuple[int, ...], draws: int) -> None:
    import vl_convert

    found = validation_of(dataclasses.replace(made(ks=ks, draws=draws), single=None, gradient=None), FEW)
    drawn = charts(found)
    assert len(drawn) == 6 and not any(name.startswith("map") for name in drawn)
    spec = drawn["curve-0-kl"].to_dict()
    assert spec["layer"][0]["mark"]["type"] == ("area" if len(ks) > 1 else "rule"), "an area of one point cannot be seen"
    svg = vl_convert.vegalite_to_svg(json.dumps(spec))
    assert ("draws_min" in svg or svg.count("<path") > 10) and INK in svg and "NaN" not in svg


def test_without_any_change_there_is_still_a_scale() -> None:
    table = validation_of(made(), FEW).table.filter(metric="acc")
    none = table.with_columns(pl.lit(0.0).alias(name) for name in LINES)
    assert headscore.validation_chart(none, 12, "out", "acc").to_dict()["layer"][0]["encoding"]["y"]["scale"]["domain"] == [
        -1,
        1,
    ]


def test_each_chart_is_a_function_of_a_frame() -> None:
    found = validation_of(made(), FEW)
    curve = headscore.validation_chart(found.table, 12)
    lines = found.table.filter(signal="combined", metric="kl")
    assert [value["share"] for value in values_of(curve.to_dict())] == pytest.approx([100 * k / 12 for k in lines["k"]])
    assert found.effects is not None
    of_heads = found.effects.filter(effect="nll")
    assert [value["mean"] for value in values_of(headscore.effect_map(of_heads, "nll").to_dict())] == of_heads["mean"].to_list()
    with pytest.raises(InputError, match="no lines of signal='ent' and metric='kl'"):
        headscore.validation_chart(found.table, 12, "ent")
    with pytest.raises(InputError, match="no lines of effect='kl'"):
        headscore.effect_map(of_heads)
    with pytest.raises(InputError, match="the frame has no layer, effect"):
        headscore.effect_map(found.table)


def test_text_from_data_is_escaped_and_the_verdicts_are_at_the_top(tmp_path: Path) -> None:
    measured = made(("combined", HOSTILE))
    measured.facts.update(model=HOSTILE, data=HOSTILE)
    found = validation_of(measured, FEW)
    text, data = written(tmp_path, found)
    body = text[text.index("<header>") : text.index('<script type="application/json"')]
    assert "<script" not in body and "<b>@@" not in body and "\u202e" not in text.replace(text[text.index("<script>") :], "")
    assert body.count("&lt;script&gt;alert(1)") == 6 and "@@css@@" in body
    header = html.unescape(body[: body.index("<h2>")])
    assert found.verdicts[0].startswith("CAUTION") and f'<p class="warning">{found.verdicts[0]}</p>' in header
    for line in found.verdicts[1:]:
        assert f"<li>{printable(line)}</li>" in header
    assert "alert" not in json.dumps(data), "charts know nothing of names"


def test_the_command_line_makes_it_without_the_model_and_takes_it_away(tmp_path: Path) -> None:
    write_measured(tmp_path / "v", dataclasses.replace(made(), gradient=None))
    command = [
        sys.executable,
        "-m",
        "headscore",
        "validate",
        str(tmp_path / "v"),
        "--out",
        str(tmp_path / "w"),
        "--bootstrap",
        "100",
    ]
    for more in (["--report"], []):
        done = subprocess.run([*command, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "w" / REPORT_FILE).exists() == bool(more), "a page of other statistics would be wrong"
    assert (tmp_path / "w" / "effects.csv").exists()


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headscore.score.report.vega._PACKAGES", {"no_such_module": "altair"})
    with pytest.raises(headscore.InputError, match=r"^a report: needs altair: pip install 'headscore\[report\]'$"):
        headscore.validate(tmp_path / "nowhere", tmp_path / "v", report=True)
    assert not (tmp_path / "v").exists()
