"""Compares what is recorded with the model's own eager attention before any work is done.

Prompts of the user's own are checked, the shortest and the longest. Where something begins beyond a certain length (a window,
a sparse choice of keys, other frequencies), copies of the longest are cut to the lengths on either side of it, which makes no
difference to a causal model. What is too long for the memory that is free stays unchecked, and a warning says so.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from ...data.cache.value_checks import ROW_SUM_TOLERANCE
from ...data.errors import InputError, RunError, one_line
from ...data.options.settings import CaptureSettings
from ...data.prompts.tokens import Tokens
from ..inputs.lengths import ALL_APART, LengthRules, length_rules
from ..model.device import profile_of
from ..model.models import first_not_finite, path_in_whole
from ..model.out_of_memory import has_stopped_device
from ..model.projections import projection_paths
from ..recording.attention import CannotRecordError, UnsupportedModelError
from ..recording.prefixes import Group
from ..recording.recorded import Recorded, wider_dtype
from ..recording.recorder import NoAttentionError, Recorder
from ..recording.runner import ModelError, NoMemoryError, Runner, Work
from .check_prompts import CheckPrompts, check_prompts
from .check_result import CheckedModel, SelfCheck
from .comparison import ValueComparison, checked_dtype, tolerance
from .reference import Reference

logger = logging.getLogger("headscore")

MAX_TRIED = 8  # samples from either end, where the first give values that are not finite
LATER_TOLERANCE = 1e-4  # attention to later tokens that is rounding


class RefusedModelError(InputError):
    """A model that no way of recording could serve: it is not causal, its weights are not numbers, or it remembers."""


class MixedLengthsError(CannotRecordError):
    """Prompts give other values beside longer ones than alone."""


def checked_model(model: PreTrainedModel, samples: Sequence[Tokens], dtype: str, settings: CaptureSettings) -> CheckedModel:
    """The model with a recorder that has passed the self-check, and what was found.

    Tried in turn: the recording function; the model's own eager attention; and, for a model in which prompts change what those
    beside them get, either of the two with every length in passes of its own.

    Args:
        model: as loaded.
        samples: all that are to be captured, at least one; a few of them are run.
        dtype: fp32, fp16 or bf16, in which the model is loaded.
        settings: of the capture.

    Raises InputError for a model that none of them serves, RefusedModelError for one that nothing could serve, and otherwise as
    `self_check`.
    """
    rules = length_rules(model.config)
    compiled = sum(len(sample.ids) for sample in samples) >= profile_of(model.device).compile_from

    def checked(eager: bool, rules: LengthRules) -> CheckedModel:
        recorder = Recorder(settings.queries == "all_tokens", eager=eager, compiled=compiled)
        return CheckedModel(model, recorder, self_check(model, recorder, samples, dtype, settings, rules))

    failures: list[CannotRecordError | InputError] = []
    for eager in (False, True):
        try:
            found = checked(eager, rules)
        except RefusedModelError:
            raise
        except (CannotRecordError, InputError) as error:
            if eager and isinstance(error, NoAttentionError):
                raise (failures[0] if model._can_set_attn_implementation() else error) from None
            failures.append(error)
            continue
        if eager:
            _warn(failures[0], "its own eager attention is used instead, which is slower")
        return found
    for eager, failure in zip((False, True), failures, strict=True):
        if isinstance(failure, MixedLengthsError):
            found = checked(eager, replace(ALL_APART, limits=rules.limits))
            _warn(failure, "prompts of different lengths are run apart, and each whole, which is slower")
            return found
    if isinstance(failures[-1], UnsupportedModelError):
        raise RefusedModelError(str(failures[-1])) from failures[-1]
    raise failures[-1]


def self_check(
    model: PreTrainedModel,
    recorder: Recorder,
    samples: Sequence[Tokens],
    dtype: str,
    settings: CaptureSettings,
    rules: LengthRules,
) -> SelfCheck:
    """Record some samples as the capture will, and compare them with the model's own eager attention.

    Each is recorded alone, then in a padded batch of two, and (with `--share-prefixes`) once more with its first half as a
    prefix.

    Args:
        model: as loaded.
        recorder: one that has heard nothing yet. It records no result norms afterwards where an output projection cannot be
            split by heads.
        samples: as of `checked_model`, and so are `dtype` and `settings`.
        rules: which prompts may share a pass.

    Raises InputError where the model has no attention or cannot take the longest of all samples; RefusedModelError;
    CannotRecordError, naming layer and array, where a difference is above the dtype's tolerance, so that the recorded values
    would be wrong for this model; MixedLengthsError where that is so only beside other prompts; and RunError where memory runs
    out or a value is not finite. With `--on-nan skip` other samples are tried first.
    """
    by_length = sorted(samples, key=lambda sample: len(sample.ids))
    passes = _Passes(model, recorder, rules)
    shortest, longest = _finite_ends(passes, by_length, dtype, settings.on_nan)
    prompts = check_prompts(model, recorder, shortest, longest, rules.limits)
    dtype = checked_dtype(model, dtype)
    _require_causal(model, prompts.reference)
    _leave_out_results(recorder, prompts.reference, tolerance("result_norm", dtype))
    compare = ValueComparison(model.config.model_type, dtype)
    with recorder.compared_exactly() as exact:
        _check_whole(passes, prompts, compare)
        shared = settings.share_prefixes and _can_share(passes, prompts, compare)
    rows = [layer["last_token/attention"] for values in prompts.values.values() for layer in values.values()]
    known, checked = recorder.known, prompts.prompts
    sinks = any(layer.sinks for layer in known.layers.values())
    return SelfCheck(
        layers=sorted(known.layers),
        heads=known.heads,
        kv_heads=_common(layer.kv_heads for layer in known.layers.values()),
        head_dim=_common(layer.head_dim for layer in known.layers.values()),
        way="eager" if recorder.eager else "recorded",
        full_rows=not sinks and min(float(row.sum(-1).min()) for row in rows) > 1 - ROW_SUM_TOLERANCE,
        result_norms=known.results,
        shared_prefixes=shared,
        rules=rules,
        rows=sorted({prompt.row for prompt in checked}),
        lengths=sorted({len(prompt.ids) for prompt in checked}),
        longest=len(by_length[-1].ids),
        largest_difference=dict(sorted(compare.worst.items())),
        exact_difference=dict(sorted(exact.items())),
        projections=projection_paths(model, path_in_whole(model), known.modules, known.projections),
    )


def _common(by_layer: Iterable[int]) -> int | None:
    """The number that all layers have, None where they differ in it."""
    different = set(by_layer)
    return different.pop() if len(different) == 1 else None


@dataclass(frozen=True)
class _Passes:
    """Runs samples through a model as a capture does, with what is recorded of each."""

    model: PreTrainedModel
    recorder: Recorder
    rules: LengthRules

    @property
    def kind(self) -> str:
        """Of model, for messages."""
        return str(self.model.config.model_type)

    def alone(self, sample: Tokens, prefix: int = 0) -> tuple[Recorded, int]:
        """What is recorded of a sample without others beside it, and its position there. `prefix` tokens are run apart."""
        return self._run([sample], [Group(prefix, [[0]])], ALL_APART, 0)[0]

    def together(self, samples: Sequence[Tokens], groups: Sequence[Group], longest: int) -> list[tuple[Recorded, int]]:
        """For each sample what is recorded of its batch, and its position in it; every group makes one batch.

        Args:
            samples: to be run.
            groups: their numbers.
            longest: as of a `Runner`.
        """
        return self._run(samples, groups, self.rules, longest)

    def _run(
        self, samples: Sequence[Tokens], groups: Sequence[Group], rules: LengthRules, longest: int
    ) -> list[tuple[Recorded, int]]:
        tokens = max(len(sample.ids) for sample in samples)
        padded = len(samples) * max(tokens, longest)
        # With so high a price for another batch, there is only one.
        runner = Runner(self.model, self.recorder, padded, overhead=padded, rules=rules, longest=longest)
        found: dict[int, tuple[Recorded, int]] = {}
        try:
            with torch.inference_mode(), self.recorder.listening(self.model):
                for _, batch, recorded in runner.run([Work(samples, groups)]):
                    found |= {i: (recorded, position) for position, same in enumerate(batch.index) for i in same}
        except ModelError as error:
            raise InputError(
                f"{self.kind}: fails on a prompt of {tokens} tokens, perhaps longer than it can take "
                f"(then lower --max-length): {one_line(error)[:200]}"
            ) from error
        return [found[i] for i in range(len(samples))]


def _finite_ends(passes: _Passes, by_length: Sequence[Tokens], dtype: str, on_nan: str) -> tuple[Tokens, Tokens]:
    """The shortest and the longest sample whose values are finite; RunError for one that is not, if `--on-nan` says stop."""
    found: list[Tokens] = []
    first: Recorded | None = None
    fault = ""
    for candidates in (by_length, by_length[::-1]):
        for sample in candidates[:MAX_TRIED]:
            alone, position = passes.alone(sample)
            if alone.finite[position]:
                found.append(sample)
                first = first or alone
                break
            _require_finite_weights(passes.model, dtype)
            fault = f"self-check: row {sample.row}: {alone.first_fault(position)}; the model overflows in {dtype}"
            if on_nan == "stop":
                raise RunError(f"{fault}: {wider_dtype(dtype)}leave such rows out with --on-nan skip")
    if not found or first is None:
        raise RunError(f"{fault}, as in every other prompt that was tried: {wider_dtype(dtype)}use another model")
    _require_no_memory(passes, found[0], first, dtype)
    return found[0], found[-1]


def _require_no_memory(passes: _Passes, sample: Tokens, first: Recorded, dtype: str) -> None:
    """Raises RefusedModelError where a sample has other values now than when it was `first` run, before any longer one."""
    expected = {layer: {name: v[entry, 0] for name, v in first.arrays.items()} for entry, layer in enumerate(first.layers)}
    try:
        ValueComparison(passes.kind, checked_dtype(passes.model, dtype))(sample, passes.alone(sample), expected)
    except CannotRecordError as error:
        raise RefusedModelError(
            f"{passes.kind}: gives row {sample.row} other values once another prompt was run: its code keeps something from "
            "one pass to the next, or draws at random; no value of it could be relied on"
        ) from error


def _require_finite_weights(model: PreTrainedModel, dtype: str) -> None:
    name = first_not_finite(model)
    if name and dtype == "fp16":
        raise RefusedModelError(f"{model.config.model_type}: weights ({name} first) are beyond fp16: give --dtype bf16 or fp32")
    if name:
        raise RefusedModelError(
            f"{model.config.model_type}: its weights hold NaN or infinite values, {name} first: its files are damaged, or its "
            "training failed; use another copy or checkpoint"
        )


def _require_causal(model: PreTrainedModel, reference: Reference) -> None:
    for layer, later in sorted(reference.later.items()):
        if later > LATER_TOLERANCE:
            raise RefusedModelError(
                f"{model.config.model_type}: is not a causal language model: in layer {layer} a token gives {later:.2g} of its "
                "attention to later tokens; load it as a decoder (is_decoder in its config.json), or use another model"
            )


def _leave_out_results(recorder: Recorder, reference: Reference, allowed: float) -> None:
    """Have no result norms where what the heads write does not add up to what an output projection gives."""
    layer = next((layer for layer, error in sorted(reference.projection_errors.items()) if not error <= allowed), None)
    if layer is not None:
        recorder.leave_out_results()
        name = type(recorder.known.projections[layer]).__name__
        logger.warning(
            "layer %d: the results of its heads do not add up to what %s gives: there will be no result norms", layer, name
        )


def _check_whole(passes: _Passes, prompts: CheckPrompts, compare: ValueComparison) -> None:
    """Compare each prompt, run alone and beside the other of its pair, with what is expected of it."""
    for prompt in prompts.prompts:
        compare(prompt, passes.alone(prompt), prompts.expected(prompt))
    longest = max(len(prompt.ids) for prompt in prompts.prompts)
    for pair in prompts.pairs:
        groups = _by_way(pair, passes.rules)
        try:
            for prompt, recorded in zip(pair, passes.together(pair, groups, longest), strict=True):
                compare(prompt, recorded, prompts.expected(prompt))
        except CannotRecordError as error:
            raise (MixedLengthsError(error.message) if len(groups) < len(pair) else error) from error


def _can_share(passes: _Passes, prompts: CheckPrompts, compare: ValueComparison) -> bool:
    """Whether prompts whose first half is run apart give what they give when they are run whole; False where none can be."""
    tried = False
    for prompt in prompts.prompts:
        half = len(prompt.ids) // 2
        if not half or passes.rules.way(half) != passes.rules.way(len(prompt.ids)):
            continue
        tried = True
        try:
            compare(prompt, passes.alone(prompt, half), prompts.expected(prompt))
        except NoMemoryError:
            raise
        except (RunError, InputError) as error:  # whatever comes of a model that cannot
            if has_stopped_device(error):
                raise
            reason = one_line(error.__cause__ or error)[:200]
            logger.warning(
                "what prompts share is run again for each of them, as %s cannot go on from it: %s", passes.kind, reason
            )
            return False
    return tried


def _by_way(samples: Sequence[Tokens], rules: LengthRules) -> list[Group]:
    ways: dict[int, list[list[int]]] = defaultdict(list)
    for number, sample in enumerate(samples):
        ways[rules.way(len(sample.ids))].append([number])
    return [Group(0, members) for members in ways.values()]


def _warn(failure: Exception, consequence: str) -> None:
    logger.warning("%s; %s", one_line(failure.__cause__ or failure)[:300], consequence)
