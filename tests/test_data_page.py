"""Every prompt of docs/data.md is what its row and template make, from any kind of file, with the spans that scores need."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from headscore.capture.inputs.tokenising import read_prompts
from headscore.data.options.settings import CaptureSettings, ScoreSettings
from headscore.data.prompts.maker import PromptMaker
from headscore.data.prompts.templates import Prompt

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
HEADINGS = re.findall(r"(?m)^### (.+)$", re.sub(r"(?ms)^```.*?^```$", "", PAGE))
SECTION = re.compile(
    r"^### (.+)\n\n(.+)\n\n```json\n(.+)\n```\n\n```\n((?s:.+?))\n```\n\n```text\n((?s:.+?))\n```$", re.MULTILINE
)
SECTIONS = {match[1]: match.groups()[1:] for match in SECTION.finditer(PAGE)}  # of a heading: note, row, template, prompt

# By hand: the column of the question (with its key where that is an object), and every choice of the row.
ASKED = {
    "MMLU": (["question"], ["A. oxygen", "B. carbon dioxide", "C. helium", "D. neon"]),
    "HellaSwag": (["ctx"], ["A. puts the lid on.", "B. paints the door.", "C. swims away.", "D. folds the pot."]),
    "PIQA": (["goal"], ["Fill it with paper.", "Fill it with water."]),
    "BoolQ": (["question"], []),
    "SIQA": (["question"], ["grateful", "hungry", "bored"]),
    "WinoGrande": (["sentence"], ["cup", "shelf"]),
    "ARC": (["question"], ["A. ice", "B. snow", "C. fire"]),
    "ARC as first published": (["question", "stem"], ["A. ice", "B. tea", "C. fire"]),
    "OpenBookQA": (["question_stem"], ["A. the light", "B. the wall", "C. the cellar", "D. the cat"]),
    "OpenBookQA as first published": (["question", "stem"], ["A. steam", "B. sand", "C. wood", "D. iron"]),
    "CommonsenseQA": (["question"], ["A. fridge", "B. drawer", "C. roof", "D. letter box", "E. shoe"]),
    "CommonsenseQA as first published": (
        ["question", "stem"],
        ["A. lake", "B. bakery", "C. tunnel", "D. attic", "E. pillow"],
    ),
    "GSM8K": (["question"], []),
    "alpaca": (["instruction"], []),
}
NO_TEMPLATE_NEEDED = ("MMLU", "ARC", "CommonsenseQA")


def made_by(folder: Path, name: str, kind: str) -> tuple[PromptMaker, Prompt]:
    """The prompt of a section, from a data file and a template file."""
    _, row, template, _ = SECTIONS[name]
    (folder / "t.txt").write_text(template + "\n")
    data = folder / f"d.{kind}"
    if kind == "parquet":
        pl.DataFrame([json.loads(row)]).write_parquet(data)
    else:
        data.write_text(row)
    prompts = read_prompts(CaptureSettings(data=str(data), template=str(folder / "t.txt")))
    ((_, prompt),) = prompts.drawn
    assert isinstance(prompt, Prompt)
    return prompts.maker, prompt


def test_the_page_has_a_section_for_each_data_set() -> None:
    assert list(SECTIONS) == list(ASKED) == HEADINGS


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ASKED)
def test_a_row_and_its_template_make_the_prompt_and_the_spans_of_the_page(tmp_path: Path, name: str, kind: str) -> None:
    maker, prompt = made_by(tmp_path, name, kind)
    _, row, _, shown = SECTIONS[name]
    keys, choices = ASKED[name]
    question: Any = json.loads(row)
    for key in keys:
        question = question[key]
    assert prompt.text == shown
    assert prompt.span_text("question") == question and prompt.text.count(question) == 1
    offered = "\n".join(prompt.text[span.start : span.end] for span in prompt.spans if span.name == "choices")
    assert offered == "\n".join(choices)
    assert ("choices" in maker.span_names) == bool(choices)
    assert maker.has_question and set(ScoreSettings().task_span) <= set(maker.span_names), "what is scored by default"


@pytest.mark.parametrize("name", ASKED)
def test_the_page_says_which_rows_need_no_template(name: str) -> None:
    note, row, *_ = SECTIONS[name]
    assert ("need no template" in note) == (name in NO_TEMPLATE_NEEDED)
    if name in NO_TEMPLATE_NEEDED:
        maker = PromptMaker(Path("d.jsonl"), [json.loads(row)])
        made = maker(json.loads(row), 0)
        assert maker.style == "arc" and isinstance(made, Prompt) and made.span_text("choices") == "\n".join(ASKED[name][1])
