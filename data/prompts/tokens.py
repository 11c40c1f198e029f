"""Tokenises prompts and turns their character spans into a bit mask over tokens.

A span is trimmed: white space at its ends does not count. Every token that covers a character between those ends belongs to it.
The tokenizer's offsets are checked by decoding; where they are wrong or missing, tokens are aligned by decoding ever longer
prefixes instead.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files.foreign import foreign_faults_told
from .alignment import Offsets, aligned_offsets, are_precise, decode, decodes_to, joined_ends, reported_offsets, run_of
from .special import Frame, added_tokens, framed
from .swelling import require_bounded_text
from .templates import ALWAYS_SPANS, Prompt, Span

Mask = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]

MAX_ID = 2**31 - 1
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # U+3000 is the last one; 0x3001 stands for all above


@dataclass(frozen=True)
class Tokens:
    """The tokens of one prompt: `ids` int32 [T]."""

    row: int
    ids: Ids


@dataclass(frozen=True)
class Encoded(Tokens):
    """A tokenised prompt whose spans are still to be marked.

    Args:
        prompt: the text and its spans.
        special: bool [T], which tokens the tokenizer added, or the text begins with in their place.
        offsets: int32 [T,2], the characters of each token as the tokenizer reports them; None where it reports none.
        frame: what became of special tokens.
    """

    prompt: Prompt
    special: npt.NDArray[np.bool_]
    offsets: Offsets | None
    frame: Frame = Frame()


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
    prompts: Sequence[tuple[int, Prompt]],
    tokenizer: Any,
    max_length: int,
    need_question: bool,
    *,
    add_special: bool = True,
    keep_trailing: bool = False,
) -> list[Encoded | Skipped]:
    """One Encoded or Skipped for every (row, prompt), in order.

    A prompt is skipped where it has more than `max_length` tokens, or none but special ones. No text is ever cut.

    Args:
        prompts: (row, prompt) pairs.
        tokenizer: the model's.
        max_length: in tokens, special ones included.
        need_question: skip prompts with an empty question span too.
        add_special: have the tokenizer add special tokens, of which `framed` says what becomes. Otherwise the prompts have
            theirs as text, and get no others.
        keep_trailing: keep special tokens that the tokenizer adds at the end.

    Raises InputError, naming the row, where the tokenizer fails or gives something that is no token id.
    """
    if not prompts:
        return []
    encoded = _tokenized(prompts, tokenizer, add_special)
    outcomes: list[Encoded | Skipped] = []
    for index, (row, prompt) in enumerate(prompts):
        ids = _ids(encoded["input_ids"][index], row)
        added = added_tokens(ids, encoded["special_tokens_mask"][index], encoded["bare"][index]) & add_special
        kept, special, frame = framed(ids, added, prompt.text, tokenizer, keep_trailing)
        if need_question and not prompt.span_text("question").strip():
            outcomes.append(Skipped(row, "no question found: it is empty, not marked, or in no known wording"))
        elif special.all():
            outcomes.append(
                Skipped(row, "the prompt has no tokens but special ones" if len(ids) else "the prompt has no tokens")
            )
        elif len(kept) > max_length:
            outcomes.append(Skipped(row, f"{len(kept)} tokens are more than --max-length {max_length}"))
        else:
            offsets = np.asarray(encoded["offset_mapping"][index]).astype(np.int32)[kept] if tokenizer.is_fast else None
            outcomes.append(Encoded(row, ids[kept], prompt, special, offsets, frame))
    return outcomes


def _tokenized(prompts: Sequence[tuple[int, Prompt]], tokenizer: Any, add_special: bool) -> Mapping[str, Sequence[Any]]:
    """The tokenizer's output for each prompt, and in `bare` the ids without special tokens, where their mask needs a check."""
    texts = [prompt.text for _, prompt in prompts]
    fast = bool(tokenizer.is_fast)
    more = {"return_offsets_mapping": fast, "return_special_tokens_mask": True}
    for row, each in prompts:
        require_bounded_text(tokenizer, each.text, f"row {row}: --model: its tokenizer cannot be used: ")
    try:
        with foreign_faults_told("--model: its tokenizer fails"):
            encoded = dict(tokenizer(texts, add_special_tokens=add_special, verbose=False, **more))
            check = add_special and not fast
            bare = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if check else [None] * len(texts)
    except InputError as error:
        if len(prompts) > 1:
            for prompt in prompts:  # to tell which one is at fault
                _tokenized([prompt], tokenizer, add_special)
            raise
        raise error.retold(f"row {prompts[0][0]}: {error.message}") from error
    return {**encoded, "bare": bare}


def _ids(made: Sequence[Any], row: int) -> Ids:
    """Token ids as int32 [T]; InputError, naming the row, for what is no id."""
    for each in made:
        if not isinstance(each, int) or not 0 <= each <= MAX_ID:
            raise InputError(f"row {row}: --model: its tokenizer gives {each!r:.40}, which is no token id")
    return np.asarray(made, np.int32)


