"""What users bring as formulas: SQL text runs no code and reads no file, and whatever cannot be used is told in one line."""

import math
import os
import re
import subprocess
import sys
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
from headscore.data.cache.shard import write_shard
from headscore.data.errors import InputError
from headscore.score.expressions import read_expressions, require_line_by_line

SCHEMA: dict[str, Any] = {
    "tokens": pl.Float64,
    "sample": pl.Int64,
    "layer": pl.Int32,
    "a": pl.Float64,
    "b": pl.Float64,
    "in": pl.Boolean,
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "small", **BY_HAND)


def one_line(error: Any) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 1500
    return text


# ------------------------------------------------------------------------------------------------------------------- SQL

SUBQUERIES = [
    "(SELECT a FROM {0})",
    "(select a from {0})",
    "(sElEcT a FrOm {0})",
    "(\u017felect a from {0})",  # a long s is an s to who ignores case
    "(SELECT\u00a0a\u00a0FROM\u2003{0})",
    "(SELECT/**/a/**/FROM/**/{0})",
    "(/* (SELECT 1) */ SELECT a -- x\n FROM {0})",
    "(\tSELECT\na\rFROM\x0c{0})",
    "(FROM {0})",
    "(FROM {0} SELECT a)",
    "(SELECT*FROM {0})",
    "(SELECT(a)FROM({0}))",
    "(SELECT'a'FROM {0})",
    '(SELECT"a"FROM {0})',
    "(SELECT 1e0FROM {0})",
    "1 + (SELECT max(a) FROM {0})",
    "a IN (SELECT a FROM {0})",
    "a NOT IN (SELECT a FROM {0})",
    "a IN (FROM {0})",
    "a IN (TABLE {0})",
    "a IN (VALUES (1), (2))",
    "a IN (WITH x AS (SELECT a FROM {0}) SELECT * FROM x)",
    "(WITH x AS (SELECT a FROM {0}) SELECT max(a) FROM x)",
    "a > ALL (SELECT a FROM {0})",
    "a = ANY (SELECT a FROM {0})",
    "a = SOME (SELECT a FROM {0})",
    "EXISTS (SELECT 1 FROM {0})",
    "EXISTS(FROM {0})",
    "NOT EXISTS (TABLE {0})",
    "CASE WHEN EXISTS (SELECT 1 FROM {0}) THEN a END",
    "CASE WHEN a IN (SELECT a FROM {0}) THEN 1 ELSE 0 END",
    "COALESCE((SELECT a FROM {0}), 1)",
    "ARRAY(SELECT a FROM {0})",
    "((((SELECT a FROM {0}))))",
    "(SELECT a FROM (SELECT a FROM {0}))",
    "(SELECT a FROM x JOIN {0} ON true)",
    "(SELECT 1 UNION SELECT a FROM {0})",
    "(SELECT 1 UNION ALL (FROM {0}))",
    "(SELECT a FROM x WHERE a IN (SELECT a FROM {0}))",
    "a; SELECT a FROM {0}",
    "a FROM {0}",
    "a, (SELECT a FROM {0})",
    "a BETWEEN 1 AND (SELECT a FROM {0})",
    "CAST((SELECT a FROM {0}) AS DOUBLE)",
    "SUM(a) OVER (PARTITION BY (SELECT a FROM {0}))",
    "EXTRACT(YEAR FROM (SELECT a FROM {0}))",
    "LATERAL (SELECT a FROM {0})",
    "INTERVAL (SELECT a FROM {0}) DAY",
    "a LIKE (SELECT a FROM {0})",
    "STRPOS('x', (SELECT a FROM {0}))",
    "{0}",
]
NAMES = ("read_csv", "READ_CSV", "read_parquet", "read_json", "read_ipc", "scan_csv")
READERS = (*(f"{name}('{{0}}')" for name in NAMES), "'{0}'", '"{0}"', "read_csv($${0}$$)")


def test_the_disguises_read_files_unless_they_are_refused(tmp_path: Path) -> None:
    """Else the test below would prove nothing."""
    missing, opened = tmp_path / "missing.csv", 0
    for disguise in SUBQUERIES:
        try:
            pl.sql_expr(disguise.format(f"read_csv('{missing}')"))
        except FileNotFoundError:
            opened += 1
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            pass
    assert opened >= 10


