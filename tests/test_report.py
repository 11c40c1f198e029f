"""The report in a real browser: what it marks is what `score` says, and it needs no network."""

import base64
import html
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from browser import Browser, chromium
from hypothesis import given
from hypothesis import strategies as st
from made_caches import metadata, write_cache
from report_pages import HOSTILE, column_of_table, dots, made, marked, page_data, set_slider

import headscore
from headscore.data.cache.folder import open_cache, shard_path, write_metadata
from headscore.data.cache.shard import ARRAYS, write_shard
from headscore.data.errors import printable
from headscore.data.files.whole_file import TEMPORARY
from headscore.data.options.settings import METADATA_FILE, ScoreSettings
from headscore.score import signals
from headscore.score.outputs import CHARTS_FOLDER, REPORT_FILES, RESULT_FILES
from headscore.score.report import sections
from headscore.score.report.columns import field
from headscore.score.report.page import write_report
from headscore.score.scores import head_name, shown_rank
from headscore.score.scoring import score_cache

needs_chromium = pytest.mark.skipif(not chromium(), reason="needs Chromium on the PATH (apt-get install chromium)")


def with_spans(folder: Path, names: list[str], dims: dict[str, int] | None = None) -> Path:
    """The cache with other names of its spans, and more of its dims."""
    path = shard_path(folder, 0)
    with h5py.File(path, locking=False) as file:
        arrays = {name: file[name][()] for name in ARRAYS}
    arrays["tokens/span"] &= (1 << len(names)) - 1
    layers, heads = arrays["last_token/output_norm"].shape[:2]
    changed = metadata(layers, heads, {"span_names": names, "dims": {"layers": layers, "heads": heads} | (dims or {})})
    (folder / METADATA_FILE).unlink()
    path.unlink()
    write_metadata(folder, changed, keep_existing=False)
    write_shard(path, 0, arrays, changed, [])
    return folder


def require_same(page: Browser, scores: headscore.Scores) -> None:
    """The page shows what `scores` are: the marks, their names and ranks with ties, and every combined score."""
    top = scores.top()
    assert marked(page, scores.unit) == [list(h) for h in top.select("layer", scores.unit).rows()]
    assert column_of_table(page, 1) == [head_name(line, scores.unit) for line in top.to_dicts()]
    assert column_of_table(page, 0) == [shown_rank(scores, line) for line in top.to_dicts()]
    live = page.run("headscore.rankedHeads().map(h => h.combined)")
    assert live == scores.combined["combined"].to_list(), "to the last bit"
    assert page.run("headscore.rankedHeads().map(h => h.rank)") == scores.heads["rank"].to_list()


