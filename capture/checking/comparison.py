"""How far recorded values are from expected ones, and how far rounding may take them in each dtype."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedModel

from ...data.errors import RunError
from ...data.prompts.tokens import Tokens
from ..recording.attention import CannotRecordError
from ..recording.recorded import Recorded, wider_dtype
from .reference import LayerValues, Values

# Largest differences that rounding explains, by dtype: total variation of a pattern, and of norms and entropies relative to
# the layer's largest. Total variation does not shrink with the prompt's length, as a difference of single weights does.
TOLERANCES = {"fp32": (1e-3, 1e-3), "fp16": (2e-2, 3e-2), "bf16": (1e-1, 1.5e-1)}
STRAY_TOLERANCES = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 2e-2}  # of the share of a row on tokens that a mask hides

LAST_ROWS = "last_token/attention"


def differences(found: Mapping[str, Values], expected: Mapping[str, Values]) -> dict[str, float]:
    """How far one layer's values are from the expected ones, for each array that both have.

    Attention rows [H,T]: the largest total variation ½ Σ|a − b|, from 0 to 1. Else [H]: the largest difference as a share of
    the largest expected value. NaN where a value is. `last_token/stray`: the largest share of a last token's row that lies on
    tokens where the other row is exactly 0, as it is where a mask hides a token: rounding hardly moves it in any dtype.
    """
    both = [name for name in found if name in expected]
    measured = {name: (_variation if name.endswith("attention") else _share)(found[name], expected[name]) for name in both}
    if LAST_ROWS in measured:
        measured["last_token/stray"] = max(
            _stray(found[LAST_ROWS], expected[LAST_ROWS]), _stray(expected[LAST_ROWS], found[LAST_ROWS])
        )
    return measured


def tolerance(name: str, dtype: str) -> float:
    """The largest difference of an array that rounding explains for a model run in `dtype`."""
    if name.endswith("stray"):
        return STRAY_TOLERANCES[dtype]
    return TOLERANCES[dtype][0 if name.endswith("attention") else 1]


def _variation(found: Values, expected: Values) -> float:
    return float(np.abs(found.astype(np.float32) - expected).sum(-1).max() / 2)


def _stray(found: Values, expected: Values) -> float:
    return float(np.where(expected == 0, found.astype(np.float32), 0).sum(-1).max())


def _share(found: Values, expected: Values) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def checked_dtype(model: PreTrainedModel, dtype: str) -> str:
    """The dtype whose rounding is to be expected: quantised layers round what they are given, as fp16 does."""
    quantised = not all(parameter.is_floating_point() and parameter.itemsize > 1 for parameter in model.parameters())
    return "fp16" if dtype == "fp32" and quantised else dtype


class ValueComparison:
    """Compares recorded values with expected ones, and remembers the largest difference by array as `worst`.

    Args:
        kind: of model, for messages.
        dtype: fp32, fp16 or bf16, whose rounding is allowed for.
    """

    def __init__(self, kind: str, dtype: str):
        self._kind = kind
        self._dtype = dtype
        self.worst: dict[str, float] = defaultdict(float)

    def __call__(self, prompt: Tokens, recorded: tuple[Recorded, int], expected: LayerValues) -> None:
        """Compare what was recorded of a prompt (a batch, and its position there).

        Raises CannotRecordError, naming layer and array, for a difference that rounding does not explain, and RunError for a
        value that is not finite.
        """
        values, position = recorded
        if not values.finite[position]:
            fault = values.first_fault(position)
            advice = f"{wider_dtype(self._dtype)}use another model"
            raise RunError(f"self-check: row {prompt.row}, {len(prompt.ids)} tokens of it: {fault}; {advice}")
        for entry, layer in enumerate(values.layers):
            found = {name: array[entry, position] for name, array in values.arrays.items()}
            found = {name: part[:, : len(prompt.ids)] if part.ndim == 2 else part for name, part in found.items()}
            for name, difference in differences(found, expected[layer]).items():
                if not difference <= tolerance(name, self._dtype):  # catches NaN too
                    raise CannotRecordError(
                        f"self-check failed for {self._kind}: layer {layer}, {name} differs from the model's own eager "
                        f"attention by {difference:.2g} (tolerance {tolerance(name, self._dtype):g} for {self._dtype})"
                    )
                self.worst[name] = max(self.worst[name], difference)
