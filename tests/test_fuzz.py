"""Whatever a data file holds, it is read, or refused in one line; every row becomes a sample or is listed with its reason.

Deeper: python -m pytest tests/test_fuzz.py --hypothesis-profile=long
"""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headscore
from headscore.capture.inputs.tokenising import Marker, encode_shards, read_prompts
from headscore.data.errors import InputError
from headscore.data.options.settings import CaptureSettings

ODD_TEXT = st.sampled_from(
    [
        "",
        " ",
        "\n\n",
        "null",
        "مَا هُوَ أَكْبَرُ كَوْكَبٍ؟",
        "\u202eright to left\u202c",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "e\u0301\u0301\u0301",
        "\x00\x01\x1b[31m",
        "\ufeff",
        "\u2028\u2029\x85",
        "<s></s>",
        "Question: Choices: Answer:",
        "{question} {{}}",
        "a" * 3000,
        "Answer1: x Answer2: y",
        "true/false",
        "Please choose the correct answer",
    ]
)
TEXT = ODD_TEXT | st.text(max_size=30)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CHOICES = st.fixed_dictionaries({"text": st.lists(TEXT, max_size=4), "label": st.lists(st.sampled_from("ABCD1"), max_size=4)})
ARC_ROW = st.fixed_dictionaries(
    {"question": TEXT | VALUE, "choices": CHOICES | VALUE},
    optional={"answerKey": st.sampled_from("ABCD") | VALUE, "id": VALUE},
)
ALPACA_ROW = st.fixed_dictionaries(
    {"instruction": TEXT | VALUE, "input": TEXT | VALUE, "output": TEXT}, optional={"answer": TEXT | VALUE}
)
WHOLE_ROWS = st.lists(st.sampled_from(tiny.arc_rows()), max_size=4)
ROWS = WHOLE_ROWS | st.lists(ARC_ROW, max_size=5) | st.lists(ALPACA_ROW, max_size=5) | st.lists(VALUE, max_size=3)


