"""Expressions that users bring, as SQL text, a Python file or polars expressions: read safely, and tried out before use."""

import hashlib
import importlib.util
import inspect
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ..data.errors import InputError, OptionError, did_you_mean, one_line

Schema = Mapping[str, Any]

# A subquery can read files, and polars reads them as soon as it parses the text. No word of one may stand anywhere.
_SUBQUERY = re.compile(r"\b(select|from|table|values|with|exists|union|intersect|except)\b", re.IGNORECASE)
_QUOTED = re.compile(r"""'[^'\\$]*'|"[^"\\$]*\"""")
_COMMENT = re.compile(r"--|/\*|#")
_OPERATOR = re.compile(r"\b(?:and|or|not|then|when)\b|[-+*/%<>=|&]+", re.IGNORECASE)
MAX_OPERATORS = 200  # polars takes time that grows faster than their number, and recurses into them
MAX_LETTERS = 1_000_000
_PAIRS = 8
_ALONE = 8
# What a serialized expression has that calls plugins, or Python functions, pickled as bytes or numbers: those may change.
_CODE = re.compile(rb"AnonymousFunction|FfiPlugin|\x80[\x02-\x05]\xcc?\x95")


def read_expressions(given: Mapping[str, object], flag: str) -> dict[str, pl.Expr]:
    """The expressions in `given`, by their names.

    Args:
        given: SQL text or a polars expression for each name.
        flag: the option they come from, for messages.

    Raises InputError for text that is no expression or has a subquery, and for other values.
    """
    made = {}
    for name, value in given.items():
        if isinstance(value, pl.Expr):
            made[name] = value
        elif isinstance(value, str):
            made[name] = _from_sql(value, f"{flag} {name}")
        else:
            raise OptionError(f"{flag} {name}: expected SQL text or a polars expression, got {value!r:.80}")
    return made


def _from_sql(text: str, where: str) -> pl.Expr:
    bare = _QUOTED.sub(" ", text)
    if found := _SUBQUERY.search(bare):
        raise OptionError(f"{where}: '{found[0]}' cannot be used: a subquery could read files; put names of columns in quotes")
    if _COMMENT.search(bare) or any(sign in bare for sign in "'\"\\$`"):
        raise OptionError(f"{where}: has a comment, or quotes that cannot be told apart; leave them out")
    if len(_OPERATOR.findall(bare)) > MAX_OPERATORS or len(text) > MAX_LETTERS:
        raise OptionError(
            f"{where}: has more than {MAX_OPERATORS} operators or {MAX_LETTERS} letters; IN (…) takes many values"
        )
    try:
        expression = pl.sql_expr(text)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise OptionError(f"{where}: is not an SQL expression: {one_line(error)[:160]}") from error
    if expression.meta != expression.meta.undo_aliases():
        raise OptionError(f"{where}: '{text:.60}' gives its result another name; is an operator missing?")
    return expression


