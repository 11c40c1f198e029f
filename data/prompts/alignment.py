"""Finds which characters of a text each token covers, and checks that by decoding the tokens."""

import itertools
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files.foreign import foreign_faults_told
from .templates import Span

Offsets = npt.NDArray[np.integer[Any]]

MAX_BYTES = 4  # of a character in UTF-8
BROKEN = "\ufffd"  # bytes that are no whole character decode to this


def joined_ends(text: str, own: npt.NDArray[np.int32], tokenizer: Any) -> list[int] | None:
    """Where in a text each of its tokens ends, if the tokens' own texts, each decoded by itself, are the text when joined.

    None where they are not. For byte-level tokenizers they are, unless a character is spread over several tokens. No prompt
    is decoded for this.
    """
    texts = texts_of(own, tokenizer)
    return list(itertools.accumulate(map(len, texts))) if "".join(texts) == text else None


def texts_of(ids: npt.NDArray[np.int32], tokenizer: Any) -> list[str]:
    """The text of each token, decoded by itself; a tokenizer decodes each only once.

    It is cheapest for all tokens of a shard at once. Raises InputError where the tokenizer fails.
    """
    known, numbers = _known_texts(tokenizer), ids.tolist()
    if missing := [token for token in dict.fromkeys(numbers) if token not in known]:
        with _decoding(missing):
            known |= {token: _plainly_decoded(tokenizer, [token]) for token in missing}
    return [known[token] for token in numbers]


@lru_cache(maxsize=4)
def _known_texts(tokenizer: Any) -> dict[int, str]:
    return {}


def run_of(text: str, span: Span, ends: Sequence[int]) -> slice:
    """The tokens that cover characters of a span, without white space at its ends; `ends` are those of `joined_ends`."""
    within = text[span.start : span.end]
    begin = span.start + len(within) - len(within.lstrip())
    end = begin + len(within.strip())
    return slice(bisect_right(ends, begin), bisect_left(ends, end) + 1) if begin < end else slice(0)


def reported_offsets(offsets: Offsets, own: npt.NDArray[np.int32], tokenizer: Any) -> Offsets:
    """A tokenizer's own offsets [T,2], where the space that it puts before a text covers nothing.

    It is reported as the text's first character where it is a token of its own.
    """
    if len(own) > 1 and offsets[1, 0] < offsets[0, 1] and not decode(tokenizer, own[:1]).strip():
        return np.vstack([[(0, 0)], offsets[1:]])
    return offsets


def aligned_offsets(text: str, own: npt.NDArray[np.int32], tokenizer: Any) -> Offsets | None:
    """Character ranges [T,2] of tokens, found by decoding ever longer prefixes; None where decoding changes the text.

    A character that is spread over several tokens belongs to each of them.
    """
    whole = decode(tokenizer, own)
    if whole.strip() != text.strip() or BROKEN in text:  # which could not be told from a character's first bytes
        return None
    offsets = np.zeros((len(own), 2), np.int64)
    done = 0
    for index, token in enumerate(own):
        prefix = decode(tokenizer, own[: index + 1])
        complete = _shared(prefix, whole, done)
        if complete == done:
            # Part of a character, or a space that is dropped where the text begins but not where it ends?
            more = decode(tokenizer, np.append(own, token))
            if more.startswith(whole) and more[len(whole) :].isspace():
                continue
        offsets[index] = (done, complete + (complete == done or len(prefix) > complete))
        done = complete
    return np.clip(offsets + _lead(text) - _lead(whole), 0, len(text))


def token_texts(ids: npt.NDArray[np.int32], tokenizer: Any) -> list[str]:
    """The text that each token adds to the decoded text [T]; joined, they are that text.

    A character that is spread over several tokens is the text of the last of them, and the others have none.
    """
    whole = decode(tokenizer, ids)
    texts, done = [], 0
    for end in range(1, len(ids) + 1):
        complete = _shared(decode(tokenizer, ids[:end]), whole, done)
        texts.append(whole[done:complete])
        done = complete
    return texts


def _shared(prefix: str, whole: str, done: int) -> int:
    """How many characters of `whole` a decoded prefix of its tokens begins with; `done` where it does not begin with those."""
    if not prefix.startswith(whole[:done]):  # some bytes are still no whole character
        return done
    pairs = zip(prefix[done:], whole[done:], strict=False)
    return done + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _lead(text: str) -> int:
    return len(text) - len(text.lstrip())


