"""Rankings that are compared: laws of agreement, what may stand for a ranking, and the files of others."""

import io
import json
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_caches import metadata, write_cache

import headscore
from headscore import cli
from headscore.data.cache.folder import open_cache, shard_path, write_metadata
from headscore.data.cache.shard import ARRAYS, write_shard
from headscore.data.errors import HeadscoreError, InputError
from headscore.score.evidence.compare import RESULT_FILES, compare_rankings
from headscore.score.evidence.rankings import Ranking

LAYERS, HEADS = 4, 5
ARC = {"path": "a.jsonl", "sha256": "0" * 64, "rows": 2}


def ranking(name: str, order: np.ndarray, unit: Any = "head", heads: int = HEADS) -> Ranking:
    """All heads by their number in `order`, the first one highest."""
    places = pl.DataFrame({"layer": order // heads, unit: order % heads}).cast(pl.Int32)
    frame = places.with_columns(score=pl.Series(len(order) - np.arange(len(order), dtype=float)))
    return Ranking(name, "results", "combined", unit, frame.with_columns(rank=pl.Series(1 + np.arange(len(order)))), True)


def made_cache(folder: Path, seed: int, data: dict[str, Any] | None = None, shape: tuple[int, int] = (LAYERS, HEADS)) -> Path:
    random = np.random.default_rng(seed)
    mass = random.choice([0.125, 0.25, 0.5, 0.75], (*shape, 6))
    rows = np.stack([mass, 1 - mass], axis=3).reshape(*shape, 12)
    cache = write_cache(folder, rows, random.random((*shape, 6)), [1, 4] * 6, [2] * 6)
    with open_cache(cache).open_shard(shard_path(cache, 0)) as shard:
        arrays = {name: shard.read(name) for name in ARRAYS}
    settings = {"queries": "all_tokens", "shard_size": 256, "max_samples": 6, "max_length": 512, "seed": 1}
    made = metadata(*shape, {"data": data or {"path": "a.jsonl"}, "settings": settings})
    write_metadata(cache, made, keep_existing=False)
    write_shard(shard_path(cache, 0), 0, arrays, made, [])
    return cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_cache(tmp_path_factory.mktemp("compare") / "cache", 0)


def test_equal_rankings_agree_in_everything() -> None:
    order = np.random.default_rng(0).permutation(LAYERS * HEADS)
    found = compare_rankings([ranking("x", order), ranking("y", order)], 6)
    line = found.pairs.row(0, named=True)
    names = ("share", "kendall", "spearman", "rbo", "kendall_in_layers", "spearman_in_layers")
    assert [line[name] for name in names] == pytest.approx([1.0] * 6)
    assert (line["shared"], line["k"], line["heads"], line["chance"]) == (6, 6, 20, 36 / 20)
    assert found.lines[0] == (
        "A (x, a folder of results) and B (y, a folder of results) share 6 of their top 6 heads; chance would give 1.8"
    )
    assert found.heads["moved"].to_list() == [0] * 20 and not any("moved most" in text for text in found.lines)


def test_agreement_is_symmetric_and_a_renaming_of_heads_changes_nothing() -> None:
    random = np.random.default_rng(1)
    x, y = random.permutation(20), random.permutation(20)
    there = compare_rankings([ranking("x", x), ranking("y", y)], 6).pairs
    back = compare_rankings([ranking("y", y), ranking("x", x)], 6).pairs
    assert there.equals(back)
    names = np.concatenate([HEADS * layer + random.permutation(HEADS) for layer in random.permutation(LAYERS)])
    renamed = compare_rankings([ranking("x", names[x]), ranking("y", names[y])], 6)
    assert renamed.pairs.select(pl.all().exclude("a", "b")).row(0) == pytest.approx(
        there.select(pl.all().exclude("a", "b")).row(0)
    )
    assert renamed.layers["shared"].sum() == there["shared"][0]
    assert renamed.layers.select("top_a", "top_b").sum().row(0) == (6, 6)


def test_random_rankings_share_what_chance_gives() -> None:
    random = np.random.default_rng(2)
    rankings = [ranking(str(number), random.permutation(20)) for number in range(20)]
    found = compare_rankings(rankings, 6).pairs
    assert len(found) == 190 and found["chance"].unique().to_list() == [1.8]
    assert found["shared"].mean() == pytest.approx(1.8, abs=0.3)
    assert found["kendall"].mean() == pytest.approx(0, abs=0.05)


def test_the_heads_that_moved_are_told_with_their_ranks() -> None:
    order = np.arange(20)
    other = np.concatenate([order[1:], order[:1]])
    found = compare_rankings([ranking("x", order), ranking("y", other)])
    assert "moved most from A to B: L0H0 from 1 to 20, " in found.lines[2]
    line = found.heads.filter(layer=0, head=0).row(0, named=True)
    assert (line["rank_A"], line["rank_B"], line["moved"]) == (1, 20, 19)
    assert list(found.table())[1].split() == ["L0H0", "1", "20"]


def test_caches_results_validations_and_lists_can_stand_side_by_side(cache: Path, tmp_path: Path) -> None:
    scores = headscore.score(cache, tmp_path / "results")
    effects = pl.concat(
        [
            scores.heads.select("layer", "head", effect=pl.lit(name), mean=sign * pl.col("rank").cast(pl.Float64), abs_mean=1.0)
            for name, sign in (("kl", -1), ("gate_gradient", -1))
        ]
    )
    (tmp_path / "v").mkdir()
    effects.write_parquet(tmp_path / "v" / "effects.parquet")
    (tmp_path / "v" / "validation.json").write_text("{}")
    scores.heads.select("layer", "head", "combined").sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "list.csv")
    places = [cache, tmp_path / "results", tmp_path / "v", tmp_path / "list.csv", tmp_path / "results" / "heads.csv"]
    found = headscore.compare(places, top_k=5)
    assert [each.kind for each in found.rankings] == ["cache", "results", "validation", "list", "list"]
    assert (
        found.pairs.filter(pl.col("a") == "A")["shared"].to_list() == [5, 5, 5, 5] or scores.top(5)["combined"].n_unique() < 5
    )
    assert found.pairs.filter(a="A", b="B")["kendall"].item() == pytest.approx(1)
    assert found.pairs.filter(a="A", b="E").select("shared", "kendall").row(0) == pytest.approx((5, 1)), (
        "ties as the file's rank"
    )
    turned = headscore.compare(places[1:3], effect="gate_gradient")
    assert turned.rankings[1].heads["rank"].to_list() == turned.rankings[0].heads["rank"].to_list()
    assert turned.pairs["spearman"].item() < 0, "a gradient's cost is minus its mean"
    with pytest.raises(InputError, match=r"effect='nll'.* it has kl, gate_gradient"):
        headscore.compare(places[1:3], effect="nll")
    effects.filter(effect="gate_gradient").with_columns(effect=pl.lit("of another time")).write_parquet(
        tmp_path / "v" / "effects.parquet"
    )
    with pytest.raises(InputError, match=r"v: has no effect of single heads to rank by; run headscore validate"):
        headscore.compare(places[1:3])


def test_one_signal_is_compared_as_score_would_rank_by_it_alone(cache: Path, tmp_path: Path) -> None:
    headscore.score(cache, tmp_path / "results")
    found = headscore.compare([cache, tmp_path / "results"], compare_by="-ent")
    alone = headscore.score(cache, weight={"out": 0, "task": 0, "ent": -1})
    for each in found.rankings:
        assert each.heads.sort("layer", "head")["rank"].to_list() == alone.heads["rank"].to_list()
    assert "(cache, a cache by -ent)" in found.lines[0]
    with pytest.raises(InputError, match=r"compare_by nonsense: .* has no such signal; it has combined, out"):
        headscore.compare([cache, cache], compare_by="nonsense")


def test_signals_that_moved_are_told_for_the_same_rows_alone(tmp_path: Path) -> None:
    one, same, other = (made_cache(tmp_path / name, seed, {**ARC, "sha256": sha}) for name, seed, sha in (
        ("base", 0, "0" * 64), ("tuned", 1, "0" * 64), ("other", 1, "1" * 64)
    ))  # fmt: skip
    found = headscore.compare([one, same])
    assert found.signals is not None and "both are of the same rows" in found.lines[-1]
    means = [headscore.score(each).heads.filter(layer=2, head=3)["task"].item() for each in (one, same)]
    line = found.signals.filter(layer=2, head=3, signal="task").row(0, named=True)
    assert [line["mean_a"], line["mean_b"], line["change"]] == pytest.approx([*means, means[1] - means[0]])
    of_layer = [headscore.score(each).heads.filter(layer=2)["task"].to_numpy() for each in (one, same)]
    spread = np.sqrt(np.mean([values.var() for values in of_layer]))
    assert line["relative"] == pytest.approx(line["change"] / spread)
    assert headscore.compare([one, other]).signals is None
    headscore.score(one, tmp_path / "r", task_span="choices")
    assert headscore.compare([tmp_path / "r", same]).signals is None, "task is another thing there"
    headscore.score(one, tmp_path / "q")
    assert headscore.compare([tmp_path / "q", same]).signals is not None


# ------------------------------------------------------------------------------------------------------- lists of others


def written(path: Path, content: Any) -> Path:
    if path.suffix == ".parquet":
        content.write_parquet(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "layer,head\n3,4\n0,1\n2,2\n"),
        ("a.csv", "head,layer,importance\n1,0,0.5\n2,2,1e-3\n4,3,7\n"),
        ("a.csv", "layer,head,rank\n2,2,3\n3,4,1\n0,1,2\n"),
        ("a.csv", "layer,head,score,other\n0,1,5,1\n3,4,5.5,2\n2,2,-1,3\n"),
        ("a.json", [[3, 4], [0, 1], [2, 2]]),
        ("a.json", [[0, 1, 2.5], [3, 4, 3], [2, 2, 1]]),
        ("a.json", [{"layer": a, "head": b, "combined": c} for a, b, c in ((3, 4, 9), (0, 1, 8), (2, 2, 7))]),
        ("a.parquet", pl.DataFrame({"layer": [3, 0, 2], "head": [4, 1, 2], "note": ["x", "y", "z"]})),
    ],
)  # fmt: skip
def test_lists_are_read_in_their_order(cache: Path, tmp_path: Path, name: str, content: Any) -> None:
    found = headscore.compare([cache, written(tmp_path / name, content)])
    listed = found.rankings[1]
    assert listed.heads.select("layer", "head", "rank").rows() == [(3, 4, 1), (0, 1, 2), (2, 2, 3)]
    assert not listed.whole
    line = found.pairs.row(0, named=True)
    assert (line["k"], line["heads"], line["chance"]) == (3, 3, 9 / 20)
    assert found.heads["rank_B"].null_count() == 17 and len(found.heads) == 20


