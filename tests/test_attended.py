"""What heads attend to, with token texts from the cache alone: the right weight beside the right token, or one clear line."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from made_caches import BY_HAND, metadata, write_cache

import headscore
from headscore.data.cache import folder as cache_format
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.cache.shard import ARRAYS, write_shard
from headscore.data.errors import InputError
from headscore.data.prompts.alignment import BROKEN, decode, token_texts
from headscore.score.report.attended import attended

TEXTS = [["<s>", "Is", " it", "?"], ["No", "\x00"]]
ROW_0, ROW_1 = ({"row": row, "tokens": texts} for row, texts in enumerate(TEXTS))


def with_examples(folder: Path, examples: Any, changes: dict[str, Any] | None = None) -> Path:
    """The cache worked by hand, with other metadata in both places."""
    write_cache(folder, **BY_HAND)
    with h5py.File(shard_path(folder, 0), locking=False) as file:
        arrays = {name: file[name][()] for name in ARRAYS}
    made = metadata(1, 2, {"examples": examples} | (changes or {}))
    (folder / cache_format.METADATA_FILE).unlink()
    shard_path(folder, 0).unlink()
    cache_format.write_metadata(folder, made, keep_existing=False)
    write_shard(shard_path(folder, 0), 0, arrays, made, [])
    return folder


def test_weights_are_those_worked_by_hand(tmp_path: Path) -> None:
    found = attended(open_cache(with_examples(tmp_path, [ROW_0, ROW_1])), [(0, 1), (0, 0)])
    assert {tuple(line) for line in found} == {("sample", "row", "position", "token", "spans", "layer", "head", "weight")}
    assert [tuple(line.values()) for line in found] == [
        (0, 0, 0, "<s>", ["special"], 0, 1, 0.25),
        (0, 0, 1, "Is", ["question"], 0, 1, 0.25),
        (0, 0, 2, " it", ["question"], 0, 1, 0.25),
        (0, 0, 3, "?", ["choices"], 0, 1, 0.25),
        (0, 0, 0, "<s>", ["special"], 0, 0, 0.5),
        (0, 0, 1, "Is", ["question"], 0, 0, 0.25),
        (0, 0, 2, " it", ["question"], 0, 0, 0.25),
        (0, 0, 3, "?", ["choices"], 0, 0, 0.0),
        (1, 1, 0, "No", ["question", "choices"], 0, 1, 0.5),
        (1, 1, 1, "\x00", [], 0, 1, 0.5),
        (1, 1, 0, "No", ["question", "choices"], 0, 0, 1.0),
        (1, 1, 1, "\x00", [], 0, 0, 0.0),
    ]
    assert pl.DataFrame(found)["token"].to_list()[-1] == "\x00", "a frame of it has the texts too"


def test_most_and_the_order_of_samples(tmp_path: Path) -> None:
    cache = open_cache(with_examples(tmp_path, [ROW_1, ROW_0]))
    assert tokens(attended(cache, [(0, 0)], most=1)) == TEXTS[1]
    assert tokens(attended(cache, [(0, 0)])) == TEXTS[0] + TEXTS[1], "by sample"


def test_a_group_of_heads_has_the_mean_of_its_heads(tmp_path: Path) -> None:
    cache = open_cache(with_examples(tmp_path, [ROW_0, ROW_1]))
    heads = [[line["weight"] for line in attended(cache, [(0, head)])] for head in (0, 1)]
    assert [line["weight"] for line in attended(cache, [(0, 0)], group=2)] == np.mean(heads, axis=0).tolist()
    with pytest.raises(InputError, match="has no group of heads L0G1"):
        attended(cache, [(0, 1)], group=2)


def tokens(lines: list[dict[str, Any]]) -> list[str]:
    return [line["token"] for line in lines]


@pytest.mark.parametrize("examples", [[], [{"row": 9, "tokens": ["a"]}], [{"row": 10**30, "tokens": []}]])
def test_without_an_example_there_are_no_lines(tmp_path: Path, examples: list[Any]) -> None:
    assert attended(open_cache(with_examples(tmp_path, examples)), [(0, 0)]) == []


def test_older_caches_and_no_heads_give_no_lines(tmp_path: Path) -> None:
    assert attended(open_cache(write_cache(tmp_path / "a", **BY_HAND)), [(0, 0)]) == []
    assert attended(open_cache(with_examples(tmp_path / "b", [ROW_0])), []) == []


@pytest.mark.parametrize("tokens", [[], ["a"] * 3, ["a"] * 5])
def test_another_number_of_tokens_is_refused(tmp_path: Path, tokens: list[str]) -> None:
    cache = open_cache(with_examples(tmp_path, [{"row": 0, "tokens": tokens}]))
    with pytest.raises(InputError, match=rf"row 0 has 4 tokens, but {len(tokens)} in the metadata's 'examples'"):
        attended(cache, [(0, 0)])


@pytest.mark.parametrize(
    "examples",
    [
        *(None, {}, 3, [3], [{"row": 0}], [{"tokens": []}], [{"row": "0", "tokens": []}], [{"row": 0, "tokens": "a b"}]),
        *([{"row": True, "tokens": []}], [{"row": 0.5, "tokens": []}], [{"row": 0, "tokens": [1]}]),
        [{"row": 0, "tokens": [["a"]]}],
    ],
)
def test_examples_of_another_shape_are_refused(tmp_path: Path, examples: Any) -> None:
    folder = with_examples(tmp_path, examples)
    for path in (folder, shard_path(folder, 0)):
        with pytest.raises(InputError, match="no usable 'examples'"):
            open_cache(path)


@pytest.mark.parametrize("head", [(1, 0), (0, 2), (0, -1), (-1, 0)])
def test_a_head_that_is_not_there_is_refused(tmp_path: Path, head: tuple[int, int]) -> None:
    cache = open_cache(with_examples(tmp_path, [ROW_0]))
    with pytest.raises(InputError, match=f"has no head L{head[0]}H{head[1]}"):
        attended(cache, [head])


# ------------------------------------------------------------------------------------------------ what a capture writes


def examples_of(folder: Path) -> list[dict[str, Any]]:
    return open_cache(folder).metadata["examples"]


def test_a_capture_keeps_the_texts_of_its_first_tokens(cache: Path) -> None:
    opened = open_cache(cache)
    with opened.open_shard(opened.shards[0]) as shard:
        offsets, ids, numbers = shard.offsets(), shard.read("tokens/id"), shard.read("samples/row")
        assert shard.metadata["examples"] == examples_of(cache)
        rows_of_attention = shard.read("last_token/attention")
    lengths = np.diff(offsets)
    assert [example["row"] for example in examples_of(cache)] == numbers[lengths <= 300][:3].tolist()
    found = pl.DataFrame(attended(opened, [(2, 3), (0, 1)]))
    for example in examples_of(cache):
        sample = numbers.tolist().index(example["row"])
        start, stop = offsets[sample], offsets[sample + 1]
        assert "".join(example["tokens"]) == tiny.tokenizer().decode(ids[start:stop])
        for layer, head in ((2, 3), (0, 1)):
            lines = found.filter(sample=sample, layer=layer, head=head)
            assert lines["token"].to_list() == example["tokens"]
            np.testing.assert_array_equal(lines["weight"].to_numpy(), rows_of_attention[layer, head, start:stop].astype("f4"))
            assert sum(lines["weight"]) == pytest.approx(1, abs=0.01)
    question = found.filter(pl.col("spans") == ["question"], sample=0, layer=0, head=1)["token"].to_list()
    asked = tiny.arc_rows()[examples_of(cache)[0]["row"]]["question"]
    assert "".join("".join(question).split()) == "".join(asked.split())


def test_shards_that_are_missing_or_alone(cache: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(cache, tmp_path / "copy")
    shard_path(copy, 0).unlink()
    assert attended(open_cache(copy), [(0, 0)]) == [], "the examples were in the first shard"
    alone = attended(open_cache(shard_path(cache, 0)), [(0, 0)])
    assert alone == attended(open_cache(cache), [(0, 0)])
    assert attended(open_cache(shard_path(cache, 1)), [(0, 0)]) == []


def captured(llama: Path, folder: Path, lengths: list[int], **options: Any) -> Path:
    data = [{**tiny.arc_rows()[0], "question": "why " * length} for length in lengths]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, data)))
    options = {"max_length": 4000, "max_skipped": 0.9} | options
    headscore.capture(folder / "c", model=str(llama), data=str(folder / "d.jsonl"), **options)
    return folder / "c"


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [
        ([400, 5, 0, 6, 7, 8], [1, 3, 4]),  # the first three short ones; row 2 has no question
        ([400, 5, 500], [1]),
        ([500, 400, 450], [1]),  # none is short: the shortest
        ([500, 600], []),
    ],
)
def test_which_samples_are_kept(llama: Path, tmp_path: Path, lengths: list[int], chosen: list[int]) -> None:
    folder = captured(llama, tmp_path, lengths)
    assert [example["row"] for example in examples_of(folder)] == chosen
    assert {line["row"] for line in attended(open_cache(folder), [(0, 0)])} == set(chosen)
    assert (folder / cache_format.METADATA_FILE).stat().st_size < 100_000


def test_examples_are_of_the_first_shard_that_has_samples(llama: Path, tmp_path: Path) -> None:
    folder = captured(llama, tmp_path, [0, 0, 3, 4], shard_size=2)
    assert [example["row"] for example in examples_of(folder)] == [2, 3]
    assert {line["row"] for line in attended(open_cache(folder), [(0, 0)])} == {2, 3}


@given(st.text(max_size=60))
def test_token_texts_join_to_the_text_and_break_no_character(text: str) -> None:
    ids = np.array(tiny.tokenizer()(text)["input_ids"], np.int32)
    found = token_texts(ids, tiny.tokenizer())
    assert len(found) == len(ids) and "".join(found) == decode(tiny.tokenizer(), ids) == "<s>" + text
    assert (BROKEN in "".join(found)) == (BROKEN in text)


def test_a_spread_character_is_the_text_of_its_last_token() -> None:
    ids = np.array(tiny.tokenizer(False)("a🧊b")["input_ids"], np.int32)
    assert token_texts(ids, tiny.tokenizer()) == ["a", "", "", "", "🧊", "b"]
