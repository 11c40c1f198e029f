"""A control finds what was planted and nothing where nothing is, whatever the order of rows; what is no control is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.testing
import pytest
import tiny
import torch
from cli_runs import Cli
from hypothesis import given
from hypothesis import strategies as st
from made_caches import metadata

import headscore
from headscore.data.cache import folder as cache_format
from headscore.data.cache.folder import open_cache
from headscore.data.cache.shard import write_shard
from headscore.data.options.settings import ScoreSettings
from headscore.score.evidence import sides
from headscore.score.evidence.control import COLUMNS
from headscore.score.evidence.stretches import random_place, signals_of_span, with_moved_span
from headscore.score.evidence.t_tests import benjamini_hochberg, paired, student_sf, unpaired
from headscore.score.recipe import choose_recipe
from headscore.score.results import read_results

LAYERS, HEADS, QUESTION, TEMPLATE, SPECIAL = 3, 4, 1, 4, 8
PLANTED = (1, 2)


def write(
    folder: Path,
    *,
    seed: int = 0,
    planted: float = 0.0,
    rows: Any = range(60),
    settings: dict[str, Any] | None = None,
    shard: int = 25,
    **changes: Any,
) -> Path:
    """A cache whose heads attend at random, each row by a seed of its own; one gives the question more by `planted`."""
    own = {"max_samples": 60, "max_length": 512, "seed": 42, "queries": "last_token", "dtype": "fp32", "shard_size": shard}
    rows = list(rows)
    parts = [rows[start : start + shard] for start in range(0, len(rows), shard)]
    made = metadata(
        LAYERS, HEADS, {"data": {"path": "rows.jsonl", "sha256": "of the rows"}, "plan": {"shards": len(parts)}, **changes}
    )
    made |= {
        "settings": own | (settings or {}),
        "dims": {"layers": LAYERS, "heads": HEADS, "kv_heads": 2},
        "attention": {"way": "recorded", "full_rows": True, "result_norms": False},
    }
    cache_format.write_metadata(folder, made, keep_existing=False)
    for number, part in enumerate(parts):
        samples = [_sample(seed, row, planted) for row in part]
        lengths = [len(span) for span, _, _ in samples]
        norms = np.stack([norm for _, _, norm in samples], axis=-1)
        arrays = {
            "samples/row": np.array(part),
            "samples/offset": np.cumsum([0, *lengths]),
            "tokens/id": np.zeros(sum(lengths)),
            "tokens/span": np.concatenate([span for span, _, _ in samples]),
            "layers/index": np.arange(LAYERS),
            "last_token/attention": np.concatenate([weights for _, weights, _ in samples], axis=-1),
            "last_token/output_norm": norms,
            "all_tokens/output_norm": norms,
        }
        write_shard(cache_format.shard_path(folder, number), number, arrays, made, [])
    return folder


def _sample(seed: int, row: int, planted: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The span mask, the attention of all heads and their norms of a prompt: 1 special token, 9 others, 5 of a question, 14."""
    random = np.random.default_rng([seed, row])
    span = np.array([SPECIAL] + [TEMPLATE] * 9 + [QUESTION] * 5 + [TEMPLATE] * 14)
    weights = random.dirichlet(np.full(len(span), 0.5), (LAYERS, HEADS))
    weights[PLANTED] *= 1 - planted
    weights[(*PLANTED, slice(10, 15))] += planted / 5
    return span, weights, random.uniform(1, 2, (LAYERS, HEADS))


def found(control: headscore.Control, signal: str = "task") -> list[tuple[int, int]]:
    return control.heads.filter(pl.col(f"{signal}_significant")).select("layer", "head").rows()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain") / "c", planted=0.2)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shuffled") / "c", seed=1, settings={"control": "shuffle"})


# ------------------------------------------------------------------------------------------------------------ what is found


@pytest.mark.parametrize("by", ["head", "kv_head"])
def test_a_cache_against_itself_finds_nothing(cache: Path, by: str) -> None:
    control = headscore.control(cache, against=cache, by=by, weight={"lift": 1, "sink": 1}, two_sided=True)
    assert control.kind == "same rows"
    for signal in ("out", "ent", "task", "lift", "sink"):
        assert control.heads[f"{signal}_controlled"].to_list() == [0.0] * len(control.heads)
        assert control.heads[f"{signal}_p"].to_list() == [1.0] * len(control.heads)
        assert not control.heads[f"{signal}_significant"].any()


