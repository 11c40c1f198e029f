"""Which of the special tokens that a tokenizer adds to a text go into its prompt.

What is added at the end would be the last token, whose attention is measured, so it is left out. What is added at the beginning
is left out where the text brings it itself. What a text says is always kept.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .alignment import decode

Ids = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Frame:
    """What was made of the special tokens at the ends of one prompt.

    left_out: ids that the tokenizer added at the end. not_repeated: ids that it added at the beginning of a text that begins
    with them. brought: BOS and the like that the text begins with, as (place among the tokens, first character, last + 1).
    """

    left_out: tuple[int, ...] = ()
    not_repeated: tuple[int, ...] = ()
    brought: tuple[tuple[int, int, int], ...] = ()

    @property
    def begin(self) -> int:
        """How many characters of the text the brought tokens cover."""
        return self.brought[-1][2] if self.brought else 0


def framed(ids: Ids, added: Flags, text: str, tokenizer: Any, keep_trailing: bool) -> tuple[npt.NDArray[np.intp], Flags, Frame]:
    """Which of a tokenizer's tokens make the prompt, in order, which of those are special, and why.

    Args:
        ids: the tokenizer's tokens [T] of `text`.
        added: bool [T], which of them it added.
        keep_trailing: keep those that it added at the end.
    """
    own = np.flatnonzero(~added)
    first, stop = (int(own[0]), int(own[-1]) + 1) if len(own) else (len(ids), len(ids))
    head, body = ids[:first].tolist(), ids[first:stop].tolist()
    ranges = _brought(body, {*head, getattr(tokenizer, "bos_token_id", None)}, text, tokenizer)
    again, where = _repeated(head, body[: len(ranges)])
    end = len(ids) if keep_trailing else stop
    kept = np.r_[:first, first + again : end]
    places = [*range(where, where + again), *range(first, first + len(ranges) - again)]
    special = added[kept]
    special[places] = True
    brought = tuple((place, *edges) for place, edges in zip(places, ranges, strict=True))
    return kept, special, Frame(tuple(ids[end:].tolist()), tuple(body[:again]), brought)


def _brought(body: Sequence[int], control: set[int | None], text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """The characters of each of the control tokens that a text begins with; none for one that is spelt another way in it."""
    ranges: list[tuple[int, int]] = []
    done = 0
    for token in itertools.takewhile(control.__contains__, body):
        spelt = decode(tokenizer, np.array([token], np.int32))
        start = text.find(spelt, done)
        done = start + len(spelt) if start >= 0 and not text[done:start].strip() else done
        ranges.append((min(max(start, 0), done), done))
    return ranges


def _repeated(head: Sequence[int], brought: Sequence[int]) -> tuple[int, int]:
    """How many of the brought tokens were added too, as one run, and where in `head` that run begins."""
    for count in range(min(len(head), len(brought)), 0, -1):
        for where in range(len(head) - count + 1):
            if head[where : where + count] == brought[:count]:
                return count, where
    return 0, 0


def added_tokens(ids: Ids, mask: Sequence[int], bare: Sequence[int] | None) -> Flags:
    """bool [T]: which tokens a tokenizer added to a text's own.

    Args:
        ids: all tokens [T].
        mask: which of them it says it added; in Python's tokenizers this is no more than a guess, and may be of another length.
        bare: the tokens that it makes of the text when it adds none, or None where the mask can be trusted.
    """
    said = np.asarray(mask, bool)
    fits = len(said) == len(ids)
    if bare is None or (fits and ids[~said].tolist() == list(bare)):
        return said
    more = len(ids) - len(bare)
    places = [place for place in range(more + 1) if ids[place : place + len(bare)].tolist() == list(bare)] if more > 0 else []
    if not places:
        return said if fits else np.zeros(len(ids), bool)
    guess = next((index for index, flag in enumerate(said) if not flag), 0)
    place = min(places, key=lambda place: abs(place - guess))  # which is one alone, unless the text repeats one token
    added = np.ones(len(ids), bool)
    added[place : place + len(bare)] = False
    return added
