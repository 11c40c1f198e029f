"""From a data file to the samples of each shard: rows are drawn, made into prompts and tokenised."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.cache.kept_columns import Kept, kept_values, of_rows, require_small
from ...data.errors import InputError, OptionError, RunError
from ...data.options.settings import BUILT_IN_TEMPLATES, CaptureSettings
from ...data.prompts.alignment import decode, texts_of
from ...data.prompts.controls import CONTROLLED, controlled, require_controlled_span
from ...data.prompts.maker import PromptMaker
from ...data.prompts.rows import data_file, read_data, sample_rows
from ...data.prompts.templates import Prompt, Template, read_template
from ...data.prompts.tokens import Encoded, Sample, Skipped, encode, mark
from ..job.ranks import Rank

logger = logging.getLogger("headscore")


@dataclass(frozen=True)
class Prompts:
    """The prompts drawn from a data file, in file order, and what made them.

    Args:
        path: of the data file.
        sha256: of its content.
        rows_in_file: how many rows it has.
        maker: made the prompts.
        drawn: (row, prompt) pairs, with Skipped in place of a prompt where a row is left out.
        chat: what the chat template puts around each, where they are in one (see `chat.py`).
        without: texts of special tokens that the tokenizer would add and the prompts are without, as lists `left_out` and
            `not_repeated` (see `Frame`).
        kept: the columns of `--keep`, for the drawn rows.
    """

    path: Path
    sha256: str
    rows_in_file: int
    maker: PromptMaker
    drawn: list[tuple[int, Prompt | Skipped]]
    chat: Template | None = None
    without: dict[str, list[str]] | None = None
    kept: Kept = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedShard:
    """The tokenised prompts of one shard, the rows of it that are left out, and what is kept of the others' columns."""

    prompts: list[Encoded]
    skipped: list[Skipped]
    kept: Kept = field(default_factory=dict)


@dataclass(frozen=True)
class ShardSamples:
    """What goes into one shard, and the rows of it that are left out."""

    samples: list[Sample]
    skipped: list[Skipped]


def read_prompts(settings: CaptureSettings) -> Prompts:
    """The prompts of the drawn rows, or why one is left out.

    Raises InputError, naming file and row, where one cannot be made, or as `kept_values` for `--keep`.
    """
    path = data_file(settings.data)
    data = read_data(path)
    rows = data.rows
    template: Template | str | None = settings.template
    if settings.template and settings.template not in BUILT_IN_TEMPLATES:
        template = read_template(Path(settings.template))
    maker = PromptMaker(path, rows, template)
    numbers = sample_rows(len(rows), settings.max_samples, settings.seed)
    kept = kept_values(settings.keep, rows, numbers, path) if settings.keep else {}
    drawn = [(number, maker(rows[number], number)) for number in numbers]
    if settings.control:
        drawn = _controls(drawn, maker, settings)
    return Prompts(path, data.sha256, len(rows), maker, drawn, kept=kept)


def _controls(
    drawn: list[tuple[int, Prompt | Skipped]], maker: PromptMaker, settings: CaptureSettings
) -> list[tuple[int, Prompt | Skipped]]:
    """The control prompts of the same rows. Raises InputError where there is nothing that a control could replace."""
    kind = str(settings.control)
    require_controlled_span(kind, maker.span_names, settings.data)
    made = {
        row: controlled(prompt, kind, settings.seed, row) if isinstance(prompt, Prompt) else prompt for row, prompt in drawn
    }
    asked = [(row, prompt) for row, prompt in drawn if isinstance(prompt, Prompt) and prompt.span_text(CONTROLLED).strip()]
    same = [row for row, prompt in asked if prompt == made[row]]
    if asked and len(same) == len(asked):
        raise OptionError(
            f"--control {kind}: would leave every prompt of {settings.data} as it is: none has two different words"
        )
    if same:
        logger.warning("--control %s: prompts that it leaves as they are: %d, the first in row %d", kind, len(same), same[0])
    return list(made.items())


