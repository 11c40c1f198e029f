import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from headscore.data.errors import InputError
from headscore.data.prompts import PromptMaker
from headscore.data.templates import MAX_SPANS, Piece, Prompt, Template, read_template

SOURCE = Path("rows.jsonl")


def prompt(row: dict[str, Any], template: Template | str | None = None) -> Prompt:
    return PromptMaker(SOURCE, [row], template)(row, 0)


def adapters_row(instruction: str, **more: str) -> dict[str, str]:
    return {"instruction": instruction, "input": "", "output": "the correct answer is …", **more}


ARC_ROW = {"question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}

# One row in the wording of each source task of commonsense_170k: instruction, question, choices.
WORDINGS = {
    "boolq": (
        "Please answer the following question with true or false, question: is tea a drink?\n\nAnswer format: true/false",
        "is tea a drink?",
        "true/false",
    ),
    "piqa": (
        "Please choose the correct solution to the question: dry a cup\n\nSolution1: use a towel\n\n"
        "Solution2: use  soup\n\nAnswer format: solution1/solution2",
        "dry a cup",
        "Solution1: use a towel\n\nSolution2: use  soup",
    ),
    "social_i_qa": (
        "Please choose the correct answer to the question: Ana won. How does Ana feel?\n\nAnswer1: glad Answer2: sad "
        "Answer3: ill\n\nAnswer format: answer1/answer2/answer3",
        "Ana won. How does Ana feel?",
        "Answer1: glad Answer2: sad Answer3: ill",
    ),
    "hellaswag": (
        "Please choose the correct ending to complete the given sentence: Cooking: A man cuts bread. he\n\nEnding1: , eats it. "
        "Ending2: flies. Ending3: sings to it. Ending4: paints it.\n\nAnswer format: ending1/ending2/ending3/ending4",
        "Cooking: A man cuts bread. he",
        "Ending1: , eats it. Ending2: flies. Ending3: sings to it. Ending4: paints it.",
    ),
    "winogrande": (
        "Please choose the correct answer to fill in the blank to complete the given sentence: Bo ran and _ was tired.\n\n"
        "Option1: Bo Option2: Al Answer format: option1/option2",
        "Bo ran and _ was tired.",
        "Option1: Bo Option2: Al",
    ),
}
for task in ("ARC-Easy", "ARC-Challenge", "openbookqa"):  # the same wording, four choices
    WORDINGS[task] = (
        f"Please choose the correct answer to the question: {task} asks:\n\nAnswer1: a Answer2: b Answer3: c Answer4: d\n\n"
        "Answer format: answer1/answer2/answer3/answer4",
        f"{task} asks:",
        "Answer1: a Answer2: b Answer3: c Answer4: d",
    )


def test_arc_prompt_is_the_template_filled() -> None:
    made = prompt(ARC_ROW)
    assert made.text == "Question: Which is hot?\nChoices:\nA. ice\nB. fire\nAnswer:"
    assert made.span_text("question") == "Which is hot?"
    assert made.span_text("choices") == "A. ice\nB. fire"
    assert made.span_text("template") == "Question: \nChoices:\n\nAnswer:"


@pytest.mark.parametrize("task", WORDINGS)
def test_spans_in_every_wording_of_commonsense_170k(task: str) -> None:
    instruction, question, choices = WORDINGS[task]
    made = prompt(adapters_row(instruction))
    assert made.span_text("question") == question
    assert made.span_text("choices") == choices
    assert made.span_text("instruction") == instruction
    assert question not in made.span_text("template")
    assert made.text.endswith("\n                ### Response:")


def test_every_character_is_template_or_in_a_named_span() -> None:
    for row in (ARC_ROW, adapters_row(WORDINGS["piqa"][0]), adapters_row("no known wording")):
        made = prompt(row)
        covered = [set() for _ in made.text]
        for span in made.spans:
            for position in range(span.start, span.end):
                covered[position].add(span.name)
        assert all(covered)
        assert not any("template" in names and names & {"question", "choices", "input"} for names in covered)


def test_an_input_gets_its_own_section() -> None:
    made = prompt(adapters_row(WORDINGS["piqa"][0], input="Cups are wet."))
    assert "### Input:\n                Cups are wet.\n" in made.text
    assert made.span_text("input") == "Cups are wet."
    assert "### Input" not in prompt(adapters_row(WORDINGS["piqa"][0])).text


def test_unknown_wording_has_no_question() -> None:
    assert prompt(adapters_row("Write a poem.")).span_text("question") == ""
    assert (
        prompt(adapters_row("Please choose the correct answer to the question: what? No choices.")).span_text("question") == ""
    )


def test_shipped_files_hold_the_same_questions_in_both_styles() -> None:
    arc, adapters = tiny.arc_rows(), json.loads(tiny.LLM_ADAPTERS.read_text())
    assert len(arc) == len(adapters) >= 96
    assert len({row["question"] for row in arc}) == len(arc)
    for one, other in zip(arc, adapters, strict=True):
        made = prompt(other)
        assert made.span_text("question") == one["question"]
        texts = one["choices"]["text"]
        assert made.span_text("choices") == " ".join(f"Answer{i}: {text}" for i, text in enumerate(texts, 1))
        assert other["answer"] == f"answer{one['choices']['label'].index(one['answerKey']) + 1}"


def test_a_users_template_makes_a_span_of_every_placeholder() -> None:
    template = Template("mine", "{{json}} {context}: {question} {context}")
    made = prompt({"context": "C", "question": "Q?", "year": 1999}, template)
    assert made.text == "{json} C: Q? C"
    assert made.span_text("context") == "CC"
    assert made.span_text("question") == "Q?"
    assert made.span_text("template") == "{json} :  "
    assert prompt({"year": 1999}, Template("t", "{year}")).text == "1999"


def test_a_users_template_may_use_the_made_columns_of_a_known_style() -> None:
    assert prompt(ARC_ROW, Template("t", "{choices}")).text == "A. ice\nB. fire"
    made = prompt(adapters_row(WORDINGS["boolq"][0]), Template("t", "{instruction}"))
    assert made.span_text("question") == "is tea a drink?"


@given(st.text(max_size=60), st.text(max_size=60))
def test_spans_are_exact_whatever_the_values_hold(question: str, context: str) -> None:
    template = Template("t", "a{question}b{context}c")
    made = template.fill({"question": Piece(question), "context": Piece(context)})
    assert made.text == f"a{question}b{context}c"
    assert made.span_text("question") == question
    assert made.span_text("context") == context
    assert made.span_text("template") == "abc"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ARC_ROW, "question": None}, "row 0: has no 'question'"),
        ({**ARC_ROW, "question": 5}, "row 0: 'question' must be text, got int 5"),
        ({**ARC_ROW, "choices": ["ice"]}, "'choices' must hold the lists"),
        ({**ARC_ROW, "choices": {"text": ["ice", 2], "label": ["A", "B"]}}, "'choices.text' must be a list of text"),
        ({**ARC_ROW, "choices": {"text": ["ice"], "label": ["A", "B"]}}, "1 choices but 2 labels"),
        ({**ARC_ROW, "choices": "ice, fire"}, "is not a JSON object"),
        ({**ARC_ROW, "answerKey": "E"}, "answerKey 'E' is none of the labels A, B"),
        (adapters_row(WORDINGS["boolq"][0], answer="maybe"), "answer 'maybe' is none of true, false"),
        (adapters_row(WORDINGS["piqa"][0], answer="solution3"), "none of solution1, solution2"),
        ({"text": "x", "label": 1}, "columns text, label are of no known style"),
    ],
)
def test_rows_that_do_not_fit_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        prompt(row)
    assert message in str(error.value)
    assert "rows.jsonl" in str(error.value)


