"""The report says how far its ranking is to be trusted: the opening, intervals, levels, and what other commands found."""

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from browser import Browser, browser, chromium
from made_caches import clean, made_cache
from made_validation import made as made_validation
from report_pages import HOSTILE, column_of_table, dots, made, marked, page_data, set_slider

import headscore
from headscore.data.cache.folder import open_cache
from headscore.data.errors import InputError
from headscore.data.options.settings import ScoreSettings, ValidateSettings
from headscore.score.evidence.checks import COIN_TOSS, Check
from headscore.score.evidence.null import Level, Null
from headscore.score.report import found_kinds
from headscore.score.report.attended import attended
from headscore.score.report.columns import in_words
from headscore.score.report.page import write_report
from headscore.score.report.sections import tokens_panel
from headscore.score.report.texts import _DOUBTS, opening
from headscore.score.scores import Scores, head_name
from headscore.score.signal_sources import built_in_signals
from headscore.score.validated import validation_of
from headscore.score.validation_files import write_measured, write_validation

needs_chromium = pytest.mark.skipif(not chromium(), reason="needs Chromium on the PATH (apt-get install chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.size(1280, 900)
        yield opened


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scores]:
    """A report with a bootstrap, of heads that hardly differ, and of key-value groups of two heads."""
    folder, random = tmp_path_factory.mktemp("stable"), np.random.default_rng(0)
    arrays = clean(count=24)
    arrays |= {"out": arrays["out"] + 3 * random.normal(size=arrays["out"].shape) ** 2}
    cache = made_cache(folder / "cache", **arrays, kv_heads=4)
    return folder, headscore.report(cache, folder / "out", bootstrap=100, top_k=6)


# ------------------------------------------------------------------------------------------------------------ the opening


def scores_of(checks: tuple[Check, ...] = (), observed: float | None = None) -> Scores:
    ranked = headscore.rank(pl.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "out": [1.0, 2.0, 3.0]}), {"out": 1.0})
    level = None if observed is None else Level(observed, 2.0, 1.0, 3.0, 0.5)
    null = level and Null(level, level, 1, 2000, 3)
    return Scores(ranked, 7, {}, "", ScoreSettings(top_k=1), {"model": {}, "settings": {}}, null, checks)  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("observed", "word"), [(4.0, "more than chance"), (2.0, "no more than chance"), (0.5, "less than chance"), (None, "")]
)
@pytest.mark.parametrize("count", range(len(_DOUBTS) + 1))
def test_the_report_opens_with_one_sentence_that_says_every_doubt_or_how_many(count: int, observed: Any, word: str) -> None:
    checks = tuple(Check(name, "", 3) for name in list(_DOUBTS)[:count])
    said = opening(scores_of(checks, observed))
    assert (
        said.startswith("Of 3 heads, L0H1, L1H0 and L0H0 come first in 7 samples") and said.count(".") == 1 and said[-1] == "."
    )
    disagrees = observed in (2.0, 0.5)
    assert ("not as a finding" in said) == disagrees and ("with care" in said) == (not disagrees and count > 0)
    doubts = count + disagrees
    assert ("none of the checks" in said) == (doubts == 0)
    assert not (disagrees or doubts == 0) or word in said
    assert (f"{doubts - 2} more" in said) == (doubts > 2)


def test_the_header_has_the_lines_of_the_scores_and_the_metadata_comes_last(stable: tuple[Path, Scores]) -> None:
    folder, scores = stable
    text, _ = page_data(folder / "out")
    header = text[text.index("<header>") : text.index("</header>")]
    places = [text.index(line) for line in (opening(scores), *scores.told, "Not looked at here")]
    assert places == sorted(places)
    assert opening(scores) in header and all(f"<li>{line}</li>" in header for line in scores.told) and "<dl>" not in header
    assert text.index("<dl>") > text.rindex('class="chart"')
    assert all(f"headscore {name}" in header for name in ("validate", "control", "stability", "sweep", "compare"))
    assert "how sure the order is" not in header, "as it was looked at"


