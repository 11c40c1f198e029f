"""Prompts in chat templates of many kinds: the model gets what the template says, and the spans stay where they were."""

import copy
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from eager import EagerModel
from hypothesis import given
from hypothesis import strategies as st
from parity import assert_parity
from tokenizers import AddedToken, processors

import headscore
from headscore.capture.inputs.chat import in_chat
from headscore.capture.inputs.tokenising import Marker, Prompts, encode_shards
from headscore.data.cache.folder import open_cache
from headscore.data.cache.reader import Shard
from headscore.data.errors import InputError
from headscore.data.options.settings import CaptureSettings
from headscore.data.prompts.maker import PromptMaker
from headscore.data.prompts.tokens import Sample, mark

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "bos of its own": "{{ bos_token }}" + CHATML,
    "strips": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{% endfor %}",
    "system in the user's turn": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% endif %}"
        "[INST] {{ first }}{{ messages[-1].content }} [/INST]"
    ),
    "says the system prompt twice": (
        "{% if messages|length > 1 %}{{ messages[0].content }} <|im_start|>{% endif %}\n{{ messages[-1].content }}\n"
        "{% if messages|length > 1 %}<|im_end|> {{ messages[0].content }}{% endif %}"
    ),
    "braces": "{{ '{\"role\": {' }}\n{{ messages[-1].content }}\n{{ '}}' }}{{ messages[0].content if messages|length > 1 }}",
}
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}<s>"
    "{{ messages[0].content }}"
)
NAMES = ("question", "template", "special")


@cache
def tokenizer(template: str | None) -> Any:
    """The tiny tokenizer, which puts a BOS before all it is given, with ChatML's control tokens and a chat template."""
    made = copy.deepcopy(tiny.tokenizer())
    made.add_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")], special_tokens=True)
    made.chat_template = template
    return made


def prompts_of(*texts: str) -> Prompts:
    """One prompt per text, which is a question from end to end."""
    rows = [{"text": text, "spans": [{"name": "question", "start": 0, "end": len(text)}]} for text in texts]
    maker = PromptMaker(Path("rows.jsonl"), rows)
    return Prompts(Path("rows.jsonl"), "", len(rows), maker, [(i, maker(row, i)) for i, row in enumerate(rows)])


def sample(text: str, template: str, **options: Any) -> Sample:
    settings = CaptureSettings(model="tiny", chat=True, max_skipped=1.0, **options)
    prompts = in_chat(prompts_of(text), tokenizer(template), settings)
    assert prompts.maker.span_names == NAMES
    shard = Marker(tokenizer(template), NAMES)(encode_shards(prompts, tokenizer(template), settings)[0])
    return shard.samples[0]


def decoded(sample: Sample, name: str, template: str) -> str:
    return tokenizer(template).decode(sample.ids[sample.span >> NAMES.index(name) & 1 == 1], clean_up_tokenization_spaces=False)


def folded(text: str) -> str:
    return "".join(text.split())


CONTENTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(["</s>", "<|im_end|>", " a", "{{", "\n"])).map("".join))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@given(
    text=CONTENTS.filter(str.strip), system=st.sampled_from([None, "Be brief.", "Is a {ice} cold?"]), generation=st.booleans()
)
def test_the_question_is_found_in_whatever_surrounds_it(template: str, text: str, system: str | None, generation: bool) -> None:
    made = sample(text, template, system=system, generation_prompt=generation)
    assert folded(decoded(made, "question", template)) == folded(text)
    assert not np.any((made.span & 1 != 0) & (made.span > 1)), "no token of the question is one of the chat template's"


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_model_gets_what_transformers_would_give_it(template: str, system: str | None) -> None:
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": " Is ice cold? "}]
    for generation in (True, False):
        wanted = tokenizer(template).apply_chat_template(messages, add_generation_prompt=generation, return_dict=False)
        found = sample(" Is ice cold? ", template, system=system, generation_prompt=generation)
        assert found.ids.tolist() == wanted
        assert found.ids.tolist().count(0) <= 1, "BOS is there once, if the template has it"


def test_what_a_tokenizer_adds_is_in_no_chat() -> None:
    """What the chat template itself puts at the end stays, as it is part of it."""
    made = copy.deepcopy(tokenizer("{{ bos_token }}" + CHATML + "</s>"))
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert made("a")["input_ids"][-1] == 1
    settings = CaptureSettings(model="tiny", chat=True)
    ((encoded,),) = (shard.prompts for shard in encode_shards(in_chat(prompts_of("ice"), made, settings), made, settings))
    messages = [{"role": "user", "content": "ice"}]
    text = made.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert encoded.ids.tolist() == made(text, add_special_tokens=False)["input_ids"]
    assert encoded.ids[0] == 0 and encoded.ids[-1] == 1 and not encoded.frame.left_out
    marked = mark(encoded, made, NAMES)
    assert isinstance(marked, Sample) and marked.span[0] == marked.span[-1] == 1 << NAMES.index("special")