def test_a_planted_head_is_found(plain: Path, shuffled: Path, tmp_path: Path) -> None:
    by_rows = headscore.control(plain, against=shuffled)
    assert (by_rows.kind, found(by_rows), found(by_rows, "out"), found(by_rows, "ent")) == ("shuffle", [PLANTED], [], [])
    assert by_rows.heads.filter(layer=1, head=2)["task_controlled"].item() == pytest.approx(0.2 * (1 - 5 / 29), abs=0.03)
    assert by_rows.lines[0] == (
        "of 12 heads, 1 attends to the question more than to the same words shuffled (false discovery rate 5 %); "
        f"{11} of the top 12 do not"
    )
    by_span = headscore.control(plain, random_span=True)
    assert (by_span.kind, found(by_span), by_span.scores.samples) == ("random span", [PLANTED], 60)
    other = write(tmp_path / "other", seed=2, rows=range(90), data={"path": "other.jsonl", "sha256": "another"})
    by_task = headscore.control(plain, against=other)
    assert (by_task.kind, found(by_task)) == ("other task", [PLANTED])
    assert "Welch's t tests of 60 samples and 90 of the control, one-sided" in by_task.lines
    turned = headscore.control(other, against=plain)
    assert not found(turned) and found(headscore.control(other, against=plain, two_sided=True)) == [PLANTED]


def test_nothing_is_found_where_nothing_is(shuffled: Path, tmp_path: Path) -> None:
    nothing = write(tmp_path / "c")
    for options in ({"against": shuffled}, {"random_span": True}):
        control = headscore.control(nothing, **options)
        assert not found(control)
        assert control.heads["task_q"].min() > 0.05


