"""Whatever the tokenizer, the marked tokens are those that hold the question, and decoding them gives it back."""

import dataclasses
import unicodedata
from collections.abc import Callable

import families
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headscore.data.prompts.templates import Piece, Prompt, Span, Template
from headscore.data.prompts.tokens import Encoded, Sample, Skipped, encode, mark

SPANS = ("question", "choices", "template", "special")
QUESTION, TEMPLATE = np.uint8(1 << 0), np.uint8(1 << 2)
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
    *("Which", " the", " ice", "?", "7", "2024", "é", "ß", "naïve", "İ", "ﬁ"),
    *("你", "好", "世界", "。", "水", "か", "が", "한국", "𠀋", "\u3000"),
    *("🙂", "👍🏽", "👩\u200d👩\u200d👧", "🇩🇪", "🏴\u200d☠️", "❤️", "1️⃣"),
    *("e\u0301", "\u0301", "q\u0323\u0307", "न\u093f", "שּׁ", "ก็"),  # combining marks
    *("الجليد", " بارد", "؟", "مُحَمَّد", "הקרח", " קר", "\u200f", "\u202b"),
    *(" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2028"),
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
        inner = text[span.start : span.end]
        start, end = span.start + len(inner) - len(inner.lstrip()), span.end - len(inner) + len(inner.rstrip())
        bits[start:end] |= 1 << SPANS.index(span.name)  # of white space alone it is no range
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


def found_for(family: str, encoded: Encoded) -> Sample:
    sample = mark(encoded, families.tokenizer(family), SPANS)
    assert isinstance(sample, Sample), sample
    return sample


def decoded_question(family: str, sample: Sample) -> str:
    places = np.flatnonzero(sample.span & QUESTION)
    return families.tokenizer(family).decode(sample.ids[places[0] : places[-1] + 1])


@LOSSLESS
@settings(max_examples=60)
@given(prompts())
def test_the_marked_tokens_are_those_whose_bytes_are_in_the_span(family: str, prompt: Prompt) -> None:
    assume(family != "qwen" or unicodedata.is_normalized("NFC", prompt.text))
    encoded = encoded_prompt(family, prompt)
    right = true_mask(family, encoded)
    np.testing.assert_array_equal(found_for(family, encoded).span, right)
    np.testing.assert_array_equal(found_for(family, dataclasses.replace(encoded, offsets=None)).span, right)


FAULTS: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "empty": lambda text, offsets: offsets[:, [0, 0]],  # Llama 3's, for a while
    "some_empty": lambda text, offsets: np.where(np.arange(len(offsets))[:, None] % 2, offsets, offsets[:, [0, 0]]),
    "bytes": lambda text, offsets: np.cumsum([0, *(len(character.encode()) for character in text)])[offsets],
    "before": lambda text, offsets: offsets - 1,
    "after": lambda text, offsets: offsets + 1,
    "nonsense": lambda text, offsets: np.tile([len(text) + 9, -9], (len(offsets), 1)),
}


@pytest.mark.parametrize("family", [family for family in families.LOSSLESS if family != "byt5"])  # which reports none
@settings(max_examples=25)
@given(prompt=prompts(), fault=st.sampled_from(sorted(FAULTS)))
def test_wrong_offsets_mark_nothing_wrong(family: str, prompt: Prompt, fault: str) -> None:
    """The template's own tokens, which nothing is scored by, are as good as the offsets."""
    assume(family != "qwen" or unicodedata.is_normalized("NFC", prompt.text))
    encoded = encoded_prompt(family, prompt)
    assert encoded.offsets is not None
    wrong = FAULTS[fault](prompt.text, encoded.offsets).astype(np.int32)
    found = found_for(family, dataclasses.replace(encoded, offsets=wrong)).span
    np.testing.assert_array_equal(found & ~TEMPLATE, true_mask(family, encoded) & ~TEMPLATE)