# --------------------------------------------------------------------------------------------------- intervals and levels


@needs_chromium
def test_what_holds_of_the_given_weights_goes_where_sliders_move(page: Browser, stable: tuple[Path, Scores]) -> None:
    folder, scores = stable
    page.open(folder / "out" / "report.html")
    top = scores.top().to_dicts()
    tossed = scores.heads.filter(pl.col("p_top").is_between(*COIN_TOSS))
    assert 0 < len(tossed) < len(scores.heads)

    def shown(kind: str) -> int:
        return page.run(
            f"[...document.querySelectorAll('#top-combined {kind}')].filter(e => getComputedStyle(e).opacity > 0).length"
        )

    for moved in (False, True, False):
        set_slider(page, "weight_1", 0.55 if moved else 0.5)
        ranks, p_top = column_of_table(page, 3), column_of_table(page, 5)
        if moved:
            assert {*ranks, *column_of_table(page, 4), *p_top} == {""}
            assert (
                not shown(".mark-rule.role-mark line")
                and not shown(".mark-rect.role-mark path")
                and dots(page, "combined") == 6
            )
            continue
        assert ranks == [f"{line['rank_low']}–{line['rank_high']}" for line in top]
        assert [p.endswith("?") for p in p_top] == [COIN_TOSS[0] <= line["p_top"] <= COIN_TOSS[1] for line in top]
        assert shown(".mark-rule.role-mark line") == 6 + 2 and shown(".mark-rect.role-mark path") == 2
        marked_heads = {*map(tuple, marked(page)), *tossed.select("layer", "head").iter_rows()}
        assert dots(page, "combined") == len(marked_heads), "coin tosses outside of the top have a ring"
    assert not page.errors


def test_levels_are_those_of_the_null_and_of_uniform_attention(stable: tuple[Path, Scores]) -> None:
    folder, scores = stable
    lengths = clean(count=24)["lengths"]
    assert scores.uniform["ent"] == pytest.approx(-math.log(40)) and scores.uniform["task"] == pytest.approx(
        np.mean(lengths / 40)
    )
    assert scores.null
    spec = headscore.top_heads(scores).to_dict()
    data = [lines for lines in spec["datasets"].values() if "mean" in lines[0]]
    assert [[line["mean"], line["from"], line["to"]] for line in data[0]] == [
        [level.mean, level.low, level.high] for level in (scores.null.best, scores.null.kth)
    ]
    levels = {line["uniform"] for lines in spec["datasets"].values() for line in lines if "uniform" in line}
    assert levels == {scores.uniform["ent"], scores.uniform["task"]}
    legend = headscore.heatmap(scores).to_dict()["layer"][0]["encoding"]["color"]["legend"]["title"]
    assert f"best {scores.null.best.mean:.1f}" in " ".join(legend)
    text, _ = page_data(folder / "out")
    assert f"best {scores.null.best.mean:.1f}" in text and f"uniform: {scores.uniform['ent']:.3g}" in text


def test_the_uniform_entropy_of_all_rows_is_that_of_each(tmp_path: Path) -> None:
    for mode, expected in (("last_token", math.log(8)), ("all_tokens", np.mean(np.log(np.arange(1, 9))))):
        scores = headscore.score(made(tmp_path / mode, 2, 3), score_query_mode=mode)
        assert scores.uniform["ent"] == pytest.approx(-expected)


