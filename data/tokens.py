"""Tokenises prompts and turns their character spans into a bit mask over tokens.

A token belongs to a span when it covers at least one non-space character of it. The tokenizer's offsets are checked by
decoding; where they are wrong or missing, tokens are aligned by decoding ever longer prefixes instead.
"""

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .templates import ALWAYS_SPANS, Prompt

Mask = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one prompt: `ids` int32 [T]."""

    row: int
    ids: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Encoded(Tokens):
    """A tokenised prompt whose spans are still to be marked.

    special: bool [T], which tokens the tokenizer added. offsets: int32 [T,2], the characters of each as the tokenizer reports
    them, or None where it reports none.
    """

    prompt: Prompt
    special: npt.NDArray[np.bool_]
    offsets: Offsets | None


@dataclass(frozen=True)
class Sample(Tokens):
    """A tokenised prompt with its `span` uint8 [T], whose bit i marks the tokens of the i-th span name."""

    span: Mask


@dataclass(frozen=True)
class Skipped:
    """A row that is left out of the cache, and why."""

    row: int
    reason: str


def encode(
    prompts: Sequence[tuple[int, Prompt]], tokenizer: Any, max_length: int, need_question: bool, *, add_special: bool = True
) -> list[Encoded | Skipped]:
    """One Encoded or Skipped for every (row, prompt), in order.

    Skipped are prompts with an empty question span (where `need_question`), and with more than `max_length` tokens or none at
    all. Nothing is ever cut. Without `add_special` the prompts hold their special tokens as text, and get no others.
    """
    if not prompts:
        return []
    encoded = tokenizer(
        [prompt.text for _, prompt in prompts],
        add_special_tokens=add_special,
        return_offsets_mapping=bool(tokenizer.is_fast),
        return_special_tokens_mask=True,
        verbose=False,
    )
    outcomes: list[Encoded | Skipped] = []
    for index, (row, prompt) in enumerate(prompts):
        ids = np.asarray(encoded["input_ids"][index], np.int32)
        if need_question and not prompt.span_text("question").strip():
            outcomes.append(Skipped(row, "no question found: it is empty, not marked, or in no known wording"))
        elif len(ids) == 0:
            outcomes.append(Skipped(row, "the prompt has no tokens"))
        elif len(ids) > max_length:
            outcomes.append(Skipped(row, f"{len(ids)} tokens are more than --max-length {max_length}"))
        else:
            special = np.asarray(encoded["special_tokens_mask"][index], bool) & add_special
            offsets = np.asarray(encoded["offset_mapping"][index]).astype(np.int32) if tokenizer.is_fast else None
            outcomes.append(Encoded(row, ids, prompt, special, offsets))
    return outcomes


def mark(encoded: Encoded, tokenizer: Any, span_names: Sequence[str]) -> Sample | Skipped:
    """The prompt with its spans as a token mask: by the reported offsets or else by aligned ones, whichever survives decoding.

    Skipped where neither does.
    """
    prompt, ids, special = encoded.prompt, encoded.ids, encoded.special
    for offsets in (lambda: encoded.offsets, lambda: aligned_offsets(prompt.text, ids, special, tokenizer)):
        found = offsets()
        if found is not None:
            mask = span_mask(prompt, found, special, span_names)
            bits = ((bit, name) for bit, name in enumerate(span_names) if name not in ALWAYS_SPANS)
            own = ids[~special]
            if all(_decodes_to(prompt, name, (mask >> bit & 1)[~special], own, tokenizer) for bit, name in bits):
                return Sample(encoded.row, ids, mask)
    return Skipped(encoded.row, "its spans could not be matched to tokens")


def span_mask(prompt: Prompt, offsets: Offsets, special: npt.NDArray[np.bool_], span_names: Sequence[str]) -> Mask:
    """Bit mask [T] of the spans that each token covers a non-space character of; bit `special` marks special tokens.

    `offsets` [T,2] are half-open character ranges. Tokens over white space alone, or over nothing, are in no span.
    """
    bits = np.zeros(len(prompt.text) + 1, np.uint8)  # one more, so that an offset at the end is a valid index
    for span in prompt.spans:
        bits[span.start : span.end] |= 1 << span_names.index(span.name)
    bits[:-1][np.fromiter(map(str.isspace, prompt.text), bool, len(prompt.text))] = 0
    offsets = np.clip(offsets, 0, len(prompt.text))  # as reported, they may point anywhere
    mask: Mask = np.bitwise_or.reduceat(bits, offsets.ravel())[::2]
    mask[(offsets[:, 0] >= offsets[:, 1]) | special] = 0
    mask[special] |= 1 << span_names.index("special")
    return mask


def marked_text(sample: Sample, span_names: Sequence[str], tokenizer: Any) -> list[dict[str, Any]]:
    """A sample's decoded text in runs of tokens with the same spans: objects with `text` and `spans` (their names).

    White space between two tokens of the same spans is shown as one run with them.
    """
    shown = sample.span.copy()
    between = np.flatnonzero((shown[1:-1] == 0) & (shown[:-2] == shown[2:])) + 1
    shown[between] = shown[between - 1]
    edges = [0, *(np.flatnonzero(np.diff(shown)) + 1).tolist(), len(sample.ids)]
    return [
        {
            "text": _decode(tokenizer, sample.ids[start:stop]),
            "spans": [name for bit, name in enumerate(span_names) if shown[start] >> bit & 1],
        }
        for start, stop in itertools.pairwise(edges)
    ]


def aligned_offsets(text: str, ids: npt.NDArray[np.int32], special: npt.NDArray[np.bool_], tokenizer: Any) -> Offsets | None:
    """Character ranges [T,2] of tokens, found by decoding ever longer prefixes; None where decoding changes the text.

    A character that is spread over several tokens belongs to each of them.
    """
    own = np.flatnonzero(~special)
    lead = len(text) - len(text.lstrip())
    whole = _decode(tokenizer, ids[own])
    if whole.strip() != text.strip():
        return None
    shift = lead - (len(whole) - len(whole.lstrip()))
    offsets = np.zeros((len(ids), 2), np.int64)
    done = 0
    for count, index in enumerate(own, start=1):
        prefix = _decode(tokenizer, ids[own[:count]])
        complete = len(prefix.rstrip("\ufffd")) if not whole.startswith(prefix) else len(prefix)
        offsets[index] = (done, max(complete, min(done + 1, len(whole))))
        done = max(done, complete)
    return np.clip(offsets + shift, 0, len(text))


def _decodes_to(
    prompt: Prompt, name: str, member: npt.NDArray[np.integer[Any]], ids: npt.NDArray[np.int32], tokenizer: Any
) -> bool:
    """Whether the tokens of a span decode to its text, with at most part of one token more at either end, at its place.

    `ids` and `member` are those of the prompt's own tokens, without special ones.
    """
    wanted = _folded(prompt.span_text(name))
    tokens = np.flatnonzero(member)
    if not wanted or not len(tokens):
        return not wanted and not len(tokens)
    span_ids = ids[tokens]
    before = _folded(prompt.text[: min(span.start for span in prompt.spans if span.name == name)])
    first = int(tokens[0])
    if not before.startswith(_folded(_decode(tokenizer, ids[:first])).rstrip("\ufffd")):
        return False
    if len(_folded(_decode(tokenizer, ids[: first + 1]))) <= len(before):
        return False
    decoded = _folded(_decode(tokenizer, span_ids))
    if wanted == decoded:
        return True
    return wanted in decoded and (
        len(tokens) == 1 or not any(wanted in _folded(_decode(tokenizer, fewer)) for fewer in (span_ids[1:], span_ids[:-1]))
    )


def _decode(tokenizer: Any, ids: npt.NDArray[np.int32]) -> str:
    # As an array: of a list transformers looks at each element.
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _folded(text: str) -> str:
    """Text without white space and in one normal form, as tokenizers may normalise and add spaces."""
    return "".join(unicodedata.normalize("NFKC", text).split()).casefold()