@pytest.mark.parametrize("text", ["no placeholder", "{", "}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}"])
def test_braces_that_are_no_placeholders_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="template t"):
        Template("t", text)


def test_template_against_columns() -> None:
    with pytest.raises(InputError, match=r"\{missing\} is no column of rows.jsonl; it has question"):
        PromptMaker(SOURCE, [{"question": "?"}], Template("t", "{missing}"))
    names = [f"c{i}" for i in range(MAX_SPANS)]
    with pytest.raises(InputError, match="spans"):
        PromptMaker(SOURCE, [dict.fromkeys(names, "")], Template("t", "".join(f"{{{name}}}" for name in names)))


def test_the_last_line_break_of_a_template_file_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("{question}\n\n")
    assert read_template(tmp_path / "t.txt") == Template("t.txt", "{question}\n")


def test_a_template_rescues_rows_that_only_look_like_a_known_style() -> None:
    """MMLU has ARC's column names with other contents, plain Alpaca data those of LLM-Adapters with free instructions."""
    mmlu = {"question": "2+2?", "choices": ["3", "4"], "answer": 1}
    made = prompt(mmlu, Template("t", "Q: {question} A:"))
    assert made.text == "Q: 2+2? A:" and made.span_text("question") == "2+2?"
    maker = PromptMaker(SOURCE, [adapters_row("")], Template("t", "{instruction}"))
    assert not maker.has_question, "no row is skipped for a question that the template does not ask for"
    assert maker(adapters_row("Write a poem."), 0).span_text("instruction") == "Write a poem."
