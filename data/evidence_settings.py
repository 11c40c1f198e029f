"""The options of the commands that compare rankings, and that ask how stable one is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .checked import Checked, option

Effect = Literal["kl", "nll", "gate_gradient", "abs_gate_gradient"]


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Checked):
    """What rankings are compared by: the options of `headscore compare` beside those of `score`."""

    compare_by: str = option("combined", "Compare by this signal alone; - before it turns it around.")
    effect: Effect | None = option(None, "Which cost of single heads a validation is ranked by; kl if it has that.")


@dataclass(frozen=True, kw_only=True)
class StabilitySettings(Checked):
    """How the stability of a ranking is found: the options of `headscore stability` beside those of `score`."""

    repeats: int = option(20, "How often the samples are divided anew at each size.", least=2, most=1000)
    seed: int = option(42, "Seed of the divisions.", least=0, most=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Checked):
    """Which settings are tried: the options of `headscore sweep` beside those of `score`."""

    grid: tuple[str, ...] = option(
        ("ent=0:2:21", "task=0:2:21"),
        "SIGNAL=FROM:TO:COUNT or SIGNAL=WEIGHT,WEIGHT: weights to try; also fusion, norm_mode or within; repeat for several.",
    )
    against: Path | None = option(
        None, "A cache, results, a validation with single heads, or a list of heads to compare with; if not given, the ranking."
    )
    effect: Effect | None = option(None, "Which cost of single heads a validation is ranked by; kl if it has that.")
