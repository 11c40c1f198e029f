"""What a ranking is made of: the measures of a cache, and the signals that settings define over them."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from ..data.cache.folder import Cache
from ..data.errors import OptionError, did_you_mean
from ..data.options.settings import QueryMode, ScoreSettings
from .expressions import columns_of, expression_key, names_of, require_line_by_line
from .forks import require_own_threads
from .linear_measures import DATA, LinearMeasures, choose_linear_measures, union_name
from .measures import NORMS, OF_ROWS, measure_names
from .signal_sources import built_in_signals, own_signals, title_of

BOOTSTRAP_COLUMNS = ("low", "high", "rank_low", "rank_high", "p_top")
RESULT_COLUMNS = ("combined", "rank", "tied_rank", "layer_rank", "_tiebreak", "task_length_r", *BOOTSTRAP_COLUMNS)
PLACES: dict[str, Any] = {"layer": pl.Int32, "head": pl.Int32, "kv_head": pl.Int32}


@dataclass(frozen=True)
class Signal:
    """A signal by its name.

    Args:
        name: what it is called.
        expression: over the measures, with one output.
        title: the first sentence of its documentation, or for one of the user's, where it comes from.
        own: whether the user brought it.
    """

    name: str
    expression: pl.Expr
    title: str
    own: bool = False


@dataclass(frozen=True)
class Recipe:
    """The definition of every measure and signal of a cache.

    Args:
        mode: whose pattern rows are meant.
        result: whether the norm of a head is that of its result W_O z.
        task: the span, or union of spans, that counts as the task's tokens.
        linear: the linear measures.
        measures: the names of all measures.
        data: the columns of the data file that the cache keeps, each called `data_<column>`.
        layers: the model's numbers of the layers.
        heads: query heads in a layer.
        kv_heads: key-value heads in a layer; None where the cache does not say.
        signals: by name, the built-in ones first.
    """

    mode: QueryMode
    result: bool
    task: str
    linear: LinearMeasures
    measures: tuple[str, ...]
    data: tuple[str, ...]
    layers: tuple[int, ...]
    heads: int
    kv_heads: int | None
    signals: Mapping[str, Signal] = dataclasses.field(default_factory=dict)

    @cached_property
    def aliases(self) -> dict[str, str]:
        """The measures that the settings choose, by what a signal calls them."""
        norm = "result_norm" if self.result else "output_norm"
        chosen = f"all_{norm}" if self.mode == "all_tokens" else norm
        return {
            "norm": chosen,
            "last_norm": norm,
            "all_norm": f"all_{norm}",
            "task_mass": f"mass_{self.task}",
            "task_tokens": f"tokens_{self.task}",
        }

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The columns that a signal may be made of, and their dtypes; counts of tokens are floats, so that `/` divides them."""
        tokens = ["tokens", *(f"tokens_{name}" for name in self.linear.spans())]
        counts: dict[str, Any] = {"sample": pl.Int64, "row": pl.Int64, **dict.fromkeys(tokens, pl.Float64)}
        texts = dict.fromkeys(self.data, pl.String)
        return {**counts, **texts, **PLACES, **dict.fromkeys([*self.measures, *self.aliases, "task_rest"], pl.Float64)}

    @cached_property
    def scanned(self) -> dict[str, Any]:
        """The columns of `scan_cache`: those of a signal, with counts as whole numbers, and the signals."""
        whole = dict.fromkeys(["tokens", "task_tokens", *(f"tokens_{name}" for name in self.linear.spans())], pl.Int64)
        return {**self.schema, **whole, **{name: pl.Float64 for name in self.signals if name not in self.schema}}

    def needs(self, names: Iterable[str]) -> list[str]:
        """The columns of `schema` that the named signals are made of."""
        found: dict[str, None] = {}
        for name in names:
            found |= dict.fromkeys(columns_of(self.signals[name].expression, self.schema))
        return list(found)

    def measures_for(self, columns: Iterable[str]) -> list[str]:
        """The measures that columns of `schema` are made of."""
        wanted = {self.aliases.get(name, name) for name in columns}
        if "task_rest" in columns:
            wanted |= {self.aliases["task_mass"], "sink"}
        return [name for name in self.measures if name in wanted]

    def measure_key(self, name: str) -> str | None:
        """The key by which a later run finds the kept values of a measure; None where its definition has none."""
        return expression_key(self.linear.own[name]) if name in self.linear.own else name

    def signal_key(self, name: str) -> str | None:
        """The key by which a later run finds a signal's kept sums, with all that they depend on; None where there is none."""
        needs = self.needs([name])
        key = expression_key(self.signals[name].expression)
        own = {need: expression_key(self.linear.own[need]) for need in needs if need in self.linear.own}
        if key is None or None in own.values():
            return None
        chosen = sorted({f"{need}={self.aliases[need]}" for need in needs if need in self.aliases})
        of_task = [f"task_rest={self.task}"] if "task_rest" in needs else []
        return " ".join([name, key, *chosen, *of_task, *(f"{need}={value}" for need, value in own.items())])


