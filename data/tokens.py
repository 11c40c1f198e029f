"""Tokenises prompts and turns their character spans into a bit mask over tokens.

A token belongs to a span when it covers at least one non-space character of it. The tokenizer's offsets are checked by
decoding; where they are wrong or missing, tokens are aligned by decoding ever longer prefixes instead.
"""

import itertools
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .templates import ALWAYS_SPANS, Prompt, Span

Mask = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.integer[Any]]

BROKEN = "\ufffd"  # what bytes that are no whole character decode to
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # U+3000 is the last one; 0x3001 stands for all above


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
    prompts: Sequence[tuple[int, Prompt]], tokenizer: Any, max_length: int, need_question: bool
) -> list[Encoded | Skipped]:
    """One Encoded or Skipped for every (row, prompt), in order.

    Skipped are prompts with an empty question span (where `need_question`), and with more than `max_length` tokens or none at
    all. Nothing is ever cut.
    """
    if not prompts:
        return []
    encoded = tokenizer(
        [prompt.text for _, prompt in prompts],
        return_offsets_mapping=bool(tokenizer.is_fast),
        return_special_tokens_mask=True,
        verbose=False,
    )
    outcomes: list[Encoded | Skipped] = []
    for index, (row, prompt) in enumerate(prompts):
        ids = np.asarray(encoded["input_ids"][index], np.int32)
        if need_question and not prompt.span_text("question").strip():
            outcomes.append(Skipped(row, "no question found: the question is empty, or its wording is not a known one"))
        elif len(ids) == 0:
            outcomes.append(Skipped(row, "the prompt has no tokens"))
        elif len(ids) > max_length:
            outcomes.append(Skipped(row, f"{len(ids)} tokens are more than --max-length {max_length}"))
        else:
            special = np.asarray(encoded["special_tokens_mask"][index], bool)
            offsets = np.asarray(encoded["offset_mapping"][index]).astype(np.int32) if tokenizer.is_fast else None
            outcomes.append(Encoded(row, ids, prompt, special, offsets))
    return outcomes


def mark(encoded: Encoded, tokenizer: Any, span_names: Sequence[str]) -> Sample | Skipped:
    """The prompt with its spans as a token mask: by the reported offsets or else by aligned ones, whichever survives decoding.

    Skipped where neither does.
    """
    prompt, special = encoded.prompt, encoded.special
    own = encoded.ids[~special]
    for find in (lambda: _reported_offsets(encoded, tokenizer), lambda: aligned_offsets(prompt.text, own, tokenizer)):
        offsets = find()
        if offsets is not None and _are_precise(prompt.text, offsets):
            members = _members(prompt, offsets)
            named = ((s, np.flatnonzero(m)) for s, m in zip(prompt.spans, members, strict=True) if s.name not in ALWAYS_SPANS)
            if all(_decodes_to(prompt.text, span, tokens, own, tokenizer) for span, tokens in named):
                bits = np.array([1 << span_names.index(span.name) for span in prompt.spans], np.uint8)
                mask: Mask = np.full(len(special), 1 << span_names.index("special"), np.uint8)
                mask[~special] = np.bitwise_or.reduce(members * bits[:, None])
                return Sample(encoded.row, encoded.ids, mask)
    return Skipped(encoded.row, "its spans could not be matched to tokens")


def _members(prompt: Prompt, offsets: Offsets) -> npt.NDArray[np.bool_]:
    """bool [spans,T]: for each span of the prompt, the tokens that cover a non-space character of it.

    `offsets` [T,2] are half-open character ranges, of the prompt's own tokens only.
    """
    codes = np.frombuffer(prompt.text.encode("utf-32-le"), np.uint32)
    solid = np.zeros(len(codes) + 1, np.int64)  # how many non-space characters come before each place
    np.cumsum(~_IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)], out=solid[1:])
    starts, stops = solid[np.clip(offsets, 0, len(codes))].T  # as reported, they may point anywhere
    edges = solid[[(span.start, span.end) for span in prompt.spans]]
    begins, ends = edges[:, :1], edges[:, 1:]
    members: npt.NDArray[np.bool_] = (starts < stops) & (begins < ends) & (starts < ends) & (begins < stops)
    return members


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


