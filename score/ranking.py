"""From signals to a ranking: normalised, ranked, fused and ordered, in polars, written once for any groups of heads."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, get_args

import polars as pl

from ..data.errors import InputError
from ..data.options.checked import require_weight
from ..data.options.settings import Fusion, NormMode, Unit, Within
from ..data.options.signatures import library_call

RRF_CONSTANT = 60
TIE_DIGITS = 12  # combined scores that agree in so many are equal but for rounding
Weights = Mapping[str, float | str]  # of each signal: a number, or the column that has it
_RESULTS = ("combined", "rank", "tied_rank", "layer_rank", "_tiebreak")


@library_call()
def rank(
    frame: pl.DataFrame,
    weights: Mapping[str, float | str],
    *,
    by: str | Sequence[str] = (),
    unit: Unit = "head",
    fusion: Fusion = "rank",
    norm_mode: NormMode = "zscore",
    within: Within = "layer",
) -> pl.DataFrame:
    """Rank the heads of a frame of one's own by a weighted combination of signals.

    Args:
        frame: one line per head, with `layer`, `head` (or `kv_head`, see unit), and a column for each signal, in which higher
            means driven more.
        weights: of each signal in the combined score, by its column; a negative one turns a signal around. Other columns of
            floats are normalised and ranked too, and weigh nothing; other columns of integers are not. A weight may be the name
            of a column that has it for each ranking of `by`.
        by: a column, or several, whose every combination of values is a ranking of its own, such as a replicate or a cache.
        unit: what is ranked, `head` or `kv_head`.
        fusion: `rank`: Σ λ·rank, rank 1 = lowest, ties averaged. `rrf`: Σ λ / (60 + place), place 1 = highest, ties averaged
            (Cormack, Clarke & Büttcher, 2009). `sum`: Σ λ·normalised value.
        norm_mode: how values are normalised; with `rank` and `rrf` this only orders heads of equal combined score. `zscore`:
            (x − mean) / std with ddof 0, 0 where all are equal. `percentile`: (rank − 1) / (H − 1), 0.5 where H = 1. `ratio`:
            x / |mean|, 0 where all are 0, and null where only the mean is. `none`: x.
        within: whether ranks and normalised values are those within a head's layer, or within the whole model.

    Returns the frame sorted by `by`, layer and unit. It gains for each signal `<signal>_norm` and `<signal>_rank`, then
    `combined`; `rank`, 1 for the head that is driven most, ordered by combined, then by the weighted sum of the normalised
    values, then by layer and head; `tied_rank`, the first rank among all heads of equal combined score; and `layer_rank`, the
    rank within the layer.

    Raises InputError where a column is missing or has the name of a result, a head has two lines or no layer, a weighted signal
    is null, NaN, infinite or no number for a head, and for weights or options that do not exist.
    """
    if not isinstance(frame, pl.DataFrame):
        advice = "; collect() it first" if isinstance(frame, pl.LazyFrame) else ""
        raise InputError(f"rank: the frame is a {type(frame).__name__}, not a polars DataFrame{advice}")
    fusion, norm_mode = _choice("fusion", fusion, FUSIONS), _choice("norm_mode", norm_mode, NORM_MODES)
    within, unit = _choice("within", within, get_args(Within)), _choice("unit", unit, get_args(Unit))
    groups, numbers = _columns_of(by, unit), _numbers(weights)
    keys = [*groups, "layer", unit]
    _require_rankable(frame, keys, numbers)
    others = (*keys, "head", "kv_head", *(weight for weight in numbers.values() if isinstance(weight, str)))
    signals = [name for name in frame.columns if name not in others and frame[name].dtype.is_float()]
    signals += [name for name in numbers if name not in signals]
    _require_new_names(frame, signals)
    group = [*groups, "layer"] if within == "layer" else groups
    ranked = _ranked(frame.sort(keys), signals, numbers, group, NORM_MODES[norm_mode])
    combined = FUSIONS[fusion](numbers, group)
    tiebreak = _weighted({name: pl.col(f"{name}_norm") for name in numbers}, numbers)
    scored = ranked.with_columns(combined=combined, _tiebreak=tiebreak)
    if not (_is_finite(scored["combined"]) and _is_finite(scored["_tiebreak"])):
        raise InputError("rank: the weighted sum of some head is beyond what a number can hold; give smaller weights or values")
    return _ordered(scored, groups, unit)


def _choice(option: str, value: Any, known: Sequence[str] | Mapping[str, Any]) -> Any:
    """The choice that is meant, with `-` for `_` or the other way round."""
    made = value.replace("-", "_") if isinstance(value, str) else value
    if made not in list(known):
        raise InputError(f"rank: {option}={value!r:.80} is not one of {', '.join(known)}")
    return made


def _columns_of(by: Any, unit: str) -> list[str]:
    names = [by] if isinstance(by, str) else by
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"rank: by={by!r:.80} is not the name of a column, or several")
    for name in names:
        if name in ("layer", unit) or names.count(name) > 1:
            raise InputError(f"rank: by='{name}': every ranking has the column already; give others, each once")
    return list(names)


def _numbers(weights: Any) -> Weights:
    """Weights as floats or the names of columns, by the names of the signals' columns."""
    if not isinstance(weights, Mapping):
        raise InputError(f"rank: weights={weights!r:.80} is not a number for each signal, such as {{'out': 1.0}}")
    made: dict[str, float | str] = {}
    for name, given in weights.items():
        if isinstance(given, str):
            made[str(name)] = given
            continue
        weight = given.item() if getattr(given, "shape", None) == () else given  # an array of one number, too
        try:
            number = float(weight) if isinstance(weight, Real) and not isinstance(weight, bool) else math.nan
        except OverflowError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"rank: the weight of '{name}', {given!r:.80}, is not a finite number")
        require_weight(f"rank: the weight of '{name}'", number)
        made[str(name)] = number
    return made


