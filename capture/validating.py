"""Opens the model of a ranking, with questions of rows that the ranking has not seen."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.errors import InputError, OptionError
from ..data.options.settings import BUILT_IN_TEMPLATES, CaptureSettings, ValidateSettings
from ..data.prompts.answers import answers_of
from ..data.prompts.maker import PromptMaker
from ..data.prompts.rows import Row, data_file, read_data, sample_rows
from ..data.prompts.templates import Template
from .ablating.evaluator import Evaluator
from .checking.selfcheck import checked_model
from .inputs.chat import CHAT_TEMPLATE, in_chat
from .inputs.questions import Question, questions_of
from .inputs.tokenising import Prompts, encode_shards
from .job.ranks import this_rank
from .model import models
from .model.chosen_model import ChosenModel, chosen_model
from .model.device import computing_on
from .model.layers import AttentionLayer

logger = logging.getLogger("headscore")

_ALL = 1 << 40
_AS_BY_DEFAULT = {"left_out": True}  # special tokens that a tokenizer adds at the end


@dataclass(frozen=True)
class Opened:
    """A model that is ready to be run over questions.

    Args:
        evaluator: runs it.
        questions: what it is asked.
        layers: its attention layers.
        subject: what the outcomes depend on besides the heads that are taken out; for a journal.
        facts: what else is to be known about them: whether the rows are `unseen` by the ranking, and whether the model is
            an `other_model`.
    """

    evaluator: Evaluator
    questions: list[Question]
    layers: Mapping[int, AttentionLayer]
    subject: dict[str, Any]
    facts: dict[str, Any]


def record_of_list(record: Mapping[str, Any], options: ValidateSettings) -> dict[str, Any]:
    """The record of an imported list, as if its model and rows were those of the options; it names none of its own.

    Raises InputError where the options do not name both.
    """
    if missing := [flag for flag, value in (("--model", options.model), ("--data", options.data)) if value is None]:
        raise InputError(
            f"{' and '.join(missing)}: the ranking is an imported list, which names neither model nor data; give both"
        )
    settings = {"max_samples": 0, "seed": 0, "max_length": CaptureSettings().max_length, "special_tokens": _AS_BY_DEFAULT}
    return {**record, "model": {"name": options.model}, "data": {"path": options.data}, "settings": settings, "templates": []}


def opened_for(record: Mapping[str, Any], options: ValidateSettings) -> Opened:
    """Load what a ranking was made of, and make questions of rows that it has not seen.

    Args:
        record: what the config.yaml of the ranking says about its cache.
        options: of the validation.

    Raises InputError where data or model cannot be used, or the model is another, and RunError where it fails.
    """
    settings = _capture_settings(record, options)
    if kind := record["settings"].get("control"):
        logger.warning("the ranking is of control prompts (--control %s); it is validated on the rows' own prompts", kind)
    prompts, rows, unseen = _prompts(settings, record, options)
    chosen = chosen_model(settings, this_rank())
    if settings.chat:
        prompts = in_chat(prompts, chosen.tokenizer, settings)
    (shard,) = encode_shards(prompts, chosen.tokenizer, settings)
    if shard.skipped:
        first = shard.skipped[0]
        logger.warning(
            "%s: rows that are left out: %d, the first is row %d: %s", prompts.path, len(shard.skipped), first.row, first.reason
        )
    style = prompts.maker.style
    answers = [answers_of(rows[p.row], style, p.prompt.text, options.answer) for p in shard.prompts]
    questions = questions_of(shard.prompts, answers, chosen.tokenizer, add_special=not settings.chat)

    model = chosen.load(max(int(ids.max()) for question in questions for ids in question.sequences), with_head=True)
    decoder = models.decoder_of(model)
    fingerprint = models.model_fingerprint(decoder, chosen.fingerprint_of_adapter)
    other_model = _is_other_model(record, fingerprint, chosen, options)
    with computing_on(chosen.device):
        checked = checked_model(decoder, shard.prompts, chosen.dtype, settings)
    checked.check.log()
    layers = checked.recorder.known.layers
    evaluator = Evaluator(
        model, layers, questions, rules=checked.check.rules, batch_tokens=options.batch_tokens, batch_size=options.batch_size
    )
    choices = {"dtype": chosen.dtype, "ablation": options.ablate, "answer": options.answer}
    asked = {"rows": [question.row for question in questions], "tokens": _sha256(questions)}
    facts = {
        "model": chosen.source.name,
        "model_fingerprint": fingerprint,
        "data": str(settings.data),
        **choices,
        "rows": len(questions),
        "rows_skipped": len(shard.skipped),
        "unseen": unseen,
        "other_model": other_model,
        **({"imported": record["imported"]} if "imported" in record else {}),
    }
    return Opened(evaluator, questions, layers, {"model": fingerprint, **choices, **asked}, facts)


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


def _is_other_model(record: Mapping[str, Any], fingerprint: str, chosen: ChosenModel, options: ValidateSettings) -> bool:
    """Whether the model is another than the one that was captured; InputError where that is not allowed."""
    if "imported" in record:  # it is not known which model the list is of
        return False
    before = record["model"].get("fingerprint")
    if before == fingerprint or options.allow_other_model:
        return bool(before != fingerprint)
    captured = record["settings"].get("dtype")
    advice = f"; it was captured as {captured}, so give --dtype {captured}" if chosen.dtype != captured else ""
    raise OptionError(
        f"--model {chosen.source.name}: is not the model that was captured ({record['model']['name']}, {before!s:.12}; this is "
        f"{fingerprint:.12}){advice}; --allow-other-model validates the ranking on it all the same"
    )


def _sha256(questions: Sequence[Question]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        for ids in (*question.sequences, *(each.ids for each in question.continuations)):
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()
