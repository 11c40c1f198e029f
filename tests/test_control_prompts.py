"""Control prompts are the rows' own but for the question, and the cache that holds them says so."""

import collections
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from cli_runs import Cli
from hypothesis import given
from hypothesis import strategies as st
from resuming import as_rank

import headscore
from headscore.capture.inputs.tokenising import read_prompts
from headscore.data.cache.folder import open_cache, shard_path
from headscore.data.options.settings import CaptureSettings
from headscore.data.prompts.controls import CONTROLLED, WHAT_CONTROLS_ARE, controlled
from headscore.data.prompts.templates import Prompt, Span

KINDS = list(WHAT_CONTROLS_ARE)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def without(prompt: Prompt) -> list[str]:
    """What stands around the questions of a prompt."""
    places = sorted({(span.start, span.end) for span in prompt.spans if span.name == CONTROLLED and span.start < span.end})
    edges = [0, *(edge for place in places for edge in place), len(prompt.text)]
    return [prompt.text[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


# ----------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(TEXT, min_size=2, max_size=6), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_all_but_the_question_stays(kind: str, texts: list[str], seed: int, row: int) -> None:
    """Every second text is a question, the others are spans of their own."""
    spans, text = [], ""
    for number, piece in enumerate(texts):
        spans.append(Span(CONTROLLED if number % 2 else "rest", len(text), len(text) + len(piece)))
        text += piece
    spans.append(Span("all", 0, len(text)))
    prompt = Prompt(text, tuple(spans))
    made = controlled(prompt, kind, seed, row)
    assert made == controlled(prompt, kind, seed, row), "it is decided by seed and row"
    assert without(made) == without(prompt)
    assert [span.name for span in made.spans] == [span.name for span in prompt.spans]
    assert made.span_text("rest") == prompt.span_text("rest") and made.span_text("all") == made.text
    for old, new in zip(prompt.spans, made.spans, strict=True):
        before, after = prompt.text[old.start : old.end], made.text[new.start : new.end]
        if old.name == CONTROLLED:
            assert bool(before.strip()) == bool(after.strip()), "an empty question stays empty"
        if old.name == CONTROLLED and kind == "shuffle":
            assert collections.Counter(after.split()) == collections.Counter(before.split())
            assert len(after) == len(before), "the white space between words stays"
            assert (after == before) == (len(set(before.split())) < 2), "and the order is another wherever it can be"


def test_the_neutral_question_has_about_as_many_words() -> None:
    for words in range(1, 200):
        prompt = Prompt("x " * words, (Span(CONTROLLED, 0, 2 * words),))
        made = controlled(prompt, "null", 0, 0)
        assert abs(len(made.text.split()) - words) <= 8
        assert made.text.strip().endswith("So what is it?") and made.text.endswith(" ")


def test_spans_that_begin_or_end_inside_a_question_lose_what_has_gone() -> None:
    text = "ab question words cd"
    spans = (Span(CONTROLLED, 3, 17), Span("word", 3, 11), Span("over", 12, 20), Span("inside", 5, 7), Span("same", 3, 17))
    made = controlled(Prompt(text, spans), "null", 0, 0)
    assert made.text == "ab So what is it? cd"
    assert {span.name: made.text[span.start : span.end] for span in made.spans} == {
        CONTROLLED: "So what is it?",
        "word": "",
        "over": " cd",
        "inside": "",
        "same": "So what is it?",
    }


def test_questions_that_overlap_are_refused() -> None:
    with pytest.raises(headscore.InputError, match="control='null': row 7: two spans 'question' overlap"):
        controlled(Prompt("abcdef", (Span(CONTROLLED, 0, 4), Span(CONTROLLED, 2, 6))), "null", 0, 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["arc", "alpaca", "plain"])
@pytest.mark.parametrize("data", [tiny.ARC, tiny.LLM_ADAPTERS])
def test_every_built_in_style_and_template(kind: str, template: str, data: Path) -> None:
    plain, control = (
        dict(read_prompts(CaptureSettings(data=str(data), template=template, max_samples=12, control=given)).drawn)
        for given in (None, kind)
    )
    assert plain.keys() == control.keys()
    for row, prompt in plain.items():
        assert isinstance(prompt, Prompt) and isinstance(control[row], Prompt)
        assert without(control[row]) == without(prompt) and control[row].text != prompt.text
        assert control[row].span_text("choices") == prompt.span_text("choices")


def test_what_has_no_question_is_refused(tmp_path: Path, llama: Path) -> None:
    template = tmp_path / "t.txt"
    template.write_text("{goal}?")
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps({"goal": f"tea {n}"}) for n in range(4)))
    given: dict[str, Any] = {"model": str(llama), "data": str(data), "template": str(template)}
    with pytest.raises(
        headscore.InputError,
        match=r"control='null': replaces the span 'question'.*have only template, special, goal; name the placeholder",
    ):
        headscore.capture(tmp_path / "c", **given, control="null")
    template.write_text("{question=goal}?")
    assert len(headscore.capture(tmp_path / "c", **given, control="shuffle")) == 4
    data.write_text("\n".join(json.dumps({"goal": "tea"}) for n in range(4)))
    with pytest.raises(headscore.InputError, match=r"control='shuffle': would leave every prompt of .* as it is"):
        headscore.capture(tmp_path / "d", **given, control="shuffle")