@needs_chromium
@pytest.mark.parametrize(
    ("layers", "heads", "levels", "norm"), [(30, 9, 0, "zscore"), (6, 8, 2, "percentile"), (5, 7, 3, "zscore")]
)
def test_sliders_mark_the_heads_that_score_ranks_first(
    page: Browser, tmp_path: Path, layers: int, heads: int, levels: int, norm: str
) -> None:
    cache = made(tmp_path / "cache", layers, heads, levels)
    scores = headscore.report(cache, tmp_path / "out", norm_mode=norm)
    page.open(tmp_path / "out" / "report.html")
    require_same(page, scores)
    for ent, task, k in ((0, 0, 5), (0.35, 1.7, 12), (3, 0.05, layers * heads // 2), (0.15, 0.1, 1), (0.5, 3, layers * heads)):
        k = min(k, 100)
        for name, value in (("weight_1", ent), ("weight_2", task), ("k", k)):
            set_slider(page, name, value)
        require_same(page, headscore.score(cache, norm_mode=norm, lambda_ent=ent, lambda_task=task, top_k=k))
        assert dots(page, "combined") == dots(page, "layer-task") == k
    assert not page.errors and not page.requests


HOT = {"hot": "mass_question * 2 - sink * entropy"}
RANKINGS: dict[str, dict[str, Any]] = {
    "rrf": {"fusion": "rrf"},
    "rrf of the model": {"fusion": "rrf", "within": "model", "weight": {"near": 0.7}},
    "sum": {"fusion": "sum"},
    "sum of the model": {"fusion": "sum", "within": "model", "norm_mode": "percentile"},
    "ratio": {"fusion": "sum", "norm_mode": "ratio", "weight": {"sink": -0.45}},
    "none": {"fusion": "sum", "norm_mode": "none", "weight": {"out": 0.0, "lift": 0.3}},
    "the model's ranks": {"within": "model"},
    "a negative weight": {"weight": {"sink": -0.7}, "lambda_ent": -0.15},
    "a user's signal": {"signal": HOT, "weight": {"hot": 1.5, "largest": -0.4}},
    "a user's signal, rrf": {"signal": HOT, "weight": {"hot": 1.5, "out": 0.0}, "fusion": "rrf"},
    "groups": {"by": "kv_head", "weight": {"sink": -0.5}},
}


@needs_chromium
@pytest.mark.parametrize(
    ("options", "levels"),
    [(options, 2 * (number % 2)) for number, options in enumerate(RANKINGS.values())],  # with ties in every other one
    ids=list(RANKINGS),
)
def test_the_page_ranks_as_score_does_by_any_signals(page: Browser, tmp_path: Path, options: Any, levels: int) -> None:
    dims = {"kv_heads": 4} if "by" in options else None
    cache = with_spans(made(tmp_path / "cache", 6, 8, levels), ["question", "choices", "template", "special"], dims)
    scores = headscore.report(cache, tmp_path / "out", **options)
    page.open(tmp_path / "out" / "report.html")
    require_same(page, scores)
    names = list(scores.settings.weights)
    ranges = page.run("[...document.querySelectorAll('#sliders input')].map(i => [Number(i.min), Number(i.max)])")[:-1]
    assert [least == -most for least, most in ranges] == [scores.settings.weights[name] < 0 for name in names]
    for seed in range(2):
        random = np.random.default_rng(seed)
        weights = {name: round(0.05 * random.integers(most / 0.05), 2) for name, (_, most) in zip(names, ranges, strict=True)}
        weights |= {name: -weights[name] for name in names if scores.settings.weights[name] < 0}
        for place, name in enumerate(names):
            set_slider(page, f"weight_{place}", weights[name])
        set_slider(page, "k", 5 + seed)
        again = options | {"weight": {n: w for n, w in weights.items() if n not in ("ent", "task")}, "top_k": 5 + seed}
        again |= {"lambda_ent": weights["ent"], "lambda_task": weights["task"]}
        require_same(page, headscore.score(cache, **again))
        assert dots(page, "combined") == 5 + seed
    assert not page.errors and not page.requests


@needs_chromium
def test_a_slider_stands_at_the_weight_of_the_scores(page: Browser, tmp_path: Path) -> None:
    names = ["out", "ent", "task", "sink", "near", "largest", "lift", "excess", "ent_free"]
    weights = dict(zip(names, [0.333, 0.25, 7.0, 1e-5, 1 / 3, -0.333, -1e-5, -40.0, 0.0], strict=True))
    scores = headscore.report(made(tmp_path / "cache", 2, 3), tmp_path / "out", weight=weights)
    assert scores.settings.weights == weights
    page.open(tmp_path / "out" / "report.html")
    for place, weight in enumerate(scores.settings.weights.values()):
        shown = page.run(f"document.querySelector('#sliders input[name=\"weight_{place}\"]').valueAsNumber")
        assert shown == pytest.approx(weight, rel=1e-6) and page.run(f"headscore.main.signal('weight_{place}')") == weight


# ------------------------------------------------------------------------------------------------------- every signal

STRANGE = ["question", "a.b", "it's", 'x"y]', "<b>[0]", 'back\\"slash', "\u202e{{ }}@@css@@", "$& ${k} #1"]


def weighted(cache: Path, weights: dict[str, float], **options: Any) -> headscore.Scores:
    """The scores by weights of any names, also such as no option takes."""
    settings = ScoreSettings(**options)
    object.__setattr__(settings, "weight", weights)
    return score_cache(open_cache(cache), settings)


def unfold(page: Browser) -> None:
    page.run("document.querySelectorAll('main details').forEach(d => { d.open = true; })")
    page.run("new Promise(done => setTimeout(done, 50)).then(headscore.settled)")


@needs_chromium
@pytest.mark.parametrize("names", [["question", "choices", "template", "special"], STRANGE])
def test_every_signal_is_a_map_of_its_values(page: Browser, tmp_path: Path, names: list[str]) -> None:
    cache = with_spans(made(tmp_path / "cache", 4, 6), names)
    own = {"name": "sink * 3", "share": "largest + 1"}
    scores = weighted(cache, {f"mass_{names[2]}": -0.5, "name": 1.0}, signal=own)
    write_report(tmp_path / "out", open_cache(cache), scores)
    assert {f"mass_{name}" for name in names} <= set(scores.signals)
    page.open(tmp_path / "out" / "report.html")
    set_slider(page, "k", 7)
    page.run("document.querySelector('#top-heads-table tbody tr').click()")
    page.run("headscore.settled()")
    unfold(page)
    heads = scores.heads
    ends = {f"map-{field(name)}": [heads[name].min(), heads[name].max()] for name in scores.signals}
    for name in scores.weights:
        ranks = heads.select(pl.col(name).rank("min").over("layer")).to_series()
        ends[f"layer-{field(name)}"] = [ranks.min(), ranks.max()]
    for chart, expected in ends.items():
        domain = page.run(f"headscore.views['{chart}'].scale('color').domain()")
        assert [domain[0], domain[-1]] == pytest.approx(expected, rel=1e-5), chart
        assert dots(page, chart) == 7, "where the sliders stand, also in what was drawn later"
        assert page.run(f"headscore.views['{chart}'].data('picked_store').length") == 1
        assert page.run(f"document.querySelector('#{chart} .mark-rect.role-mark').childElementCount") == len(heads)
    for name in scores.signals:
        profile = f"headscore.views['profile-{field(name)}']"
        low, high = page.run(f"{profile}.scale('y').domain()")
        assert low <= heads[name].min() and high >= heads[name].max()
    shown = [line[name] for line in scores.top(7).to_dicts() for name in scores.weights]
    cells = [column_of_table(page, 3 + place) for place in range(len(scores.weights))]
    assert [float(cell) for line in zip(*cells, strict=True) for cell in line] == pytest.approx(shown, abs=6e-5)
    assert page.run("document.querySelectorAll('main b b').length") == 0
    assert not page.errors and not page.requests


@pytest.mark.parametrize("names", [["question", "choices", "template", "special"], STRANGE])
def test_charts_of_any_names_are_drawn(tmp_path: Path, names: list[str]) -> None:
    import vl_convert

    scores = weighted(with_spans(made(tmp_path / "cache", 4, 6), names), {f"mass_{name}": 0.3 for name in names})
    for chart in (headscore.signal_maps, headscore.layer_profiles):
        spec = chart(scores, signals=scores.signals).to_dict()
        svg = vl_convert.vegalite_to_svg(json.dumps(spec))
        labels = [html.unescape(label) for label in re.findall(r'aria-label="([^"]*)"', svg)]
        for name in scores.signals:
            assert sum(f"{printable(name)}: " in label for label in labels) >= 20, "every head or dot says its value"
    top = html.unescape(vl_convert.vegalite_to_svg(json.dumps(headscore.top_heads(scores).to_dict())))
    assert all(f"{printable(name)}: " in top for name in scores.weights)


def test_a_new_function_in_the_signals_file_is_a_map_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evenness() -> pl.Expr:
        """Evenness of the attention, as an example. More is said about it here."""
        return 1 - pl.col("largest")

    evenness.__module__ = signals.__name__
    monkeypatch.setattr(signals, "evenness", evenness, raising=False)
    cache = made(tmp_path / "cache", 2, 3)
    for options in ({}, {"weight": {"evenness": -1.0}}):
        out = tmp_path / f"out{len(options)}"
        scores = headscore.report(cache, out, **options)
        text, data = page_data(out)
        assert data["heads"]["evenness"] == pytest.approx(scores.heads["evenness"].to_list(), rel=1e-5)
        assert 'id="map-evenness"' in text and 'id="profile-evenness"' in text
        assert "<b>evenness</b> Evenness of the attention, as an example.</p>" in text
        colours = data["charts"]["map-evenness"]["layer"][0]["encoding"]["color"]
        assert colours["field"] == "evenness" and "profile-evenness" in data["charts"]
        assert ("layer-evenness" in data["charts"]) == bool(options), "what is weighted is shown as ranks, too"


def test_what_is_not_finite_is_no_value(tmp_path: Path) -> None:
    odd: Any = {"odd": "CASE WHEN head % 2 = 0 THEN 1 ELSE -1 END", "gap": "CASE WHEN head > 0 THEN sink END"}
    options: Any = {"signal": odd, "norm_mode": "ratio", "weight": {"odd": 0.0, "gap": 0.0}}
    scores = headscore.report(made(tmp_path / "cache", 3, 4), tmp_path / "out", **options)
    assert scores.heads["odd_norm"].null_count() == 12 and scores.heads["gap"].null_count() == 3
    _, data = page_data(tmp_path / "out")
    assert list(data["heads"]["gap"]) == scores.heads["gap"].round_sig_figs(6).to_list()
    assert [p["name"] for p in data["charts"]["combined"]["params"] if "bind" in p] == ["weight_0", "weight_1", "weight_2", "k"]
    spec = json.dumps(headscore.heatmap(scores.heads, "odd_norm").to_dict(), allow_nan=False)
    assert "odd, normalised" in spec


@needs_chromium
def test_a_picked_head_is_marked_everywhere_and_named(page: Browser, tmp_path: Path) -> None:
    scores = headscore.report(made(tmp_path / "cache", 4, 6), tmp_path / "out")
    page.open(tmp_path / "out" / "report.html")
    x, y = page.run(
        """(() => {
            const cells = document.querySelector('#combined svg .mark-rect.role-mark path');
            cells.scrollIntoView({block: 'center'});
            const box = cells.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    page.run("headscore.settled()")
    assert "L0H0" in page.run("document.getElementById('picked').textContent")
    store = "(view) => { try { return view.data('picked_store').map(t => t.values).flat().join() } catch { return null } }"
    assert page.run(f"Object.values(headscore.views).map({store}).filter(s => s !== null)") == ["0,0"] * 15
    page.run("document.querySelector('#top-heads-table tbody tr:nth-child(3)').click()")
    page.run("headscore.settled()")
    third = page.run("[...document.querySelector('#top-heads-table tbody tr.picked').cells].map(c => c.textContent)")
    line = scores.top(3).to_dicts()[2]
    assert third[:2] == [shown_rank(scores, line), head_name(line, "head")] and not page.errors


@needs_chromium
def test_the_table_is_sorted_by_any_column(page: Browser, tmp_path: Path) -> None:
    headscore.report(made(tmp_path / "cache", 4, 6), tmp_path / "out")
    page.open(tmp_path / "out" / "report.html")
    for column, down in ((3, True), (0, False), (1, False)):
        page.run(f"document.querySelectorAll('#top-heads-table th button')[{column}].click()")
        cells = page.run(f"[...document.querySelectorAll('#top-heads-table tbody tr')].map(r => r.cells[{column}].textContent)")
        keys = [[float(number) for number in re.findall(r"[\d.]+", cell)] for cell in cells]
        assert keys == sorted(keys, reverse=down)


def test_text_from_data_is_escaped() -> None:
    place = {"sample": 0, "row": 3, "layer": 1, "head": 2}
    lines = [
        {**place, "position": 0, "token": HOSTILE, "spans": ["question"], "weight": 0.9},
        {**place, "position": 1, "token": "a\nb", "spans": ["template", HOSTILE], "weight": 0.1},
    ]
    panel, levels = sections.tokens_panel(lines)
    for text in (panel, sections.skipped_section([{"row": 1, "reason": HOSTILE}])):
        assert "<script>" not in text and "<b>bold" not in text and "\u202e" not in text and "&lt;script&gt;" in text
    assert list(base64.b64decode(levels["L1H2"])) == [round(255 * weight**0.5) for weight in (0.9, 0.1)]
    assert "keeps no texts" in sections.tokens_panel([])[0] and "L1G2" in sections.tokens_panel(lines, "kv_head")[1]
    many = [{"row": row, "reason": "long"} for row in range(sections.MOST_SKIPPED_SHOWN + 5)]
    assert "and 5 more" in sections.skipped_section(many)


@needs_chromium
def test_hostile_text_shows_as_text(page: Browser, tmp_path: Path) -> None:
    cache = made(tmp_path / "cache", 2, 3)
    scores = headscore.score(cache)
    for key in ("model", "data"):
        scores.metadata[key].update(name=HOSTILE, path=HOSTILE)
    scores.metadata["templates"].append({"name": HOSTILE, "text": HOSTILE})
    write_report(tmp_path, open_cache(cache), scores)
    page.open(tmp_path / "report.html")
    text = page.run("document.body.textContent")
    assert text.count("<script>alert(1)</script><b>bold</b>@@css@@ &amp;") >= 4
    assert page.run("document.querySelectorAll('header b, dl b, pre b').length") == 0 and not page.errors


@pytest.mark.parametrize(("layers", "heads", "most"), [(30, 9, 1.5e6), (16, 32, 1.5e6), (80, 64, 2.5e6)])
def test_the_page_is_one_small_file(page_folder: Callable[[int, int], Path], layers: int, heads: int, most: float) -> None:
    out = page_folder(layers, heads)
    text, data = page_data(out)
    assert len(text.encode()) < most
    assert not re.search(r"""<(script|link|iframe)[^>]+(src|href)=""", text) and "default-src 'none'" in text
    for name in REPORT_FILES[1:]:
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG") or b"<svg" in content[:300], name
        assert len(content) > 10_000, name
    scores = headscore.score(out.parent / "cache")
    weighted = [f"{name}_{kind}" for name in scores.weights for kind in ("norm", "rank")]
    assert len(scores.signals) > 15
    for column in ("layer", "head", *weighted):
        assert data["heads"][column] == scores.heads[column].to_list(), "what ranks is exact"
    for column in scores.signals:
        assert data["heads"][column] == scores.heads[column].round_sig_figs(6).to_list()
    assert "url" not in json.dumps(data["charts"])


@needs_chromium
@pytest.mark.parametrize("shape", [(30, 9), (16, 32), (80, 64)])
def test_nothing_is_wider_than_the_screen(
    page: Browser, page_folder: Callable[[int, int], Path], shape: tuple[int, int]
) -> None:
    for width, dark in ((1280, False), (390, True), (360, False)):
        page.size(width, 900, dark=dark)
        page.open(page_folder(*shape) / "report.html")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("Math.max(...[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().right))") <= width
        assert page.run("document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth")
        assert (page.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)") == dark
    page.size(1280, 900)
    assert not page.errors and not page.requests


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """The results with a report for a cache of so many layers and heads, made once."""
    done: dict[tuple[int, int], Path] = {}

    def folder(layers: int, heads: int) -> Path:
        if (layers, heads) not in done:
            at = tmp_path_factory.mktemp("page")
            headscore.score(made(at / "cache", layers, heads), at / "out", report=True)
            done[layers, heads] = at / "out"
        return done[layers, heads]

    return folder


def test_the_first_token_mass_is_the_mean_over_samples(tmp_path: Path) -> None:
    rows = np.array([[[0.5, 0.25, 0.25, 0, 1, 0], [0.25, 0.25, 0.25, 0.25, 0.5, 0.5]]])
    cache = write_cache(tmp_path, rows, np.ones((1, 2, 2)), [8, 1, 1, 2, 1, 0], [4, 2])
    for _ in ("computed", "kept"):
        assert headscore.score(cache).heads["sink"].to_list() == [0.75, 0.375]


def test_results_of_another_run_lose_their_report(tmp_path: Path) -> None:
    cache, out = made(tmp_path / "cache", 2, 3), tmp_path / "out"
    headscore.score(cache, out, report=True)
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == {*RESULT_FILES, *REPORT_FILES}
    headscore.score(cache, out)
    assert (out / "report.html").exists(), "the same run's report stays"
    headscore.score(cache, out, lambda_task=2.0, overwrite=True)
    assert not any((out / name).exists() for name in REPORT_FILES)


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = made(tmp_path / "cache", 2, 3)
    monkeypatch.setattr("headscore.score.report.vega._PACKAGES", {"no_such_module": "altair"})
    with pytest.raises(headscore.InputError, match=r"needs altair: pip install 'headscore\[report\]'"):
        headscore.report(cache, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(headscore.InputError, match=r"heatmap: needs altair: pip install"):
        headscore.heatmap  # noqa: B018 - asking for it is enough
    with pytest.raises(headscore.InputError, match="report: needs a folder for it; give out"):
        monkeypatch.undo()
        headscore.score(cache, report=True)


def test_a_chart_that_cannot_be_drawn_is_told_and_leaves_no_part_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import altair as alt

    out = tmp_path / "out"
    broken = alt.Chart().mark_point().transform_calculate(x="no expression (")
    monkeypatch.setattr("headscore.score.report.views.profiles_chart", lambda *_: broken)
    with pytest.raises(headscore.RunError, match="the chart 'layer_profiles': vl-convert failed: ValueError: ") as told:
        headscore.report(made(tmp_path / "cache", 2, 3), out)
    assert "\n" not in str(told.value)
    there = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert there == {name for name in (*RESULT_FILES, *REPORT_FILES) if "layer_profiles" not in name} - {"run.log"}


def test_what_a_killed_report_left_half_written_goes_with_the_next(tmp_path: Path) -> None:
    cache, charts = made(tmp_path / "cache", 2, 3), tmp_path / "out" / CHARTS_FOLDER
    headscore.report(cache, charts.parent)
    left = charts / f".combined.svg.x{TEMPORARY}"
    left.write_text("<svg")
    headscore.report(cache, charts.parent)
    assert not left.exists() and {f"{CHARTS_FOLDER}/{path.name}" for path in charts.iterdir()} == set(REPORT_FILES[1:])


@pytest.mark.parametrize("state", ["new", "kept", "cut off", "no text", "a folder", "no cache folder", "no home"])
def test_the_javascript_is_whole_whatever_became_of_the_kept_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    from headscore.score.report import vega

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = vega.vega_bundle()
    (kept,) = tmp_path.rglob("*.js")
    assert kept.read_text() == whole and "vegaEmbed" in whole
    if state in ("new", "a folder"):
        kept.unlink()
    if state == "a folder":
        kept.mkdir()
    elif state in ("cut off", "no text"):
        kept.write_bytes(kept.read_bytes()[:1000] if state == "cut off" else b"\xff" * 1_000_000)
    elif state == "no cache folder":
        monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    elif state == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    assert vega.vega_bundle() == whole
    assert state in ("a folder", "no cache folder", "no home") or kept.read_text() == whole


@pytest.mark.parametrize(("work", "library"), [("score", "polars"), ("report", "polars"), ("draw", "vl-convert")])
def test_a_forked_process_is_told_instead_of_waiting_for_ever(tmp_path: Path, work: str, library: str) -> None:
    script = tmp_path / "forks.py"
    script.write_text(
        "import multiprocessing, sys, headscore\n"
        "from headscore.score.report.vega import converter\n"
        "def score(out):\n"
        "    headscore.score(sys.argv[1], out)\n"
        "def report(out):\n"
        "    headscore.report(sys.argv[1], out)\n"
        "def draw(out):\n"
        "    with converter('a chart') as convert:\n"
        "        convert.vegalite_to_svg({'mark': 'point', 'data': {'values': [{}]}})\n"
        "def told(out):\n"
        "    try:\n"
        "        globals()[sys.argv[2]](out)\n"
        "    except headscore.RunError as error:\n"
        "        return str(error)\n"
        "for out in ('first', 'second'):\n"
        "    with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "        print(pool.apply(told, [out]))\n"
        "    print(told('parent'))\n"
    )
    command = [sys.executable, str(script), str(made(tmp_path / "cache", 2, 3)), work]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    first, parent, second, again = done.stdout.splitlines()
    assert first == parent == again == "None" and f"{library} cannot work in a process forked" in second
    assert "start processes by 'spawn'" in second


def test_scores_show_themselves_in_a_notebook(tmp_path: Path) -> None:
    scores = weighted(with_spans(made(tmp_path, 2, 3), ["question", HOSTILE]), {f"mass_{HOSTILE}": 1.0})
    shown = scores._repr_html_()
    assert shown.count("<tr>") == 7 and "<script>" not in shown and "&lt;script&gt;" in shown
    assert not hasattr(scores, "_repr_mimebundle_"), "the map is the report's, of which scores know nothing"
    assert headscore.heatmap(scores).to_dict()["params"]


def test_the_vega_that_altair_writes_for_is_the_one_that_is_shipped() -> None:
    import altair
    import vl_convert

    shipped = {version.split(".")[0] for version in vl_convert.get_vegalite_versions()}
    assert altair.SCHEMA_VERSION.strip("v").split(".")[0] in shipped, importlib.metadata.version("altair")


def test_charts_hold_their_frames(tmp_path: Path) -> None:
    scores = headscore.score(made(tmp_path, 3, 4))
    for frame, column in (
        (scores.raw, "out_raw"),
        (scores.norm, "out_z"),
        (scores.combined, "combined"),
        (scores.raw, "task_raw"),
        (scores.heads.select("layer", "head", "sink"), "sink"),
    ):
        spec = headscore.heatmap(frame, column).to_dict()
        (values,) = spec["datasets"].values()
        assert values == frame.to_dicts() and pl.DataFrame(values).equals(frame.cast({"layer": pl.Int64, "head": pl.Int64}))
        assert spec["layer"][0]["encoding"]["color"]["field"] == column
        assert not [p for p in spec["params"] if "bind" in p], "without ranks there is nothing for a slider to do"
    for chart in (headscore.signal_maps, headscore.layer_profiles):
        spec = json.dumps(chart(scores.raw).to_dict())
        assert all(f'"{name}_raw"' in spec for name in ("out", "ent", "task")) and '"bind"' not in spec
    every = (
        headscore.heatmap,
        headscore.signal_maps,
        headscore.entropy_and_task,
        headscore.layer_profiles,
        headscore.top_heads,
    )
    for chart in every:
        for heads in (scores.heads, scores):
            spec = chart(heads).to_dict()
            assert {p["name"] for p in spec["params"]} >= {"weight_0", "weight_1", "weight_2", "k"}
        assert spec["title"]["subtitle"] and chart.__doc__ and "How to read" in chart.__doc__
    assert "legend" in json.dumps(headscore.entropy_and_task(scores.heads).to_dict())
    for chart in every:
        with pytest.raises(headscore.InputError, match=r"has no .*; the frame `heads` of a result has every column"):
            chart(scores.heads.select("layer", "head"))
        with pytest.raises(headscore.InputError, match="no lines"):
            chart(scores.heads.head(0))
    assert "legend" not in json.dumps(headscore.entropy_and_task(scores.heads.drop("sink")).to_dict())
    with pytest.raises(headscore.InputError, match="no nonsense"):
        headscore.signal_maps(scores, signals=["sink", "nonsense"])


@pytest.mark.parametrize("options", [{"fusion": "sum"}, {"lambda_ent": 2.0}, {"weight": {"sink": -1.0}}])
def test_a_frame_of_another_ranking_is_not_ranked_anew_by_the_default_weights(tmp_path: Path, options: Any) -> None:
    scores = headscore.score(made(tmp_path, 3, 4), **options)
    sliders = [p for p in headscore.heatmap(scores.heads).to_dict()["params"] if "bind" in p]
    assert [p["name"] for p in sliders] == ["k"], "the frame says who ranks first, not by which weights"
    sliders = [p for p in headscore.heatmap(scores).to_dict()["params"] if "bind" in p]
    assert [p["value"] for p in sliders] == [*scores.settings.weights.values(), 12]
    with pytest.raises(headscore.InputError, match="is not ranked by the default weights"):
        headscore.top_heads(scores.heads)


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
def test_fields_of_columns_are_plain_and_differ(names: list[str]) -> None:
    fields = [field(name) for name in [*names, "name", "rank"]]
    assert all(re.fullmatch(r"[A-Za-z_]\w*", found, re.ASCII) for found in fields)
    assert len(set(fields)) == len({*names, "name", "rank"}) and "name" not in fields
