"""The measures of a shard as a table with a line per layer, head and sample, and the signals that are made of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ..data.errors import OptionError, one_line
from .expressions import require_same_in_parts
from .measures import Measure
from .recipe import Recipe


class MeasureTable:
    """Some layers of a shard's measures; lines are ordered by layer, head, sample.

    Args:
        recipe: how columns are called and made.
        samples: what is known of each sample, arrays [n] by name.
        layers: places in the list of layers.
        measures: float32 [len(layers),H,n] by name, as far as they are needed.
        first: the number in the cache of the first sample.
    """

    def __init__(
        self,
        recipe: Recipe,
        samples: Mapping[str, npt.NDArray[Any]],
        layers: Sequence[int],
        measures: Mapping[str, Measure],
        first: int = 0,
    ):
        self._recipe, self._samples, self._measures, self.first = recipe, samples, measures, first
        self._layers = np.array([recipe.layers[place] for place in layers], np.int32)
        self.count = len(samples["row"])

    def frame(self, columns: Iterable[str]) -> pl.DataFrame:
        """The named columns of `Recipe.schema`, in its dtypes."""
        schema = self._recipe.schema
        made = {name: self._column(name) for name in columns}
        return pl.DataFrame(made, schema_overrides={name: schema[name] for name in made}, nan_to_null=True)

    def signals(self, names: Sequence[str]) -> pl.DataFrame:
        """The named signals, Float64; null where one is undefined.

        Raises InputError where one is NaN or infinite, or is not one value for each line; it says for which row and head.
        """
        frame = self.frame(self._recipe.needs(names) or ["tokens"])
        expressions = [self._recipe.signals[name].expression.cast(pl.Float64).alias(name) for name in names]
        try:
            found = frame.select(expressions)
        except Exception as error:  # what a function of the user's raises, or a cast that fails
            raise OptionError(f"--signal {self._failing(frame, names)}: cannot be computed: {one_line(error)[:160]}") from error
        if len(found) != len(frame):
            raise OptionError(f"--signal: {', '.join(names)} give {len(found)} values for {len(frame)} samples and heads")
        finite = found.select(pl.all().is_finite().all()).row(0)  # null is passed over
        for name in [name for name, whole in zip(names, finite, strict=True) if not whole]:
            self._raise_not_finite(found[name])
        for signal in (self._recipe.signals[name] for name in names if self._recipe.signals[name].own):
            require_same_in_parts(signal.expression, frame, found[signal.name], signal.title, "sample")
        return found

    def _failing(self, frame: pl.DataFrame, names: Sequence[str]) -> str:
        """The first of some signals that cannot be computed as one value for each line of a frame."""
        for name in names:
            try:
                if len(frame.select(self._recipe.signals[name].expression.cast(pl.Float64))) != len(frame):
                    return name
            except Exception:  # the one that is sought
                return name
        return ", ".join(names)

    def _raise_not_finite(self, values: pl.Series) -> None:
        line = int((~values.is_finite()).fill_null(False).arg_max() or 0)
        place = self.frame(["row", "layer", "head"])[line].to_dicts()[0]
        what = "NaN" if np.isnan(values[line]) else "infinity"
        raise OptionError(
            f"--signal {values.name}: gives {what} for row {place['row']} in L{place['layer']}H{place['head']}; "
            "make it null where it is undefined, as with CASE WHEN … THEN … END or NULLIF"
        )

    def _column(self, name: str) -> Any:
        heads, layers, samples = self._recipe.heads, len(self._layers), self.count
        if name == "task_rest":  # exact, as both are multiples of 2⁻²⁴
            starts = self._samples[f"starts_{self._recipe.task}"]
            return self._column("task_mass") - np.where(np.tile(starts, layers * heads), self._column("sink"), 0.0)
        name = self._recipe.aliases.get(name, name)
        if name in self._measures:
            return self._measures[name].reshape(-1).astype(np.float64)
        if name == "sample":
            return np.tile(np.arange(self.first, self.first + samples), layers * heads)
        if name == "layer":
            return np.repeat(self._layers, heads * samples)
        if name in ("head", "kv_head"):
            numbers = np.arange(heads, dtype=np.int32)
            if name == "kv_head":
                if self._recipe.kv_heads is None:
                    return pl.repeat(None, layers * heads * samples, dtype=pl.Int32, eager=True)
                numbers = numbers * self._recipe.kv_heads // heads
            return np.tile(np.repeat(numbers, samples), layers)
        values = self._samples[name]
        if name in self._recipe.data:
            return pl.concat([pl.Series(name, values.tolist(), pl.String)] * (layers * heads))
        return np.tile(values, layers * heads)
