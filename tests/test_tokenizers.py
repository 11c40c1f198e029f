"""Whatever the tokenizer, the marked tokens are those that hold the question, and decoding them gives it back."""

import dataclasses
import unicodedata
from collections.abc import Callable
from typing import Any

import families
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from headscore.data.templates import Piece, Prompt, Template
from headscore.data.tokens import Encoded, Sample, Skipped, encode, mark

SPANS = ("question", "choices", "template", "special")
AFFIXES = (
    "",
    "",
    "\n",
    " ",
    "Question:",
    " Answer",
    "a",
    "1",
    "é",
    "你",
    "好",
    "ا",
    "ש",
    "🙂",
    "\u3000",
    "“",
    "  ",
    "\n\n",
    "<",
    "。",
)
WORDS = (
    ("Which", " the", " ice", "?", "7", "2024", "é", "ß", "naïve", "İ", "ﬁ")  # Latin
    + ("你", "好", "世界", "。", "水", "か", "が", "한국", "𠀋", "\u3000")
    + ("🙂", "👍🏽", "👩\u200d👩\u200d👧", "🇩🇪", "🏴\u200d☠️", "❤️", "1️⃣")
    + ("e\u0301", "\u0301", "q\u0323\u0307", "न\u093f", "שּׁ", "ก็")  # combining marks
    + ("الجليد", " بارد", "؟", "مُحَمَّد", "הקרח", " קר", "\u200f", "\u202b")
    + (" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2028")
)
KNOWN_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁\ufffd")
TEXT = st.lists(st.sampled_from(WORDS) | st.text(KNOWN_CHARACTERS, max_size=4), max_size=8).map("".join)
AFFIX = st.sampled_from(AFFIXES) | TEXT.map(lambda text: text[:4])
LOSSLESS = pytest.mark.parametrize("family", families.LOSSLESS)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """A template's text right at the question, or a space or a line break between them, or no text at all."""
    before, between, after = draw(AFFIX), draw(AFFIX), draw(AFFIX)
    question = draw(TEXT.filter(str.strip))
    texts = [part.replace("{", "{{").replace("}", "}}") for part in (before, between, after)]
    template = Template("t", texts[0] + "{question}" + texts[1] + "{choices}" + texts[2])
    return template.fill({"question": Piece(question), "choices": Piece(draw(TEXT))})


def encoded_prompt(family: str, prompt: Prompt) -> Encoded:
    (encoded,) = encode([(0, prompt)], families.tokenizer(family), 100_000, need_question=True)
    assert isinstance(encoded, Encoded)
    return encoded


def true_mask(family: str, encoded: Encoded) -> np.ndarray:
    """The mask by the bytes of the tokens: no offsets and no decoding."""
    text = encoded.prompt.text
    owners = np.repeat(np.arange(len(text)), [len(character.encode()) for character in text])
    bits = np.zeros(len(text), np.uint8)
    for span in encoded.prompt.spans:
        bits[span.start : span.end] |= 1 << SPANS.index(span.name)
    bits[[character.isspace() for character in text]] = 0
    own = np.flatnonzero(~encoded.special)
    spelt = families.token_bytes(family, encoded.ids[own])
    place = len(text.encode()) - len(b"".join(spelt))  # -1 where the tokenizer puts a space before the text
    assert b"".join(spelt)[-place:] == text.encode() and place in (0, -1)
    mask = np.where(encoded.special, 1 << SPANS.index("special"), 0).astype(np.uint8)
    for index, piece in zip(own, spelt, strict=True):
        covered = owners[max(place, 0) : max(place + len(piece), 0)]
        mask[index] = np.bitwise_or.reduce(bits[covered])
        place += len(piece)
    return mask


@LOSSLESS
@settings(max_examples=200)
@given(prompt=prompts())
def test_x(family: str, prompt: Prompt) -> None:
    if family == "qwen":
        assume(unicodedata.is_normalized("NFC", prompt.text))
    encoded = encoded_prompt(family, prompt)
    for e in (encoded, dataclasses.replace(encoded, offsets=None)):
        sample = mark(e, families.tokenizer(family), SPANS)
        assert isinstance(sample, Sample)
        np.testing.assert_array_equal(sample.span, true_mask(family, encoded))