def test_rows_that_bring_their_text(tmp_path: Path) -> None:
    rows = [
        {
            "text": "Tea is hot. Is it?",
            "spans": [{"name": "fact", "start": 0, "end": 11}, {"name": "question", "start": 12, "end": 18}],
        }
    ]
    data = tmp_path / "d.json"
    data.write_text(json.dumps(rows))
    ((_, made),) = read_prompts(CaptureSettings(data=str(data), control="shuffle")).drawn
    assert isinstance(made, Prompt) and made.text == "Tea is hot. it? Is" and made.span_text("fact") == "Tea is hot."


# ------------------------------------------------------------------------------------------------------------------- caches


GIVEN: dict[str, Any] = {"max_samples": 12, "shard_size": 5, "spot_checks": False, "control": "shuffle"}


@pytest.fixture(scope="module")
def shuffled(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control cache in three shards. Read only."""
    out = tmp_path_factory.mktemp("control") / "c"
    headscore.capture(out, model=str(llama), **GIVEN)
    return out


def arrays(cache: Path) -> dict[str, np.ndarray]:
    """The arrays of a cache's shards, one behind the other."""
    names = ("samples/row", "tokens/id", "tokens/span", "last_token/attention", "last_token/output_norm")
    read = [{name: shard.read(name) for name in names} for shard in open_cache(cache).open_shards()]
    return {name: np.concatenate([each[name] for each in read], axis=-1) for name in names}


def test_the_order_does_not_depend_on_shards_batches_stops_and_ranks(
    llama: Path, shuffled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = arrays(shuffled)
    headscore.capture(tmp_path / "one", model=str(llama), **GIVEN | {"shard_size": 100, "batch_size": 1})
    headscore.capture(tmp_path / "stop", model=str(llama), **GIVEN)
    shard_path(tmp_path / "stop", 1).unlink()
    headscore.capture(tmp_path / "stop", model=str(llama), **GIVEN)
    for index in (1, 0):
        as_rank(monkeypatch, index, 2)
        headscore.capture(tmp_path / f"part{index}", model=str(llama), **GIVEN)
    headscore.merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged")
    for name in ("one", "stop", "merged"):
        for array, values in arrays(tmp_path / name).items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(values, right[array], atol=2e-3, rtol=2e-2)
            else:
                np.testing.assert_array_equal(values, right[array])


def test_it_says_what_it_is(run_cli: Cli, shuffled: Path, llama: Path, tmp_path: Path, caplog: Any) -> None:
    assert json.loads((shuffled / "cache.json").read_text())["settings"]["control"] == "shuffle"
    assert "control   shuffle: the words of each question are shuffled" in run_cli("inspect", shuffled)[1]
    with caplog.at_level(logging.WARNING, "headscore"):
        headscore.score(shuffled, tmp_path / "r")
        assert "CONTROL shuffle: the words of each question are shuffled; this is no ranking for the task" in caplog.text
        caplog.clear()
        headscore.run(tmp_path / "run", model=str(llama), control="null", max_samples=4, report=False)
        assert "CONTROL null: a neutral question stands in the place of each" in caplog.text
    assert "control: shuffle" in (tmp_path / "r" / "config.yaml").read_text()


def test_ordinary_and_control_captures_are_not_mixed(llama: Path, shuffled: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    headscore.capture(plain, model=str(llama), **GIVEN | {"control": None})
    assert "control" not in json.loads((plain / "cache.json").read_text())["settings"]
    before = (plain / "cache.json").read_bytes()
    with pytest.raises(headscore.InputError, match="holds another capture: control was not given, now shuffle"):
        headscore.capture(plain, model=str(llama), **GIVEN)
    with pytest.raises(headscore.InputError, match="control was shuffle, now null"):
        headscore.capture(shuffled, model=str(llama), **GIVEN | {"control": "null"})
    with pytest.raises(headscore.InputError, match="control was shuffle, now not given"):
        headscore.capture(shuffled, model=str(llama), **GIVEN | {"control": None})
    with pytest.raises(headscore.InputError, match=r"belongs to another capture than .*: control was not given, now shuffle"):
        headscore.merge([plain, shuffled], tmp_path / "both")
    assert (plain / "cache.json").read_bytes() == before