def test_a_repeated_text_is_not_taken_for_the_question() -> None:
    """With offsets one too low, the same characters stand in the template where the question's are looked for."""
    text = "か\xa0\x93\t קר\u3000かか\xa0\x93\t\xa0"
    spans = (Span("template", 0, 4), Span("question", 4, 9), Span("template", 9, len(text)))
    encoded = encoded_prompt("gemma", Prompt(text, spans))
    assert encoded.offsets is not None
    found = found_for("gemma", dataclasses.replace(encoded, offsets=encoded.offsets - 1)).span
    np.testing.assert_array_equal(found & QUESTION, true_mask("gemma", encoded) & QUESTION)


@pytest.mark.parametrize("family", ["roberta", "llama2", "gemma", "unigram"])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_part_of_a_space_at_an_edge_is_no_part_of_the_span(family: str, fault: str) -> None:
    """A space of several bytes may be as many tokens, and with wrong offsets these lie where the question begins or ends."""
    for text in ("\u3000Which", "Which\u3000", "\xa0Which\u3000\u3000"):
        prompt = Prompt(text, (Span("question", 0, len(text)),))
        encoded = encoded_prompt(family, prompt)
        assert encoded.offsets is not None
        wrong = FAULTS[fault](text, encoded.offsets).astype(np.int32)
        found = found_for(family, dataclasses.replace(encoded, offsets=wrong)).span
        np.testing.assert_array_equal(found, true_mask(family, encoded))


@LOSSLESS
@settings(max_examples=40)
@given(question=TEXT.filter(str.strip), before=AFFIX, after=AFFIX)
def test_the_decoded_span_is_the_question(family: str, question: str, before: str, after: str) -> None:
    """Exactly so between white space; else with part of one token more at either end, which the question starts or ends in."""
    assume(family != "qwen" or unicodedata.is_normalized("NFC", before + question + after))
    whole = {"before": Piece(before), "question": Piece(question), "after": Piece(after)}
    apart = Template("t", "Question:\n{question}\nAnswer:").fill(whole)
    assert decoded_question(family, found_for(family, encoded_prompt(family, apart))).strip() == question.strip()
    close = Template("t", "{before}{question}{after}").fill(whole)
    encoded = encoded_prompt(family, close)
    sample = mark(encoded, families.tokenizer(family), (*SPANS, "before", "after"))
    assert isinstance(sample, Sample)
    decoded = decoded_question(family, sample)
    assert question.strip() in decoded
    places = np.flatnonzero(sample.span & QUESTION)
    decode = families.tokenizer(family).decode
    ends = [decode(sample.ids[places[[0, -1]][end : end + 1]]) for end in (0, 1)]
    head, tail = decoded.split(question.strip(), 1)
    assert len(head.strip()) <= len(ends[0].strip()) and len(tail.strip()) <= max(len(ends[1].strip()), len(ends[0].strip()))


@settings(max_examples=150)
@given(prompts(), st.sampled_from(["NFD", "NFKD", "NFC", "NFKC"]))
def test_a_normalised_question_is_marked_all_the_same(prompt: Prompt, form: str) -> None:
    """Qwen's tokens hold NFC: what is then composed across a span's edge is in both spans."""
    text = unicodedata.normalize(form, prompt.span_text("question"))
    prompt = Template("t", "Question: {question}\nAnswer:").fill({"question": Piece(text)})
    decoded = decoded_question("qwen", found_for("qwen", encoded_prompt("qwen", prompt)))
    assert decoded.strip() == unicodedata.normalize("NFC", text).strip()


@pytest.mark.parametrize("family", [family for family in families.LOSSLESS if family != "byt5"])  # drops spaces beside it
def test_a_special_token_spelt_in_the_question_is_part_of_the_question(family: str) -> None:
    end = families.tokenizer(family).eos_token
    prompt = Template("t", "Question: {question}\nAnswer:").fill({"question": Piece(f"Is {end}ice cold?")})
    sample = found_for(family, encoded_prompt(family, prompt))
    spaced = decoded_question(family, sample).replace(f"{end} ", end)  # some put a space at the start of what follows, too
    assert spaced.strip() == f"Is {end}ice cold?"


