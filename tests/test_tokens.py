from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from headscore.data.prompts.alignment import aligned_offsets
from headscore.data.prompts.templates import Piece, Prompt, Span, Template
from headscore.data.prompts.tokens import Encoded, Sample, Skipped, encode, mark, marked_text

NAMES = ("question", "choices", "template", "special")
TEMPLATE = Template("t", "Question:{question}\nAnswer:")


def tokenised(prompt: Prompt, bos: bool = True, max_length: int = 10_000) -> Sample | Skipped:
    return with_tokenizer(prompt, tiny.tokenizer(bos), max_length)


def with_tokenizer(prompt: Prompt, tokenizer: Any, max_length: int = 10_000) -> Sample | Skipped:
    encoded = encode([(3, prompt)], tokenizer, max_length, need_question=True)[0]
    return encoded if isinstance(encoded, Skipped) else mark(encoded, tokenizer, NAMES)


def members(sample: Sample, name: str) -> np.ndarray:
    return sample.ids[sample.span >> NAMES.index(name) & 1 == 1]


def decoded(sample: Sample, name: str) -> str:
    return tiny.tokenizer().decode(members(sample, name))


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip()))
def test_the_decoded_question_span_is_the_question(question: str) -> None:
    sample = tokenised(TEMPLATE.fill({"question": Piece(question)}))
    assert isinstance(sample, Sample)
    # a token at an edge may hold more than the span's characters of its text
    assert question.strip() in decoded(sample, "question")


def test_span_template_and_special_tokens() -> None:
    sample = tokenised(TEMPLATE.fill({"question": Piece(" Is ice cold?")}))
    assert isinstance(sample, Sample)
    assert decoded(sample, "question").replace(" ", "") == "Isicecold?"
    assert decoded(sample, "template") == "Question:Answer:"
    assert decoded(sample, "special") == "<s>"
    assert sample.span[0] == 1 << 3
    assert sample.row == 3


def test_white_space_inside_a_span_belongs_to_it_and_at_its_ends_to_none() -> None:
    text = "a\n\n\nab\n\n\ncd\n\n\nb"
    sample = tokenised(Prompt(text, (Span("template", 0, 4), Span("question", 3, 13), Span("template", 13, 14))), bos=False)
    assert isinstance(sample, Sample)
    texts = [tiny.tokenizer().decode([i]) for i in sample.ids]
    blank = [not text.strip() for text in texts]
    assert "".join(texts) == text and sum(blank) == 9, "each line break is a token"
    inside = np.flatnonzero(sample.span & 1)
    assert "".join(texts[inside[0] : inside[-1] + 1]) == "ab\n\n\ncd" and len(inside) == inside[-1] - inside[0] + 1
    assert set(sample.span[blank][:3]) == {0} and set(sample.span[blank][3:6]) == {1} and set(sample.span[blank][6:]) == {0}


@given(st.lists(st.sampled_from(["a", "1", " ", "\n", "\u3000", "\x1f", "\u200b"]), min_size=1).map("".join), st.data())
def test_a_span_of_one_range_is_one_run_of_tokens(text: str, data: st.DataObject) -> None:
    edges = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
    prompt = Prompt(text, (Span("choices", *edges), Span("template", 0, len(text))))
    encoded = encode([(0, prompt)], tiny.tokenizer(False), 100, need_question=False)[0]
    assert not isinstance(encoded, Skipped)
    sample = mark(encoded, tiny.tokenizer(False), NAMES)
    assert isinstance(sample, Sample)
    inside = np.flatnonzero(sample.span >> 1 & 1)
    assert len(inside) == (inside[-1] - inside[0] + 1 if len(inside) else 0)
    assert bool(len(inside)) == bool(text[slice(*edges)].strip())


def test_a_token_across_an_edge_belongs_to_both_spans() -> None:
    merged = tiny.tokenizer().decode(max(tiny.tokenizer(False)("the question")["input_ids"]))
    sample = tokenised(Prompt(merged, (Span("question", 0, 1), Span("template", 1, len(merged)))), bos=False)
    assert isinstance(sample, Sample)
    assert len(merged) > 1 and len(sample.ids) == 1, "the tokenizer should have a token for the whole piece"
    assert sample.span[0] == (1 << 0 | 1 << 2)


