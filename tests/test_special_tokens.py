"""Of what a tokenizer adds, no prompt ends with any and none begins with it twice; what a text says is kept."""

import copy
import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import families
import h5py
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import arrays_of, assert_same
from tokenizers import AddedToken, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

import headscore
from headscore.data.cache.folder import open_cache, shard_files
from headscore.data.errors import InputError
from headscore.data.options.settings import CaptureSettings
from headscore.data.prompts.maker import PromptMaker
from headscore.data.prompts.special import added_tokens
from headscore.data.prompts.templates import Prompt, Span, Template
from headscore.data.prompts.tokens import Encoded, Sample, Skipped, encode, mark

NAMES = ("question", "choices", "template", "special")
QUESTION, TEMPLATE, SPECIAL = (1 << NAMES.index(name) for name in ("question", "template", "special"))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<>\ufffd"), min_size=1, max_size=30).filter(
    str.strip
)


class Bracketed(ByT5Tokenizer):
    """Adds tokens of its own at both ends, and says nothing true of them: its mask is that of ByT5."""

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        return [self.pad_token_id, *token_ids_0, self.eos_token_id, self.pad_token_id]


def adding(form: str) -> PreTrainedTokenizerBase:
    """The tiny tokenizer with another post-processor: `form` is what it makes of a text `$A`."""
    made = copy.deepcopy(tiny.tokenizer())
    made.add_tokens([AddedToken("<|end|>", special=True)], special_tokens=True)
    special = [(name, made.convert_tokens_to_ids(name)) for name in set(form.split()) - {"$A"}]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=special)
    return made


def with_eos_option() -> PreTrainedTokenizerBase:
    made = copy.deepcopy(tiny.tokenizer())
    made.add_bos_token, made.add_eos_token = True, True
    return made


APPENDING = {
    "eos": (lambda: adding("$A </s>"), [], ["</s>"]),
    "bos and eos": (lambda: adding("<s> $A </s>"), ["<s>"], ["</s>"]),
    "several": (lambda: adding("<s> $A </s> <|end|>"), ["<s>"], ["</s>", "<|end|>"]),
    "two before, two after": (lambda: adding("<s> <|end|> $A </s> </s>"), ["<s>", "<|end|>"], ["</s>", "</s>"]),
    "add_eos_token": (with_eos_option, ["<s>"], ["</s>"]),
    "byt5": (lambda: families.tokenizer("byt5"), [], ["</s>"]),
    "slow, of its own": (Bracketed, ["<pad>"], ["</s>", "<pad>"]),
    "bert": (lambda: families.tokenizer("bert_cased"), ["[CLS]"], ["[SEP]"]),
}


@pytest.fixture(scope="module", params=APPENDING)
def appending(request: pytest.FixtureRequest) -> tuple[Any, list[int], list[int]]:
    """A tokenizer, and the ids that it puts before and after a text."""
    make, before, after = APPENDING[request.param]
    made = make()
    return made, made.convert_tokens_to_ids(before), made.convert_tokens_to_ids(after)


def encoded(text: str, tokenizer: Any, *spans: Span, **options: Any) -> Encoded | Skipped:
    prompt = Prompt(text, spans or (Span("question", 0, len(text)),))
    return encode([(0, prompt)], tokenizer, 10_000, need_question=False, **options)[0]


def sample(text: str, tokenizer: Any, *spans: Span) -> Sample:
    made = encoded(text, tokenizer, *spans)
    assert isinstance(made, Encoded), made
    marked = mark(made, tokenizer, NAMES)
    assert isinstance(marked, Sample), marked
    return marked


# ------------------------------------------------------------------------------------------------------------ at the end