@dataclass(frozen=True)
class Share:
    """What a process has tokenised.

    Args:
        own: its own shards by number.
        others: prompts of other processes: enough to know which special tokens are left out of any prompt.
        shards: how many shards there are in all.
    """

    own: dict[int, EncodedShard]
    others: list[Encoded]
    shards: int

    @property
    def encoded(self) -> list[Encoded]:
        """All that is tokenised, by row."""
        prompts = [*(prompt for shard in self.own.values() for prompt in shard.prompts), *self.others]
        return sorted(prompts, key=lambda prompt: prompt.row)

    @property
    def skipped(self) -> list[Skipped]:
        """Rows of its shards that are left out."""
        return [entry for shard in self.own.values() for entry in shard.skipped]


def encode_share(prompts: Prompts, tokenizer: Any, settings: CaptureSettings, rank: Rank) -> Share:
    """The tokens of every shard that is a process's own. Raises InputError as `encode_shards`."""
    count = -(-len(prompts.drawn) // settings.shard_size)
    own = {number: encode_shard(prompts, number, tokenizer, settings) for number in rank.share(count)}
    _require_enough(prompts, [entry for shard in own.values() for entry in shard.skipped], settings)
    others = [] if rank.world == 1 or prompts.chat else _telling(prompts, own, tokenizer, settings)
    return Share(own, [entry for entry in _encoded(prompts, others, tokenizer, settings) if isinstance(entry, Encoded)], count)


def _telling(
    prompts: Prompts, own: Container[int], tokenizer: Any, settings: CaptureSettings
) -> list[tuple[int, Prompt | Skipped]]:
    """Of the rows of other processes the first, and those that may bring the special tokens that a tokenizer adds."""
    spelt = tuple(token.casefold() for token in tokenizer.all_special_tokens)
    drawn = [each for place, each in enumerate(prompts.drawn) if place // settings.shard_size not in own]
    made = [(row, prompt) for row, prompt in drawn if isinstance(prompt, Prompt)]
    return [*made[:1], *(each for each in made[1:] if each[1].text.lstrip().casefold().startswith(spelt))]


def encode_shards(prompts: Prompts, tokenizer: Any, settings: CaptureSettings) -> list[EncodedShard]:
    """The tokens of every shard; `--shard-size` drawn rows make a shard, skipped ones included.

    Raises InputError when more rows are skipped than `--max-skipped` allows, or all are, where the tokenizer fails, and where a
    shard cannot hold what `--keep` names.
    """
    return list(encode_share(prompts, tokenizer, settings, Rank()).own.values())


def encode_shard(prompts: Prompts, number: int, tokenizer: Any, settings: CaptureSettings) -> EncodedShard:
    """The tokens of one shard. Raises InputError where the tokenizer fails, or it cannot hold what `--keep` names."""
    part = prompts.drawn[number * settings.shard_size : (number + 1) * settings.shard_size]
    outcomes = _encoded(prompts, part, tokenizer, settings)
    encoded = [outcome for outcome in outcomes if isinstance(outcome, Encoded)]
    skipped = [entry for entry in (*(prompt for _, prompt in part), *outcomes) if isinstance(entry, Skipped)]
    rows = [prompt.row for prompt in encoded]
    kept = of_rows(prompts.kept, rows)
    require_small(kept, rows)
    return EncodedShard(encoded, sorted(skipped, key=lambda entry: entry.row), kept)


def _encoded(
    prompts: Prompts, part: Sequence[tuple[int, Prompt | Skipped]], tokenizer: Any, settings: CaptureSettings
) -> list[Encoded | Skipped]:
    try:
        return encode(
            [(row, prompt) for row, prompt in part if isinstance(prompt, Prompt)],
            tokenizer,
            settings.max_length,
            prompts.maker.has_question or settings.control is not None,
            add_special=prompts.chat is None,
            keep_trailing=settings.trailing_special,
        )
    except InputError as error:
        raise error.retold(f"{prompts.path}: {error.message}") from error


def without_special_tokens(prompts: Prompts, encoded: Sequence[Encoded], tokenizer: Any) -> Prompts:
    """The same prompts with `without` filled in from the frames of the encoded ones; what is left out is logged, too.

    Warns of texts that begin with BOS twice: nothing that is in a text is ever left out.
    """
    left_out = [prompt.frame.left_out for prompt in encoded if prompt.frame.left_out]
    not_repeated = [prompt.frame.not_repeated for prompt in encoded if prompt.frame.not_repeated]
    without = {"left_out": _texts(left_out, tokenizer), "not_repeated": _texts(not_repeated, tokenizer)}
    if left_out:
        logger.info(
            "%s, which the tokenizer adds at the end of %d prompts, is left out (--trailing-special keeps it)",
            " ".join(without["left_out"]), len(left_out),
        )  # fmt: skip
    if not_repeated:
        logger.info(
            "prompts that bring %s themselves: %d; the tokenizer adds no second one",
            " ".join(without["not_repeated"]), len(not_repeated),
        )  # fmt: skip
    if twice := [prompt for prompt in encoded if len(prompt.frame.brought) > 1 and prompt.ids[0] == prompt.ids[1]]:
        logger.warning(
            "prompts that begin with %s twice, as their texts say: %d, the first in row %d",
            decode(tokenizer, twice[0].ids[:1]), len(twice), twice[0].row,
        )  # fmt: skip
    return dataclasses.replace(prompts, without=without if left_out or not_repeated else None)


def _texts(ids: Sequence[tuple[int, ...]], tokenizer: Any) -> list[str]:
    different = dict.fromkeys(itertools.chain.from_iterable(ids))
    return [decode(tokenizer, np.array([token], np.int32)) for token in different]


@dataclass(frozen=True)
class Marker:
    """Marks the spans in tokenised prompts, which takes longer than tokenising them and so is done beside the model."""

    tokenizer: Any
    span_names: Sequence[str]

    def __call__(self, shard: EncodedShard) -> ShardSamples:
        """The shard's samples; rows whose spans cannot be found are left out."""
        if shard.prompts:
            texts_of(np.unique(np.concatenate([prompt.ids for prompt in shard.prompts])), self.tokenizer)
        outcomes = [mark(encoded, self.tokenizer, self.span_names) for encoded in shard.prompts]
        skipped = [outcome for outcome in outcomes if isinstance(outcome, Skipped)]
        samples = [outcome for outcome in outcomes if isinstance(outcome, Sample)]
        return ShardSamples(samples, sorted((*shard.skipped, *skipped), key=lambda entry: entry.row))


def first_samples(
    prompts: Prompts, shards: Iterable[EncodedShard], known: Sequence[Skipped], marker: Marker, settings: CaptureSettings
) -> list[Sample]:
    """The samples of the first shard that has any, in order; at least one.

    They are marked, so that spans that are never found are told before the model is loaded.

    Args:
        shards: all of them; what follows the first with samples is not asked for.
        known: rows of the process's own shards that are left out.

    Raises InputError as `encode_shards`.
    """
    skipped = list(known)
    for shard in shards:
        marked = marker(shard)
        skipped += [entry for entry in marked.skipped if entry not in skipped]
        _require_enough(prompts, skipped, settings)  # raises at the latest where there is no sample in any shard
        if marked.samples:
            break
    return marked.samples


def _require_enough(prompts: Prompts, skipped: Sequence[Skipped], settings: CaptureSettings) -> None:
    rows = len(prompts.drawn)
    allowed = allowed_skips(settings, rows)
    if len(skipped) > allowed or len(skipped) == rows:
        why = "none is left" if len(skipped) == rows else f"--max-skipped allows {allowed}"
        raise InputError(
            f"{prompts.path}: {len(skipped)} of {rows} rows would be skipped and {why}; "
            f"the first is row {skipped[0].row}: {skipped[0].reason}"
        )


def allowed_skips(settings: CaptureSettings, rows: int) -> int:
    """How many of `rows` may be left out by `--max-skipped`."""
    return math.floor(settings.max_skipped * rows + 1e-9)  # 0.29 · 100 is a little less than 29 in binary


class SkipLimit:
    """Counts the rows that are left out as a capture goes on, and stops it where `--max-skipped` does not allow more."""

    def __init__(self, settings: CaptureSettings, rows: int, skipped: int):
        self._allowed = allowed_skips(settings, rows)
        self._skipped = skipped

    def add(self, faulty: Sequence[Skipped]) -> None:
        """Count more rows; RunError where there are too many now."""
        self._skipped += len(faulty)
        if faulty:
            self.check(self._skipped, faulty[-1].row, faulty[-1].reason)

    def check(self, skipped: int, row: int, reason: str) -> None:
        """Raises RunError, naming a row, where `skipped` rows in all are too many."""
        if skipped > self._allowed:
            raise RunError(
                f"{skipped} rows would be skipped, --max-skipped allows {self._allowed}; one of them is row {row}: {reason}"
            )
