"""The cache as tables of one's own: the lines of a scan, and the pattern rows."""

import itertools
import operator
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_caches import BY_HAND, metadata, write_cache

import headscore
from headscore.data.cache import folder as cache_format
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.cache.reader import Shard
from headscore.data.cache.shard import write_shard
from headscore.data.errors import DamagedShardError, InputError
from headscore.score.listing import measures

PLACES = ["sample", "layer", "head"]


def test_means_of_a_scan_are_the_scores(cache: Path) -> None:
    for mode, head_output, spans in itertools.product(
        ("last_token", "all_tokens"), ("z", "result"), (["question"], ["choices", "question"])
    ):
        options: dict[str, Any] = {"score_query_mode": mode, "head_output": head_output, "task_span": spans}
        mine = {"signal": {"mine": "CASE WHEN sink > 0.1 THEN recent END"}, "measure": {"recent": "position >= tokens - 3"}}
        scores = headscore.score(cache, **options, **mine)
        frame = headscore.scan_cache(cache, **options, **mine)
        means = frame.group_by("layer", "head").agg(pl.col(scores.signals).mean()).sort("layer", "head").collect()
        for name in scores.signals:
            np.testing.assert_allclose(means[name], scores.heads[name], rtol=1e-12, err_msg=name)
        assert frame.select(pl.len()).collect().item() == 24 * 3 * 4


def test_the_columns_of_a_scan(cache: Path) -> None:
    frame = headscore.scan_cache(cache, signal={"mine": "sink"}, measure={"recent": "position > 3"})
    schema = frame.collect_schema()
    assert schema == frame.collect().schema, "what it promises is what it gives"
    assert schema.names()[:7] == [
        "sample",
        "row",
        "tokens",
        *(f"tokens_{span}" for span in ("question", "choices", "template", "special")),
    ]
    assert {"layer", "head", "kv_head", "out", "ent", "task", "mine", "recent", "entropy", "sink", "mass_choices"} <= set(
        schema
    )
    assert all(schema[name] == pl.Int64 for name in ("sample", "row", "tokens", "tokens_question", "task_tokens"))
    assert schema["mine"] == schema["recent"] == schema["entropy"] == pl.Float64


def test_lines_come_by_layer_head_and_sample(cache: Path) -> None:
    lines = headscore.scan_cache(cache, fresh=True).collect()
    for samples in (range(10), range(10, 20), range(20, 24)):
        some = lines.filter(pl.col("sample").is_in(samples))
        assert some.select("layer", "head", "sample").rows() == list(itertools.product(range(3), range(4), samples))


QUERIES: list[Callable[[pl.LazyFrame], pl.LazyFrame]] = [
    lambda f: f.select("head", "task"),
    lambda f: f.select("entropy"),
    lambda f: f.select("ent"),
    lambda f: f.select("out", "row"),
    lambda f: f.select(pl.len()),
    lambda f: f.select(),
    lambda f: f.filter(pl.col("ent") < pl.col("ent").mean()).select("row"),
    lambda f: f.filter((pl.col("layer") == 1) & (pl.col("out") > 0.1)).select("sample", "task"),
    lambda f: f.head(125),
    lambda f: f.head(0),
    lambda f: f.limit(10_000).select("tokens"),
    lambda f: f.filter(pl.col("head") == 2).head(40).select("tokens"),
    lambda f: f.filter(layer=2, head=3).head(3),
    lambda f: f.tail(3),
    lambda f: f.slice(100, 50).select("sink", "sample"),
    lambda f: f.with_columns(pl.col("layer") + 1).filter(pl.col("layer") == 1),
    lambda f: f.rename({"layer": "head", "head": "layer"}).filter(pl.col("layer") == 3),
    lambda f: f.filter(pl.col("layer") == pl.col("layer").max()),
    lambda f: f.filter(pl.col("layer").is_first_distinct()),
    lambda f: f.filter(pl.col("layer").rank("min") > 100),
    lambda f: f.filter(pl.len().over("layer") > 3, pl.col("layer") < 2),
    lambda f: f.group_by("layer").agg(pl.col("sink").max()).sort("layer"),
    lambda f: f.sort("task", "sample", "layer", "head").head(5),
    lambda f: f.join(f.filter(layer=0).select("sample", "head", first="sink"), on=["sample", "head"]).sort(PLACES),
    lambda f: f.select(pl.col("^mass_.*$")).unique().sort(pl.all()),
]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("options", [{}, {"score_query_mode": "all_tokens", "task_span": ["choices", "special"]}])
def test_a_scan_answers_any_query_like_its_lines(cache: Path, query: Callable[[Any], Any], options: dict[str, Any]) -> None:
    lazy = headscore.scan_cache(cache, **options)
    assert query(lazy).collect().equals(query(lazy.collect().lazy()).collect())