TRIES = """
import sys
from headscore.data.errors import InputError
from headscore.score.expressions import read_expressions
sys.path.insert(0, sys.argv[1])
from test_expressions import READERS, SUBQUERIES

for disguise in SUBQUERIES:
    for reader in READERS:
        for flag in ("--signal", "--measure"):
            try:
                read_expressions({"mine": disguise.format(reader.format(sys.argv[2]))}, flag)
            except InputError as error:
                assert "\\n" not in str(error), error
            else:  # it may be a name, or a text, but nothing that was read
                assert disguise == "{0}", disguise
print("none was opened")
"""


def test_sql_reads_no_file(tmp_path: Path) -> None:
    """Whoever opens a named pipe that nobody writes to waits for ever."""
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", TRIES, str(Path(__file__).parent), str(pipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "none was opened", done.stderr[-2000:]
    with pytest.raises(subprocess.TimeoutExpired):  # and this is how a reader is found out
        reads = f"import polars; polars.sql_expr(\"(SELECT a FROM read_csv('{pipe}'))\")"
        subprocess.run([sys.executable, "-c", reads], timeout=5)


@given(st.text(alphabet="abSELECTselctfromFROM ()'\",;*+-/=<>.123\n\u017f\u0130\u212a$", max_size=40))
def test_any_text_is_an_expression_or_told_in_one_line(text: str) -> None:
    try:
        read_expressions({"mine": text}, "--signal")
    except InputError as error:
        assert str(error).startswith("signal mine: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a +",
        "1 1",
        "a b c",
        "(",
        "'",
        "a;",
        "--",
        "SELECT",
        "a.b.c.d",
        "import os",
        "__import__('os')",
        "nope(a)",
        "\x00",
        "a" * 100_000,
        "(" * 5000,
    ],
)
def test_text_that_is_no_expression_is_told(small: Path, text: str) -> None:
    for option in ("signal", "measure"):
        with pytest.raises(InputError, match=f"^{option}( mine)?: ") as error:
            headscore.score(small, **{option: {"mine": text}})
        one_line(error)


# --------------------------------------------------------------------------------------------------------- line by line

