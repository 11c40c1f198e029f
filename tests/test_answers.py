"""A row whose answer is none of its choices is left out and counted; how the answer is written does not matter."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import headscore
from headscore.capture.inputs.chat import in_chat
from headscore.capture.inputs.tokenising import encode_shards, read_prompts
from headscore.data.errors import InputError
from headscore.data.options.settings import CaptureSettings
from headscore.data.prompts.maker import PromptMaker
from headscore.data.prompts.templates import Prompt, Template
from headscore.data.prompts.tokens import Skipped

SOURCE = Path("rows.jsonl")
BOOLQ = "Please answer the following question with true or false, question: is tea hot?\n\nAnswer format: true/false"
WRONG = (3, 4, 5, 17)  # rows; with shards of three, one shard has no other


def arc_row(answer: Any, labels: Any = ("A", "B"), **more: Any) -> dict[str, Any]:
    return {"question": "Hot?", "choices": {"text": ["ice", "fire"], "label": list(labels)}, "answerKey": answer, **more}


def boolq_row(answer: Any, instruction: str = BOOLQ) -> dict[str, Any]:
    return {"instruction": instruction, "input": "", "output": "", "answer": answer}


def made(row: dict[str, Any]) -> Prompt | Skipped:
    return PromptMaker(SOURCE, [row])(row, 0)


@pytest.mark.parametrize(
    "row",
    [
        *(arc_row(answer) for answer in ("A", "b", " B\n", None, "", "  ", math.nan)),
        *(arc_row(answer, [1, 2]) for answer in (1, "1", 1.0, "2 ", "1.0")),
        *(arc_row(answer, ["1", "2"]) for answer in (1, 2.0, "1")),
        *(arc_row(answer, [1.0, 2.0]) for answer in (1, "2", 1.0)),
        *(arc_row(answer, [True, False]) for answer in (True, "False", "true")),
        *(boolq_row(answer) for answer in (True, False, "True", " FALSE ", "true", None, math.nan)),
        boolq_row("whatever", "Write a poem."),
    ],
)
def test_an_answer_may_be_written_in_any_way(row: dict[str, Any]) -> None:
    assert isinstance(made(row), Prompt)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (arc_row("E"), "answerKey 'E' is none of A, B"),
        (arc_row(1), "answerKey 1 is none of A, B"),
        (arc_row(True, [1, 2]), "answerKey True is none of 1, 2"),
        (arc_row(["A"]), "answerKey ['A'] is none of A, B"),
        (arc_row(math.inf), "answerKey inf is none of A, B"),
        (arc_row("x" * 1000), "is none of A, B"),
        (arc_row("a\nb"), r"answerKey 'a\nb' is none of A, B"),
        (boolq_row("maybe"), "answer 'maybe' is none of true, false"),
        (boolq_row(1), "answer 1 is none of true, false"),
    ],
)
def test_an_answer_that_is_no_choice_is_a_reason_to_leave_the_row_out(row: dict[str, Any], reason: str) -> None:
    skipped = made(row)
    assert isinstance(skipped, Skipped) and skipped.row == 0
    assert reason in skipped.reason and "\n" not in skipped.reason and len(skipped.reason) < 200


@given(st.lists(st.text(max_size=3), min_size=1, max_size=5), st.text(max_size=3))
def test_a_row_is_left_out_only_for_an_answer_that_no_label_is(labels: list[str], answer: str) -> None:
    row = {"question": "Hot?", "choices": [{"text": "x", "label": label} for label in labels], "answerKey": answer}
    same = answer.strip().casefold() in {label.strip().casefold() for label in labels} or not answer.strip()
    assert isinstance(made(row), Prompt) or not same


@pytest.mark.parametrize("choices", [[], {"A": None, "B": None}, {"text": [], "label": []}])
def test_a_row_without_choices_is_left_out_like_one_without_a_question(choices: Any) -> None:
    row = {"question": "Hot?", "choices": choices, "answerKey": "A"}
    template = Template("own", "{question}\n{options}")
    for outcome in (made(row), PromptMaker(SOURCE, [{**row, "options": choices}], template)({**row, "options": choices}, 0)):
        assert isinstance(outcome, Skipped) and "no choices" in outcome.reason


def write(path: Path, wrong: tuple[int, ...] = WRONG) -> Path:
    rows = [{**row, "answerKey": "Z"} if number in wrong else row for number, row in enumerate(tiny.arc_rows()[:24])]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("chat", [False, True])
def test_rows_left_out_count_in_their_shard(tmp_path: Path, chat: bool) -> None:
    data = write(tmp_path / "d.jsonl")
    tokenizer = copy.deepcopy(tiny.tokenizer())
    settings = CaptureSettings(model="tiny", data=str(data), shard_size=3, max_skipped=0.2, max_length=80, chat=chat)
    prompts = read_prompts(settings)
    if chat:
        tokenizer.chat_template = "{{ messages[-1].content }}"
        prompts = in_chat(prompts, tokenizer, settings)
    shards = encode_shards(prompts, tokenizer, CaptureSettings(data=str(data), shard_size=3, max_skipped=1.0, max_length=80))
    for number, shard in enumerate(shards):
        rows = [entry.row for entry in (*shard.prompts, *shard.skipped)]
        assert sorted(rows) == list(range(3 * number, 3 * number + 3)), "each row once, in its shard"
        assert [entry.row for entry in shard.skipped] == sorted(entry.row for entry in shard.skipped)
    reasons = {entry.row: entry.reason for shard in shards for entry in shard.skipped}
    assert [row for row in reasons if "answerKey 'Z'" in reasons[row]] == list(WRONG)
    assert len(reasons) > len(WRONG), "some are too long, too"
    with pytest.raises(InputError, match=rf"{len(reasons)} of 24 rows would be skipped and max_skipped allows 4"):
        encode_shards(prompts, tokenizer, settings)


def capture(llama: Path, data: Path, out: Path, **options: Any) -> list[int]:
    """The rows in the cache."""
    lines = headscore.capture(out, model=str(llama), data=str(data), shard_size=3, **{"max_skipped": 0.2, **options})
    return lines["row"].to_list()


def test_a_capture_goes_on_without_them_also_after_a_stop_and_in_ranks(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, left = write(tmp_path / "d.jsonl"), [row for row in range(24) if row not in WRONG]
    assert capture(llama, data, tmp_path / "c") == left
    listed = (tmp_path / "c" / "skipped.jsonl").read_text()
    assert [json.loads(line)["row"] for line in listed.splitlines()] == list(WRONG)
    (tmp_path / "c" / "skipped.jsonl").unlink()
    for number in (1, 5):  # those with rows that are left out
        (tmp_path / "c" / "shards" / f"{number:05d}.h5").unlink()
    assert capture(llama, data, tmp_path / "c") == left
    assert (tmp_path / "c" / "skipped.jsonl").read_text() == listed
    for rank in ("1", "0"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        capture(llama, data, tmp_path / "ranks")
    assert (tmp_path / "ranks" / "skipped.jsonl").read_text() == listed
    assert headscore.score(tmp_path / "ranks").samples == len(left)


def test_too_many_stop_before_the_model_is_loaded(llama: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl")
    allowed = (len(WRONG) - 1) / 24
    with pytest.raises(
        InputError, match="4 of 24 rows would be skipped and max_skipped allows 3; the first is row 3: answerKey"
    ):
        capture(llama, data, tmp_path / "c", max_skipped=allowed)
    with pytest.raises(InputError, match="24 of 24 rows would be skipped and none is left; the first is row 0: answerKey 'Z'"):
        capture(llama, write(tmp_path / "d.jsonl", tuple(range(24))), tmp_path / "c", max_skipped=1.0)
