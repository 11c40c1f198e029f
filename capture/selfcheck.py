"""Compares what is recorded with the model's own eager attention before any work is done."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.errors import InputError, RunError, one_line, typed_line
from ..data.reader import ROW_SUM_TOLERANCE
from ..data.settings import CaptureSettings
from ..data.tokens import Tokens
from .attention import CannotRecordError
from .eager import eager, eager_options
from .models import is_out_of_memory
from .prefixes import Group
from .projections import head_results, projection_error
from .recorded import Recorded
from .recorder import NoAttentionError, Recorder
from .runner import ModelError, Runner, Work

logger = logging.getLogger("headscore")

Values = npt.NDArray[np.float32]

# Largest differences that rounding explains, by dtype: total variation of a pattern, and of norms and entropies relative to
# the layer's largest. Total variation does not shrink with the prompt's length, as a difference of single weights does.
TOLERANCES = {"fp32": (1e-3, 1e-3), "fp16": (2e-2, 3e-2), "bf16": (1e-1, 1.5e-1)}
MOST_TRIED = 8  # samples from either end, where the first give values that are not finite
MOST_TOKENS = 512  # eager attention holds a layer's H·T² weights at once, so the check's prompts must not be long


def checked_recorder(
    model: PreTrainedModel, samples: Sequence[Tokens], dtype: str, settings: CaptureSettings
) -> tuple[Recorder, dict[str, Any]]:
    """A recorder that has passed the self-check, and what was found: by the recording function, else by eager attention.

    Raises InputError for a model that neither way can serve, and as `self_check`.
    """
    all_tokens = settings.queries == "all_tokens"
    recorder = Recorder(all_tokens)
    try:
        return recorder, self_check(model, recorder, samples, dtype, settings)
    except (CannotRecordError, InputError) as error:
        failed = error
    recorder = Recorder(all_tokens, eager=True)
    try:
        check = self_check(model, recorder, samples, dtype, settings)
    except NoAttentionError as error:
        raise (failed if model._can_set_attn_implementation() else error) from None
    logger.warning("%s; its own eager attention is used instead, which is slower", one_line(failed.__cause__ or failed)[:300])
    return recorder, check


def self_check(
    model: PreTrainedModel, recorder: Recorder, samples: Sequence[Tokens], dtype: str, settings: CaptureSettings
) -> dict[str, Any]:
    """Run the shortest and the longest of `samples` as the capture will, and one at a time through eager attention.

    They are run as one padded batch, and (with `--share-prefixes`) each once more with its first half as a prefix. Where a
    layer's output projection cannot be split by heads, `recorder.results` is False afterwards.

    Returns the `layers`, `heads` and `kv_heads` that were recorded, the `rows` checked, the `largest_difference` per array,
    `shared_prefixes`: whether prefixes may be run once for many prompts (recurrent models cannot), and `attention`: by what
    `way` patterns are made (recorded or eager), whether rows sum to 1 (`full_rows`; with sink logits they do not), and whether
    there are `result_norms`.
    Raises InputError where the model has no attention or cannot take the longest of all samples, CannotRecordError, naming
    layer and array, where a difference is above the dtype's tolerance (the recorded values would be wrong for this model), and
    RunError where a value is not finite; with `--on-nan skip` others are tried then.
    """
    if dtype == "fp32" and not all(parameter.is_floating_point() for parameter in model.parameters()):
        dtype = "fp16"  # quantised layers round what they are given
    by_length = sorted(samples, key=lambda sample: len(sample.ids))
    short_enough = [sample for sample in by_length if len(sample.ids) <= MOST_TOKENS] or by_length[:1]
    if short_enough[-1] is not by_length[-1]:
        _record(model, recorder, by_length[-1:])  # can the model take it at all?
    checked = _finite_samples(model, recorder, short_enough, dtype, settings.on_nan)
    expected = [_eager(model, sample, recorder, dtype) for sample in checked]
    recorded = _record(model, recorder, checked)
    if not all(values.finite[position] for values, position in recorded):
        rows = " and ".join(str(sample.row) for sample in checked)
        raise RunError(f"self-check: rows {rows}: NaN or infinite in a batch, but not alone; give a wider --dtype (bf16, fp32)")
    worst = _differences(model, checked, recorded, expected, dtype)
    shared = settings.share_prefixes
    if shared:
        try:
            halves = [Group(len(sample.ids) // 2, [[i]]) for i, sample in enumerate(checked)]
            after_prefix = _record(model, recorder, checked, halves)
            differences = _differences(model, checked, after_prefix, expected, dtype)
            worst = {name: max(difference, differences[name]) for name, difference in worst.items()}
        except Exception as error:  # whatever comes of a model that cannot
            logger.warning("what prompts share is run again for each of them: %s", one_line(error)[:300])
            shared = False
    rows_of = [layer["last_token/attention"] for eager in expected for layer in eager.values()]
    return {
        "layers": recorded[0][0].layers,
        "heads": recorded[0][0].arrays["last_token/attention"].shape[2],
        "kv_heads": recorder.kv_heads,
        "rows": [sample.row for sample in checked],
        "largest_difference": worst,
        "shared_prefixes": shared,
        "attention": {
            "way": "eager" if recorder.eager else "recorded",
            "full_rows": not recorder.sinks and min(float(rows.sum(-1).min()) for rows in rows_of) > 1 - ROW_SUM_TOLERANCE,
            "result_norms": recorder.results,
        },
    }


def _differences(
    model: PreTrainedModel,
    samples: Sequence[Tokens],
    recorded: Sequence[tuple[Recorded, int]],
    expected: Sequence[Mapping[int, Mapping[str, Values]]],
    dtype: str,
) -> dict[str, float]:
    """By array the largest difference of what was recorded from what was expected; CannotRecordError above the tolerance.

    Where a layer has no output projection there is nothing to hold its output norms against.
    """
    worst: dict[str, float] = defaultdict(float)
    for sample, (values, position), eager_values in zip(samples, recorded, expected, strict=True):
        for entry, layer in enumerate(values.layers):
            for name in (name for name in values.arrays if name in eager_values[layer]):
                found, wanted = values.arrays[name][entry, position], eager_values[layer][name]
                pattern = name.endswith("attention")
                difference = _total_variation(found[:, : len(sample.ids)], wanted) if pattern else _relative(found, wanted)
                tolerance = TOLERANCES[dtype][0 if pattern else 1]
                if not difference <= tolerance:  # catches NaN too
                    raise CannotRecordError(
                        f"self-check failed for {model.config.model_type}: layer {layer}, {name} differs from the model's own "
                        f"eager attention by {difference:.2g} (tolerance {tolerance:g} for {dtype})"
                    )
                worst[name] = max(worst[name], difference)
    return {name: worst[name] for name in sorted(worst)}


def _finite_samples(
    model: PreTrainedModel, recorder: Recorder, by_length: Sequence[Tokens], dtype: str, on_nan: str
) -> list[Tokens]:
    """The shortest and the longest sample whose values are finite; RunError for one that is not, if `--on-nan` says stop."""
    found: list[Tokens] = []
    fault = ""
    for candidates in (by_length, by_length[::-1]):
        for sample in candidates[:MOST_TRIED]:
            alone, position = _record(model, recorder, [sample])[0]
            if alone.finite[position]:
                found += [] if any(sample is other for other in found) else [sample]
                break
            fault = f"self-check: row {sample.row}: {alone.first_fault(position)}; the model overflows in {dtype}"
            if on_nan == "stop":
                raise RunError(f"{fault}: give a wider --dtype (bf16, fp32), or leave such rows out with --on-nan skip")
    if not found:
        raise RunError(f"{fault}, as in every other prompt that was tried: give a wider --dtype (bf16, fp32)")
    return found


def _record(
    model: PreTrainedModel, recorder: Recorder, samples: Sequence[Tokens], groups: Sequence[Group] | None = None
) -> list[tuple[Recorded, int]]:
    """For each sample what was recorded of its batch, and its position in it; by default all of them make one batch."""
    tokens = max(len(sample.ids) for sample in samples)
    padded = len(samples) * tokens
    runner = Runner(model, recorder, padded, overhead=padded)  # at that price of another batch there is only one
    found: dict[int, tuple[Recorded, int]] = {}
    try:
        with torch.inference_mode(), recorder.listening(model):
            work = Work(0, samples, groups or [Group(0, [[i] for i in range(len(samples))])])
            for _, batch, recorded in runner.run([work]):
                found |= {i: (recorded, position) for position, same in enumerate(batch.index) for i in same}
    except ModelError as error:
        raise InputError(
            f"{model.config.model_type}: fails on a prompt of {tokens} tokens, perhaps longer than it can take "
            f"(then lower --max-length): {one_line(error)[:200]}"
        ) from error
    return [found[i] for i in range(len(samples))]


def _eager(model: PreTrainedModel, sample: Tokens, recorder: Recorder, dtype: str) -> dict[int, dict[str, Values]]:
    """By layer, what the arrays of the cache should hold for a sample, by the model's own eager attention.

    One sample, no padding; z is what enters the layer's output projection, and its results are made in full. Where they do not
    add up to what the projection gives, it cannot be split by heads, and the recorder is told to leave results out.
    """
    numbers = {module: layer for layer, module in recorder.modules.items()}
    found: dict[int, dict[str, Values]] = {}

    def observe(module: nn.Module, projection: nn.Module | None, patterns: torch.Tensor, z: torch.Tensor | None) -> None:
        rows = patterns[0].float()  # [H,T,T]
        values = {
            "last_token/attention": rows[:, -1],
            "all_tokens/attention": rows.mean(1),
            "all_tokens/entropy": torch.special.entr(rows).sum(-1).mean(-1),
        }
        if z is not None and projection is not None:
            per_head = z.view(len(sample.ids), len(rows), -1)  # [T,H,D]
            norms = {"output_norm": per_head.float().norm(dim=-1)}
            if recorder.results:
                error = projection_error(projection, per_head)
                if error > TOLERANCES[dtype][1]:
                    recorder.results = False
                    logger.warning(
                        "layer %d: the results of its heads do not add up to what %s gives: there will be no result norms",
                        numbers[module], type(projection).__name__,
                    )  # fmt: skip
                norms["result_norm"] = head_results(projection, per_head).norm(dim=-1).T
            for name, value in norms.items():
                values |= {f"last_token/{name}": value[-1], f"all_tokens/{name}": value.mean(0)}
        found[numbers[module]] = {name: value.cpu().numpy() for name, value in values.items()}

    try:
        with torch.inference_mode(), eager(model, observe, recorder.modules.values()):
            ids = torch.from_numpy(sample.ids.astype(np.int64))[None].to(model.device)
            model(input_ids=ids, use_cache=False, **eager_options(model))
    except Exception as error:  # whatever an architecture's code raises
        if is_out_of_memory(error):
            raise RunError(
                f"out of memory on {model.device} in the self-check's eager attention over {len(sample.ids)} tokens; "
                "lower --max-length, or use a smaller --dtype"
            ) from error
        raise CannotRecordError(f"{model.config.model_type}: its eager attention fails: {typed_line(error)}") from error
    missing = recorder.modules.keys() - found.keys()
    if missing:
        raise CannotRecordError(f"layer {min(missing)}: eager attention gives no patterns to compare with")
    return found


def _total_variation(found: Values, expected: Values) -> float:
    """The largest total variation distance ½ Σ|a − b| of two sets of patterns [H,T], between 0 and 1."""
    return float(np.abs(found.astype(np.float32) - expected).sum(-1).max() / 2)


def _relative(found: Values, expected: Values) -> float:
    """The largest difference, as a share of the largest expected value; 0 where both are all zero."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