def test_a_list_of_the_first_heads_agrees_with_its_own_ranking(cache: Path, tmp_path: Path) -> None:
    scores = headscore.score(cache, tmp_path / "r", top_k=7)
    found = headscore.compare([cache, tmp_path / "r" / "topk_global.json"])
    line = found.pairs.row(0, named=True)
    assert (line["k"], line["shared"], line["kendall"]) == (7, 7, pytest.approx(1))
    assert scores.top(7)["rank"].to_list() == found.rankings[1].heads["rank"].to_list()
    with pytest.raises(InputError, match=r"^top_k: 8 is more than the 7 heads that topk_global\.json lists"):
        headscore.compare([cache, tmp_path / "r" / "topk_global.json"], top_k=8)
    alone = headscore.compare([tmp_path / "r" / "topk_global.json"] * 2)
    assert alone.pairs["chance"].item() is None and "not known" in alone.lines[0]


def zipped(frame: pl.DataFrame) -> bytes:
    table = io.BytesIO()
    frame.write_parquet(table, compression="zstd")
    return table.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "has no columns 'layer' and 'head' (or 'kv_head') of numbers; it has none"),
        ("a.csv", b"layer,head\n", "lists 0 heads"),
        ("a.csv", b"layer,rank\n1,2\n", "has no columns 'layer' and 'head'"),
        ("a.csv", b"layer,head\n1,2\n1,2\n", "layer 1, head 2 appears twice"),
        ("a.csv", b"layer,head\n1\n", "row 1 has 1 fields, the header 2"),
        ("a.csv", b"layer,layer\n1,2\n", "a column appears twice"),
        ("a.csv", b"layer,head\n1,x\n", "head 'x' is not a whole number"),
        ("a.csv", b"layer,head\n1,-1\n", "head '-1' is not a whole number"),
        ("a.csv", b"layer,head\n1," + b"9" * 5000 + b"\n", "is not a whole number"),
        ("a.csv", b"layer,head,score\n1,2,nan\n", "score 'nan' is not a finite number"),
        ("a.csv", b"layer,head,x,y\n1,2,1,2\n", "which column is the score"),
        ("a.csv", b"layer,head\n" + b"".join(b"0,%d\n" % n for n in range(70_000)), "more than 65536 heads"),
        ("a.csv", b"," * 5000, "more than 1024 columns"),
        ("a.csv", b"\xff\xfe", "not CSV in UTF-8"),
        ("a.json", b"", "cannot be read as JSON"),
        ("a.json", b"{}", "expected a JSON array"),
        ("a.json", b"[" * 100_000, "nested more than"),
        ("a.json", b"[" + b"[0,1]," * 3_000_000 + b"[1,1]]", "has more than"),
        ("a.json", b"[[1, 2], {}]", "expected objects with the same names"),
        ("a.json", b"[[1, true]]", "head True is not a whole number"),
        ("a.json", b"[[1, 2, 1e999]]", "score inf is not a finite number"),
        ("a.json", b"[[1, [2]]]", "is not a whole number"),
        ("a.parquet", b"PAR1PAR1", "not a readable parquet file"),
        ("a.parquet", zipped(pl.DataFrame({"layer": ["0"], "head": ["1"]})), "has no columns"),
        ("a.parquet", zipped(pl.DataFrame({"layer": [0.5], "head": [1]})), "layer 0.5 is not a whole number"),
        ("a.parquet", zipped(pl.select(layer=pl.zeros(10_000_000), head=pl.int_range(10_000_000))), "lists 10000000 heads"),
        ("a.txt", b"1,2", "unknown kind of file '.txt'"),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused_in_one_line(cache: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        headscore.compare([cache, tmp_path / name])
    assert message in str(refused.value) and name in str(refused.value) and "\n" not in str(refused.value)


def test_damaged_parquet_is_refused_or_read(cache: Path, tmp_path: Path) -> None:
    content = bytearray(zipped(pl.DataFrame({"layer": range(4), "head": [0] * 4, "score": [0.5, 0.25, 1, 2]})))
    random = np.random.default_rng(0)
    for _ in range(30):
        changed = bytearray(content)
        changed[random.integers(len(content))] ^= 1 << random.integers(8)
        (tmp_path / "a.parquet").write_bytes(changed)
        try:
            headscore.compare([cache, tmp_path / "a.parquet"])
        except HeadscoreError as error:
            assert "\n" not in str(error) and zlib.crc32(changed)


# ---------------------------------------------------------------------------------------------------------- what is refused


def test_other_shapes_and_units_are_refused(cache: Path, tmp_path: Path) -> None:
    other = made_cache(tmp_path / "other", 1, shape=(3, 5))
    with pytest.raises(InputError, match=r"other: has 3 layers of 5 heads, and cache 4 layers of 5 heads; compare models of"):
        headscore.compare([cache, other])
    (tmp_path / "list.csv").write_text("layer,head\n0,1\n7,2\n")
    with pytest.raises(InputError, match=r"list\.csv: has 2 heads, in layers up to 7 .* compare models of the same shape"):
        headscore.compare([cache, tmp_path / "list.csv"])
    (tmp_path / "groups.json").write_text('[{"layer": 0, "kv_head": 1}]')
    with pytest.raises(InputError, match=r"cache: ranks heads, and groups\.json groups of heads .* the same by"):
        headscore.compare([tmp_path / "groups.json", cache])


def test_places_of_the_same_name_go_by_their_paths(tmp_path: Path) -> None:
    places = [made_cache(tmp_path / name / "cache", seed) for name, seed in (("base", 0), ("tuned", 1))]
    assert headscore.compare(places).lines[0].startswith(f"A ({places[0]}, a cache) and B ({places[1]}, a cache) share ")


@pytest.mark.parametrize("places", [[], ["x"], "x", ["x"] * 27])
def test_too_few_or_too_many_places_are_refused(places: Any) -> None:
    with pytest.raises(InputError, match="expected a list of 2 to 26 places"):
        headscore.compare(places)


def test_what_is_not_there_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: not found; give a cache, a folder of results"):
        headscore.compare([cache, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no results of headscore score"):
        headscore.compare([cache, tmp_path / "empty"])
    (tmp_path / "empty" / "validation.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no effects\.parquet; run headscore validate with single"):
        headscore.compare([cache, tmp_path / "empty"])


# ------------------------------------------------------------------------------------------------------------------ files


def test_files_are_written_and_never_over_those_of_another_run(cache: Path, tmp_path: Path) -> None:
    other = made_cache(tmp_path / "other", 1)
    out = tmp_path / "out"
    found = headscore.compare([cache, other], out)
    assert {path.name for path in out.iterdir()} == {*RESULT_FILES, "config.yaml", "run.log"} - {"compare_signals.csv"}
    assert (out / "compare.txt").read_text().splitlines() == found.lines
    assert pl.read_parquet(out / "compare_heads.parquet").equals(found.heads)
    for name, frame in (("compare", found.pairs), ("compare_layers", found.layers), ("compare_heads", found.heads)):
        assert pl.read_csv(out / f"{name}.csv").columns == frame.columns
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.log"}
    headscore.compare([cache, other], out)
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.log"}
    with pytest.raises(InputError, match="holds another run"):
        headscore.compare([cache, other], out, top_k=3)
    headscore.compare([cache, other], out, top_k=3, overwrite=True)
    headscore.score(cache, tmp_path / "results")
    with pytest.raises(InputError, match="give the analysis a folder of its own"):
        headscore.compare([cache, other], tmp_path / "results", overwrite=True)


# ----------------------------------------------------------------------------------------------------------- command line


def test_the_commands_print_sentences_then_a_table(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: object) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["headscore", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        captured = capsys.readouterr()
        return int(leaving.value.code or 0), captured.out.splitlines(), captured.err

    other = made_cache(tmp_path / "other", 1)
    status, out, _ = told("compare", cache, other, "--out", tmp_path / "o", "--top-k", 4, "--lambda-task", 0)
    assert status == 0 and re.fullmatch(
        r"A \(cache, a cache\) and B \(other, a cache\) share \d of their top 4 .* give 0\.8", out[0]
    )
    assert out[4].split() == ["head", "rank", "A", "rank", "B"] and out[5].split()[1] == "1" and "all tables in" in out[-1]
    status, out, _ = told("compare", cache, cache, "--config", tmp_path / "o" / "config.yaml")
    assert status == 0 and " share 4 of their top 4 heads" in out[0]
    status, out, err = told("compare", cache, other, "--top-k", 99)
    assert (status, out) == (2, []) and "--top-k: 99 is more than the 20 heads" in err
    status, out, _ = told("stability", cache, "--top-k", 4, "--out", tmp_path / "s")
    assert status == 0 and out[0].startswith("two captures of 3 samples, half of the 6 there are, share ")
    assert out[3].split()[:3] == ["samples", "overlap", "fitted"]
    assert told("score", "--config", tmp_path / "s" / "config.yaml")[0] == 0, "its cache, with its options"