def test_unknown_words_and_dropped_accents_skip_the_row() -> None:
    """What a lossy tokenizer keeps is compared without white space and case; what it loses cannot be, and is not guessed."""
    for question, cased, uncased in [
        ("Is ice cold?", True, True),
        ("the\n  ice ,  and the water", True, True),
        ("Where is the 𓀀?", False, False),
        ("Is the café cold?", True, False),
    ]:
        prompt = Template("t", "the {question}\n the").fill({"question": Piece(question)})
        for family, kept in (("bert_cased", cased), ("bert_uncased", uncased)):
            encoded = encoded_prompt(family, prompt)
            sample = mark(encoded, families.tokenizer(family), SPANS)
            assert isinstance(sample, Sample) == kept, (family, question)
            if isinstance(sample, Sample):
                bare = "".join(families.tokenizer(family).decode(sample.ids[(sample.span & QUESTION) > 0]).split())
                assert bare.casefold() == "".join(question.split()).casefold()
            else:
                assert isinstance(sample, Skipped) and "could not be matched" in sample.reason


@pytest.mark.parametrize("family", families.LOSSY)
@settings(max_examples=60)
@given(prompts())
def test_lossy_tokenizers_mark_right_or_skip(family: str, prompt: Prompt) -> None:
    """Their reported offsets are right, so a mask is right where it is theirs: of what lies in the question."""
    (encoded,) = encode([(0, prompt)], families.tokenizer(family), 100_000, need_question=True)
    if isinstance(encoded, Skipped):
        assert "no tokens but special ones" in encoded.reason
        return
    sample = mark(encoded, families.tokenizer(family), SPANS)
    if isinstance(sample, Skipped):
        assert "could not be matched" in sample.reason
        return
    assert encoded.offsets is not None
    (question,) = (span for span in prompt.spans if span.name == "question")
    for (start, stop), bits, special in zip(encoded.offsets, sample.span, encoded.special, strict=True):
        inside = prompt.text[max(start, question.start) : min(stop, question.end)]
        assert bool(bits & QUESTION) == (bool(inside.strip()) and not special), "they have no tokens of white space"
    assert (sample.span[encoded.special] == 1 << SPANS.index("special")).all()


def test_the_families_are_what_they_stand_for() -> None:
    """So that no law holds for want of the hard cases."""
    tokenizers = {family: families.tokenizer(family) for family in families.LOSSLESS}
    assert not tokenizers["byt5"].is_fast
    assert tokenizers["gpt2"].pad_token is None and tokenizers["gpt2"].bos_token is None
    one = tokenizers["one_special"]
    assert one.bos_token == one.eos_token == one.pad_token
    first = {
        family: bool(made("a", return_special_tokens_mask=True)["special_tokens_mask"][0])
        for family, made in tokenizers.items()
    }
    assert first["llama3"] and first["llama2"] and not first["llama2_without_bos"] and not first["gpt2"]
    for family, pieces in (("llama3", 2), ("qwen", 4)):
        assert len(tokenizers[family].backend_tokenizer.pre_tokenizer.pre_tokenize_str("2024")) == pieces
    for family in ("llama2", "mistral", "gemma", "unigram"):
        assert tokenizers[family].tokenize("𓀀")[-4:] == ["<0xF0>", "<0x93>", "<0x80>", "<0x80>"]
    learnt = families.token_bytes("gpt2", range(2, len(tokenizers["gpt2"])))
    assert any(len(piece) > 1 and "\ufffd" in piece.decode(errors="replace") for piece in learnt), (
        "tokens of parts of characters"
    )