MIXING: dict[str, pl.Expr | str] = {
    "sum": "SUM(entropy)",
    "mean": pl.col("entropy").mean(),
    "centred": pl.col("entropy") - pl.col("entropy").mean(),
    "centred text": "entropy - AVG(entropy)",
    "share": "entropy / MAX(entropy)",
    "window": "AVG(entropy) OVER (PARTITION BY layer)",
    "over": pl.col("entropy").sum().over("layer", "head"),
    "over sample": pl.col("entropy").sum().over("sample"),
    "over row": pl.col("entropy").rank().over("row", "layer"),
    "over tokens": pl.col("entropy").max().over("tokens"),
    "shift": pl.col("entropy").shift(1),
    "shift_up": pl.col("entropy").shift(-1, fill_value=0),
    "diff": pl.col("entropy").diff(),
    "lag": "LAG(entropy) OVER (ORDER BY sample)",
    "rank": pl.col("entropy").rank(),
    "rank text": "RANK() OVER (ORDER BY entropy)",
    "cum_sum": pl.col("entropy").cum_sum(),
    "cum_max": pl.col("entropy").cum_max(),
    "sort": pl.col("entropy").sort(),
    "reverse": pl.col("entropy").reverse(),
    "row number": "ROW_NUMBER() OVER ()",
    "int_range": pl.int_range(pl.len()),
    "len": pl.len() + pl.col("entropy"),
    "count": "entropy / COUNT(*)",
    "filter": pl.col("entropy").filter(pl.col("sink") > 0.5),
    "head": pl.col("entropy").head(1),
    "first": pl.col("entropy").first(),
    "first as is": pl.col("entropy").get(0) * pl.col("sink"),
    "literal": "1",
    "literal expression": pl.lit(1.0),
    "literal column": pl.lit(pl.Series([0.0] * 9)),
    "arithmetic of literals": "1 + 2",
    "null": "NULL",
    "unique": pl.col("entropy").unique(),
    "drop_nulls": pl.col("entropy_free").drop_nulls(),
    "implode": pl.col("entropy").implode(),
    "explode": pl.concat_list("entropy", "sink").explode(),
    "repeat": pl.col("entropy").repeat_by(2).explode(),
    "forward_fill": pl.col("entropy_free").forward_fill(),
    "fill with mean": pl.col("entropy_free").fill_null(strategy="mean"),
    "rolling": pl.col("entropy").rolling_mean(2, min_samples=1),
    "ewm": pl.col("entropy").ewm_mean(alpha=0.5),
    "is_duplicated": pl.col("layer").is_duplicated(),
    "is_first": pl.col("layer").is_first_distinct(),
    "qcut": pl.col("entropy").qcut(3).to_physical(),
    "rle": pl.col("head").rle_id(),
    "shuffle": pl.col("entropy").shuffle(),
    "sample": pl.col("entropy").sample(fraction=1.0, shuffle=True),
    "python": pl.col("entropy").map_batches(lambda values: values - values.mean()),
    "dot": pl.col("entropy").dot(pl.col("sink")) * pl.col("sink"),
    "std": "STDDEV(entropy) * sink",
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_is_refused(small: Path, name: str) -> None:
    """Else its values would depend on how the shards are cut into blocks."""
    for ask in (headscore.score, headscore.scan_cache):
        with pytest.raises(
            InputError, match=r"^signal mine: .*(sample|SQL expression|cannot be computed|not numbers)"
        ) as error:
            ask(small, signal={"mine": MIXING[name]})
        one_line(error)


@pytest.mark.parametrize(
    "mixing",
    ["SUM(position)", "position / MAX(position)", pl.col("question").cum_sum(), pl.col("position").shift(1), "1",
     pl.col("position").max().over("tokens"), pl.col("position").rank().over("id"),
     pl.col("position").filter(pl.col("question")), pl.col("question").any()],
)  # fmt: skip
def test_what_mixes_tokens_is_refused(small: Path, mixing: Any) -> None:
    with pytest.raises(InputError, match=r"^measure mine: .*token") as error:
        headscore.score(small, measure={"mine": mixing})
    one_line(error)


FINE: dict[str, pl.Expr | str] = {
    "arithmetic": "mass_question * tokens / tokens_question",
    "case": "CASE WHEN tokens > 2 THEN entropy ELSE 0 END",
    "undefined": "CASE WHEN sink > 0.3 THEN entropy / sink END",
    "nullif": "entropy / NULLIF(tokens - 4, 0)",
    "logic": "sink > 0.3 AND entropy < 1",
    "coalesce": "COALESCE(entropy_free, 0)",
    "functions": "SQRT(ABS(LN(largest))) + POWER(sink, 2) - EXP(-entropy)",
    "cast": "CAST(tokens AS INTEGER)",
    "between": "layer BETWEEN 0 AND 1",
    "in list": "head IN (0, 2)",
    "greatest": "GREATEST(sink, largest)",
    "python": pl.col("entropy").map_elements(lambda value: 2 * float(str(value)), return_dtype=pl.Float64),
    "fill_null": pl.col("entropy_free").fill_null(0),
    "fill_nan": (pl.col("entropy_free") * 1).fill_nan(None),
    "horizontal": pl.max_horizontal("sink", "largest"),
    "clip": pl.col("distance").clip(0, 2),
    "alias": pl.col("entropy").alias("other"),
    "selector": pl.selectors.by_name("entropy") * 1,
    "pattern": pl.col("^entropy$"),
    "several in one": pl.sum_horizontal(pl.selectors.starts_with("mass_")),
    "place": "row + sample",
}


@pytest.mark.filterwarnings("ignore::polars.exceptions.PolarsInefficientMapWarning")
@pytest.mark.parametrize("name", FINE)
def test_what_is_per_sample_is_what_polars_makes_of_the_lines(small: Path, name: str) -> None:
    value = FINE[name]
    expression = pl.sql_expr(value) if isinstance(value, str) else value
    lines = headscore.scan_cache(small, signal={"mine": value}).collect()
    expected = lines.drop("mine").select(expression.cast(pl.Float64)).to_series()
    assert lines["mine"].equals(expected.rename("mine"), null_equal=True)
    means = headscore.score(small, signal={"mine": value}, weight={"mine": 1} if not expected.has_nulls() else {}).heads
    grouped = lines.group_by("head").agg(pl.col("mine").mean()).sort("head")["mine"]
    np.testing.assert_allclose(means["mine"].fill_null(9e9), grouped.fill_null(9e9), rtol=1e-14)


@given(st.lists(st.sampled_from("abcde+-*/ "), max_size=5))
def test_line_by_line_passes_what_is_computed_from_one_line(parts: list[str]) -> None:
    expression = pl.col("a") * len(parts) + pl.when(pl.col("in")).then(pl.col("b")).otherwise(pl.col("tokens"))
    require_line_by_line(expression, SCHEMA, "x", "sample")


# ------------------------------------------------------------------------------------------------------------ other faults


@pytest.mark.parametrize(
    ("signal", "said"),
    [
        ("nothing + 1", r"there is no 'nothing'; there are sample, row, tokens, .*entropy"),
        (pl.col("nothing"), r"there is no 'nothing'; there are sample"),
        ("out + 1", r"there is no 'out'; there are sample"),
        ("'text'", r"gives String, not numbers|must give one for each sample"),
        ("CAST(tokens AS VARCHAR)", r"gives String, not numbers"),
        (pl.col("tokens", "entropy"), r"gives several columns; give one"),
        (pl.col("^mass_.*$"), r"gives several columns; give one"),
        (pl.all(), r"gives several columns; give one"),
        (pl.selectors.float(), r"gives several columns; give one"),
        (pl.col("^nothing.*$"), r"gives several columns; give one|gives no column"),
        (pl.struct("tokens"), r"gives Struct.*, not numbers"),
        (pl.concat_list("tokens", "sink"), r"gives List.*, not numbers"),
        ("tokens + 'x'", r"cannot be computed|there is no|not numbers|is no SQL"),
        (pl.col("tokens").str.len_chars(), r"cannot be computed"),
        (pl.col("entropy").map_elements(lambda x: int(str(x)[:0]), return_dtype=pl.Int64), r"cannot be computed: invalid lit"),
        (pl.col("entropy").map_batches(lambda values: None), r"cannot be computed|gives"),
        (3, r"expected SQL text or a polars expression, got 3"),
        (None, r"is not a built-in signal; give NAME='SQL', or one of out, ent, task"),
    ],
)  # fmt: skip
def test_a_signal_that_cannot_be_used_is_told_in_one_line(small: Path, signal: Any, said: str) -> None:
    with pytest.raises(InputError, match=r"^signal mine: ") as error:
        headscore.score(small, signal={"mine": signal})
    assert re.search(said, one_line(error)), one_line(error)


TAKEN = (
    *("out", "lift", "mass_question", "entropy", "largest", "norm", "task_mass", "task_rest", "tokens", "tokens_question"),
    *("sample", "row", "layer", "head", "kv_head", "result_norm", "last_norm"),
)


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("option", ["signal", "measure"])
def test_a_name_that_is_taken_is_refused(small: Path, name: str, option: str) -> None:
    with pytest.raises(InputError, match=f"^{option} {name}: there already is a (signal|measure) of this name") as error:
        headscore.score(small, **{option: {name: "tokens * 2"}})
    one_line(error)


def test_a_signal_has_no_name_of_a_measure_of_ones_own(small: Path) -> None:
    with pytest.raises(InputError, match=r"signal mine: there already is a measure of this name"):
        headscore.score(small, signal={"mine": "sink"}, measure={"mine": "position"})


def test_a_measure_may_be_called_like_a_count(small: Path) -> None:
    lines = headscore.scan_cache(small, measure={"tokens_early": "CASE WHEN position < 1 THEN 1 ELSE 0 END"}).collect()
    assert lines["tokens_early"].to_list() == lines["sink"].to_list() and lines["tokens_question"].dtype == pl.Int64


@pytest.mark.parametrize(
    ("text", "value"),
    [("1 / (tokens - 2)", "infinity"), ("SQRT(entropy - 1)", "NaN"), ("LN(sink - sink)", "infinity"),
     ("POWER(1e300, tokens)", "infinity"),
     ("CASE WHEN sample = 1 AND head = 0 THEN LN(-1 * tokens) ELSE 1 * tokens END", "NaN")],
)  # fmt: skip
def test_nan_and_infinity_name_the_signal_the_row_and_the_head(small: Path, text: str, value: str) -> None:
    for ask in (
        lambda: headscore.score(small, signal={"mine": text}),
        lambda: headscore.scan_cache(small, signal={"mine": text}).select("mine").collect(),
    ):
        with pytest.raises(InputError, match=rf"^signal mine: gives {value} for row [01] in L0H[01]; make it null") as error:
            ask()
        one_line(error)


@pytest.mark.parametrize("chosen", ["id % 2", pl.selectors.by_name("id") % 2, pl.col("^id$") % 2, pl.selectors.integer() % 2])
def test_a_measure_may_choose_its_columns_by_a_pattern(cache: Path, chosen: Any) -> None:
    lines = headscore.scan_cache(cache, measure={"mine": chosen}).filter(layer=1, head=2).sort("sample").collect()
    for row, found in zip(headscore.rows(cache, layer=1, head=2), lines["mine"], strict=True):
        assert found == pytest.approx(row.weights[row.ids % 2 == 1].sum(), abs=1e-6)


def test_a_measure_that_is_no_number_names_the_token(small: Path) -> None:
    for text in ("1 / (position - 1)", "LN(position)", "SQRT(position - 2)", "NULLIF(position, 1)"):
        with pytest.raises(
            InputError, match=r"^measure mine: is not a number for a token at position [01] in .*00000\.h5"
        ) as error:
            headscore.score(small, measure={"mine": text}, signal={"x": "mine"})
        one_line(error)


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        ("entropy", r"there is no 'entropy'; there are position, tokens, id, question, choices, template, special"),
        (pl.col("question", "choices"), r"gives several columns"),
        ("'x'", r"not numbers|must give one for each token"),
        (5, r"expected SQL text or a polars expression, got 5"),
        (None, r"expected SQL text or a polars expression, got None"),
    ],
)
def test_a_measure_that_cannot_be_used_is_told_in_one_line(small: Path, measure: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^measure mine: .*({said})") as error:
        headscore.score(small, measure={"mine": measure})
    one_line(error)


def test_an_unknown_weight_says_what_there_is(small: Path) -> None:
    with pytest.raises(InputError, match=r"weight nope: there is no such signal; there are out, ent, task, .*mine$"):
        headscore.score(small, weight={"nope": 1}, signal={"mine": "sink"})


# ------------------------------------------------------------------------------------------------------------ Python files

GOOD = '''
"""Signals of one's own."""
import math
from functools import partial

import polars as pl
from helper_of_signals import twice

HALF = 0.5


def mine():
    return twice(pl.col("sink")) * HALF


def other():
    """Another."""
    return mine() + pl.col("entropy") / math.log(2)


def scaled(factor):
    return mine() * factor


def _hidden():
    raise ValueError


class Thing:
    pass
'''


def test_the_functions_of_a_file_are_signals(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_signals.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "my signals.py"
    path.write_text(GOOD)
    scores = headscore.score(small, signals=path, weight={"mine": 1, "other": 2})
    assert scores.signals[-2:] == ["mine", "other"]
    np.testing.assert_allclose(scores.heads["mine"], scores.heads["sink"])
    lines = headscore.scan_cache(small, signals=str(path)).collect()
    np.testing.assert_allclose(lines["other"], lines["sink"] + lines["entropy"] / math.log(2))
    assert headscore.score(small, signals=path, workers=2).heads.equals(headscore.score(small, signals=path).heads)


FILES: dict[str, tuple[str | None, str]] = {
    "missing": (None, r"FileNotFoundError: .*No such file"),
    "syntax": ("def mine(:\n", r"SyntaxError: .*"),
    "raising": ("raise ValueError('as\\nit\\nis')\n", r"ValueError: as it is"),
    "raising inside": ("def mine():\n    return 1 / 0\n", r"ZeroDivisionError: division by zero"),
    "leaving": ("import sys\nsys.exit(3)\n", r"SystemExit: 3"),
    "leaving inside": ("def mine():\n    raise SystemExit('bye')\n", r"SystemExit: bye"),
    "no import": ("import does_not_exist_anywhere\n", r"ModuleNotFoundError: .*does_not_exist_anywhere"),
    "no expression": ("def mine():\n    return 3\n", r"mine\(\) returns int, not a polars expression"),
    "a text": ("def mine():\n    return 'sink'\n", r"mine\(\) returns str, not a polars expression"),
    "no functions": ("x = 1\n", r"has no function without arguments, which is what a signal is"),
    "empty": ("", r"has no function without arguments"),
    "with arguments": ("def mine(x):\n    return x\n", r"has no function without arguments"),
    "imported": ("from math import sqrt\nfrom os.path import join\n", r"has no function without arguments"),
    "null bytes": ("\0\0", r"SyntaxError: .*|ValueError: .*"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_used_is_told_in_one_line(small: Path, tmp_path: Path, name: str) -> None:
    content, said = FILES[name]
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rf"^signals .*mine\.py: {said}") as error:
        headscore.score(small, signals=path)
    one_line(error)


def test_other_files_are_no_python_files(small: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(GOOD)
    for path in (tmp_path / "mine.txt", tmp_path):
        with pytest.raises(InputError, match=r"^signals .*: is not a Python file; its name must end in \.py") as error:
            headscore.score(small, signals=path)
        one_line(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pl.col('nothing')", r"mine: there is no 'nothing'; there are"),
        ("pl.col('entropy').mean()", r"mine: .*sample"),
        ("pl.all()", r"mine: gives several columns; give one"),
    ],
)
def test_a_signal_of_a_file_is_held_to_the_same(small: Path, tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(f"import polars as pl\ndef mine():\n    return {body}\n")
    with pytest.raises(InputError, match=rf"^signals .*mine\.py: {said}") as error:
        headscore.score(small, signals=tmp_path / "mine.py")
    one_line(error)
    (tmp_path / "mine.py").write_text("import polars as pl\ndef lift():\n    return pl.col('sink')\n")
    with pytest.raises(InputError, match="lift: there already is a signal of this name"):
        headscore.score(small, signals=tmp_path / "mine.py")


@pytest.mark.parametrize(
    "mixing",
    [
        "CASE WHEN tokens > 1 THEN sink - AVG(sink) END",
        "CASE WHEN row > 4 THEN sink - AVG(sink) ELSE sink END",
        "CASE WHEN entropy > 1 THEN MAX(sink) ELSE 0 END",
        pl.col("norm").clip(upper_bound=pl.col("norm").quantile(0.99)),
        pl.col("sink").shift(20).fill_null(0),
        pl.when(pl.len() > 100).then(pl.col("sink")).otherwise(0.0),
    ],
    ids=str,
)
def test_what_mixes_samples_of_a_cache_alone_is_refused_too(cache: Path, mixing: Any) -> None:
    """Made-up samples do not meet every condition."""
    with pytest.raises(InputError, match="depends on other samples"):
        headscore.score(cache, signal={"mine": mixing}, fresh=True)


def test_what_mixes_tokens_of_a_cache_alone_is_refused_too(cache: Path) -> None:
    with pytest.raises(InputError, match="depends on other tokens"):
        headscore.score(cache, measure={"m": "CASE WHEN position >= 1 THEN position / MAX(position) ELSE 0 END"}, fresh=True)


@pytest.mark.parametrize("name", ["rank", "combined", "tied_rank", "layer_rank", "out_norm", "out_rank", "p_top"])
def test_a_signal_cannot_have_the_name_of_a_column_of_results(cache: Path, name: str) -> None:
    with pytest.raises(InputError, match="results have another column"):
        headscore.score(cache, signal={name: "sink * 2"})


def test_text_that_means_something_else_is_refused(cache: Path) -> None:
    for text, why in {
        "mass_question mass_choices": "is an operator missing",
        "sink AS other": "is an operator missing",
        "sink -- largest": "comment",
        "sink /* 2 */": "comment",
        "+".join(["sink"] * 300): "more than 200 operators",
    }.items():
        with pytest.raises(InputError, match=why):
            headscore.score(cache, signal={"mine": text})
    heads = headscore.score(cache, measure={"some": f"id IN ({', '.join(map(str, range(5000)))})"}, signal={"s": "some"}).heads
    assert heads["s"].is_between(0, 1.001).all()


def test_spans_of_any_name_have_their_own_masses(tmp_path: Path) -> None:
    names = ["id", "span_id", "*", "^.*$"]
    made = metadata(1, 2, {"span_names": names})
    rows, span = BY_HAND["rows"], np.array([1, 2, 4, 8, 1, 2])
    arrays = {
        "samples/row": np.arange(2),
        "samples/offset": np.array([0, 4, 6]),
        "tokens/id": np.zeros(6),
        "tokens/span": span,
        "layers/index": np.arange(1),
        "last_token/attention": rows,
        "all_tokens/attention": rows,
        **{
            f"{mode}/{norm}": BY_HAND["out"] for mode in ("last_token", "all_tokens") for norm in ("output_norm", "result_norm")
        },
        "all_tokens/entropy": BY_HAND["out"],
    }
    cache_format.write_metadata(tmp_path, made, keep_existing=False)
    write_shard(cache_format.shard_path(tmp_path, 0), 0, arrays, made, [])
    for bit, name in enumerate(names):
        scores = headscore.score(tmp_path, task_span=name, weight={f"mass_{name}": 0.5})
        by_hand = [np.mean([row[:4][span[:4] == 1 << bit].sum(), row[4:][span[4:] == 1 << bit].sum()]) for row in rows[0]]
        assert scores.heads["task"].to_list() == by_hand == scores.heads[f"mass_{name}"].to_list(), name