def _require_rankable(frame: pl.DataFrame, keys: Sequence[str], weights: Weights) -> None:
    own = {name: weight for name, weight in weights.items() if isinstance(weight, str)}
    for signal, column in own.items():
        if column not in frame.columns:
            raise InputError(
                f"rank: the weight of '{signal}', {column!r:.80}, is not a finite number, nor a column of the frame"
            )
    if missing := [name for name in (*keys, *weights) if name not in frame.columns]:
        raise InputError(f"rank: the frame has no {', '.join(missing)}; it has {', '.join(frame.columns)}")
    for name, weight in weights.items():
        if name in keys:
            raise InputError(f"rank: '{name}' says which head a line is of, so it cannot have a weight")
        if not frame[name].dtype.is_numeric() and (weight or frame[name].dtype != pl.Null):
            raise InputError(f"rank: the signal '{name}' is of {frame[name].dtype}, not of numbers")
        if weight and not _is_finite(frame[name]):
            raise InputError(f"rank: the signal '{name}' is undefined or not finite for some heads")
    for name in own.values():
        if name in (*keys, *weights) or not frame[name].dtype.is_float() or not _is_finite(frame[name]):
            raise InputError(f"rank: '{name}' is not a column of weights; give finite floats, in a column of their own")
        if frame.select(pl.col(name).n_unique().over(pl.struct(*keys[:-2], pl.lit(0))).max()).item() > 1:
            raise InputError(f"rank: '{name}' has several weights in one ranking; it must be the same for all of its heads")
    if not any(weights.values()):
        raise InputError("rank: every weight is 0, so there is nothing to rank by")
    for name in keys[-2:]:
        if frame[name].has_nulls() or (frame[name].dtype.is_float() and not _is_finite(frame[name])):
            raise InputError(f"rank: some lines have no {name}; leave them out")
    if frame.select(keys).is_duplicated().any():
        raise InputError(f"rank: some lines have the same {', '.join(keys)}; there must be one line per head")


def _require_new_names(frame: pl.DataFrame, signals: Sequence[str]) -> None:
    """Raises InputError where a column of the frame, or of another signal, has the name of a result."""
    seen = set(frame.columns)
    for name in (*_RESULTS, *(f"{signal}_{kind}" for signal in signals for kind in ("norm", "rank"))):
        if name in frame.columns:
            raise InputError(f"rank: the frame has a column '{name}' already, which would be overwritten; drop or rename it")
        if name in seen:
            raise InputError(f"rank: two results would be called '{name}'; rename the signal '{name.rpartition('_')[0]}'")
        seen.add(name)


def _is_finite(values: pl.Series) -> bool:
    return not values.has_nulls() and bool(values.cast(pl.Float64).is_finite().all())