def mark(encoded: Encoded, tokenizer: Any, span_names: Sequence[str]) -> Sample | Skipped:
    """The prompt with its spans as a token mask.

    Where the tokens' own texts joined are the prompt, they tell the spans; otherwise the reported offsets or aligned ones do,
    if decoding confirms them. Skipped where it confirms neither.
    """
    own = encoded.ids[~encoded.special]
    prompt = _after(encoded.prompt, encoded.frame.begin)
    members = _members_by_texts(prompt, own, tokenizer)
    if members is None:
        members = _checked_members(encoded, prompt, own, tokenizer)
    if members is None:
        return Skipped(encoded.row, "its spans could not be matched to tokens")
    bits: Mask = np.zeros(len(own), np.uint8)
    for span, of_span in zip(prompt.spans, members, strict=True):
        bits[of_span] |= 1 << span_names.index(span.name)
    mask: Mask = np.full(len(encoded.special), 1 << span_names.index("special"), np.uint8)
    mask[~encoded.special] = bits
    _mark_brought(mask, encoded, span_names)
    return Sample(encoded.row, encoded.ids, mask)


def _members_by_texts(prompt: Prompt, own: Ids, tokenizer: Any) -> npt.NDArray[np.bool_] | None:
    """The tokens of each span [spans,T], by the tokens' own texts; None where these joined are not the prompt."""
    ends = joined_ends(prompt.text, own, tokenizer)
    if ends is None:
        return None
    members = np.zeros((len(prompt.spans), len(own)), np.bool_)
    for of_span, span in zip(members, prompt.spans, strict=True):
        of_span[run_of(prompt.text, span, ends)] = True
    return members


def _checked_members(encoded: Encoded, prompt: Prompt, own: Ids, tokenizer: Any) -> npt.NDArray[np.bool_] | None:
    """The tokens of each span [spans,T], by offsets that decoding confirms; None where it confirms none."""
    reported, begin = encoded.offsets, encoded.frame.begin
    for find in (
        lambda: None if reported is None else reported_offsets(reported[~encoded.special] - begin, own, tokenizer),
        lambda: aligned_offsets(prompt.text, own, tokenizer),
    ):
        offsets = find()
        if offsets is not None and are_precise(prompt.text, offsets):
            members = _members(prompt, offsets)
            named = ((s, member) for s, member in zip(prompt.spans, members, strict=True) if s.name not in ALWAYS_SPANS)
            if all(decodes_to(prompt.text, span, member, own, tokenizer) for span, member in named):
                return members
    return None


def _after(prompt: Prompt, begin: int) -> Prompt:
    """The prompt without its first characters."""
    if not begin:
        return prompt
    spans = (Span(span.name, max(0, span.start - begin), max(0, span.end - begin)) for span in prompt.spans)
    return Prompt(prompt.text[begin:], tuple(spans))


def _mark_brought(mask: Mask, encoded: Encoded, span_names: Sequence[str]) -> None:
    """Put special tokens that the text brings into the spans that cover them, except into `template`."""
    for place, start, end in encoded.frame.brought:
        covering = _members(encoded.prompt, np.array([(start, end)]))[:, 0]
        for span in itertools.compress(encoded.prompt.spans, covering):
            mask[place] |= 0 if span.name == "template" else 1 << span_names.index(span.name)


def _members(prompt: Prompt, offsets: Offsets) -> npt.NDArray[np.bool_]:
    """The tokens of each span, from the first that covers a character of it to the last: bool [spans,T].

    A token between those with empty offsets belongs to the span too; some tokenizers report them for white space. White space
    at a span's ends does not count.

    Args:
        prompt: the text and its spans.
        offsets: [T,2], half-open character ranges of the prompt's own tokens.
    """
    codes = np.frombuffer(prompt.text.encode("utf-32-le"), np.uint32)
    solid = np.flatnonzero(~_IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)])  # the places of non-space characters
    edges = np.searchsorted(solid, [(span.start, span.end) for span in prompt.spans])
    filled = edges[:, 0] < edges[:, 1]
    begins, ends = np.zeros((2, len(edges), 1), np.int64)
    begins[filled, 0], ends[filled, 0] = solid[edges[filled, 0]], solid[edges[filled, 1] - 1] + 1
    starts, stops = offsets.T
    covers = (np.maximum(starts, begins) < np.minimum(stops, ends)) & (starts < stops)
    members: npt.NDArray[np.bool_] = np.logical_or.accumulate(covers, 1) & np.logical_or.accumulate(covers[:, ::-1], 1)[:, ::-1]
    return members


class MarkedPiece(TypedDict):
    """A run of tokens as text, with the names of the spans that it is in."""

    text: str
    spans: list[str]


def marked_text(sample: Sample, span_names: Sequence[str], tokenizer: Any) -> list[MarkedPiece]:
    """A sample's decoded text in runs of tokens with the same spans: objects with `text` and `spans` (their names).

    White space between two tokens of the same spans is shown as one run with them.
    """
    shown = sample.span.copy()
    between = np.flatnonzero((shown[1:-1] == 0) & (shown[:-2] == shown[2:])) + 1
    shown[between] = shown[between - 1]
    edges = [0, *(np.flatnonzero(np.diff(shown)) + 1).tolist(), len(sample.ids)]
    return [
        {
            "text": decode(tokenizer, sample.ids[start:stop]),
            "spans": [name for bit, name in enumerate(span_names) if shown[start] >> bit & 1],
        }
        for start, stop in itertools.pairwise(edges)
    ]