def are_precise(text: str, offsets: Offsets) -> bool:
    """Whether neighbouring tokens share no white space, which would belong to only one of them."""
    sharing = np.flatnonzero(offsets[1:, 0] < offsets[:-1, 1])
    shared = (text[max(offsets[index + 1, 0], 0) : max(offsets[index, 1], 0)] for index in sharing)
    return all(part.split() in ([], [part]) for part in shared)


def decodes_to(text: str, span: Span, member: npt.NDArray[np.bool_], own: npt.NDArray[np.int32], tokenizer: Any) -> bool:
    """Whether the tokens of a span decode to its text, with at most part of one token more at either end, at its place.

    Args:
        text: the prompt's.
        span: of the prompt.
        member: bool [T], which tokens are the span's: a run of them, or none.
        own: the prompt's own tokens [T], without special ones.
        tokenizer: made them.
    """
    tokens = np.flatnonzero(member)
    if not len(tokens):
        return not text[span.start : span.end].strip()

    def decoded(ids: npt.NDArray[np.int32]) -> str:
        return _folded(decode(tokenizer, ids))

    before, wanted = _folded(text[: span.start]), _folded(text[span.start : span.end])
    first, last = int(tokens[0]), int(tokens[-1])
    ahead, found = decoded(own[:first]), decoded(own[tokens])
    in_first, in_last = decoded(own[first : first + 1]), decoded(own[last : last + 1])
    parted = not (in_first.strip(BROKEN) and in_last.strip(BROKEN))  # a token at an end is no whole character
    if parted and any(_is_blank(decode(tokenizer, part) for part in parts) for parts in _ends(own[tokens])):
        return False
    if ahead == before and found == wanted and in_first and in_last:
        return True
    # The span starts or ends inside a token, or a character at its end is spread over several.
    with_first, with_last = decoded(own[: first + 1]), decoded(own[: last + 1])
    beyond = len(with_last) - len(before + wanted)
    starts_with_first = ahead == before and found != decoded(own[tokens[1:]])
    ends_with_last = beyond == 0 and found != decoded(own[tokens[:-1]])
    return (
        wanted in found
        and before.startswith(ahead.rstrip(BROKEN))
        and with_last.startswith(before + wanted)
        and (starts_with_first or (with_first.startswith(before) and len(with_first) > len(before)))
        and (ends_with_last or beyond < len(in_last))
    )


def _ends(run: npt.NDArray[np.int32]) -> Iterator[Iterator[npt.NDArray[np.int32]]]:
    """The first 1, 2, … tokens of a run, up to as many as one character may have; then the last ones likewise."""
    longest = min(len(run), MAX_BYTES)
    yield (run[:count] for count in range(1, longest + 1))
    yield (run[-count:] for count in range(1, longest + 1))


def _is_blank(texts: Iterable[str]) -> bool:
    """Whether the first text with a whole character is white space, where no span starts or ends."""
    return next((text for text in texts if text.strip(BROKEN)), BROKEN).isspace()


def decode(tokenizer: Any, ids: npt.NDArray[np.int32]) -> str:
    """The text of tokens, special ones too, with white space as it is; InputError where the tokenizer fails."""
    return _decoded(tokenizer, ids.astype(np.int32, copy=False).tobytes())


@lru_cache(maxsize=256)  # prompts by one template begin alike
def _decoded(tokenizer: Any, ids: bytes) -> str:
    array = np.frombuffer(ids, np.int32)
    with _decoding(array):
        return _plainly_decoded(tokenizer, array)  # as an array: of a list transformers looks at each element


def _decoding(ids: Iterable[int]) -> AbstractContextManager[None]:
    """Within this context an error of the tokenizer becomes an InputError that names the first tokens."""
    first = " ".join(map(str, itertools.islice(ids, 8)))
    return foreign_faults_told(f"--model: its tokenizer cannot decode tokens of its own ({first})")


def _plainly_decoded(tokenizer: Any, ids: Sequence[int] | npt.NDArray[np.int32]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _folded(text: str) -> str:
    """Text without white space and in one normal form, as tokenizers may normalise and add spaces.

    The form takes characters apart, so that a text's beginning is folded to the beginning of the folded text.
    """
    if text.isascii():
        return "".join(text.split()).lower()
    return "".join(unicodedata.normalize("NFKD", "".join(text.split())).split()).casefold()