@settings(max_examples=30)
@given(text=st.lists(st.sampled_from(["the ice", "</s>", "<s>", "<|end|>", "[SEP]", " water?", "\n"]), min_size=1).map("".join))
def test_a_prompt_ends_where_its_text_does(appending: tuple[Any, list[int], list[int]], text: str) -> None:
    tokenizer, before, after = appending
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer(text)["input_ids"]
    more = len(whole) - len(own) - len(before)  # ByT5 adds no EOS where the text ends with one
    assert whole[len(whole) - more :] == (after if more else [])
    made, kept = encoded(text, tokenizer), encoded(text, tokenizer, keep_trailing=True)
    if isinstance(made, Skipped):
        assert "no tokens but special ones" in made.reason and not set(own) - {*before, tokenizer.bos_token_id}
        return
    rest = list(itertools.dropwhile({*before, tokenizer.bos_token_id}.__contains__, own))
    assert made.ids.tolist()[len(made.ids) - len(rest) :] == rest and made.frame.left_out == tuple(whole[len(whole) - more :])
    assert isinstance(kept, Encoded)
    assert kept.ids.tolist() == [*made.ids.tolist(), *made.frame.left_out] and not kept.frame.left_out
    assert kept.special.tolist() == [*made.special.tolist(), *[True] * more]


def test_only_what_was_added_is_special(appending: tuple[Any, list[int], list[int]]) -> None:
    tokenizer, before, _ = appending
    made = encoded("the ice and the water", tokenizer)
    assert isinstance(made, Encoded) and made.ids[made.special].tolist() == before
    assert (
        sample("the ice and the water", tokenizer).span == [*[SPECIAL] * len(before), *[QUESTION] * sum(~made.special)]
    ).all()


@pytest.mark.parametrize("text", ["", "<s>"])
def test_a_prompt_of_nothing_but_special_tokens_is_skipped(text: str) -> None:
    for form in ("$A", "<s> $A", "$A </s>", "<s> $A </s>"):
        made = encoded(text, adding(form))
        assert isinstance(made, Skipped) and "no tokens" in made.reason


def test_the_length_counts_what_is_kept() -> None:
    tokenizer = adding("<s> $A </s>")
    prompt = Prompt("the ice", (Span("question", 0, 7),))
    most = len(tokenizer("the ice")["input_ids"]) - 1
    (made,) = encode([(0, prompt)], tokenizer, most, need_question=True)
    (kept,) = encode([(0, prompt)], tokenizer, most, need_question=True, keep_trailing=True)
    assert isinstance(made, Encoded) and isinstance(kept, Skipped)


@given(head=st.integers(0, 3), tail=st.integers(0, 3), own=st.lists(st.integers(5, 9), min_size=1, max_size=6), guess=st.data())
def test_what_was_added_is_found_whatever_the_mask_says(head: int, tail: int, own: list[int], guess: st.DataObject) -> None:
    ids = np.array([*range(head), *own, *range(tail)], np.int32)
    mask = guess.draw(st.lists(st.integers(0, 1), max_size=14))
    if head or tail:
        assert added_tokens(ids, mask, own).tolist() == [*[True] * head, *[False] * len(own), *[True] * tail]
    right = [*[1] * head, *[0] * len(own), *[1] * tail]
    assert added_tokens(ids, right, own).tolist() == added_tokens(ids, right, None).tolist() == [bool(flag) for flag in right]


# ------------------------------------------------------------------------------------------------------ at the beginning

WITH_BOS = {
    **{name: lambda name=name: families.tokenizer(name) for name in ("roberta", "one_special", "llama3", "llama2", "mistral")},
    **{name: lambda name=name: families.tokenizer(name) for name in ("gemma", "unigram")},
    "bos and eos": lambda: adding("<s> $A </s>"),
    "two": lambda: adding("<s> <|end|> $A"),
}


@pytest.mark.parametrize("family", WITH_BOS)
@settings(max_examples=40)
@given(before=TEXT, question=TEXT)
def test_bos_is_there_once_whoever_brings_it(family: str, before: str, question: str) -> None:
    tokenizer = WITH_BOS[family]()
    bos = tokenizer.bos_token
    text = f"{before}{question}"
    for start in ("", bos):
        places = [len(start), len(start + before), len(start + text)]
        made = sample(start + text, tokenizer, Span("template", 0, places[1]), Span("question", *places[1:]))
        assert made.ids.tolist().count(tokenizer.bos_token_id) == 1 and made.ids[0] == tokenizer.bos_token_id
        assert made.span[0] == SPECIAL
        inside = np.flatnonzero(made.span & QUESTION)
        assert inside.tolist() == list(range(inside[0], inside[-1] + 1))
        assert question.strip() in tokenizer.decode(made.ids[inside])


