"""Columns that `--keep` names are in the cache as the data file has them, sample by sample, however the cache was made."""

import datetime
import decimal
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
import tiny
from cli_runs import Cli
from damage import change, flipped
from hypothesis import given
from hypothesis import strategies as st
from made_caches import BY_HAND, write_cache
from resuming import as_rank, length_of_one_sample, poison

import headscore
from headscore.capture.inputs import tokenising as samples
from headscore.data.cache import kept_columns as kept
from headscore.data.cache import shard
from headscore.data.cache.folder import open_cache, shard_files, shard_path
from headscore.data.cache.kept_columns import as_stored, checked_kept, kept_values
from headscore.data.cache.metadata import identity
from headscore.data.cache.reader import Shard
from headscore.data.errors import DamagedShardError, InputError

COLUMNS = ["topic", "meta.level", "meta.tags", "choices.text.0"]
ROWS = [
    row
    | {"meta": {"level": None if i % 5 == 4 else i / 2 if i % 3 else i, "tags": ["ä", i]}}
    | ({} if i % 7 == 6 else {"topic": f"topic {i % 3}"})
    for i, row in enumerate(tiny.arc_rows()[:24])
]
ROWS[3]["question"] = ""  # is skipped


def expected(row: int) -> dict[str, Any]:
    """What is to be kept of a row, in this test's own words."""
    meta = ROWS[row]["meta"]
    return {
        "topic": ROWS[row].get("topic"),
        "meta.level": meta["level"],
        "meta.tags": f'["ä", {row}]',
        "choices.text.0": ROWS[row]["choices"]["text"][0],
    }


def kept_of(cache: Path) -> dict[int, dict[str, Any]]:
    """By row what the shards of a cache keep of it."""
    found: dict[int, dict[str, Any]] = {}
    for each in open_cache(cache).open_shards():
        assert sorted(each.kept) == sorted(COLUMNS)
        for place, row in enumerate(each.read("samples/row").tolist()):
            found[row] = {column: values[place] for column, values in each.kept.items()}
        assert all(len(values) == each.samples for values in each.kept.values())
    return found