def test_control_tokens_are_special_only_where_the_chat_template_put_them() -> None:
    template = TEMPLATES["bos of its own"]
    made = sample("Is </s> or <|im_end|> cold?", template, system="Say <|im_end|> often.")
    assert decoded(made, "special", template) == "<s><|im_start|><|im_end|><|im_end|><|im_start|><|im_end|><|im_start|>"
    assert folded(decoded(made, "template", template)) == "systemSayoften.userassistant"
    assert folded(decoded(made, "question", template)) == "Is</s>or<|im_end|>cold?"


def test_a_question_that_the_system_prompt_asks_too_is_found_in_its_own_place() -> None:
    made = sample("Is ice cold?", CHATML, system="Is ice cold? Is ice cold?")
    own = np.flatnonzero(made.span & 1)
    assert folded(decoded(made, "question", CHATML)) == "Isicecold?"
    assert folded(decoded(made, "template", CHATML)).count("Isicecold?") == 2 and own[0] > len(made.ids) / 2


def test_spans_lose_the_white_space_that_the_template_strips() -> None:
    settings = CaptureSettings(chat=True, model="tiny")
    ((_, prompt),) = in_chat(prompts_of("\n  Is ice cold?\t"), tokenizer(TEMPLATES["strips"]), settings).drawn
    assert prompt.span_text("question") == "Is ice cold?"
    ((_, prompt),) = in_chat(prompts_of("\n  Is ice cold?\t"), tokenizer(CHATML), settings).drawn
    assert prompt.span_text("question") == "\n  Is ice cold?\t"
    covered = sorted((span.start, span.end) for span in prompt.spans if span.start < span.end)
    assert [0, *(end for _, end in covered)] == [*(start for start, _ in covered), len(prompt.text)], "all is in one span"


@given(text=st.text(st.sampled_from(" \na?"), max_size=12), edges=st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted))
def test_a_span_inside_a_stripped_message_stays_on_its_characters(text: str, edges: list[int]) -> None:
    start, end = (min(edge, len(text)) for edge in edges)
    row = {"text": text, "spans": [{"name": "question", "start": start, "end": end}]}
    maker = PromptMaker(Path("rows.jsonl"), [row])
    prompts = Prompts(Path("rows.jsonl"), "", 1, maker, [(0, maker(row, 0))])
    settings = CaptureSettings(model="tiny", chat=True)
    ((_, prompt),) = in_chat(prompts, tokenizer(TEMPLATES["strips"]), settings).drawn
    lead = len(text) - len(text.lstrip())
    inside = range(max(start, lead), min(end, len(text.rstrip())))
    assert prompt.span_text("question") == "".join(text[position] for position in inside)
    (span,) = (span for span in prompt.spans if span.name == "question")
    if inside:
        assert span.start == len("<|im_start|>user\n") + inside.start - lead


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_marks_need_no_offsets(template: str) -> None:
    settings = CaptureSettings(model="tiny", chat=True, system="Be brief.")
    prompts = in_chat(prompts_of("Is 🧊 cold? </s>"), tokenizer(template), settings)
    encoded = encode_shards(prompts, tokenizer(template), settings)[0].prompts[0]
    marked = [mark(each, tokenizer(template), NAMES) for each in (encoded, dataclasses.replace(encoded, offsets=None))]
    np.testing.assert_array_equal(marked[0].span, marked[1].span)


def test_the_length_counts_the_chat_template() -> None:
    length = len(sample("Is ice cold?", CHATML).ids)
    settings = CaptureSettings(model="tiny", chat=True, max_length=length - 1)
    with pytest.raises(InputError, match=f"{length} tokens are more than max_length"):
        encode_shards(in_chat(prompts_of("Is ice cold?"), tokenizer(CHATML), settings), tokenizer(CHATML), settings)