def test_a_text_may_bring_all_or_some_of_what_is_added() -> None:
    tokenizer = adding("<s> <|end|> $A")
    plain = sample("the ice", tokenizer)
    for start in ("<s>", "<s><|end|>", "<|end|>"):
        made = sample(f"{start}the ice", tokenizer, Span("question", len(start), len(start) + 7))
        assert made.ids.tolist() == plain.ids.tolist() and made.span.tolist() == plain.span.tolist(), start


@pytest.mark.parametrize("family", ["gpt2", "llama2_without_bos", "qwen"])
def test_bos_as_text_is_special_also_where_none_is_added(family: str) -> None:
    tokenizer = families.tokenizer(family)
    start = tokenizer.bos_token or tokenizer.eos_token
    end = len(start) + 7
    made = sample(f"{start}the ice", tokenizer, Span("template", 0, len(start)), Span("question", len(start), end))
    assert made.ids.tolist() == tokenizer(f"{start}the ice")["input_ids"]
    assert made.span[0] == (SPECIAL if tokenizer.bos_token else TEMPLATE), "a control token that is no BOS is text"


def test_a_span_that_covers_the_texts_bos_has_it() -> None:
    made = sample("<s>the ice", tiny.tokenizer(), Span("question", 0, 10), Span("choices", 4, 10))
    assert made.span[0] == QUESTION | SPECIAL and (made.span[1:] & QUESTION).all()


def test_what_a_text_itself_says_twice_stays() -> None:
    made = sample("<s><s>the <s>ice</s>", tiny.tokenizer(), Span("template", 0, 6), Span("question", 6, 20))
    assert made.ids.tolist() == tiny.tokenizer(False)("<s><s>the <s>ice</s>")["input_ids"]
    assert made.span[:2].tolist() == [SPECIAL, SPECIAL] and set(made.span[2:].tolist()) == {QUESTION}