layer = pl.col("layer")
of_layers = st.sampled_from(
    [layer == 1, layer != 1, layer > 0, layer <= 1, pl.lit(1) < layer, layer == 7, (layer + 1) == 3, layer * 2 == 2,
     layer.is_in([0, 2]), layer.is_in([]), ~layer.is_in([1]), layer.is_between(1, 2), layer.is_between(0, 1, closed="none"),
     layer.is_null(), layer.is_not_null(), layer.eq_missing(2), pl.lit(True), pl.lit(False),
     layer.cast(pl.Float64) == 1.0, layer.cast(pl.String) == "1", (layer % 2).cast(pl.Boolean),
     pl.when(layer == 1).then(True).otherwise(False), (layer == 1) == (layer == 2), (layer == 1) ^ (layer == 2)]
)  # fmt: skip
of_others = st.sampled_from(
    [pl.col("head") == 2, pl.col("sample") > 5, pl.col("sink") > 0.05, pl.col("ent") < -1, pl.col("head") == pl.col("layer"),
     pl.col("layer") > pl.col("head"), pl.col("task").is_not_null(), pl.col("tokens") % 2 == 0, pl.col("kv_head").is_in([1])]
)  # fmt: skip
predicates = st.recursive(
    of_layers | of_others,
    lambda inner: st.one_of(
        inner.map(operator.inv),
        st.tuples(st.sampled_from([operator.and_, operator.or_, operator.xor]), inner, inner).map(lambda t: t[0](t[1], t[2])),
    ),
    max_leaves=5,
)


@given(st.lists(predicates, min_size=1, max_size=3), st.sampled_from([None, 7, 60]))
def test_any_filter_gives_what_it_gives_afterwards(cache: Path, filters: list[pl.Expr], first: int | None) -> None:
    lazy = headscore.scan_cache(cache).select(*PLACES, "kv_head", "tokens", "sink", "ent", "task")
    whole = lazy.collect()
    found = reduce(lambda frame, some: frame.filter(some), filters, lazy)
    expected = reduce(lambda frame, some: frame.filter(some), filters, whole)
    if first is not None:
        found, expected = found.head(first), expected.head(first)
    assert found.collect().equals(expected)


def test_only_what_is_asked_for_is_read(cache: Path, arrays_read: set[str]) -> None:
    def rows_read(*columns: str) -> set[str]:
        arrays_read.clear()
        headscore.scan_cache(cache, fresh=True).select(columns).collect()
        return {name for name in arrays_read if name.startswith(("last_token", "all_tokens"))}

    assert rows_read("row", "layer", "tokens_question", "kv_head") == set()
    assert rows_read("out") == rows_read("output_norm", "head") == {"last_token/output_norm"}
    assert rows_read("out_all") == {"all_tokens/output_norm"}
    assert rows_read("ent") == rows_read("sink", "task") == {"last_token/attention"}
    arrays_read.clear()
    headscore.scan_cache(cache, fresh=True, score_query_mode="all_tokens").select("ent").collect()
    assert "all_tokens/attention" not in arrays_read, "the mean of the rows' entropies is kept by the capture"


