import json
import math
from pathlib import Path

import polars as pl
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from headscore.data.errors import InputError
from headscore.data.prompts.rows import Row, read_data, sample_rows

ROWS = tiny.arc_rows()[:5]


def read_rows(path: Path) -> list[Row]:
    return read_data(path).rows


def test_every_file_kind_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))  # JSON lines under the other name
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    for name in ("a.json", "a.jsonl", "lines.json", "bom.jsonl", "a.parquet"):
        assert read_rows(tmp_path / name) == ROWS, name


def test_csv_keeps_text_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"one, ""two""\nthree",007\n,x\n')
    assert read_rows(tmp_path / "a.csv") == [
        {"question": 'one, "two"\nthree', "answer": "007"},
        {"question": "", "answer": "x"},
    ]


def test_nan_and_infinity_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    """pandas and json.dumps write them; they are no fault of a row whose prompt does not need them."""
    rows = [{"question": "a", "score": float("nan")}, {"question": "b", "score": float("-inf")}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    for name in ("a.json", "a.jsonl", "a.parquet"):
        read = read_rows(tmp_path / name)
        assert [row["question"] for row in read] == ["a", "b"]
        assert math.isnan(read[0]["score"]) and read[1]["score"] == -math.inf


def test_line_separators_inside_json_text_do_not_end_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "a\u2028b\x85c"}, ensure_ascii=False))
    assert read_rows(tmp_path / "a.jsonl") == [{"question": "a\u2028b\x85c"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.json", b" \n ", "is empty"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b"hello", "not JSON: starts with 'h'"),
        ("a.json", b'[{"a": 1}, {"a"', "line 1, column 16"),
        ("a.jsonl", b'{"a": 1}\n{"a": ', "line 2, column 7"),
        ("a.jsonl", b'{"a": 1}\n[1]', "row 1: expected a JSON object"),
        ("a.jsonl", b'{"a": 1, "a": 2}', "'a' appears twice"),
        ("a.jsonl", b'{"a": "\xff"}', "not UTF-8 text at byte 7"),
        ("a.json", b'{"a": ' * 100_000, "line 1"),
        ("a.txt", b"x", "unknown kind of file '.txt'"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"a,b\n", "has no rows"),
        ("a.parquet", b"not parquet", "not a readable parquet file"),
    ],
)
def test_unusable_files_are_named_with_their_fault(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_rows(tmp_path / name)
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@given(rows=st.integers(1, 500), most=st.integers(1, 600), seed=st.integers(0, 2**32 - 1))
def test_a_sample_is_sorted_distinct_seeded_and_nested(rows: int, most: int, seed: int) -> None:
    sample = sample_rows(rows, most, seed)
    assert sample == sample_rows(rows, most, seed) == sorted(set(sample))
    assert len(sample) == min(rows, most)
    assert set(sample) <= set(range(rows))
    assert set(sample_rows(rows, max(1, most // 2), seed)) <= set(sample)


def test_the_sample_of_a_seed_never_changes() -> None:
    assert sample_rows(1000, 5, 42) == [411, 521, 660, 737, 740]
    assert sample_rows(1000, 5, 43) != sample_rows(1000, 5, 42)


COLUMNS = '{"q": {"0": "Is tea hot?", "1": "Is ice cold?"}, "a": {"0": 1, "1": 0}}'  # as pandas writes by default
SPREAD = '{\n  "question": "Is tea hot?"\n}'


@pytest.mark.parametrize(
    ("content", "said"), [(COLUMNS, "holds columns, not rows"), (SPREAD, "has an object over several lines: write an array")]
)
def test_json_that_is_neither_an_array_nor_one_object_a_line_is_told(content: str, said: str, tmp_path: Path) -> None:
    for name in ("d.json", "d.jsonl"):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=said):
            read_rows(tmp_path / name)


def test_a_single_row_of_objects_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"options": {"A": "ice", "B": "fire"}, "question": {"stem": "Which is hot?"}}')
    assert len(read_rows(tmp_path / "d.jsonl")) == 1