@needs_chromium
def test_maps_have_ranks_within_layers_borders_of_groups_and_a_margin(page: Browser, stable: tuple[Path, Scores]) -> None:
    folder, scores = stable
    page.open(folder / "out" / "report.html")
    labels = "[...document.querySelectorAll('#layer-out .mark-rect.role-mark path')].map(e => e.ariaLabel)"
    found = [float(re.search(r"rank in its layer: (\d+)", label)[1]) for label in page.run(labels)[: len(scores.heads)]]  # type: ignore[index]
    assert found == scores.heads["out_rank"].to_list()
    borders = "document.querySelectorAll('#combined .mark-rule.role-mark line').length"
    assert page.run(borders) == 3, "between four groups of two heads"
    labels = "[...document.querySelectorAll('#combined [aria-label*=\"heads of the top k: \"]')].map(e => e.ariaLabel)"
    counts = scores.top().group_by("layer").len("count").sort("layer")
    shown = sorted(tuple(map(int, re.findall(r"\d+", label))) for label in page.run(labels))
    assert shown == counts.rows()
    assert not page.errors


# ------------------------------------------------------------------------------------------------------ the table, the tokens


@needs_chromium
def test_the_table_downloads_as_csv(page: Browser, stable: tuple[Path, Scores]) -> None:
    folder, scores = stable
    page.open(folder / "out" / "report.html")
    lines = list(csv.DictReader(io.StringIO(page.run("headscore.csv()"))))
    assert [line["head"] for line in lines] == [head_name(line, "head") for line in scores.top().to_dicts()]
    for name in ("combined", "low", "high", "rank_low", "rank_high", "p_top", "out", "ent", "task", "sink"):
        assert [float(line[name]) for line in lines] == pytest.approx(scores.top()[name].to_list(), rel=1e-5), name
    page.run("document.getElementById('csv').click()")
    assert not page.errors and not page.requests


@needs_chromium
def test_the_tokens_follow_the_picked_head(page: Browser, tmp_path: Path) -> None:
    place = made(tmp_path / "cache", 4, 6)
    cache, scores = open_cache(place), headscore.score(place)
    cache.metadata["examples"] = [{"row": 0, "tokens": [f"t{at} " for at in range(8)]}]
    write_report(tmp_path, cache, scores)
    page.open(tmp_path / "report.html")
    for place_in_table, line in enumerate(scores.top(3).to_dicts()):
        if place_in_table:
            page.run(f"document.querySelectorAll('#top-heads-table tbody tr')[{place_in_table}].click()")
            page.run("headscore.settled()")
        assert page.run("document.getElementById('tokens-of').textContent") == head_name(line, "head"), "at first the first"
        shown = page.run("[...document.querySelectorAll('#tokens .prompt i')].map(i => [i.textContent, Number(i.title)])")
        expected = attended(cache, [(line["layer"], line["head"])])
        assert [text for text, _ in shown] == [token["token"] for token in expected]
        assert [weight for _, weight in shown] == pytest.approx([token["weight"] for token in expected], abs=5e-3)
    assert not page.errors


def test_runs_of_the_template_are_folded() -> None:
    token = {"sample": 0, "row": 3, "layer": 0, "head": 0, "weight": 0.1}
    lines = [token | {"position": at, "token": f"t{at} ", "spans": ["template"] * (at > 1)} for at in range(11)]
    panel, levels = tokens_panel(lines)
    assert panel.count("<i>") == 11 and panel.count("⋯ 9 of the template") == 1 and len(base64.b64decode(levels["L0H0"])) == 11
    assert "⋯" not in tokens_panel(lines[:9])[0]


# -------------------------------------------------------------------------------------------------- what other commands found


def validated(folder: Path) -> None:
    found = validation_of(made_validation(), ValidateSettings(bootstrap=100))
    folder.mkdir(parents=True)
    write_measured(folder, found.measured)
    write_validation(folder, found, {})


