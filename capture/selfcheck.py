"""Compares what is recorded with the model's own eager attention before any work is done.

Prompts of the user's own are checked, the shortest and the longest. Where something begins beyond a certain length (a window,
a sparse choice of keys, other frequencies), copies of the longest are cut to the lengths on either side of it, which makes no
difference to a causal model. What is too long for the memory that is free stays unchecked, and is said.
"""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..data.cache.value_checks import ROW_SUM_TOLERANCE
from ..data.errors import InputError, RunError, one_line
from ..data.options.settings import CaptureSettings
from ..data.prompts.tokens import Tokens
from .attention import CannotRecordError, UnsupportedModelError
from .check_prompts import CheckPrompts, check_prompts
from .check_result import SelfCheck, common
from .comparison import Comparison, checked_dtype, tolerance
from .device import profile_of
from .lengths import ALL_APART, LengthRules, length_rules
from .models import first_not_finite, path_in_whole
from .out_of_memory import has_stopped_device
from .prefixes import Group
from .projections import projection_paths
from .recorded import Recorded, wider_dtype
from .recorder import NoAttentionError, Recorder
from .reference import Reference
from .runner import ModelError, NoMemoryError, Runner, Work

logger = logging.getLogger("headscore")

MAX_TRIED = 8  # samples from either end, where the first give values that are not finite
LATER_TOLERANCE = 1e-4  # attention to later tokens that is rounding


class RefusedModelError(InputError):
    """A model that no way of recording could serve: it is not causal, its weights are not numbers, or it remembers."""


class MixedLengthsError(CannotRecordError):
    """Prompts give other values beside longer ones than alone."""


def checked_recorder(
    model: PreTrainedModel, samples: Sequence[Tokens], dtype: str, settings: CaptureSettings
) -> tuple[Recorder, SelfCheck]:
    """A recorder that has passed the self-check, and what was found.

    Tried in turn: the recording function; the model's own eager attention; and, for a model in which prompts change what those
    beside them get, either of the two with every length in passes of its own. Raises InputError for a model that none of them
    serves, RefusedModelError for one that nothing could serve, and else as `self_check`.
    """
    rules = length_rules(model.config)
    compiled = sum(len(sample.ids) for sample in samples) >= profile_of(model.device).compile_from
    failures: list[CannotRecordError | InputError] = []
    for eager in (False, True):
        recorder = Recorder(settings.queries == "all_tokens", eager=eager, compiled=compiled)
        try:
            check = self_check(model, recorder, samples, dtype, settings, rules)
        except RefusedModelError:
            raise
        except (CannotRecordError, InputError) as error:
            if eager and isinstance(error, NoAttentionError):
                raise (failures[0] if model._can_set_attn_implementation() else error) from None
            failures.append(error)
            continue
        if eager:
            _warn(failures[0], "its own eager attention is used instead, which is slower")
        return recorder, check
    for eager, failure in zip((False, True), failures, strict=True):
        if isinstance(failure, MixedLengthsError):
            recorder = Recorder(settings.queries == "all_tokens", eager=eager, compiled=compiled)
            check = self_check(model, recorder, samples, dtype, settings, dataclasses.replace(ALL_APART, limits=rules.limits))
            _warn(failure, "prompts of different lengths are run apart, and each whole, which is slower")
            return recorder, check
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
    """Record some of `samples` as the capture will, and hold them against the model's own eager attention.

    Each is recorded alone, then in a padded batch of two, and (with `--share-prefixes`) once more with its first half as a
    prefix. Where a layer's output projection cannot be split by heads, `recorder.results` is False afterwards.

    Raises InputError where the model has no attention or cannot take the longest of all samples, RefusedModelError,
    CannotRecordError, naming layer and array, where a difference is above the dtype's tolerance (the recorded values would be
    wrong for this model), MixedLengthsError where that is so only beside other prompts, and RunError where memory runs out or a
    value is not finite; with `--on-nan skip` others are tried then.
    """
    by_length = sorted(samples, key=lambda sample: len(sample.ids))
    shortest, longest = _finite_ends(model, recorder, by_length, dtype, settings.on_nan)
    prompts = check_prompts(model, recorder, shortest, longest, rules.limits)
    dtype = checked_dtype(model, dtype)
    _require_causal(model, prompts.reference)
    _leave_out_results(recorder, prompts.reference, tolerance("result_norm", dtype))
    compare = Comparison(model.config.model_type, dtype)
    recorder.exact = None if recorder.eager else {}
    try:
        _check_whole(model, recorder, prompts, rules, compare)
        shared = settings.share_prefixes and _can_share(model, recorder, prompts, rules, compare)
    finally:
        exact, recorder.exact = recorder.exact, None
    rows_of = [layer["last_token/attention"] for values in prompts.values.values() for layer in values.values()]
    return SelfCheck(
        layers=sorted(recorder.modules),
        heads=recorder.heads,
        kv_heads=common(recorder.kv_heads),
        head_dim=common(recorder.head_dims),
        way="eager" if recorder.eager else "recorded",
        full_rows=not recorder.sinks and min(float(rows.sum(-1).min()) for rows in rows_of) > 1 - ROW_SUM_TOLERANCE,
        result_norms=recorder.results,
        shared_prefixes=shared,
        rules=rules,
        rows=sorted({copy.row for copy in prompts.prompts}),
        lengths=sorted({len(copy.ids) for copy in prompts.prompts}),
        longest=len(by_length[-1].ids),
        largest_difference=dict(sorted(compare.worst.items())),
        exact_difference=dict(sorted((exact or {}).items())),
        projections=projection_paths(model, path_in_whole(model), recorder.modules, recorder.projections),
    )


