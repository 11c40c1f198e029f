"""What the self-check finds out about a model, and what of it was checked."""

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedModel

from ...data.cache.metadata import SelfCheckFacts
from ..inputs.lengths import LengthRules
from ..recording.recorder import Recorder

logger = logging.getLogger("headscore")


@dataclass(frozen=True)
class SelfCheck:
    """What was found out about a model, and what was checked.

    Args:
        layers: the model's number of each layer with attention, L of them.
        heads: query heads of a layer.
        kv_heads: how many groups of them share a key; None where layers differ in it.
        head_dim: values of z of a head; None where layers differ in it.
        way: `recorded` beside SDPA or `eager`.
        full_rows: whether pattern rows sum to 1; with sink logits they do not.
        result_norms: whether the norms ‖W_O z‖ are recorded.
        shared_prefixes: whether common prefixes may be run once; a recurrent model cannot go on from one.
        rules: which prompts may be run in one pass.
        rows: rows of the data file whose prompts, or copies of them cut to a length, were checked.
        lengths: the numbers of tokens of those, rising.
        longest: tokens of the longest prompt of all.
        largest_difference: from eager attention by array: total variation of attention, else relative.
        exact_difference: from an exact softmax of the same queries and keys, by array; empty for eager attention.
        projections: the paths of each layer's projections, as `projection_paths` finds them.
    """

    layers: list[int]
    heads: int
    kv_heads: int | None
    head_dim: int | None
    way: Literal["recorded", "eager"]
    full_rows: bool
    result_norms: bool
    shared_prefixes: bool
    rules: LengthRules
    rows: list[int]
    lengths: list[int]
    longest: int
    largest_difference: dict[str, float] = field(default_factory=dict)
    exact_difference: dict[str, float] = field(default_factory=dict)
    projections: list[dict[str, str | None]] = field(default_factory=list)

    def metadata(self) -> SelfCheckFacts:
        """What `cache.json` says under `self_check`."""
        return {
            "rows": self.rows,
            "lengths": self.lengths,
            "checked_tokens": self.lengths[-1],
            "longest_tokens": self.longest,
            "largest_difference": self.largest_difference,
            "exact_difference": self.exact_difference,
            "shared_prefixes": self.shared_prefixes,
            "length_rules": dataclasses.asdict(self.rules),
        }

    def log(self) -> None:
        """Say what was found, and what could not be checked."""
        worst, checked = max(self.largest_difference.values()), self.lengths[-1]
        logger.info("self-check passed: within %.1g of the model's own eager attention, up to %d tokens", worst, checked)
        if checked < self.longest:
            logger.warning(
                "self-check: the longest prompt has %d tokens, but memory holds eager attention over no more than about %d: "
                "what begins beyond that is not checked", self.longest, checked,
            )  # fmt: skip


@dataclass(frozen=True)
class CheckedModel:
    """A model that has passed the self-check.

    Args:
        model: as loaded.
        recorder: the one that the check was made with, and so is right for the model.
        check: what was found.
    """

    model: PreTrainedModel
    recorder: Recorder
    check: SelfCheck
