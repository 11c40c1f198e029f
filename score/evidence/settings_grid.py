"""The settings that a sweep tries: every combination of some weights and some ways of ranking."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ...data.errors import OptionError, did_you_mean
from ...data.options.checked import require_weight
from ...data.options.settings import Fusion, NormMode, Within

CHOICES: Mapping[str, tuple[str, ...]] = {
    "fusion": get_args(Fusion),
    "norm_mode": get_args(NormMode),
    "within": get_args(Within),
}
MAX_SETTINGS = 100_000


@dataclass(frozen=True)
class SettingsGrid:
    """The axes of a sweep.

    Args:
        weights: the weights of each signal that has an axis, in rising order.
        choices: of `fusion`, `norm_mode` and `within`, those that are tried; one each where it has no axis.
    """

    weights: Mapping[str, tuple[float, ...]]
    choices: Mapping[str, tuple[str, ...]]

    def ways(self) -> list[dict[str, str]]:
        """Every combination of the choices."""
        return [dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())]

    def combinations(self) -> list[tuple[float, ...]]:
        """Every combination of the weights, in the order of their names."""
        return list(itertools.product(*self.weights.values()))


def read_grid(texts: Sequence[str], signals: Sequence[str], given: Mapping[str, str]) -> SettingsGrid:
    """The grid that the texts of `--grid` say.

    Args:
        texts: `NAME=FROM:TO:COUNT`, so many weights at equal distances with both ends; `NAME=VALUE,VALUE,…`, weights; or
            `fusion`, `norm_mode`, `within` with some of their values.
        signals: whose weights can have an axis.
        given: the choice of each way of ranking that has no axis.

    Raises InputError for a text that says something else, a name twice, and more than MAX_SETTINGS settings.
    """
    weights: dict[str, tuple[float, ...]] = {}
    choices: dict[str, tuple[str, ...]] = {name: (value,) for name, value in given.items()}
    seen: set[str] = set()
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        option = name.replace("-", "_")
        key = option if option in CHOICES and name not in signals else name
        if not equals or not values:
            raise OptionError(f"--grid {text}: expected NAME=FROM:TO:COUNT or NAME=VALUE,VALUE, such as ent=0:2:21")
        if key in seen:
            raise OptionError(f"--grid {text}: {name} has an axis already")
        seen.add(key)
        if key in CHOICES and key not in signals:
            choices[key] = _choices(text, key, values)
        elif name in signals:
            weights[name] = _weights(text, values)
        else:
            meant = did_you_mean(name, [*signals, *CHOICES])
            raise OptionError(
                f"--grid {text}: {name} is neither a signal nor fusion, norm_mode or within; {meant}see headscore signals"
            )
    count = math.prod(len(axis) for axis in (*weights.values(), *choices.values()))
    if count > MAX_SETTINGS:
        raise OptionError(f"--grid: {count} settings are more than {MAX_SETTINGS}; give fewer values")
    return SettingsGrid(weights, choices)


def _choices(text: str, name: str, values: str) -> tuple[str, ...]:
    chosen = [value.strip().replace("-", "_") for value in values.split(",")]
    for value in chosen:
        if value not in CHOICES[name]:
            raise OptionError(f"--grid {text}: '{value}' is not one of {', '.join(CHOICES[name])}")
    return tuple(dict.fromkeys(chosen))


def _weights(text: str, values: str) -> tuple[float, ...]:
    try:
        if ":" in values:
            start, stop, count = values.split(":")
            if not 1 <= int(count) <= MAX_SETTINGS:
                raise OptionError(f"--grid {text}: the last number says how many weights, 1 to {MAX_SETTINGS}")
            found = np.linspace(float(start), float(stop), int(count)).tolist()
        else:
            found = [float(value) for value in values.split(",")]
    except ValueError as error:
        raise OptionError(f"--grid {text}: expected numbers as FROM:TO:COUNT, or with commas between") from error
    for weight in found:
        if not math.isfinite(weight):
            raise OptionError(f"--grid {text}: {weight} is not a finite number")
        require_weight(f"--grid {text}: the weight", weight)
    return tuple(sorted({round(weight, 12) + 0.0 for weight in found}))