def choose_recipe(cache: Cache, settings: ScoreSettings, partial: bool) -> Recipe:
    """What `settings` ask for of a cache.

    Raises InputError where the cache cannot give it, is incomplete but not `partial`, or a signal or measure of the user's is
    no expression over what there is.
    """
    require_own_threads("scoring", "polars")
    if not partial:
        cache.require_complete()
    return with_signals(choose_measures(cache, settings), settings)


def choose_measures(cache: Cache, settings: ScoreSettings) -> Recipe:
    """What `settings` ask for of a cache, without its signals. Raises InputError as `choose_recipe`."""
    metadata = cache.metadata
    if settings.score_query_mode == "all_tokens" and metadata["settings"]["queries"] != "all_tokens":
        raise OptionError(
            f"--score-query-mode all_tokens: {cache.path} was captured with --queries last_token; "
            "capture it again with --queries all_tokens"
        )
    result_norms = metadata["attention"]["result_norms"]
    if settings.head_output == "result" and not result_norms:
        raise OptionError(
            f"--head-output result: {cache.path} has no result norms, as this model's output projection "
            "cannot be split by heads; use --head-output z"
        )
    cache.require_spans(settings.task_span)
    linear = choose_linear_measures(metadata["span_names"], settings.task_span, settings.measure, [*PLACES, *NORMS, *OF_ROWS])
    heads, kv_heads = metadata["dims"]["heads"], metadata["dims"].get("kv_heads")
    grouped = isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads == 0
    if settings.by == "kv_head" and not grouped:
        raise OptionError(f"--by kv_head: {cache.path} does not say how its {heads} heads share key-value heads")
    recipe = Recipe(
        mode=settings.score_query_mode,
        result=settings.head_output == "result",
        task=union_name(settings.task_span, metadata["span_names"]),
        linear=linear,
        measures=tuple(measure_names(result_norms, linear)),
        data=tuple(f"{DATA}{column}" for column in metadata["settings"].get("keep") or ()),
        layers=tuple(metadata["layers"]),
        heads=heads,
        kv_heads=kv_heads if grouped else None,
    )
    without_own = dataclasses.replace(recipe, linear=dataclasses.replace(linear, own={}), measures=())
    for name in linear.own:
        if name in built_in_signals() or name in without_own.schema:
            what = "signal" if name in built_in_signals() else "measure"
            raise OptionError(f"--measure {name}: there already is a {what} of this name")
    return recipe


def with_signals(recipe: Recipe, settings: ScoreSettings) -> Recipe:
    """The recipe with the built-in signals and the user's. Raises InputError as `choose_recipe`."""
    found = _built_in(recipe)
    for where, name, expression in own_signals(settings, list(found)):
        if name in found:
            raise OptionError(f"{where}: there already is a signal of this name")
        signal = checked_signal(recipe, where, name, expression)
        others = {*RESULT_COLUMNS, *(column for other in found for column in _result_columns(other))}
        if clash := others.intersection(_result_columns(name)):
            raise OptionError(f"{where}: results have another column '{min(clash)}'; use another name")
        found[name] = signal
    for name in settings.weights:
        if name not in found:
            if recipe.schema.get(name) == pl.Float64:
                raise OptionError(
                    f"--weight {name}: is a measure, not a signal; make one of it: --signal 'x = {name}' --weight x=1"
                )
            raise OptionError(
                f"--weight {name}: there is no such signal; {did_you_mean(name, found)}there are {', '.join(found)}"
            )
    return dataclasses.replace(recipe, signals=found)


def _result_columns(signal: str) -> tuple[str, ...]:
    """The columns of a result that a signal has, the last two with a bootstrap."""
    return signal, *(f"{signal}_{kind}" for kind in ("norm", "rank", "rank_low", "rank_high"))


def _built_in(recipe: Recipe) -> dict[str, Signal]:
    found: dict[str, Signal] = {}
    for name, function in built_in_signals().items():
        expression, title = function(), title_of(function)
        if expression.meta.has_multiple_outputs():  # measures by a pattern of names
            found |= {output: Signal(output, pl.col(output), title) for output in names_of(expression, recipe.schema, name)}
        else:
            found[name] = Signal(name, expression, title)
    return found


def checked_signal(recipe: Recipe, where: str, name: str, expression: pl.Expr) -> Signal:
    """A signal of the user's that was tried out. Raises InputError where it cannot be one, or is named like a measure."""
    if name in recipe.schema:
        raise OptionError(f"{where}: there already is a measure of this name")
    if len(names_of(expression, recipe.schema, where)) != 1:
        raise OptionError(f"{where}: gives several columns; give one")
    require_line_by_line(expression, recipe.schema, where, "sample")
    return Signal(name, expression, where, own=True)


def is_raw_norm(recipe: Recipe, name: str) -> bool:
    """Whether a signal grows when all norms do, so that layers cannot be compared by it."""
    needs = recipe.needs([name])
    random = np.random.default_rng(0)
    frame = pl.DataFrame({need: random.random(4) + 1 for need in needs if recipe.schema[need] == pl.Float64})
    norms = [need for need in needs if need in NORMS or recipe.aliases.get(need) in NORMS]
    if not norms or len(frame.columns) < len(needs):
        return bool(norms)
    before, after = (
        table.select(recipe.signals[name].expression).to_series() for table in (frame, frame.with_columns(pl.col(norms) * 2))
    )
    return not before.equals(after)