def test_a_head_of_a_model_that_looks_for_a_word_is_found(tmp_path: Path) -> None:
    """Head 0 of layer 0 attends to the tokens with a 7 in them, which stand in the questions alone."""
    model = tiny.build(tiny.CONFIGS["llama"]())
    sevens = [number for token, number in tiny.tokenizer().get_vocab().items() if "7" in token]
    attention, head = model.model.layers[0].self_attn, slice(0, 8)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, :2] = torch.tensor([0.0, 3.0])
        model.model.embed_tokens.weight[sevens] = 0
        model.model.embed_tokens.weight[sevens, :2] = torch.tensor([4.0, 3.0])
        attention.q_proj.weight[head] = attention.k_proj.weight[head] = 0
        attention.q_proj.weight[3, 1] = attention.k_proj.weight[3, 0] = 100  # the pair that the rotary embedding hardly turns
    tiny.save(model, tmp_path / "model")
    rows = [
        {"question": f"7 7 7 {word} 7", "choices": ["the tall tree", "an old book", word], "answerKey": "A"}
        for word in ["ice", "snow", "fire", "rain", "wind", "sand", "salt", "tea", "milk", "bread", "wood", "iron"]
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    given = {"model": str(tmp_path / "model"), "data": str(tmp_path / "rows.json"), "spot_checks": False}
    headscore.capture(tmp_path / "c", **given)
    headscore.capture(tmp_path / "null", control="null", **given)
    for options in ({"against": tmp_path / "null"}, {"random_span": True}):
        control = headscore.control(tmp_path / "c", **options)
        line = control.heads.row(0, named=True)
        assert line["task"] == pytest.approx(1, abs=0.01) and line["task_controlled"] > 0.4 and line["task_significant"]


# ----------------------------------------------------------------------------------------------------------------- the same


def test_the_order_of_rows_the_shards_and_the_memory_do_not_matter(
    plain: Path, shuffled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = headscore.control(plain, against=shuffled, weight={"lift": 1})
    order = [*range(40, 60), *range(10), *range(10, 40)]  # they rise in each shard
    other = write(tmp_path / "c", seed=1, rows=order, shard=10, settings={"control": "shuffle"})
    whole = headscore.control(plain, random_span=True)
    for _ in range(2):
        again = headscore.control(plain, against=other, weight={"lift": 1})
        pl.testing.assert_frame_equal(again.heads, right.heads, abs_tol=1e-12)
        assert again.lines[-2:] == right.lines[-2:]
        pl.testing.assert_frame_equal(headscore.control(plain, random_span=True).heads, whole.heads, abs_tol=1e-12)
        monkeypatch.setattr(sides, "MAX_VALUES", 1)  # a layer at a time


def test_only_the_rows_of_both_count(plain: Path, tmp_path: Path) -> None:
    few = write(tmp_path / "few", planted=0.2, rows=range(20, 50))
    other = write(tmp_path / "other", seed=1, rows=range(10, 60), settings={"control": "shuffle"})
    one, two = headscore.control(plain, against=other), headscore.control(few, against=other)
    assert "paired t tests of 50 samples, one-sided; left out: 10 whose row the control lacks" in one.lines
    assert "paired t tests of 30 samples, one-sided; left out: 20 of the control whose row is not here" in two.lines
    assert found(one) == found(two) == [PLANTED]
    by_hand = headscore.scan_cache(plain).filter(pl.col("row") >= 10).group_by("layer", "head").agg(pl.col("task").mean())
    joined = one.heads.join(by_hand.collect(), on=["layer", "head"], suffix="_by_hand")
    np.testing.assert_allclose(joined["task"], joined["task_by_hand"], rtol=1e-9)


def test_the_means_are_those_of_the_two_rankings(plain: Path, shuffled: Path) -> None:
    for by in ("head", "kv_head"):
        control = headscore.control(plain, against=shuffled, by=by)
        before, other = headscore.score(plain, by=by).heads, headscore.score(shuffled, by=by).heads
        assert control.heads["rank"].to_list() == before["rank"].to_list()
        for signal in ("out", "ent", "task"):
            np.testing.assert_allclose(control.heads[signal], before[signal], rtol=1e-9)
            np.testing.assert_allclose(control.heads[f"{signal}_control"], other[signal], rtol=1e-9)
            np.testing.assert_allclose(control.scores.heads[signal], before[signal] - other[signal], atol=1e-9)
        assert control.heads["rank_controlled"].to_list() == control.scores.heads["rank"].to_list()


# -------------------------------------------------------------------------------------------------------------- the stretch


@given(st.lists(st.booleans(), max_size=24), st.integers(0, 6), st.integers(0, 5))
def test_a_random_place_is_a_free_one(free: list[bool], length: int, key: int) -> None:
    places = [start for start in range(len(free) - length + 1) if length and all(free[start : start + length])]
    place = random_place(np.array(free, bool), length, str(key))
    assert place is None if not places else place in places


def test_every_place_is_as_likely() -> None:
    free = np.array([False, True, True, True, False, True, True, True, True, False])
    counts = np.bincount([random_place(free, 2, f"42 {row}") or 0 for row in range(5000)], minlength=10)
    assert np.flatnonzero(counts).tolist() == [1, 2, 5, 6, 7]
    assert abs(counts[counts > 0] - 1000).max() < 4 * math.sqrt(1000 * 0.8)


@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
@pytest.mark.parametrize("task", [("question",), ("question", "special")])
def test_the_signals_of_a_stretch_are_those_of_its_tokens(cache: Path, mode: str, task: tuple[str, ...]) -> None:
    """Of a real capture, worked out anew from its rows."""
    settings = ScoreSettings(task_span=task, score_query_mode=mode, measure={"mine": "question * 2"}, signal={"own": "mine"})
    opened = open_cache(cache)
    recipe = choose_recipe(opened, settings, partial=False)
    moved = with_moved_span(recipe, task, 3)
    side = sides.against_stretch(opened, recipe, settings, ["task", "lift"], 3)
    ours = side.control.values(["task", "lift", "sink", "own"], range(3))
    plain = side.own.values(["task", "sink"], range(3))
    np.testing.assert_array_equal(ours["sink"], plain["sink"])
    used = set(side.own.used.tolist())
    mass = dict(zip(side.own.used.tolist(), np.moveaxis(ours["task"], 2, 0), strict=True))
    for layer, rows in ((layer, list(headscore.rows(cache, layer=layer, score_query_mode=mode))) for layer in range(3)):
        for each in rows:
            inside = np.any([each.spans[name] for name in task], axis=0)
            free = ~inside & ~each.spans["special"]
            free[0] = False
            place = random_place(free, int(inside.sum()), f"3 {each.row}")
            assert (place is not None) == (each.sample in used)
            if place is not None:
                stretch = each.weights[:, place : place + int(inside.sum())]
                assert not inside[place : place + int(inside.sum())].any()
                np.testing.assert_allclose(mass[each.sample][layer], stretch.sum(axis=1), atol=1e-5)
    assert moved.linear.span_names == recipe.linear.span_names
    own = ["out", "ent", "task", "lift", "excess", "task_free", "mass_question", "mass_template", "own", "sink", "focus"]
    depend = signals_of_span(recipe, ("question",), own)
    assert depend[-2:] == ["mass_question", "own"] and not {"out", "ent", "sink", "focus", "mass_template"} & {*depend}
    if task == ("question",):
        assert depend == ["task", "lift", "excess", "task_free", "mass_question", "own"]


def test_prompts_without_room_are_left_out(tmp_path: Path) -> None:
    """A question of five of eleven tokens, in the middle: three before it, three after."""
    folder = write(tmp_path / "c", rows=range(4))
    with pytest.raises(
        headscore.InputError, match="prompts with room for a stretch of text as long as the task's span: 0, and"
    ):
        headscore.control(folder, random_span=True, task_span=["template"])


# -------------------------------------------------------------------------------------------------------- what is no control


def test_wrong_pairings_are_refused(plain: Path, shuffled: Path, tmp_path: Path) -> None:
    other_data = {"path": "other.jsonl", "sha256": "another"}
    cases = {
        "another_model": (
            {"model": {"name": "made by hand", "fingerprint": "another"}},
            "is not from the model of .* a control is captured",
        ),
        "other_rows": (
            {"settings": {"control": "null"}, "data": other_data},
            "holds control prompts of other rows .* capture the control of these with control='null'",
        ),
        "no_rows": ({"rows": range(60, 80), "settings": {"control": "null"}}, "has, too: 0, and a test needs two"),
        "unknown": ({"settings": {"control": "later"}}, "of a kind that this headscore does not know; upgrade it"),
        "no_span": ({"span_names": ["goal", "choices", "template", "special"]}, "question"),
    }
    for name, (changes, message) in cases.items():
        with pytest.raises(headscore.InputError, match=message):
            headscore.control(plain, against=write(tmp_path / name, **changes))
    with pytest.raises(headscore.InputError, match="holds control prompts; give the ordinary cache"):
        headscore.control(shuffled, against=plain)
    for options in ({}, {"against": shuffled, "random_span": True}):
        with pytest.raises(headscore.InputError, match=r"against: give a cache that is .* random_span=True, not both"):
            headscore.control(plain, **options)
    with pytest.raises(headscore.InputError, match=r"no weighted signal \(out, ent\) depends on where the task's span stands"):
        headscore.control(plain, random_span=True, lambda_task=0)
    with pytest.raises(headscore.InputError, match="results have another column 'x_control'"):
        headscore.control(plain, against=shuffled, signal={"x": "sink", "x_control": "sink"}, weight={"x": 1, "x_control": 1})


def test_other_differences_are_told(plain: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "c", seed=1, settings={"control": "null", "dtype": "bf16", "max_samples": 70})
    assert headscore.control(plain, against=other).lines[0] == (
        "CAUTION: the two caches differ in more than that: settings dtype was fp32, now bf16"
    )


# -------------------------------------------------------------------------------------------------------------- the results


def test_the_controlled_signals_are_results_like_any_others(plain: Path, shuffled: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    control = headscore.control(plain, out, against=shuffled, weight={"lift": 0.5})
    results = read_results(out)
    assert results.heads.equals(control.scores.heads) and results.signals == ["out", "ent", "task", "lift"]
    assert results.weights == {"out": 1.0, "ent": 0.5, "task": 1.0, "lift": 0.5}
    assert results.order("task")[0] == PLANTED
    assert results.record["control"]["kind"] == "shuffle" and results.record["control"]["settings"]["control"] == "shuffle"
    table = pl.read_csv(out / "control.csv")
    assert table.columns == control.heads.columns
    assert table.columns[:5] == ["layer", "head", "kv_head", "rank", "rank_controlled"]
    assert table.columns[5:] == [f"{signal}{suffix}" for signal in ("out", "ent", "task", "lift") for suffix in COLUMNS]
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.log"}
    headscore.control(plain, out, against=shuffled, weight={"lift": 0.5})
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.log"}
    with pytest.raises(headscore.InputError, match="holds another run"):
        headscore.control(plain, out, random_span=True, weight={"lift": 0.5})
    with pytest.raises(headscore.InputError, match="holds another run"):
        headscore.score(plain, out)
    headscore.score(plain, out, overwrite=True)
    assert not (out / "control.csv").exists() and "control" not in read_results(out).record


def test_the_command_prints_what_it_found(run_cli: Cli, plain: Path, shuffled: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    status, printed, _ = run_cli("control", plain, "--against", shuffled, "--fdr", 0.01, "--out", out)
    lines = printed.splitlines()
    assert status == 0 and lines[0].startswith("of 12 heads, 1 attends to the question more than to the same words shuffled")
    assert "(false discovery rate 1 %)" in lines[0] and lines[-1] == f"all results in {out}"
    status, again, _ = run_cli("control", "--config", out / "config.yaml", plain, "--out", tmp_path / "again")
    assert status == 0 and again.splitlines()[:-1] == lines[:-1]
    assert (tmp_path / "again" / "control.csv").read_bytes() == (out / "control.csv").read_bytes()
    status, _, error = run_cli("control", plain)
    assert status == 2 and "--against: give a cache that is the control, or --random-span, not both" in error


def test_the_page_has_every_column_and_kind() -> None:
    page = (Path(headscore.__file__).parent / "docs" / "control.md").read_text()
    for suffix in COLUMNS[1:]:
        assert f"`<signal>{suffix}`" in page
    for word in ("control.csv", "rank_controlled", "--random-span", "--against", "--fdr", "--two-sided", "--seed"):
        assert f"`{word}" in page, word


# --------------------------------------------------------------------------------------------------------------- statistics


def test_students_t_by_the_tables() -> None:
    """One-sided critical values as printed tables have them."""
    for freedom, t, p in ((1, 6.314, 0.05), (5, 2.015, 0.05), (10, 2.764, 0.01), (30, 1.697, 0.05), (1e6, 1.6449, 0.05)):
        assert student_sf(np.array(t), np.array(freedom)) == pytest.approx(p, rel=2e-3)
    assert student_sf(np.array([0.0, np.inf, -np.inf]), np.array(3.0)).tolist() == [0.5, 0.0, 1.0]


def test_benjamini_and_hochbergs_example() -> None:
    """The fifteen p-values of their paper, of which four are found at 0.05."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    order = np.random.default_rng(0).permutation(15)
    q = benjamini_hochberg([np.nan, *np.array(p)[order]])
    assert np.isnan(q[0]) and sorted(order[q[1:] <= 0.05].tolist()) == [0, 1, 2, 3]
    assert benjamini_hochberg([]).tolist() == []


def test_the_tests_equal_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    t, freedom = random.normal(size=2000) * 10 ** random.uniform(-5, 2, 2000), 10 ** random.uniform(0, 5, 2000)
    np.testing.assert_allclose(student_sf(t, freedom), stats.t.sf(t, freedom), rtol=1e-8, atol=1e-300)
    one, other = random.normal(0.2, 1, (30, 40)), random.normal(0, 2, (30, 70))
    one[random.random(one.shape) < 0.1] = np.nan
    for two_sided, which in ((False, "greater"), (True, "two-sided")):
        how: dict[str, Any] = {"axis": 1, "nan_policy": "omit", "alternative": which}
        np.testing.assert_allclose(paired(one).p(two_sided), stats.ttest_1samp(one, 0, **how).pvalue, rtol=1e-9)
        right = stats.ttest_ind(one, other, equal_var=False, **how).pvalue
        np.testing.assert_allclose(unpaired(one, other).p(two_sided), right, rtol=1e-9)
    p = random.random((20, 9)) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p).ravel(), stats.false_discovery_control(p.ravel()), rtol=1e-12)


def test_a_test_needs_two_values_that_differ() -> None:
    nan = np.nan
    test = paired(np.array([[1.0, nan, nan], [0.0, 0.0, nan], [1.0, 1.0, 1.0], [-1.0, -1.0, nan], [0.1, 0.1, 0.1]]))
    np.testing.assert_array_equal(test.p(), [nan, 1, 0, 1, 0])
    np.testing.assert_array_equal(test.p(two_sided=True), [nan, 1, 0, 0, 0])