def exact(values: Any) -> str:
    """Tells 1 from 1.0 and from True."""
    return repr(values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def capture(out: Path, llama: Path, data: Path, **options: Any) -> None:
    given = {"model": str(llama), "data": str(data), "keep": COLUMNS, "max_skipped": 0.2, "shard_size": 5, "spot_checks": False}
    headscore.capture(out, **given | options)


@pytest.fixture(scope="module")
def with_kept(llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in five shards that keeps COLUMNS of ROWS. Read only."""
    out = tmp_path_factory.mktemp("kept") / "c"
    capture(out, llama, data)
    return out


# -------------------------------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shard_size": 1},
        {"shard_size": 100, "batch_size": 1},
        {"shard_size": 7, "batch_tokens": 100, "share_prefixes": False},
        {"max_samples": 9, "seed": 3},
        {"spot_checks": False},
    ],
    ids=str,
)
def test_what_is_kept_is_what_the_rows_have(llama: Path, data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    capture(tmp_path / "c", llama, data, **options)
    found = kept_of(tmp_path / "c")
    assert len(found) == (9 if "max_samples" in options else 23) and 3 not in found
    assert exact({row: dict(sorted(values.items())) for row, values in found.items()}) == exact(
        {row: dict(sorted(expected(row).items())) for row in found}
    )
    assert headscore.inspect(tmp_path / "c", verify=True)["damaged"] == []


def test_it_is_so_after_a_stop_by_ranks_and_once_merged(
    with_kept: Path, llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exact(kept_of(with_kept))
    copy = shutil.copytree(with_kept, tmp_path / "copy")
    shard_path(copy, 1).unlink()
    shard_path(copy, 3).write_bytes(shard_path(copy, 3).read_bytes()[:4000])
    (copy / "cache.json").unlink()
    capture(copy, llama, data)
    assert exact(kept_of(copy)) == right and (copy / "cache.json").read_bytes() == (with_kept / "cache.json").read_bytes()
    for index in (0, 1):
        as_rank(monkeypatch, index, 2)
        capture(tmp_path / f"part{index}", llama, data)
        capture(tmp_path / "both", llama, data)
    parts = [tmp_path / "part1", *shard_files(tmp_path / "part0")]
    assert headscore.merge(parts, tmp_path / "merged").missing == 0
    for made in ("both", "merged"):
        assert exact(dict(sorted(kept_of(tmp_path / made).items()))) == right
    alone = kept_of(shard_path(with_kept, 2))  # a shard is a cache of its own, too
    assert list(alone) == list(range(10, 15)) and all(values == expected(row) for row, values in alone.items())


def test_rows_whose_values_are_not_finite_drop_out(
    with_kept: Path, llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, row = length_of_one_sample(with_kept)
    poison(monkeypatch, {length})
    capture(tmp_path / "c", llama, data, on_nan="skip", shard_size=100)
    found = kept_of(tmp_path / "c")
    assert sorted(found) == sorted(kept_of(with_kept).keys() - {row})
    assert all(values == expected(other) for other, values in found.items())


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(JSON, min_size=1, max_size=6))
def test_any_value_of_json_is_kept_or_is_its_text(values: list[Any]) -> None:
    rows = [{"c": value} for value in values]
    found = as_stored(kept_values(["c"], rows, range(len(rows)), Path("d.json")))["c"]
    for value, one in zip(values, found, strict=True):
        if isinstance(value, list | dict):
            assert isinstance(one, str) and exact(json.loads(one)) == exact(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            assert one == str(value)
        else:
            assert exact(one) == exact(value)
    assert exact(checked_kept(json.loads(json.dumps({"c": found})), ["c"], len(rows), "s")["c"]) == exact(found)


def test_what_parquet_and_csv_have_beside(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 2, 3, 4, 5, 6)
    rows = [{"d": moment.date(), "t": moment, "x": decimal.Decimal("1.50"), "in": [moment.date()], "n": None}]
    pl.DataFrame(rows).write_parquet(tmp_path / "d.parquet")
    found = as_stored(kept_values(rows[0], samples.read_data(tmp_path / "d.parquet").rows, [0], Path("d")))
    text = {"d": ["2024-02-03"], "t": ["2024-02-03 04:05:06"], "x": ["1.50"], "in": ['["2024-02-03"]'], "n": [None]}
    assert found == dict(sorted(text.items()))
    (tmp_path / "d.csv").write_text('a,b\n1,"[1, 2]"\n')
    assert as_stored(kept_values(["a", "b", "b.1"], samples.read_data(tmp_path / "d.csv").rows, [0], Path("d"))) == {
        "a": ["1"],
        "b": ["[1, 2]"],
        "b.1": [2],
    }


# -------------------------------------------------------------------------------------------- which capture it belongs to


def test_the_cache_says_what_it_keeps_and_another_choice_is_another_capture(
    with_kept: Path, llama: Path, data: Path, tmp_path: Path
) -> None:
    settings = open_cache(with_kept).metadata["settings"]
    assert settings["keep"] == sorted(COLUMNS)
    copy = shutil.copytree(with_kept, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.*")}
    capture(copy, llama, data, keep=[*reversed(COLUMNS), COLUMNS[0]])  # the order says nothing
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*.*")} == before
    with pytest.raises(InputError, match=r"holds another capture: keep was choices\.text\.0, .*, now nothing; use another"):
        capture(copy, llama, data, keep=[])
    capture(tmp_path / "none", llama, data, keep=())
    assert "keep" not in open_cache(tmp_path / "none").metadata["settings"]
    with h5py.File(shard_path(tmp_path / "none", 0), locking=False) as file:
        assert "kept" not in file.attrs
    with pytest.raises(InputError, match=r"holds another capture: keep was nothing, now topic; use another"):
        capture(tmp_path / "none", llama, data, keep="topic")
    with pytest.raises(InputError, match=r"belongs to another capture than .*: keep was choices.*, now nothing"):
        headscore.merge([copy, tmp_path / "none"], tmp_path / "m")
    shutil.copy(shard_path(tmp_path / "none", 1), shard_path(copy, 1))
    with pytest.raises(InputError, match=r"00001\.h5: belongs to another capture \(other settings keep\)"):
        kept_of(copy)


def test_a_cache_of_former_times_keeps_nothing(cache: Path) -> None:
    metadata = open_cache(cache).metadata
    assert "keep" not in metadata["settings"]
    assert identity(metadata) == identity(metadata | {"settings": metadata["settings"] | {"keep": []}})
    with Shard(shard_path(cache, 0)) as one:
        assert one.kept == {}


def test_shards_that_keep_other_values_are_not_merged(with_kept: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(with_kept, tmp_path / "copy")
    edit(shard_path(copy, 0), lambda found: found["topic"].__setitem__(0, "another"))
    with pytest.raises(InputError, match=r"is shard 0 as is .*, but with other values"):
        headscore.merge([with_kept, copy], tmp_path / "m")


def test_inspect_names_the_columns(run_cli: Cli, with_kept: Path, cache: Path) -> None:
    assert f"kept      {', '.join(sorted(COLUMNS))}\n" in run_cli("inspect", with_kept)[1]
    assert json.loads(run_cli("inspect", with_kept, "--json")[1])["settings"]["keep"] == sorted(COLUMNS)
    assert "kept  " not in run_cli("inspect", cache)[1]


def test_the_command_line_takes_it_again_and_again(run_cli: Cli, llama: Path, data: Path, tmp_path: Path) -> None:
    command = ["capture", "--model", llama, "--data", data, "--out", tmp_path / "c", "--max-skipped", 0.2, "--max-samples", 4]
    status, _, err = run_cli(*command, "--keep", "topic", "--keep", "meta.level")
    assert status == 0, err
    assert open_cache(tmp_path / "c").metadata["settings"]["keep"] == ["meta.level", "topic"]
    (tmp_path / "c.yaml").write_text("keep: [topic, meta.level]\n")
    status, _, err = run_cli(*command, "--config", tmp_path / "c.yaml")
    assert status == 0, err  # else it would be another capture


# --------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("topi", "keep topi: is not a column of {data}; it has question, choices, answerKey, meta, topic, "),
        ("meta.lvl", "keep meta.lvl: is not a path of {data}; it has "),
        ("choices.text.9", "keep choices.text.9: is not a path of "),
        ([""], "keep: expected one or more names"),
        ([3], "keep: expected one or more names"),
    ],
)
def test_unknown_columns_are_told_before_the_model_is_looked_for(keep: Any, message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        headscore.capture(tmp_path / "c", model=str(tmp_path / "no model"), data=str(data), keep=keep)
    assert message.format(data=data) in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "c").exists()


def test_columns_are_checked_without_torch(data: Path) -> None:
    program = (
        "import sys; from headscore.capture.inputs.tokenising import read_prompts\n"
        "from headscore.data.options.settings import CaptureSettings\n"
        "try: read_prompts(CaptureSettings(data=sys.argv[1], keep='nothing'))\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(data)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["OptionError", "False"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "'c' is NaN, which cannot be kept"),
        (-math.inf, "'c' is -Infinity, which cannot be kept"),
        ([math.nan], "'c' cannot be kept as JSON text"),
        (b"x", "'c' is bytes b'x', which cannot be kept"),
        ({"a": b"x"}, "'c' cannot be kept as JSON text: it holds bytes b'x'"),
        ("a\ud800", r"'c' holds half a surrogate pair ('\ud800'), which is not text"),
        (["a\ud800"], r"'c' holds half a surrogate pair ('\ud800'), which is not text"),
    ],
)
def test_what_cannot_be_kept_is_told_with_its_row(value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        kept_values(["c"], [{"c": 1}, {"c": value}], [0, 1], Path("d.json"))
    assert str(error.value).startswith("d.json: row 1: ") and message in str(error.value)
    assert as_stored(kept_values(["c"], [{"c": 1}, {"c": value}], [0], Path("d.json"))) == {"c": [1]}, "it was not drawn"


def test_columns_too_large_for_a_shard_are_told_before_the_model_is_loaded(
    llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscore.capture.model.models.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setattr(kept, "MAX_KEPT_BYTES", 200)
    message = r"keep choices\.text\.0: 0\.0 MB would be kept of rows 0 to 4, most of it this column; .* smaller shard_size"
    with pytest.raises(InputError, match=message):
        capture(tmp_path / "c", llama, data, max_length=10_000)


def test_as_much_as_a_shard_holds_is_read_back(llama: Path, tmp_path: Path) -> None:
    """Its limit leaves room for the rest of what the format allows for metadata."""
    rows = [row | {"long": "ä" * ((kept.MAX_KEPT_BYTES - 100) // 4)} for row in tiny.arc_rows()[:2]]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    capture(tmp_path / "c", llama, tmp_path / "d.jsonl", keep="long")
    with Shard(shard_path(tmp_path / "c", 0)) as one:
        assert one.kept == {"long": [row["long"] for row in rows]}
    rows[0]["long"] += "ä" * 100
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"8\.4 MB would be kept of rows 0 to 1.* a shard holds 8\.4 MB"):
        capture(tmp_path / "c2", llama, tmp_path / "d.jsonl", keep="long")


def edit(path: Path, do: Any) -> None:
    with h5py.File(path, "r+", libver=("v110", "v110"), locking=False) as file:
        found = json.loads(bytes(file.attrs["kept"]))
        found = do(found) or found
        file.attrs["kept"] = np.bytes_(json.dumps(found).encode())
        if shard.CHECKSUMS in file.attrs:
            del file.attrs[shard.CHECKSUMS]


BY_HAND_KEPT = {
    "no object": "[1, 2]",
    "no list": '{"a": "xy"}',
    "a value too few": '{"a": [1]}',
    "a value too many": '{"a": [1, 2, 3]}',
    "a list inside": '{"a": [1, [2]]}',
    "an object inside": '{"a": [1, {}]}',
    "an infinite number": '{"a": [1, 1e999]}',
    "no number": '{"a": [1, NaN]}',
    "a number of more than 64 bits": '{"a": [1, 9223372036854775808]}',
    "another column": '{"b": [1, 2]}',
    "one column more": '{"a": [1, 2], "b": [1, 2]}',
    "no column": "{}",
    "nothing": "null",
    "half a surrogate pair": '{"a": [1, "\\ud800"]}',
    "no JSON": '{"a": [1, 2',
}


@pytest.mark.parametrize("what", BY_HAND_KEPT)
def test_hostile_values_are_refused(tmp_path: Path, what: str) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    settings = open_cache(cache).metadata["settings"] | {"keep": ["a"]}

    def make(content: str) -> None:
        change(cache, lambda f: f.attrs.update({"settings": np.bytes_(json.dumps(settings)), "kept": np.bytes_(content)}))

    make('{"a": [null, "x"]}')
    with Shard(shard_path(cache, 0)) as one:
        assert one.kept == {"a": [None, "x"]}
    make(BY_HAND_KEPT[what])
    with pytest.raises(DamagedShardError, match=r"00000\.h5: "):
        Shard(shard_path(cache, 0))
    change(cache, lambda file: file.attrs.__delitem__("kept"))
    with pytest.raises(DamagedShardError, match="does not have the columns that its settings name"):
        Shard(shard_path(cache, 0))


@pytest.mark.parametrize("keep", ['"a"', "[1]", "null", '{"a": 1}', '["a", "a"]'])
def test_hostile_names_are_refused(tmp_path: Path, keep: str) -> None:
    cache = write_cache(tmp_path, **BY_HAND)
    text = (cache / "cache.json").read_text().replace('"shard_size"', f'"keep": {keep}, "shard_size"')
    (cache / "cache.json").write_text(text)
    with pytest.raises(InputError, match=r"has no usable 'settings'|belongs to another capture"):
        list(open_cache(cache).open_shards())


@pytest.mark.parametrize("size", [100, 3000, 5000, 100_000])
def test_a_flipped_bit_of_a_kept_value_is_named(tmp_path: Path, size: int, llama: Path) -> None:
    """HDF5 itself has checksums for small attributes only."""
    rows = [row | {"c": "x" * size} for row in tiny.arc_rows()[:2]]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    capture(tmp_path / "c", llama, tmp_path / "d.jsonl", keep="c")
    path = shard_path(tmp_path / "c", 0)
    whole = path.read_bytes()
    place = whole.index(b"x" * size)
    for offset in (0, size // 2, size - 1):
        path.write_bytes(flipped(whole, (place + offset) * 8))
        assert "00000.h5" in headscore.inspect(tmp_path / "c")["damaged"][0]
    path.write_bytes(whole)
    assert headscore.inspect(tmp_path / "c", verify=True)["damaged"] == []