def read_python_file(path: Path, flag: str) -> dict[str, pl.Expr]:
    """The signals of a Python file, which is run: what each of its public functions without arguments returns.

    Raises InputError where the file cannot be run, a function fails or returns no polars expression, or there is none.
    """
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise OptionError(f"{flag} {path}: is not a Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        functions = functions_of(module)
        made = {name: function() for name, function in functions.items() if not inspect.signature(function).parameters}
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        raise OptionError(f"{flag} {path}: {type(error).__name__}: {one_line(error)[:200]}") from error
    if not made:
        raise OptionError(f"{flag} {path}: has no function without arguments, which is what a signal is")
    for name, value in made.items():
        if not isinstance(value, pl.Expr):
            raise OptionError(f"{flag} {path}: {name}() returns {type(value).__name__}, not a polars expression")
    return made


def functions_of(module: Any) -> dict[str, Any]:
    """The public functions that a module defines, in its order; not those that it imports."""
    public = {name: value for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")}
    return {name: function for name, function in public.items() if function.__module__ == module.__name__}


def names_of(expression: pl.Expr, schema: Schema, where: str) -> list[str]:
    """The columns that an expression gives when it meets a table of `schema`.

    Raises InputError, naming the columns there are, where it needs another one, or makes no sense of their types.
    """
    try:
        return pl.LazyFrame(schema=dict(schema)).select(expression).collect_schema().names()
    except pl.exceptions.ColumnNotFoundError as error:
        missing = [name for name in expression.meta.root_names() if name not in schema]
        name = (missing or ["?"])[0]
        near = did_you_mean(name, list(schema))
        raise OptionError(f"{where}: there is no '{name:.80}'; {near}there are {', '.join(schema)}") from error
    except pl.exceptions.PolarsError as error:
        raise OptionError(f"{where}: cannot be computed: {one_line(error)[:160]}") from error


def columns_of(expression: pl.Expr, schema: Schema) -> list[str]:
    """The columns of a table of `schema` that an expression reads; all, where it chooses them by a pattern or a dtype."""
    try:
        content = expression.meta.serialize()
    except (pl.exceptions.PolarsError, ValueError, TypeError, AttributeError):
        return list(schema)
    return list(schema) if b"Selector" in content else list(dict.fromkeys(expression.meta.root_names()))


def require_line_by_line(expression: pl.Expr, schema: Schema, where: str, line: str) -> None:
    """Raises InputError where an expression's value on a line depends on other lines, or is none for each line.

    It is tried on made-up lines: all at once, in reverse, and each alone.

    Args:
        expression: over a table of `schema`, with one output.
        schema: the names and dtypes of the columns.
        where: what is tried, for the message.
        line: what a line of the table is, such as 'sample' or 'token'.
    """
    tried = _made_up(schema)
    try:
        together = tried.select(expression)
        backwards = tried.reverse().select(expression)
        alone = [tried[place : place + 1].select(expression) for place in range(len(tried))]
    except Exception as error:  # a function of the user's may raise anything
        raise OptionError(f"{where}: cannot be computed: {one_line(error)[:160]}") from error
    if not together.dtypes[0].is_numeric() and together.dtypes[0] not in (pl.Boolean, pl.Null):
        raise OptionError(f"{where}: gives {together.dtypes[0]}, not numbers")
    if len(together) != len(tried):
        raise OptionError(f"{where}: gives {len(together)} values for {len(tried)} {line}s; it must give one for each {line}")
    values = _floats(together)
    same = len(backwards) == len(tried) and _equal(values, _floats(backwards)[::-1])
    if (
        not same
        or not all(len(one) == 1 for one in alone)
        or not _equal(values, np.concatenate([_floats(one) for one in alone]))
    ):
        raise OptionError(
            f"{where}: its value for one {line} depends on other {line}s; it must be computed from that {line} alone"
        )


def require_same_in_parts(expression: pl.Expr, frame: pl.DataFrame, found: pl.Series, where: str, line: str) -> None:
    """Raises InputError where an expression gives some lines of a table other values without the other lines.

    What made-up lines do not show may show here: a condition that few lines meet, or a shift by more lines than those.

    Args:
        expression: with one output.
        frame: the table, with every column that the expression needs.
        found: what it gives for all lines.
        where: what is tried, for the message.
        line: what a line of the table is.
    """
    values, count = _floats(found.to_frame()), len(frame)
    lines = np.arange(count)
    parts = [lines[::-1], lines[1::2], *np.array_split(np.linspace(0, count - 1, min(count, _ALONE)).astype(np.int64), _ALONE)]
    for part in parts:
        some = frame[part].select(expression)
        if len(some) != len(part) or not _equal(_floats(some), values[part]):
            raise OptionError(
                f"{where}: its value for one {line} depends on other {line}s; it must be computed from that {line} alone"
            )


def _made_up(schema: Schema) -> pl.DataFrame:
    """Lines of random values. Each has a partner with the same integers, booleans and texts. A column of floats is the same in
    half of the pairs, others than any other column's, so that no groups of lines are alike in all; the last line has none.
    """
    random = np.random.default_rng(0)
    equal = itertools.cycle(itertools.combinations(range(_PAIRS), _PAIRS // 2))
    columns: dict[str, Any] = {}
    for name, dtype in schema.items():
        half: Any = random.integers(1, 40, _PAIRS + 1)
        if dtype.is_float():
            values = random.random((2, _PAIRS + 1))
            pairs = list(next(equal))
            values[1, pairs] = values[0, pairs]
            columns[name] = [*values.ravel()[:-1].tolist(), None]
        elif dtype == pl.String:
            columns[name] = [f"{value}" for value in [*half, *half]]
        else:
            columns[name] = np.tile(half < 20 if dtype == pl.Boolean else half, 2)
    return pl.DataFrame(columns, schema=dict(schema))


def _floats(frame: pl.DataFrame) -> Any:
    return frame.to_series().cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()


def _equal(one: Any, other: Any) -> bool:
    return bool(np.allclose(one, other, rtol=1e-12, atol=0, equal_nan=True))


def expression_key(expression: pl.Expr) -> str | None:
    """A key that is the same for the same expression in every run; None for one that calls other code, which may change."""
    try:
        content = expression.meta.serialize()
    except (pl.exceptions.PolarsError, ValueError, TypeError, AttributeError):
        return None
    if _CODE.search(content):
        return None
    return hashlib.sha256(pl.__version__.encode() + content).hexdigest()[:20]