def _reported_offsets(encoded: Encoded, tokenizer: Any) -> Offsets | None:
    """The tokenizer's own offsets [T,2] of the tokens that are not special, or None where it reports none.

    The space that some put before a text is reported as its first character, where it is a token of its own.
    """
    if encoded.offsets is None:
        return None
    offsets = encoded.offsets[~encoded.special]
    if len(offsets) > 1 and offsets[1, 0] < offsets[0, 1]:
        first = encoded.ids[~encoded.special][:1]
        if not _decode(tokenizer, first).strip():
            offsets[0] = 0
    return offsets


def aligned_offsets(text: str, own: npt.NDArray[np.int32], tokenizer: Any) -> Offsets | None:
    """Character ranges [T,2] of tokens, found by decoding ever longer prefixes; None where decoding changes the text.

    A character that is spread over several tokens belongs to each of them.
    """
    whole = _decode(tokenizer, own)
    if whole.strip() != text.strip() or BROKEN in text:  # which could not be told from a character's first bytes
        return None
    offsets = np.zeros((len(own), 2), np.int64)
    done = 0
    for index, token in enumerate(own):
        prefix = _decode(tokenizer, own[: index + 1])
        complete = max(done, len(os.path.commonprefix([prefix, whole])))
        if complete == done:
            # Part of a character, or a space that is dropped where the text begins but not where it ends?
            more = _decode(tokenizer, np.append(own, token))
            if more.startswith(whole) and more[len(whole) :].isspace():
                continue
        offsets[index] = (done, complete + (complete == done or len(prefix) > complete))
        done = complete
    return np.clip(offsets + _lead(text) - _lead(whole), 0, len(text))


def _lead(text: str) -> int:
    return len(text) - len(text.lstrip())


def _are_precise(text: str, offsets: Offsets) -> bool:
    """Whether no white space is among the characters that two neighbours share: it would belong to one of them alone."""
    sharing = np.flatnonzero(offsets[1:, 0] < offsets[:-1, 1])
    shared = (text[max(offsets[index + 1, 0], 0) : max(offsets[index, 1], 0)] for index in sharing)
    return all(part.split() in ([], [part]) for part in shared)


def _decodes_to(text: str, span: Span, tokens: npt.NDArray[np.intp], own: npt.NDArray[np.int32], tokenizer: Any) -> bool:
    """Whether the tokens of a span decode to its text, with at most part of one token more at either end, at its place.

    `tokens` are places in `own`, the prompt's own tokens, without special ones.
    """

    def decoded(ids: npt.NDArray[np.int32]) -> str:
        return _folded(_decode(tokenizer, ids))

    before, wanted = _folded(text[: span.start]), _folded(text[span.start : span.end])
    if not wanted or not len(tokens):
        return not wanted and not len(tokens)
    first, last = int(tokens[0]), int(tokens[-1])
    ahead, found = decoded(own[:first]), _decode(tokenizer, own[tokens])
    ends_solid = not found[-1:].isspace() or decoded(own[last : last + 1])
    found = _folded(found)
    if len(tokens) <= last - first and found != decoded(own[first : last + 1]):
        return False  # a token inside the span is missing
    if ahead == before and found == wanted and ends_solid and decoded(own[first : first + 1]):
        return True
    # The span starts or ends inside a token, or its first character is spread over several.
    with_first = decoded(own[: first + 1])
    starts_in_first = with_first.startswith(before) and len(with_first) > len(before)
    starts_with_first = ahead == before and decoded(own[tokens[1:]]) != found
    return (
        wanted in found
        and before.startswith(ahead.rstrip(BROKEN))
        and (starts_in_first or starts_with_first)
        and not decoded(own[:last]).startswith(before + wanted)
        and decoded(own[: last + 1]).startswith(before + wanted)
    )


def _decode(tokenizer: Any, ids: npt.NDArray[np.int32]) -> str:
    # As an array: of a list transformers looks at each element.
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _folded(text: str) -> str:
    """Text without white space and in one normal form, as tokenizers may normalise and add spaces.

    The form takes characters apart, so that a text's beginning is folded to the beginning of the folded text.
    """
    return "".join(unicodedata.normalize("NFKD", "".join(text.split())).split()).casefold()
