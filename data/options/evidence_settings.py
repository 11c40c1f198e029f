"""The options of the commands that ask how far a ranking may be trusted: compare, stability, sweep and control."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .checked import Checked, option

Effect = Literal["kl", "nll", "gate_gradient", "abs_gate_gradient"]


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Checked):
    """What rankings are compared by: the options of `headscore compare` besides those of `score`."""

    compare_by: str = option("combined", "Compare by this signal alone, reversed by a leading -, as in -ent.")
    effect: Effect | None = option(
        None, "Which effect of single heads a validation is ranked by; if not given, the first that it has, kl before others."
    )


@dataclass(frozen=True, kw_only=True)
class StabilitySettings(Checked):
    """How the stability of a ranking is found: the options of `headscore stability` besides those of `score`."""

    repeats: int = option(20, "How often the samples are divided anew at each size.", least=2, most=1000)
    seed: int = option(42, "Seed of the divisions.", least=0, most=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Checked):
    """Which settings are tried: the options of `headscore sweep` besides those of `score`."""

    grid: tuple[str, ...] = option(
        ("ent=0:2:21", "task=0:2:21"),
        "SIGNAL=FROM:TO:COUNT or SIGNAL=WEIGHT,WEIGHT: weights to try; also fusion, norm_mode or within; repeat for several.",
    )
    against: Path | None = option(
        None, "A cache, results, a validation with single heads, or a list of heads to compare with; if not given, the ranking."
    )
    effect: Effect | None = option(
        None, "Which effect of single heads a validation is ranked by; if not given, the first that it has, kl before others."
    )


@dataclass(frozen=True, kw_only=True)
class ControlSettings(Checked):
    """What signals are compared with: the options of `headscore control` besides those of the ranking."""

    against: Path | None = option(
        None, "Cache that is the control, of the same model: --control prompts of the same rows, or another task."
    )
    random_span: bool = option(
        False, "Take as the control a random stretch of text in the same prompt, as long as the task's span."
    )
    fdr: float = option(
        0.05, "False discovery rate: which share of the heads that are found may be found by chance.", least=1e-6, most=0.5
    )
    two_sided: bool = option(False, "Find heads that are lower than the control, too, not only higher ones.")
    seed: int = option(42, "Seed of the random stretches.", least=0, most=2**32 - 1)