def _ranked(
    frame: pl.DataFrame,
    signals: Sequence[str],
    weights: Weights,
    group: Sequence[str],
    norm: Callable[..., pl.Expr],
) -> pl.DataFrame:
    columns = []
    for name in signals:
        x = pl.col(name).cast(pl.Float64)
        columns.append(_over(norm(x), group).alias(f"{name}_norm"))
        columns.append(_over(_ranks(x), group).alias(f"{name}_rank"))
    found = frame.with_columns(columns)
    for name, weight in weights.items():
        if weight and not _is_finite(found[f"{name}_norm"]):
            where = "some layer" if "layer" in group else "the model"
            raise InputError(f"norm_mode ratio: the mean of '{name}' is 0 in {where}, so nothing can be divided by it")
    return found


def _over(expression: pl.Expr, group: Sequence[str]) -> pl.Expr:
    """By a struct, as polars adds up the groups of a sorted column in another way, and so the last bits would differ."""
    return expression.over(pl.struct(*group, pl.lit(0)))


def _ranks(x: pl.Expr) -> pl.Expr:
    """1 for the lowest, ties averaged."""
    return x.rank("average")


def _zscore(x: pl.Expr) -> pl.Expr:
    constant = x.max() == x.min()  # the rounded mean may differ from equal values
    # by a power of 2, which changes no digit: the square of a difference could be too small or too large for a float
    scaled = x * pl.lit(2.0).pow(-x.abs().max().log(2).floor())
    return pl.when(constant).then(0.0).otherwise((scaled - scaled.mean()) / scaled.std(ddof=0))


def _percentile(x: pl.Expr) -> pl.Expr:
    return pl.when(x.count() == 1).then(0.5).otherwise((_ranks(x) - 1) / (x.count() - 1))


def _ratio(x: pl.Expr) -> pl.Expr:
    """By the size of the mean, so that higher stays higher where values are negative."""
    ratio = x / x.mean().abs()
    return pl.when((x.max() == 0) & (x.min() == 0)).then(0.0).when(ratio.is_finite()).then(ratio)


def _none(x: pl.Expr) -> pl.Expr:
    return x


NORM_MODES: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "zscore": _zscore,
    "percentile": _percentile,
    "ratio": _ratio,
    "none": _none,
}


def _weighted(terms: Mapping[str, pl.Expr], weights: Weights) -> pl.Expr:
    """The weighted sum in the order of the weights, so that its rounding is always the same."""
    total: pl.Expr | None = None
    for name, weight in weights.items():
        if weight:
            number = pl.col(weight) if isinstance(weight, str) else weight
            total = number * terms[name] if total is None else total + number * terms[name]
    return pl.lit(0.0) if total is None else total


def _by_rank(weights: Weights, group: Sequence[str]) -> pl.Expr:
    return _weighted({name: pl.col(f"{name}_rank") for name in weights}, weights)


def _by_reciprocal_rank(weights: Weights, group: Sequence[str]) -> pl.Expr:
    places = {name: _over(pl.col(name).rank("average", descending=True), group) for name in weights}
    return _weighted({name: 1 / (RRF_CONSTANT + place) for name, place in places.items()}, weights)


def _by_sum(weights: Weights, group: Sequence[str]) -> pl.Expr:
    return _weighted({name: pl.col(f"{name}_norm") for name in weights}, weights)


FUSIONS: dict[str, Callable[[Weights, Sequence[str]], pl.Expr]] = {
    "rank": _by_rank,
    "rrf": _by_reciprocal_rank,
    "sum": _by_sum,
}


def _ordered(frame: pl.DataFrame, by: list[str], unit: Unit) -> pl.DataFrame:
    keys = [*by, "layer", unit]
    falling = [False] * len(by) + [True, True, False, False]
    place = pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    ordered = frame.sort([*by, "combined", "_tiebreak", "layer", unit], descending=falling, maintain_order=True)
    numbered = ordered.with_columns(
        rank=_over(place, by),
        tied_rank=_over(pl.col("combined").round_sig_figs(TIE_DIGITS).rank("min", descending=True).cast(pl.Int64), by),
        layer_rank=_over(place, [*by, "layer"]),
    )
    return numbered.drop("_tiebreak").sort(keys)
