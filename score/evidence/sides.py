"""The two sides of a comparison with a control: which samples of which cache, and what a signal is on each."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...data.cache.folder import Cache
from ...data.errors import InputError
from ...data.options.settings import ScoreSettings
from ..kept import Store, open_store
from ..means import Float
from ..recipe import Recipe, choose_recipe
from ..shard_source import ShardSource, known_of_samples
from .pairing import OTHER_TASK, pairing_of
from .stretches import signals_of_span, with_moved_span

MAX_VALUES = 1 << 24  # of samples, heads and signals that are held at once, unless one layer has more
RANDOM_SPAN = "random span"

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Side:
    """Some samples of a cache.

    Args:
        cache: an opened cache.
        recipe: what its signals are.
        store: where measures are kept; None to keep nothing, and to use nothing kept.
        samples: how many the cache has.
        used: the places of those that count.
    """

    cache: Cache
    recipe: Recipe
    store: Store | None
    samples: int
    used: Places

    def values(self, names: Sequence[str], layers: range) -> dict[str, Float]:
        """The named signals of some layers and the samples that count, [l,H,n]; NaN where one is undefined."""
        found = {name: np.empty((len(layers), self.recipe.heads, self.samples)) for name in names}
        first = 0
        for path in self.cache.shards:
            with ShardSource(self.cache, self.recipe, self.store, path) as source:
                place = 0
                for table in source.tables(self.recipe.needs(names) or ["tokens"], layers, first):
                    signals = table.signals(names)
                    columns = slice(table.first, table.first + table.count)
                    for name in names:
                        values = signals[name].fill_null(np.nan).to_numpy().reshape(-1, self.recipe.heads, table.count)
                        found[name][place : place + len(values), :, columns] = values
                    place = (place + len(values)) % len(layers)
                first += len(source.samples["row"])
        return {name: values[:, :, self.used] for name, values in found.items()}


@dataclass(frozen=True)
class Sides:
    """What is compared with what.

    Args:
        kind: of the control: `null`, `shuffle`, `same rows`, `other task`, or `random span`.
        own: the task's side.
        control: the other. Unless it is of another task, the samples of both are pairs, in the same order.
        signals: those that the control says something of.
        left_out: how many samples are not used, and why; empty where all are.
        cautions: what else differs.
    """

    kind: str
    own: Side
    control: Side
    signals: list[str]
    left_out: str
    cautions: list[str]

    @property
    def by_pairs(self) -> bool:
        """Whether the samples of both sides are pairs."""
        return self.kind != OTHER_TASK

    def some_layers(self, signals: int) -> Iterator[range]:
        """The layers, as many at once as memory may hold the values of: if possible all, which is the fastest to read."""
        layers, heads = len(self.own.recipe.layers), self.own.recipe.heads
        step = max(1, MAX_VALUES // max(1, heads * signals * (self.own.samples + self.control.samples)))
        for start in range(0, layers, step):
            yield range(start, min(start + step, layers))


def against_cache(
    cache: Cache, recipe: Recipe, other: Cache, settings: ScoreSettings, names: Sequence[str], partial: bool
) -> Sides:
    """A cache beside another: the samples of the rows that both have, or of two tasks all.

    Raises InputError as `pairing_of` and `choose_recipe`, and where fewer than two samples are left on a side.
    """
    pairing = pairing_of(cache, other)
    own, control = _side(cache, recipe), _side(other, choose_recipe(other, settings, partial))
    left_out = ""
    if pairing.kind != OTHER_TASK:
        _, one, two = np.intersect1d(_of_samples(own, "row"), _of_samples(control, "row"), return_indices=True)
        advice = "; capture both with the same --max-samples and --seed"
        _require_two(len(one), f"--against {other.path}: rows that {cache.path} has, too", advice)
        own, control = dataclasses.replace(own, used=one), dataclasses.replace(control, used=two)
        lost, lost_control = own.samples - len(one), control.samples - len(two)
        left_out = _listed({"whose row the control lacks": lost, "of the control whose row is not here": lost_control})
    for side in (own, control):
        _require_two(len(side.used), f"{side.cache.path}: samples")
    differing = f"CAUTION: the two caches differ in more than that: {'; '.join(pairing.differing)}"
    return Sides(pairing.kind, own, control, list(names), left_out, [differing] if pairing.differing else [])


def against_stretch(cache: Cache, recipe: Recipe, settings: ScoreSettings, names: Sequence[str], seed: int) -> Sides:
    """A cache beside itself where the task's span stands in a random stretch of other text.

    Raises InputError where fewer than two prompts have such a span and room for the stretch.
    """
    moved = with_moved_span(recipe, settings.task_span, seed)
    own = _side(cache, recipe)
    control = dataclasses.replace(own, recipe=moved, store=None)
    tokens, there = (_of_samples(side, f"tokens_{recipe.task}") for side in (own, control))
    used = np.flatnonzero((tokens > 0) & (there == tokens))
    _require_two(len(used), f"{cache.path}: prompts with room for a stretch of text as long as the task's span")
    cramped = int((tokens > 0).sum()) - len(used)
    reasons = {"whose prompt has no room for such a stretch": cramped, "without such a span": int((tokens == 0).sum())}
    own, control = dataclasses.replace(own, used=used), dataclasses.replace(control, used=used)
    signals = signals_of_span(recipe, settings.task_span, list(names))
    return Sides(RANDOM_SPAN, own, control, signals, _listed(reasons), [])


def _side(cache: Cache, recipe: Recipe) -> Side:
    side = Side(cache, recipe, open_store(cache, recipe.mode), 0, np.empty(0, np.intp))
    samples = len(_of_samples(side, "row"))
    return dataclasses.replace(side, samples=samples, used=np.arange(samples))


def _of_samples(side: Side, name: str) -> npt.NDArray[Any]:
    return known_of_samples(side.cache, side.recipe, side.store, [name])[name]


def _require_two(count: int, what: str, advice: str = "") -> None:
    if count < 2:
        raise InputError(f"{what}: {count}, and a test needs two{advice}")


def _listed(counts: dict[str, int]) -> str:
    return " and ".join(f"{count} {reason}" for reason, count in counts.items() if count)