REFUSED: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "no chat template": (None, {}, "chat: the tokenizer of tiny has no chat template"),
    "upper case": ("<s>{{ messages[-1].content | upper }}", {}, "chat: the chat template of tiny rewrites the content"),
    "says it twice": ("{{ messages[-1].content * 2 }}", {}, "chat: the chat template of tiny repeats the content"),
    "drops it": ("<s>", {}, "chat: the chat template of tiny rewrites the content"),
    "escapes quotes": ("{{ messages[-1].content | tojson }}", {}, "rows.jsonl: row 1: the chat template of tiny rewrites"),
    "folds white space": (
        "{{ messages[-1].content.split() | join(' ') }}",
        {},
        "rows.jsonl: row 1: the chat template of tiny rewrites",
    ),
    "says something else to a row": (
        "{{ 'a' if '\"' in messages[-1].content else 'b' }} {{ messages[-1].content }}",
        {},
        "rows.jsonl: row 1: the chat template of tiny rewrites",
    ),
    "another white space at the end": (
        "{{ messages[-1].content | trim }}{{ ' ' if '\"' in messages[-1].content else '' }}",
        {},
        "rows.jsonl: row 1: the chat template of tiny rewrites",
    ),
    "fails on a row": (
        "{{ raise_exception('no quotes') if '\"' in messages[-1].content else messages[-1].content }}",
        {},
        "rows.jsonl: row 1: the chat template of tiny fails: TemplateError: no quotes",
    ),
    "fails on all": ("{{ raise_exception('never') }}", {"system": "Hi."}, "chat: the chat template of tiny fails: "),
    "is no template": ("{% if %}", {}, "chat: the chat template of tiny fails: TemplateSyntaxError"),
    "takes no system prompt": (
        NO_SYSTEM,
        {"system": "Hi."},
        "system: leave it out: the chat template of tiny fails: TemplateError: System role not supported",
    ),
    "drops the system prompt": (
        "<s>{{ messages[-1].content }}",
        {"system": "Hi."},
        "system: the chat template of tiny drops it",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_templates_that_would_change_a_prompt_are_refused(what: str) -> None:
    template, options, message = REFUSED[what]
    settings = CaptureSettings(model="tiny", chat=True, **options)
    with pytest.raises(InputError) as error:
        in_chat(prompts_of("Is ice cold?", 'Is "ice"\n\ncold?'), tokenizer(template), settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_system_prompt_that_is_the_templates_own_is_no_fault() -> None:
    template = "{{ messages[0].content if messages|length > 1 else 'Be kind.' }}\n{{ messages[-1].content }}"
    assert folded(decoded(sample("Is ice cold?", template, system="Be kind."), "template", template)) == "Bekind."
    assert sample("Is ice cold?", NO_SYSTEM).span[0] == 1 << NAMES.index("special"), "it is only --system that it refuses"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "Hi."}, "system: is for chat models"),
        ({"generation_prompt": False}, "generation_prompt=False: is for chat models"),
        ({"chat": True, "system": "\udcff"}, "is not text in UTF-8"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CaptureSettings(**options)


# ------------------------------------------------------------------------------------------------------------- captures

TURNS = (
    "{% for m in messages %}<s>{{ m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    for path in llama.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(TURNS)
    return folder


def test_a_captured_chat_equals_eager_attention(chat_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    headscore.capture(out, model=str(chat_model), max_samples=6, chat=True, system="Be brief.", template="plain")
    assert_parity(out, EagerModel(chat_model))
    metadata = open_cache(out).metadata
    assert metadata["settings"]["chat"] == {"system": "Be brief.", "generation_prompt": True}
    assert metadata["templates"][-1] == {"name": "chat", "text": "<s>system\nBe brief.</s>\n<s>user\n{prompt}</s>\n<s>"}
    rows = tiny.arc_rows()
    for path in open_cache(out).shards:
        with Shard(path) as shard:
            ids, span, offsets = shard.read("tokens/id"), shard.read("tokens/span"), shard.offsets()
            for row, start, stop in zip(shard.read("samples/row"), offsets[:-1], offsets[1:], strict=True):
                inside = ids[start:stop][span[start:stop] & 1 == 1]
                assert folded(tiny.tokenizer().decode(inside)) == folded(rows[row]["question"])


def test_a_capture_with_another_chat_is_another_capture(chat_model: Path, tmp_path: Path) -> None:
    first = {"model": str(chat_model), "max_samples": 4, "chat": True, "system": "Be brief."}
    assert len(headscore.capture(tmp_path, **first)) == len(headscore.capture(tmp_path, **first)) == 4
    for change, message in (
        ({"chat": False, "system": None}, "settings chat was {'system': 'Be brief.'"),
        ({"system": "Be long."}, "settings chat was "),
        ({"system": None}, "settings chat was "),
        ({"generation_prompt": False}, "settings chat was "),
        ({"template": "plain"}, "templates was "),
    ):
        with pytest.raises(InputError, match="holds another capture") as error:
            headscore.capture(tmp_path, **{**first, **change})
        assert message in str(error.value)
    (chat_model / "chat_template.jinja").write_text(TURNS.replace("<s>", "<s> "))
    try:
        with pytest.raises(InputError, match="holds another capture: templates was "):
            headscore.capture(tmp_path, **first)
    finally:
        (chat_model / "chat_template.jinja").write_text(TURNS)


def test_what_is_not_in_a_chat_says_so_as_nothing(last_token_cache: Path) -> None:
    assert json.loads((last_token_cache / "cache.json").read_text())["settings"]["chat"] is None