def test_only_the_layers_that_a_filter_lets_pass_are_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int, int]] = []
    real = Shard.read

    def spy(shard: Shard, name: str, layer: Any = None, block: Any = None) -> Any:
        found = real(shard, name, layer, block)
        if name.startswith(("last_token", "all_tokens")):
            numbers = range(3)[layer] if isinstance(layer, slice) else range(3) if layer is None else [layer]
            read.extend((name, number, found.nbytes // len(numbers)) for number in numbers)
        return found

    monkeypatch.setattr(Shard, "read", spy)
    headscore.scan_cache(cache, fresh=True).select("sink", "out").collect()
    everything = sum(size for *_, size in read)
    for asked, expected in (
        (pl.col("layer") == 1, {1}),
        (pl.col("layer").is_in([0, 2]), {0, 2}),
        ((pl.col("layer") > 0) & (pl.col("sink") > 0.1) & (pl.col("layer") < 2), {1}),
        ((pl.col("layer") == 1) | (pl.col("layer") == 2), {1, 2}),
        ((pl.col("layer") == 1) | (pl.col("head") == 2), {0, 1, 2}),
        (~(pl.col("layer") == 1) & (pl.col("head") == 2), {0, 2}),
        (pl.col("layer") == 9, set()),
    ):
        read.clear()
        headscore.scan_cache(cache, fresh=True).filter(asked).select("sink", "out").collect()
        assert {number for _, number, _ in read} == expected
        assert sum(size for *_, size in read) == everything * len(expected) // 3


def test_head_stops_reading(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    from headscore.data.cache.folder import Cache

    real = Cache.open_shard
    monkeypatch.setattr(Cache, "open_shard", lambda cache, path: (opened.append(path), real(cache, path))[1])
    assert headscore.scan_cache(cache, fresh=True).head(5).collect().height == 5
    assert [path.name for path in opened] == ["00000.h5"]


def test_layers_are_called_by_the_models_numbers(tmp_path: Path) -> None:
    """Such as those of a model whose other layers have no attention."""
    rows = np.tile(BY_HAND["rows"], (3, 1, 1))
    cache = write_cache(tmp_path, rows, np.tile(BY_HAND["out"], (3, 1, 1)), BY_HAND["span"], BY_HAND["lengths"])
    made = metadata(3, 2, {"layers": [2, 5, 11]})
    with Shard(shard_path(cache, 0)) as shard:
        arrays = {name: shard.read(name) for name in shard.names} | {"layers/index": np.array([2, 5, 11])}
    cache_format.write_metadata(cache, made, keep_existing=False)
    write_shard(shard_path(cache, 0), 0, arrays, made, [])
    lines = headscore.scan_cache(cache)
    assert lines.collect()["layer"].unique().to_list() == [2, 5, 11]
    assert lines.filter(layer=5).collect().height == 4 and lines.filter(layer=1).collect().height == 0
    assert headscore.score(cache).heads["layer"].unique().to_list() == [2, 5, 11]
    assert len(list(headscore.rows(cache, layer=11, head=1))) == 2
    with pytest.raises(InputError, match="has no layer 1; it has 2 heads in each of layers 2, 5, 11"):
        headscore.rows(cache, layer=1)


def test_a_shard_alone_is_a_cache(cache: Path) -> None:
    shard = open_cache(cache).shards[1]
    whole = headscore.scan_cache(cache).filter(pl.col("sample").is_between(10, 19)).drop("sample").collect()
    assert headscore.scan_cache(shard).drop("sample").collect().equals(whole)
    assert headscore.score(shard).samples == 10
    assert [line.row for line in headscore.rows(shard, layer=0)] == [line.row for line in headscore.rows(cache, layer=0)][10:20]


@pytest.mark.parametrize("lines", [1, 50, 1 << 17])
@pytest.mark.parametrize("items", [1, 500, 3000])
def test_blocks_change_no_line(cache: Path, monkeypatch: pytest.MonkeyPatch, items: int, lines: int) -> None:
    whole = headscore.scan_cache(cache, fresh=True).sort(PLACES).collect()
    for limit in (
        "data.cache.reader.BLOCK_ITEMS",
        "data.cache.value_checks._ITEMS",
        "score.measures.MAX_ITEMS",
        "score.measures.ROWS",
    ):
        monkeypatch.setattr(f"headscore.{limit}", items)
    monkeypatch.setattr("headscore.score.shard_source.LINES", lines)
    assert headscore.scan_cache(cache, fresh=True).sort(PLACES).collect().equals(whole)
    some = headscore.scan_cache(cache, fresh=True).filter(layer=1).sort(PLACES).collect()
    assert some.equals(whole.filter(layer=1))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A cache whose samples were all skipped."""
    return write_cache(tmp_path / "empty", np.empty((2, 3, 0)), np.empty((2, 3, 0)), [], [])


def test_an_empty_cache_has_no_lines(empty: Path) -> None:
    frame = headscore.scan_cache(empty, signal={"mine": "sink"})
    assert frame.collect().schema == frame.collect_schema() and frame.collect().is_empty()
    assert frame.filter(layer=1).select("out", "mine").collect().is_empty()
    assert frame.select(pl.len()).collect().item() == 0
    assert list(headscore.rows(empty, layer=1)) == []
    with pytest.raises(InputError, match="holds no samples"):
        headscore.score(empty)


def test_a_scan_refuses_what_score_refuses(cache: Path, last_token_cache: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"task_span": ["context"]}, "has no span 'context'; it has question, choices, template, special"),
        ({"score_query_mode": "some"}, "score_query_mode: 'some' is not one of last_token, all_tokens"),
        ({"head_output": "x"}, "head_output: 'x' is not one of"),
        ({"signal": {"mine": "nope"}}, "there is no 'nope'"),
    ):
        with pytest.raises(InputError, match=said):
            headscore.scan_cache(cache, **options)
    with pytest.raises(InputError, match="was captured with queries='last_token'"):
        headscore.scan_cache(last_token_cache, score_query_mode="all_tokens")
    with pytest.raises(InputError, match="cache not found"):
        headscore.scan_cache(tmp_path / "nothing")


def test_damage_is_told_while_collecting(cache: Path, tmp_path: Path) -> None:
    import shutil

    torn = Path(shutil.copytree(cache, tmp_path / "torn"))
    shard_path(torn, 1).write_bytes(b"torn")
    frame = headscore.scan_cache(torn)
    for ask in (frame.collect, frame.select("out").collect, lambda: list(headscore.rows(torn, layer=0))):
        with pytest.raises((DamagedShardError, pl.exceptions.ComputeError), match=r"00001\.h5: is not a readable shard"):
            ask()


# ------------------------------------------------------------------------------------------------------------ pattern rows


@pytest.mark.parametrize("items", [1, 700, 1 << 22])
@pytest.mark.parametrize("mode", ["last_token", "all_tokens"])
def test_rows_are_what_the_shards_have(cache: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, items: int) -> None:
    stored: list[dict[str, Any]] = []
    for path in open_cache(cache).shards:
        with Shard(path) as shard:
            weights, ids, bits, rows = (
                shard.read(name) for name in (f"{mode}/attention", "tokens/id", "tokens/span", "samples/row")
            )
            for sample, (start, stop) in enumerate(itertools.pairwise(shard.offsets())):
                stored.append(
                    {"weights": weights[..., start:stop], "ids": ids[start:stop], "bits": bits[start:stop], "row": rows[sample]}
                )
    monkeypatch.setattr("headscore.data.cache.reader.BLOCK_ITEMS", items)
    for number, head in itertools.product(range(3), (None, 0, 3)):
        found = list(headscore.rows(cache, layer=number, head=head, score_query_mode=mode))
        assert [one.sample for one in found] == list(range(24))
        for one, right in zip(found, stored, strict=True):
            expected = right["weights"][number] if head is None else right["weights"][number, head]
            assert np.array_equal(one.weights, expected) and one.weights.dtype == np.float32
            assert np.array_equal(one.ids, right["ids"]) and one.row == right["row"]
            assert list(one.spans) == ["question", "choices", "template", "special"]
            for bit, inside in enumerate(one.spans.values()):
                assert inside.dtype == bool and np.array_equal(inside, right["bits"] & 1 << bit > 0)


def test_rows_give_the_measures_of_a_scan(cache: Path) -> None:
    lines = headscore.scan_cache(cache).filter(layer=1, head=2).sort("sample").collect()
    for one, line in zip(headscore.rows(cache, layer=1, head=2), lines.iter_rows(named=True), strict=True):
        assert line["row"] == one.row and line["tokens"] == len(one.ids) == len(one.weights)
        assert line["sink"] == one.weights[0] and line["largest"] == one.weights.max()
        assert line["task"] == pytest.approx(one.weights[one.spans["question"]].astype(float).sum(), abs=1e-7)


def test_rows_that_there_are_not_are_refused(cache: Path, last_token_cache: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"layer": 3}, "has no layer 3; it has 4 heads in each of layers 0-2"),
        ({"layer": -1}, "has no layer -1"),
        ({"layer": 0, "head": 4}, "has no head 4 in layer 0; it has 4 heads"),
        ({"layer": 0, "head": -1}, "has no head -1 in layer 0"),
        *(({"layer": value}, "^rows: layer=.* is not a whole number$") for value in (True, 1.0, "1", None)),
        *(({"layer": 0, "head": value}, "^rows: head=.* is not a whole number$") for value in (True, 1.0, "1", [1])),
    ):
        with pytest.raises(InputError, match=said):
            headscore.rows(cache, **options)
    with pytest.raises(InputError, match="was captured with queries='last_token'"):
        headscore.rows(last_token_cache, layer=0, score_query_mode="all_tokens")
    made = tmp_path / "made"
    write_cache(made, **BY_HAND)
    shard_path(made, 0).unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing"):
        headscore.rows(made, layer=0)
    assert list(headscore.rows(made, layer=0, partial=True)) == []


def test_rows_take_either_spelling_and_numpy_numbers(cache: Path) -> None:
    for mode in ("last_token", "all_tokens"):
        one = list(headscore.rows(cache, layer=1, head=2, score_query_mode=mode))  # type: ignore[arg-type]
        same: Any = {"layer": np.int64(1), "head": np.uint8(2), "score_query_mode": mode.replace("_", "-")}
        other = list(headscore.rows(cache, **same))
        assert all(np.array_equal(a.weights, b.weights) for a, b in zip(one, other, strict=True)) and len(one) == 24


@pytest.mark.parametrize(("names", "first"), [(["template", "special", "drink", "food"], "drink"), (["template"], "template")])
def test_a_cache_without_the_default_span_can_be_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], first: str
) -> None:
    caplog.set_level("INFO")
    made = metadata(2, 2, {"span_names": names})
    cache = write_cache(tmp_path, **BY_HAND)
    with Shard(shard_path(cache, 0)) as shard:
        arrays = {name: shard.read(name) for name in shard.names}
    arrays["tokens/span"] = arrays["tokens/span"] & 1
    made |= {key: open_cache(cache).metadata[key] for key in ("dims", "layers")}
    cache_format.write_metadata(cache, made, keep_existing=False)
    write_shard(shard_path(cache, 0), 0, arrays, made, [])
    for look in (headscore.scan_cache, headscore.signals):
        caplog.clear()
        found = look(cache)
        assert caplog.messages == [f"{cache}: has no span 'question', so '{first}' counts as the task's"]
        assert found.lazy().collect().equals(look(cache, task_span=[first]).lazy().collect())
        with pytest.raises(InputError, match="has no span 'mood'"):
            look(cache, task_span=["mood"])
    assert f"mass_{first}" in measures(cache)
    with pytest.raises(InputError, match="has no span 'question'"):
        headscore.score(cache)


def test_impossible_rows_are_damage(tmp_path: Path) -> None:
    rows = BY_HAND["rows"].copy()
    rows[0, 1, 3] = 2
    with pytest.raises(DamagedShardError, match="holds weights that are not between 0 and 1"):
        list(headscore.rows(write_cache(tmp_path, **(BY_HAND | {"rows": rows})), layer=0))
