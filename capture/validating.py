"""Opens the model of a ranking with questions that the ranking has not seen, and runs it without sets of heads."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ..data.answers import answers_of
from ..data.errors import InputError
from ..data.journal import Journal
from ..data.prompts import PromptMaker
from ..data.rows import Row, data_file, read_data, sample_rows
from ..data.settings import CaptureSettings, ValidateSettings
from ..data.templates import BUILT_IN_TEMPLATES, Template
from . import models
from .ablation import AttentionLayer, heads_of_groups, layers_heard
from .chat import CHAT_TEMPLATE, in_chat
from .outcomes import Evaluator, Head, Outcomes
from .questions import Question, questions_of
from .ranks import this_rank
from .samples import Prompts, encode_shards
from .selfcheck import checked_recorder
from .sources import resolve

logger = logging.getLogger("headscore")

METRICS = tuple(field.name for field in dataclasses.fields(Outcomes))
INTACT, AGAIN = "intact", "again"
_ALL = 1 << 40

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Opened:
    """A model that is ready to be run over questions.

    Args:
        evaluator: runs it.
        questions: what it is asked.
        layers: its attention layers.
        subject: what the outcomes depend on beside the heads that are taken out; for a journal.
        facts: what else is to be known about them: whether the rows are `unseen` by the ranking, and whether the model is
            an `other_model`.
    """

    evaluator: Evaluator
    questions: list[Question]
    layers: Mapping[int, AttentionLayer]
    subject: dict[str, Any]
    facts: dict[str, Any]


def opened_for(record: Mapping[str, Any], options: ValidateSettings) -> Opened:
    """Load what a ranking was made of, and make questions of rows that it has not seen.

    Args:
        record: what the config.yaml of the ranking says about its cache.
        options: of the validation.

    Raises InputError where data or model cannot be used, or the model is another, and RunError where it fails.
    """
    settings = _capture_settings(record, options)
    prompts, rows, unseen = _prompts(settings, record, options)
    device = models.resolve_device(settings.device, this_rank())
    dtype = models.resolve_dtype(settings.dtype, device)
    source = resolve(
        settings.model, settings.trust_remote_code, settings.model_arguments(), settings.revision, settings.adapter
    )
    config, tokenizer = models.load_config(source), models.load_tokenizer(source)
    if settings.chat:
        prompts = in_chat(prompts, tokenizer, settings)
    (shard,) = encode_shards(prompts, tokenizer, settings)
    if shard.skipped:
        first = shard.skipped[0]
        logger.warning(
            "%s: rows that are left out: %d, the first is row %d: %s", prompts.path, len(shard.skipped), first.row, first.reason
        )
    style = prompts.maker.style
    answers = [answers_of(rows[p.row], style, p.prompt.text, options.answer) for p in shard.prompts]
    questions = questions_of(shard.prompts, answers, tokenizer, add_special=not settings.chat)

    quantised = bool(getattr(config, "quantization_config", None) or source.arguments.get("quantization_config"))
    model = models.load_model(source, dtype, device, settings.device_map, quantised=quantised, with_head=True)
    models.require_same_vocabulary(source, model, max(int(ids.max()) for question in questions for ids in question.sequences))
    decoder = models.decoder_of(model)
    fingerprint = models.model_fingerprint(decoder, source.adapter.sha256 if source.adapter else "")
    other_model = _is_other_model(record, fingerprint, source.name, dtype, options)
    recorder, check = checked_recorder(decoder, shard.prompts, dtype, settings)
    check.log()
    layers = layers_heard(recorder)
    evaluator = Evaluator(
        model, layers, questions, rules=check.rules, batch_tokens=options.batch_tokens, batch_size=options.batch_size
    )
    subject = {
        "model": fingerprint,
        "dtype": dtype,
        "ablation": options.ablate,
        "answer": options.answer,
        "rows": [question.row for question in questions],
        "tokens": _sha256(questions),
    }
    facts = {
        "model": source.name,
        "data": str(settings.data),
        **{name: subject[name] for name in ("dtype", "ablation", "answer")},
        "rows": len(questions),
        "rows_skipped": len(shard.skipped),
        "unseen": unseen,
        "other_model": other_model,
    }
    return Opened(evaluator, questions, layers, subject, facts)


def _capture_settings(record: Mapping[str, Any], options: ValidateSettings) -> CaptureSettings:
    """The settings by which the rows become the prompts that were captured."""
    before, model = record["settings"], record["model"]
    adapter, chat = model.get("adapter") or {}, before.get("chat") or {}
    own_model: dict[str, Any] = {
        "model": model["name"],
        "revision": model.get("commit"),
        "adapter": None if adapter.get("name") in (None, model["name"]) else adapter["name"],
    }
    if options.model is not None:
        own_model = {"model": options.model, "revision": options.revision, "adapter": options.adapter}
    without = before.get("special_tokens") or {}
    chosen = {name: getattr(options, name) for name in ("device", "dtype", "device_map", "trust_remote_code", "model_kwargs")}
    return CaptureSettings(
        **own_model,
        **chosen,
        data=options.data or record["data"]["path"],
        max_length=before["max_length"],
        max_samples=options.max_samples,
        seed=options.seed,
        chat=bool(before.get("chat")),
        system=chat.get("system"),
        generation_prompt=chat.get("generation_prompt", True),
        trailing_special=not before.get("chat") and not without.get("left_out"),
        max_skipped=1.0,
        shard_size=_ALL,
        share_prefixes=False,
    )


def _prompts(
    settings: CaptureSettings, record: Mapping[str, Any], options: ValidateSettings
) -> tuple[Prompts, dict[int, Row], bool]:
    """Prompts of rows that were not captured, with the rows by number; of captured ones, and False, where all rows were."""
    path = data_file(settings.data)
    data = read_data(path)
    seen: set[int] = set()
    if data.sha256 == record["data"].get("sha256"):
        seen = set(sample_rows(len(data.rows), record["settings"]["max_samples"], record["settings"]["seed"]))
    unseen = [number for number in range(len(data.rows)) if number not in seen]
    among = unseen or sorted(seen)
    numbers = [among[place] for place in sample_rows(len(among), options.max_samples, options.seed)]
    if not unseen:
        logger.warning("%s: every row of it was captured; the ranking is validated on rows that it has seen", path)
    maker = PromptMaker(path, data.rows, _template(record))
    rows = {number: data.rows[number] for number in numbers}
    drawn = [(number, maker(row, number)) for number, row in rows.items()]
    return Prompts(path, data.sha256, len(data.rows), maker, drawn), rows, bool(unseen)


def _template(record: Mapping[str, Any]) -> Template | str | None:
    """The template that the prompts were made by, as `PromptMaker` takes it."""
    own = [each for each in record["templates"] if each["name"] != CHAT_TEMPLATE]
    if not own:  # rows that bring their text
        return None
    if own[0]["name"] in BUILT_IN_TEMPLATES:
        return str(own[0]["name"])
    return Template(own[0]["name"], own[0]["text"])


def _is_other_model(record: Mapping[str, Any], fingerprint: str, name: str, dtype: str, options: ValidateSettings) -> bool:
    """Whether the model is another than the one that was captured; InputError where that is not allowed."""
    before = record["model"].get("fingerprint")
    if before == fingerprint or options.allow_other_model:
        return bool(before != fingerprint)
    captured = record["settings"].get("dtype")
    advice = f"; it was captured as {captured}, so give --dtype {captured}" if dtype != captured else ""
    raise InputError(
        f"--model {name}: is not the model that was captured ({record['model']['name']}, {before!s:.12}; this is "
        f"{fingerprint:.12}){advice}; --allow-other-model validates the ranking on it all the same"
    )


def _sha256(questions: Sequence[Question]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        for ids in (*question.sequences, *(each.ids for each in question.continuations)):
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()


def run_sets(
    opened: Opened, sets: Sequence[Sequence[Head]], journal: Journal, progress: Progress | None = None
) -> dict[str, dict[str, list[float | None]]]:
    """The outcomes of the intact model, twice, and without each set of heads, by `set_key`; what the journal has is not run.

    Args:
        opened: the model and its questions.
        sets: the heads of each; in their order sets that fill batches are run together, whatever the journal has of them.
        journal: gets every outcome as soon as it is known.
        progress: called with (rows run, rows in all).
    """
    evaluator, rows = opened.evaluator, len(opened.questions)
    distinct = list({set_key(heads): heads for heads in sets}.items())
    size = evaluator.sets_at_once()
    together = [distinct[start : start + size] for start in range(0, len(distinct), size)]
    left = [chunk for chunk in together if any(key not in journal.records for key, _ in chunk)]
    if not left and {INTACT, AGAIN} <= journal.records.keys():
        return journal.records
    if opened.subject["ablation"] == "mean":
        evaluator.find_means()
    started = time.monotonic()
    intact = evaluator.intact()
    seconds = time.monotonic() - started
    total = sum(map(len, left))
    logger.info("%d rows take %.1f s; %d sets of heads will take about %s", rows, seconds, total, _duration(total * seconds))
    for key, run in ((INTACT, lambda: intact), (AGAIN, evaluator.again)):
        if key not in journal.records:
            journal.add(key, _record(run()))
    done = 0
    for chunk in left:
        outcomes = evaluator.without([heads for _, heads in chunk])
        for (key, _), outcome in zip(chunk, outcomes, strict=True):
            if key not in journal.records:
                journal.add(key, _record(outcome))
        done += len(chunk)
        if progress:
            progress(done * rows, total * rows)
    return journal.records


def set_key(heads: Sequence[Head]) -> str:
    """A name for a set of heads, in whatever order they are given: `3.7 5.0` for heads 7 of layer 3 and 0 of layer 5."""
    return " ".join(f"{layer}.{head}" for layer, head in sorted(set(heads)))


def heads_of(units: Sequence[tuple[int, int]], unit: str, opened: Opened) -> list[Head]:
    """The heads of some units, which are heads or groups of them."""
    return list(units) if unit == "head" else heads_of_groups(units, opened.layers)


def noise_floor(records: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, float]:
    """By metric how far two runs of the intact model differ: in any row; for accuracies, in the share of rows."""
    floors = {}
    for name in METRICS:
        pairs = zip(records[INTACT][name], records[AGAIN][name], strict=True)
        differences = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        floors[name] = (np.mean if name.startswith("acc") else np.max)(differences).item() if differences else 0.0
    return floors


def single_frame(
    opened: Opened,
    unit: str,
    units: Sequence[tuple[int, int]],
    heads: Sequence[Sequence[Head]],
    records: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> pl.DataFrame:
    """The outcomes of heads, or groups of them, that were each taken out alone: `layer`, unit, `row`, and each metric."""
    rows = [question.row for question in opened.questions]
    frames = []
    for (layer, number), own in zip(units, heads, strict=True):
        values = records[set_key(own)]
        frame = pl.DataFrame({"row": rows, **values}, schema={"row": pl.Int64, **dict.fromkeys(METRICS, pl.Float64)})
        frames.append(frame.select(pl.lit(layer, pl.Int64).alias("layer"), pl.lit(number, pl.Int64).alias(unit), pl.all()))
    return pl.concat(frames)


def gradient_frame(opened: Opened, unit: str, units: Sequence[tuple[int, int]]) -> pl.DataFrame:
    """∂nll/∂gate of each head, or of one gate on all heads of a group: `layer`, unit, `row`, `gradient`.

    Raises InputError where no row has an answer.
    """
    gradients = opened.evaluator.gate_gradients()
    if not gradients:
        raise InputError("--gate-gradient: no row has an answer, so there is no nll to take the gradient of")
    lines = [
        (layer, number, opened.questions[question].row, float(sum(by_layer[layer][head] for _, head in own)))
        for layer, number in units
        for own in [heads_of([(layer, number)], unit, opened)]
        for question, by_layer in sorted(gradients.items())
    ]
    return pl.DataFrame(
        lines, schema={"layer": pl.Int64, unit: pl.Int64, "row": pl.Int64, "gradient": pl.Float64}, orient="row"
    )


def _record(outcomes: Outcomes) -> dict[str, list[float | None]]:
    return {name: [None if np.isnan(x) else float(x) for x in getattr(outcomes, name)] for name in METRICS}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