def test_a_template_may_bring_bos(tmp_path: Path) -> None:
    rows = [{"question": "Is ice cold?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}}]
    made = {}
    for start in ("", "<s>"):
        maker = PromptMaker(tmp_path / "rows.jsonl", rows, Template("t", start + "Question: {question}\n{choices}"))
        (found,) = encode([(0, maker(rows[0], 0))], tiny.tokenizer(), 100, need_question=True)
        assert isinstance(found, Encoded)
        marked = mark(found, tiny.tokenizer(), maker.span_names)
        assert isinstance(marked, Sample)
        made[start] = marked.ids.tolist(), marked.span.tolist()
    assert made[""] == made["<s>"]


# -------------------------------------------------------------------------------------------------------------- captures


@pytest.fixture(scope="module")
def appends(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama with a tokenizer that ends each text with EOS."""
    folder = Path(shutil.copytree(llama, tmp_path_factory.mktemp("appends") / "llama"))
    made = copy.deepcopy(tiny.tokenizer())
    special = [("<s>", 0), ("</s>", 1)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    made.save_pretrained(folder)
    return folder


def settings_of(cache: Path) -> dict[str, Any]:
    return json.loads((cache / "cache.json").read_text())["settings"]


def test_an_appended_eos_changes_nothing_unless_it_is_asked_for(
    appends: Path, last_token_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "headscore"):
        headscore.capture(tmp_path / "a", model=str(appends), max_samples=8, shard_size=3)
    told = [record.getMessage() for record in caplog.records if "--trailing-special" in record.getMessage()]
    assert told == ["</s>, which the tokenizer adds at the end of 8 prompts, is left out (--trailing-special keeps it)"]
    assert_same(arrays_of(last_token_cache), arrays_of(tmp_path / "a"), exactly=False)
    assert settings_of(last_token_cache)["special_tokens"] is None
    assert settings_of(tmp_path / "a")["special_tokens"] == {"left_out": ["</s>"], "not_repeated": []}
    with pytest.raises(InputError, match="holds another capture: settings special_tokens was "):
        headscore.capture(tmp_path / "a", model=str(appends), max_samples=8, shard_size=3, trailing_special=True)
    headscore.capture(tmp_path / "b", model=str(appends), max_samples=8, trailing_special=True)
    kept = arrays_of(tmp_path / "b")
    assert (kept["tokens/id"][np.cumsum(kept["lengths"]) - 1] == 1).all() and settings_of(tmp_path / "b")[
        "special_tokens"
    ] is None


def test_the_option_is_no_difference_where_nothing_is_added(llama: Path, last_token_cache: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(last_token_cache, tmp_path / "c"))
    before = [path.stat().st_mtime_ns for path in shard_files(out)]
    headscore.capture(out, model=str(llama), max_samples=8, trailing_special=True)
    assert [path.stat().st_mtime_ns for path in shard_files(out)] == before


def test_rows_that_bring_bos_and_rows_that_do_not_are_the_same_prompts(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [row["question"] for row in tiny.arc_rows()[:6]]
    for name, starts in (("without", [""]), ("some", ["<s>", "", ""]), ("all", ["<s>"])):
        with (tmp_path / name).with_suffix(".jsonl").open("w") as file:
            for index, text in enumerate(texts):
                start = starts[index % len(starts)]
                span = {"name": "question", "start": len(start) + 3, "end": len(start) + len(text)}
                print(json.dumps({"text": start + text, "spans": [span]}), file=file)
        with caplog.at_level(logging.INFO, "headscore"):
            headscore.capture(tmp_path / name, model=str(llama), data=str(tmp_path / f"{name}.jsonl"))
    told = [record.getMessage() for record in caplog.records if "no second one" in record.getMessage()]
    assert told == [f"prompts that bring <s> themselves: {count}; the tokenizer adds no second one" for count in (2, 6)]
    for name in ("some", "all"):
        assert_same(arrays_of(tmp_path / "without"), arrays_of(tmp_path / name), exactly=True)
        assert settings_of(tmp_path / name)["special_tokens"] == {"left_out": [], "not_repeated": ["<s>"]}


def test_a_text_that_says_bos_twice_is_told(llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"{start}Is ice cold?", "spans": []} for start in ("", "<s><s>", "<s>")]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    headscore.capture(tmp_path / "c", model=str(llama), data=str(tmp_path / "d.jsonl"))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["prompts that begin with <s> twice, as their texts say: 1, the first in row 1"]


def test_chat_templates_say_how_a_prompt_ends() -> None:
    with pytest.raises(InputError, match="trailing_special: with chat=True"):
        CaptureSettings(chat=True, trailing_special=True)


def of_an_older_version(cache: Path) -> None:
    """Takes out of a cache what earlier versions did not write."""
    for path in shard_files(cache):
        with h5py.File(path, "r+") as file:
            older = {k: v for k, v in json.loads(file.attrs["settings"]).items() if k not in ("special_tokens", "spans")}
            file.attrs["settings"] = np.bytes_(json.dumps(older))
    metadata = json.loads((cache / "cache.json").read_text())
    (cache / "cache.json").write_text(json.dumps(metadata | {"settings": older}))


def test_a_cache_of_an_older_version_is_read_but_not_added_to(llama: Path, last_token_cache: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(last_token_cache, tmp_path / "c"))
    of_an_older_version(out)
    assert headscore.score(out).raw.equals(headscore.score(last_token_cache).raw)
    assert not headscore.inspect(out, verify=True)["damaged"] and open_cache(out).missing == 0
    with pytest.raises(InputError, match="another capture: settings spans was without white space, now trimmed; use"):
        headscore.capture(out, model=str(llama), max_samples=8)