def as_csv(rows: list[Any]) -> bytes:
    rows = [row if isinstance(row, dict) else {"question": row} for row in rows]
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns or ["question"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogatepass")


def as_parquet(rows: list[Any]) -> bytes:
    content = io.BytesIO()
    try:
        objects = [row for row in rows if isinstance(row, dict)]
        pl.DataFrame(objects, infer_schema_length=None, strict=False).write_parquet(content)
    except Exception:  # not every row fits into a table
        pl.DataFrame({"question": ["a"], "choices": [None]}).write_parquet(content)
    return content.getvalue()


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "d.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(errors="surrogatepass"),
    "d.jsonl": lambda rows: "\n".join(json.dumps(row) for row in rows).encode(),
    "d.csv": as_csv,
    "d.parquet": as_parquet,
}
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "utf-7"])


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The file as it is, or cut short, with bytes changed, doubled, or in another encoding."""
    how = draw(st.sampled_from(["whole", "whole", "cut", "changed", "doubled", "encoded"]))
    place = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:place]
    if how == "changed":
        return content[:place] + draw(st.binary(max_size=8)) + content[place + draw(st.integers(0, 8)) :]
    if how == "doubled":
        return content[:place] + content
    if how == "encoded":
        return content.decode(errors="replace").encode(draw(ENCODINGS), errors="replace")
    return content


def outcome(path: Path) -> tuple[int, int, int] | str:
    """(rows, samples, skipped) of a data file, or the error it is refused with."""
    try:
        prompts = read_prompts(CaptureSettings(data=str(path)))
        encoded = encode_shards(prompts, tiny.tokenizer(), CaptureSettings(max_skipped=1.0, max_length=300))
        shards = [Marker(tiny.tokenizer(), prompts.maker.span_names)(shard) for shard in encoded]
    except InputError as error:
        return str(error)
    skipped = [entry for shard in shards for entry in shard.skipped]
    assert all(entry.reason.strip() for entry in skipped)
    samples = [sample for shard in shards for sample in shard.samples]
    assert sorted(s.row for s in (*samples, *skipped)) == [number for number, _ in prompts.drawn]
    return len(prompts.drawn), len(samples), len(skipped)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=settings().max_examples * 2)
@given(data=st.data(), name=st.sampled_from(list(WRITERS)), rows=ROWS)
def test_any_data_file_is_read_or_refused_in_one_line(folder: Path, data: st.DataObject, name: str, rows: list[Any]) -> None:
    path = folder / name
    path.write_bytes(data.draw(damaged(WRITERS[name](rows))))
    started = time.monotonic()
    found = outcome(path)
    assert time.monotonic() - started < 120, "it hangs"
    if isinstance(found, str):
        assert name in found and len(found) < 1000


@pytest.mark.parametrize("name", list(WRITERS))
@settings(max_examples=settings().max_examples // 2)
@given(content=st.binary(max_size=300))
def test_binary_files_are_refused_in_one_line(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.write_bytes(content)
    found = outcome(path)
    assert isinstance(found, str) and name in found and len(found) < 1000


def question(text: str) -> dict[str, Any]:
    return {**tiny.arc_rows()[0], "question": text}


def instruction(question: str) -> dict[str, Any]:
    asked = f"Please choose the correct answer to the question: {question}"
    return {"instruction": f"{asked}\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2", "input": "", "output": ""}


EXTREMES: dict[str, tuple[Callable[[], bytes], str | tuple[int, int, int]]] = {
    "deep nesting": (lambda: b'[{"question": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "cannot be used as JSON"),
    "deep objects": (lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "cannot be used as JSON"),
    "a huge number": (lambda: b'[{"question": ' + b"9" * 10_000 + b"}]", "cannot be used as JSON"),
    "a prompt of a megabyte": (lambda: json.dumps([question("why " * 250_000), question("why?")]).encode(), (2, 1, 1)),
    "a megabyte without a space": (lambda: json.dumps([question("a" * 1_000_000), question("why?")]).encode(), (2, 1, 1)),
    "a megabyte of emoji": (lambda: json.dumps([question("👩‍👧" * 80_000), question("why?")]).encode(), (2, 1, 1)),
    "a thousand columns": (lambda: json.dumps([{f"c{i}": i for i in range(1000)}]).encode(), "are of no known style"),
    "a column twice": (lambda: b'[{"question": "a", "question": "b"}]', "appears twice in one object"),
    "a megabyte of marks": (
        lambda: json.dumps(
            [instruction("Answer1: " * 120_000), instruction("\nAnswer1:" * 120_000), instruction("why?")]
        ).encode(),
        (3, 1, 2),
    ),
    "nulls": (lambda: b'[{"question": null, "choices": null}]', "row 0"),
    "nothing but line breaks": (lambda: b"\n" * 1000, "is empty"),
}


@pytest.mark.parametrize("what", EXTREMES)
def test_extreme_files(tmp_path: Path, what: str) -> None:
    content, expected = EXTREMES[what]
    (tmp_path / "d.json").write_bytes(content())
    started = time.monotonic()
    found = outcome(tmp_path / "d.json")
    assert time.monotonic() - started < 300
    if isinstance(expected, str):
        assert isinstance(found, str) and expected in found and len(found) < 1500
    else:
        assert found == expected


@pytest.mark.parametrize(
    "row", ['"question": @, "choices": ["a"]', '"question": "a", "choices": ["A"], "answerKey": @', '"text": "", "spans": [@]']
)
def test_nesting_near_the_limit_of_what_can_be_parsed_is_told(folder: Path, row: str) -> None:
    for depth in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit()):
        (folder / "d.json").write_text("[{" + row.replace("@", "[" * depth + "]" * depth) + "}]")
        found = outcome(folder / "d.json")
        assert isinstance(found, str) and len(found) < 1000


def test_every_skipped_row_is_listed_in_the_cache(llama: Path, tmp_path: Path) -> None:
    odd = ["👩‍👩‍👧‍👦 ؟", "مَا هُوَ أَكْبَرُ كَوْكَبٍ؟", "\u202eright to left\u202c?", "a\x00b\x1b[31m?", "\ufeffe\u0301\u2028?"]
    rows = [*tiny.arc_rows()[:20], question(""), question("\u200b \n"), question("x " * 2000), *map(question, odd)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    headscore.capture(tmp_path / "c", model=str(llama), data=str(tmp_path / "d.jsonl"), max_skipped=0.5)
    listed = [json.loads(line) for line in (tmp_path / "c" / "skipped.jsonl").read_text().splitlines()]
    assert {20, 22} <= {entry["row"] for entry in listed} <= {20, 21, 22}
    assert all(entry["reason"] for entry in listed)
    assert headscore.score(tmp_path / "c").samples + len(listed) == len(rows)
    assert os.path.getsize(tmp_path / "c" / "skipped.jsonl") > 0  # noqa: PTH202