@needs_chromium
def test_folders_of_other_commands_are_sections(page: Browser, tmp_path: Path) -> None:
    cache, *others = (made(tmp_path / f"cache{seed}", 3, 4, seed=seed) for seed in range(3))
    out = tmp_path / "out"
    headscore.score(cache, out)
    headscore.stability(cache, out / "stability", repeats=2)
    headscore.sweep(cache, out / "sweep", grid=["ent=0:1:3", "task=0:1:3"])
    headscore.compare([cache, *others], out / "compared", top_k=4)
    headscore.control(cache, out / "controlled", random_span=True)
    validated(out / f"validation {HOSTILE.replace('/', '')[:20]}")
    headscore.report(cache, out)
    text, data = page_data(out)
    assert "Not looked at here: how sure the order is" in text
    page.open(out / "report.html")
    titles = page.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert [title for title in titles if title.endswith("?")] == [
        "Does the model need these heads?",
        "Is it about this task?",
        "Would other samples give the same top?",
        "Does it depend on the weights?",
        "Does it agree with other rankings?",
    ]
    assert len(data["found"]) == 2 * 3 + 3 + 1 + 1 + 1 + 3
    assert all(page.run(f"document.querySelector('#{name} svg') !== null") for name in data["found"])
    assert not page.errors and not page.requests
    assert page.run("document.querySelectorAll('#found-12 .mark-symbol path').length") >= 12, "a data set keeps its lines"
    for line in (out / "compared" / "compare.txt").read_text().splitlines()[:3]:
        assert line in page.run("document.body.textContent")


DAMAGES = {
    "no table": ("validation.json", '{"units": 3}'),
    "no JSON": ("validation.json", "{" * 1000),
    "no columns": ("stability.csv", "samples\n3\n"),
    "no numbers": ("sweep.csv", "weight_a,weight_b,shared,spearman\n1,2,x,y\n"),
    "no lines": ("compare.csv", "a,b,k\n"),
    "bytes": ("control.csv", b"\xff\xfe\x00"),
    "numbers beyond all scales": ("sweep.csv", "weight_a,weight_b,shared,spearman\n0,0,1,inf\n1e300,0,1,nan\n0,1,2,0\n"),
    "hostile": ("control.csv", f"layer,head,rank,{HOSTILE}_significant\n".replace("\u202e", "")),
}


@needs_chromium
def test_damaged_folders_are_told_in_one_line_each_and_break_nothing(page: Browser, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, (name, content) in DAMAGES.items():
        (out / folder).mkdir(parents=True)
        (out / folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (out / "linked").symlink_to(tmp_path)
    headscore.report(made(tmp_path / "cache", 2, 3), out)
    text, data = page_data(out)
    body = text[: text.index('<script type="application/json"')]
    assert body.count('<p class="warning">') == len(DAMAGES) and "linked" not in body and "<script>alert" not in body
    assert list(data["found"]) == ["found-0"] and "NaN" not in json.dumps(data)
    page.open(out / "report.html")
    assert page.run("document.querySelectorAll('.told li').length") and not page.requests


def test_signals_are_told_in_words_that_end_without_a_full_stop() -> None:
    words = in_words(list(built_in_signals()), {})
    assert words["largest"] == "The largest weight of the row, maxⱼ aⱼ"
    assert not [text for text in words.values() if text.endswith(".")]


def test_a_long_table_is_refused_before_a_chart_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_kinds, "effect_map", lambda *_, **__: pytest.fail("a chart was made"))
    validated(tmp_path / "v")
    lines = "".join(f"{line},0,kl,1,1,1\n" for line in range(found_kinds.MOST_LINES + 1))
    (tmp_path / "v" / "effects.csv").write_text(f"layer,head,effect,mean,low,high\n{lines}")
    with pytest.raises(InputError, match="values are too many to draw"):
        found_kinds.KINDS[0].charts(tmp_path / "v")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("control.csv", "layer,head,rank,task_control,task_controlled,task_q,task_significant\n0,0,1,1,1,1,maybe\n"),
        ("compare.csv", "a,b,k\nA,B,\n"),
    ],
)
def test_what_is_neither_true_nor_false_nor_a_number_is_a_fault(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "compare_heads.csv").write_text("layer,head,rank_A,rank_B\n0,0,1,1\n")
    with pytest.raises(InputError, match=r"is damaged|has no k in some line"):
        next(kind for kind in found_kinds.KINDS if kind.file == name).charts(tmp_path)