def test_nothing_is_cut() -> None:
    prompt = TEMPLATE.fill({"question": Piece("Is ice cold?")})
    sample = tokenised(prompt)
    assert isinstance(sample, Sample)
    assert isinstance(tokenised(prompt, max_length=len(sample.ids)), Sample)
    shorter = tokenised(prompt, max_length=len(sample.ids) - 1)
    assert isinstance(shorter, Skipped)
    assert shorter.row == 3 and "--max-length" in shorter.reason
    empty = tokenised(TEMPLATE.fill({"question": Piece(" \n")}))
    assert isinstance(empty, Skipped) and "no question" in empty.reason


class WrongOffsets:
    """A tokenizer whose offsets are off, or missing, as some real ones' are."""

    def __init__(self, shift: int | None):
        self.real, self.shift = tiny.tokenizer(), shift
        self.is_fast = shift is not None

    def __call__(self, texts: list[str], **options: object) -> dict[str, list]:
        encoded = self.real(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
        shifted = [[(a + (self.shift or 0), b + (self.shift or 0)) for a, b in row] for row in encoded["offset_mapping"]]
        lengths = [len(text) for text in texts]
        clipped = [[(min(a, n), min(b, n)) for a, b in row] for row, n in zip(shifted, lengths, strict=True)]
        return {**encoded, "offset_mapping": clipped} if self.is_fast else {**encoded, "offset_mapping": None}

    def decode(self, ids: list[int], **options: bool) -> str:
        return self.real.decode(ids, **options)


QUESTIONS = ["Is ice cold?", "  twice  twice ", "naïve café 🧊🔥 — 你好", "a"]


def test_wrong_or_missing_offsets_are_found_out_and_replaced() -> None:
    for question in QUESTIONS:
        prompt = TEMPLATE.fill({"question": Piece(question)})
        right = tokenised(prompt)
        assert isinstance(right, Sample)
        for tokenizer in (WrongOffsets(3), WrongOffsets(-2), WrongOffsets(None)):
            found = with_tokenizer(prompt, tokenizer)
            assert isinstance(found, Sample)
            np.testing.assert_array_equal(found.span, right.span, question)


@given(st.text(min_size=1, max_size=60).filter(str.strip))
def test_aligned_offsets_cover_the_text_without_gaps(text: str) -> None:
    encoded = tiny.tokenizer()(text, return_special_tokens_mask=True)
    special = np.array(encoded["special_tokens_mask"], bool)
    offsets = aligned_offsets(text, np.array(encoded["input_ids"], np.int32)[~special], tiny.tokenizer())
    assert offsets is not None
    covered = np.zeros(len(text), bool)
    for start, stop in offsets:
        assert start < stop
        covered[start:stop] = True
    assert covered.all()


def test_marked_text_is_the_whole_prompt_in_runs() -> None:
    sample = tokenised(TEMPLATE.fill({"question": Piece(" Is ice cold?")}))
    assert isinstance(sample, Sample)
    pieces = marked_text(sample, NAMES, tiny.tokenizer())
    assert "".join(piece["text"] for piece in pieces) == "<s>Question: Is ice cold?\nAnswer:"
    assert {"text": "Is ice cold?", "spans": ["question"]} in pieces


@given(st.text(max_size=60), st.data())
def test_the_fast_way_marks_what_the_checked_way_does(text: str, data: st.DataObject) -> None:
    """By tokens' own texts, and by offsets that were checked by decoding prefixes."""
    ends = sorted(data.draw(st.integers(0, len(text))) for _ in range(2))
    prompt = Prompt(text, (Span("question", ends[0], ends[1]), Span("template", 0, ends[0])))
    (encoded,) = encode([(0, prompt)], tiny.tokenizer(), 10_000, need_question=False)
    if not isinstance(encoded, Encoded):
        return
    fast = mark(encoded, tiny.tokenizer(), NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headscore.data.prompts.tokens.joined_ends", lambda *_: None)
        checked = mark(encoded, tiny.tokenizer(), NAMES)
    if isinstance(checked, Skipped):
        return  # it was too careful
    assert isinstance(fast, Sample) and np.array_equal(fast.span, checked.span)