def _finite_ends(
    model: PreTrainedModel, recorder: Recorder, by_length: Sequence[Tokens], dtype: str, on_nan: str
) -> tuple[Tokens, Tokens]:
    """The shortest and the longest sample whose values are finite; RunError for one that is not, if `--on-nan` says stop."""
    found: list[Tokens] = []
    first: Recorded | None = None
    fault = ""
    for candidates in (by_length, by_length[::-1]):
        for sample in candidates[:MAX_TRIED]:
            alone, position = _record(model, recorder, [sample])[0]
            if alone.finite[position]:
                found.append(sample)
                first = first or alone
                break
            _require_finite_weights(model, dtype)
            fault = f"self-check: row {sample.row}: {alone.first_fault(position)}; the model overflows in {dtype}"
            if on_nan == "stop":
                raise RunError(f"{fault}: {wider_dtype(dtype)}leave such rows out with --on-nan skip")
    if not found or first is None:
        raise RunError(f"{fault}, as in every other prompt that was tried: {wider_dtype(dtype)}use another model")
    _require_no_memory(model, recorder, found[0], first, dtype)
    return found[0], found[-1]


def _require_no_memory(model: PreTrainedModel, recorder: Recorder, sample: Tokens, first: Recorded, dtype: str) -> None:
    """Raises RefusedModelError where a sample has other values now than when it was `first` run, before any longer one."""
    expected = {layer: {name: v[entry, 0] for name, v in first.arrays.items()} for entry, layer in enumerate(first.layers)}
    kind = model.config.model_type
    try:
        Comparison(kind, checked_dtype(model, dtype))(sample, _record(model, recorder, [sample])[0], expected)
    except CannotRecordError as error:
        raise RefusedModelError(
            f"{kind}: gives row {sample.row} other values once another prompt was run: its code keeps something from one pass "
            "to the next, or draws at random; no value of it could be relied on"
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
        recorder.results = False
        name = type(recorder.projections[layer]).__name__
        logger.warning(
            "layer %d: the results of its heads do not add up to what %s gives: there will be no result norms", layer, name
        )


def _check_whole(
    model: PreTrainedModel, recorder: Recorder, prompts: CheckPrompts, rules: LengthRules, compare: Comparison
) -> None:
    """Hold each prompt, run alone and beside the other of its pair, against what is expected of it."""
    for prompt in prompts.prompts:
        compare(prompt, _record(model, recorder, [prompt])[0], prompts.expected(prompt))
    longest = max(len(prompt.ids) for prompt in prompts.prompts)
    for pair in prompts.pairs:
        groups = _by_way(pair, rules)
        try:
            for prompt, recorded in zip(pair, _record(model, recorder, pair, groups, rules, longest), strict=True):
                compare(prompt, recorded, prompts.expected(prompt))
        except CannotRecordError as error:
            raise (MixedLengthsError(error.message) if len(groups) < len(pair) else error) from error


def _can_share(
    model: PreTrainedModel, recorder: Recorder, prompts: CheckPrompts, rules: LengthRules, compare: Comparison
) -> bool:
    """Whether prompts whose first half is run apart give what they give when they are run whole; False where none can be."""
    tried, kind = False, model.config.model_type
    for prompt in prompts.prompts:
        half = len(prompt.ids) // 2
        if not half or rules.way(half) != rules.way(len(prompt.ids)):
            continue
        tried = True
        try:
            compare(prompt, _record(model, recorder, [prompt], [Group(half, [[0]])])[0], prompts.expected(prompt))
        except NoMemoryError:
            raise
        except (RunError, InputError) as error:  # whatever comes of a model that cannot
            if has_stopped_device(error):
                raise
            reason = one_line(error.__cause__ or error)[:200]
            logger.warning("what prompts share is run again for each of them, as %s cannot go on from it: %s", kind, reason)
            return False
    return tried


def _by_way(samples: Sequence[Tokens], rules: LengthRules) -> list[Group]:
    ways: dict[int, list[list[int]]] = defaultdict(list)
    for number, sample in enumerate(samples):
        ways[rules.way(len(sample.ids))].append([number])
    return [Group(0, members) for members in ways.values()]


def _record(
    model: PreTrainedModel,
    recorder: Recorder,
    samples: Sequence[Tokens],
    groups: Sequence[Group] | None = None,
    rules: LengthRules = ALL_APART,
    longest: int = 0,
) -> list[tuple[Recorded, int]]:
    """For each sample what was recorded of its batch, and its position in it; by default all of them make one batch.

    rules, longest: as of a `Runner`.
    """
    tokens = max(len(sample.ids) for sample in samples)
    padded = len(samples) * max(tokens, longest)
    # At that price of another batch there is only one.
    runner = Runner(model, recorder, padded, overhead=padded, rules=rules, longest=longest)
    found: dict[int, tuple[Recorded, int]] = {}
    try:
        with torch.inference_mode(), recorder.listening(model):
            work = Work(samples, groups or [Group(0, [[i] for i in range(len(samples))])])
            for _, batch, recorded in runner.run([work]):
                found |= {i: (recorded, position) for position, same in enumerate(batch.index) for i in same}
    except ModelError as error:
        raise InputError(
            f"{model.config.model_type}: fails on a prompt of {tokens} tokens, perhaps longer than it can take "
            f"(then lower --max-length): {one_line(error)[:200]}"
        ) from error
    return [found[i] for i in range(len(samples))]


def _warn(failure: Exception, consequence: str) -> None:
    logger.warning("%s; %s", one_line(failure.__cause__ or failure)[:300], consequence)
