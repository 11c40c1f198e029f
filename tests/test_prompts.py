import csv
import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from headscore.capture.inputs.tokenising import read_prompts
from headscore.data.errors import InputError
from headscore.data.options.settings import BUILT_IN_TEMPLATES, CaptureSettings
from headscore.data.prompts.maker import PromptMaker
from headscore.data.prompts.templates import ALWAYS_SPANS, MAX_SPANS, Piece, Prompt, Template, read_template

SOURCE = Path("rows.jsonl")


def prompt(row: dict[str, Any], template: Template | str | None = None) -> Prompt:
    made = PromptMaker(SOURCE, [row], template)(row, 0)
    assert isinstance(made, Prompt), made
    return made


def adapters_row(instruction: str, **more: str) -> dict[str, str]:
    return {"instruction": instruction, "input": "", "output": "the correct answer is …", **more}


def text_row(text: str, *ranges: tuple[Any, Any], name: Any = "question") -> dict[str, Any]:
    return {"text": text, "spans": [{"name": name, "start": start, "end": end} for start, end in ranges]}


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


QUOTING = {
    "a mark": "A sheet says {mark} yes. ",
    "a line": "A sheet says\n{mark} yes.\nIs it right? ",
    "a paragraph": "A sheet says\n\n{mark} yes.\n\nIs it right? ",
    "an answer format": "It says Answer format: a/b here. ",
    "a line with an answer format": "It says\nAnswer format: a/b\nhere. ",
}


@pytest.mark.parametrize("quoting", QUOTING)
@pytest.mark.parametrize("task", WORDINGS)
def test_a_question_may_quote_what_begins_the_choices(task: str, quoting: str) -> None:
    instruction, question, choices = WORDINGS[task]
    mark = "Answer format:" if task == "boolq" else choices.split()[0]
    longer = QUOTING[quoting].format(mark=mark) + question
    made = prompt(adapters_row(instruction.replace(question, longer)))
    assert made.span_text("question") == longer
    assert made.span_text("choices") == choices


@pytest.mark.parametrize("task", [task for task in WORDINGS if task != "boolq"])  # which has no choices of its own
def test_a_choice_may_quote_what_begins_the_choices(task: str) -> None:
    instruction, question, choices = WORDINGS[task]
    longer = f"{choices} as in {choices.split()[0]} x\n{choices.split()[0]} Answer format: a/b"
    made = prompt(adapters_row(instruction.replace(choices, longer)))
    assert made.span_text("question") == question
    assert made.span_text("choices") == longer


def test_unknown_wording_has_no_question() -> None:
    for instruction in (
        "Write a poem.",
        "Please choose the correct answer to the question: what? No choices.",
        "Please choose the correct answer to the question: A sheet says Answer1: yes.\n\nAnswer format: answer1/answer2",
        "Please answer the following question with true or false, question: the Answer format: is what?",
    ):
        assert prompt(adapters_row(instruction)).span_text("question") == "", instruction


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
        ({**ARC_ROW, "question": math.nan}, "row 0: 'question' must be text, got NaN"),
        ({**ARC_ROW, "choices": 7}, "'choices' must hold the lists 'text' and 'label', or be a list of choices, got int 7"),
        ({**ARC_ROW, "choices": {"text": "ice", "label": ["A"]}}, "'choices.text' must be a list, got str 'ice'"),
        ({**ARC_ROW, "choices": {"text": ["ice", None], "label": ["A", "B"]}}, "row 0: has no 'choices[1]'"),
        ({**ARC_ROW, "choices": {"text": ["ice", "fire"], "label": ["A", math.inf]}}, "'choices[1]' must be text, a number"),
        ({**ARC_ROW, "choices": ["ice", ["fire"]]}, "'choices[1]' must be text, a number or a boolean, got list ['fire']"),
        ({**ARC_ROW, "choices": {"text": ["ice"], "label": ["A", "B"]}}, "1 choices but 2 labels"),
        ({**ARC_ROW, "choices": "ice, fire"}, "'choices' is not a JSON list or object, got 'ice, fire'; save the rows as JSON"),
        ({**ARC_ROW, "choices": "['ice', 'fire']"}, "save the rows as JSON or Parquet, which keep lists"),
        ({**ARC_ROW, "choices": "{'text': array(['ice'], dtype=object)}"}, "save the rows as JSON or Parquet"),
        ({**ARC_ROW, "choices": "[" * 100_000}, "'choices' is not a JSON list or object"),
        ({**adapters_row("Write."), "instruction": 5}, "row 0: 'instruction' must be text, got int 5"),
        ({**adapters_row("Write."), "input": math.nan}, "row 0: 'input' must be text, got NaN"),
        ({"text": "x", "label": 1}, "columns text, label are of no known style"),
        ({"text": "x", "spans": None}, "row 0: 'spans' must be a list of objects with name, start and end, got NoneType"),
        ({"text": "x", "spans": {}}, "row 0: 'spans' must be a list of objects with name, start and end, got dict"),
        ({"text": "x", "spans": "question"}, "row 0: 'spans' is not a JSON list"),
        ({"text": "x", "spans": "[{'name': 'question', 'start': 0, 'end': 1}]"}, "save the rows as JSON or Parquet"),
        ({"text": "x", "spans": [{"name": "a", "start": 0, "end": math.nan}]}, "'end' must be an integer, got nan"),
        ({"text": None, "spans": []}, "row 0: has no 'text'"),
        ({"text": 5, "spans": []}, "row 0: 'text' must be text, got int 5"),
        (text_row("abc", (0, 1), (2, 4)), "row 0: spans[1]: 2 to 4 is not a range of the text, which has 3 characters"),
        (text_row("abc", (-1, 1)), "row 0: spans[0]: -1 to 1 is not a range"),
        (text_row("abc", (2, 1)), "row 0: spans[0]: 2 to 1 is not a range"),
        (text_row("abc", (0, 1.0)), "row 0: spans[0]: 'end' must be an integer, got 1.0"),
        (text_row("abc", (True, 1)), "row 0: spans[0]: 'start' must be an integer, got True"),
        (text_row("abc", (0, 1), name=7), "row 0: spans[0]: 'name' must be text, got 7"),
        (text_row("abc", (0, 1), name="template"), "'template' is the name of a built-in span"),
        (text_row("abc", (0, 1), name="special"), "'special' is the name of a built-in span"),
        (text_row("abc", (0, 1), name=" "), "' ' is not a name"),
        (text_row("abc", (0, 1), name="a\nb"), "is not a name"),
        (text_row("abc", (0, 1), name="\ud800"), "'\\ud800' is not a name"),
        (text_row("abc", (0, 1), name="n" * 65), "is not a name of 1 to 64"),
        ({"text": "abc", "spans": ["question"]}, "row 0: spans[0]: must be an object with name, start and end, got 'question'"),
        ({"text": "abc", "spans": [{"name": "a", "start": 0}]}, "row 0: spans[0]: must be an object"),
        ({"text": "abc", "spans": [{"name": "a", "start": 0, "end": 1, "x": 2}]}, "row 0: spans[0]: must be an object"),
        ({"text": "\ud800", "spans": []}, "row 0: holds half a surrogate pair"),
    ],
)
def test_rows_that_do_not_fit_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        prompt(row)
    assert message in str(error.value)
    assert "rows.jsonl" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        *("no placeholder", "{", "}", "{}", "{0}", "{a[0]}", "{a!r}", "{a:>9}"),
        *("{.a}", "{a.}", "{a..b}", "{a.b[0]}", "{0.a}", "{=a}", "{a=}", "{a=b=c}", "{a.b=c}", "{a.b!r}"),
        *("{template}", "{special}", "{template.text}", "{special=a}"),  # the names of built-in spans
    ],
)
def test_braces_that_are_no_placeholders_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="template t") as error:
        Template("t", text)
    assert "\n" not in str(error.value)


def test_template_against_columns() -> None:
    with pytest.raises(InputError, match=r"\{missing\} is not a column of rows.jsonl; it has question"):
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


# --------------------------------------------------------------------------------------------------- built-in templates


@pytest.mark.parametrize("template", BUILT_IN_TEMPLATES)
def test_each_built_in_template_asks_the_question_of_either_style(template: str) -> None:
    made = prompt(ARC_ROW, template)
    assert made.span_text("question") == ARC_ROW["question"]
    assert "ice" in made.span_text("choices") and "fire" in made.span_text("choices")
    for instruction, question, choices in WORDINGS.values():
        made = prompt(adapters_row(instruction), template)
        assert made.span_text("question") == question
        assert made.span_text("choices") == choices
        maker = PromptMaker(SOURCE, [adapters_row(instruction)], template)
        assert maker.has_question and maker.span_names[:2] == ("question", "choices")


def test_an_arc_row_in_the_alpaca_template_is_what_llm_adapters_made_of_it() -> None:
    for one, other in zip(tiny.arc_rows(), json.loads(tiny.LLM_ADAPTERS.read_text()), strict=True):
        assert prompt(one, "alpaca") == prompt(other)
    assert prompt(ARC_ROW, "arc") == prompt(ARC_ROW)
    assert PromptMaker(SOURCE, [ARC_ROW], "arc").span_names == PromptMaker(SOURCE, [ARC_ROW]).span_names


def test_the_plain_template_puts_nothing_around_a_row() -> None:
    assert prompt(ARC_ROW, "plain").text == "Which is hot?\nA. ice\nB. fire"
    instruction = WORDINGS["piqa"][0]
    assert prompt(adapters_row(instruction), "plain").text == instruction
    assert prompt(adapters_row(instruction, input="Cups."), "plain").text == instruction + "\nCups."


def test_a_row_of_unknown_wording_has_no_question_in_any_template() -> None:
    for template in BUILT_IN_TEMPLATES:
        maker = PromptMaker(SOURCE, [adapters_row("Write a poem.")], template)
        assert maker.has_question and maker(adapters_row("Write a poem."), 0).span_text("question") == ""


def test_a_built_in_template_is_not_for_rows_of_other_shapes() -> None:
    with pytest.raises(InputError, match="of no known style"):
        PromptMaker(SOURCE, [{"q": "?"}], "plain")
    with pytest.raises(InputError, match=r"template plain: rows.jsonl brings text and spans of its own"):
        PromptMaker(SOURCE, [text_row("a", (0, 1))], "plain")


def test_a_users_template_takes_the_question_out_of_an_instruction() -> None:
    template = Template("t", "{question} = {question}? {choices}")
    made = prompt(adapters_row(WORDINGS["boolq"][0]), template)
    assert made.text == "is tea a drink? = is tea a drink?? true/false"
    assert made.span_text("question") == "is tea a drink?" * 2
    assert PromptMaker(SOURCE, [adapters_row("")], template).has_question
    own = adapters_row(WORDINGS["boolq"][0], question="Own?")
    assert prompt(own, template).text == "Own? = Own?? true/false", "a column of the file comes before what is derived"
    assert prompt(ARC_ROW, Template("t", "{instruction}")) == prompt(ARC_ROW, Template("plain", "{instruction}"))
    assert prompt(ARC_ROW, Template("t", "{instruction}")).span_text("question") == "Which is hot?"


def test_a_file_may_be_called_like_a_built_in_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_text("My {question}")
    monkeypatch.chdir(tmp_path)
    for given_as, wanted in (
        ("plain", "{question}\n{choices}"),
        ("./plain", "My {question}"),
        (Path("plain"), "My {question}"),
    ):
        assert read_prompts(CaptureSettings(template=given_as)).maker.templates[0].text == wanted


# ------------------------------------------------------------------------------------------------- rows with their own spans


@st.composite
def marked_rows(draw: st.DrawFn) -> dict[str, Any]:
    text = draw(st.text(max_size=30))
    edges = st.lists(st.integers(0, len(text)), min_size=2, max_size=2).map(sorted)
    names = st.sampled_from(["question", "fact", "Frage 1"])
    return {
        "text": text,
        "spans": [
            {"name": name, "start": start, "end": end}
            for name, (start, end) in draw(st.lists(st.tuples(names, edges), max_size=5))
        ],
    }


@given(marked_rows())
def test_a_rows_own_spans_are_kept_and_the_rest_is_template(row: dict[str, Any]) -> None:
    made = prompt(row)
    assert made.text == row["text"]
    own = [(span.name, span.start, span.end) for span in made.spans if span.name != "template"]
    assert own == [(span["name"], span["start"], span["end"]) for span in row["spans"]]
    covered = {position for _, start, end in own for position in range(start, end)}
    rest = [p for span in made.spans if span.name == "template" for p in range(span.start, span.end)]
    assert sorted(rest) == sorted(set(range(len(made.text))) - covered), "each character once"


def test_span_names_are_those_of_all_rows_in_a_fixed_order() -> None:
    rows = [text_row("ab", (0, 1), name="fact"), text_row("ab"), text_row("ab", (0, 1), (1, 2)), text_row("a", name="never")]
    maker = PromptMaker(SOURCE, rows)
    assert maker.style == "text" and maker.templates == ()
    assert maker.span_names == ("question", "template", "special", "fact") and maker.has_question
    assert maker(rows[2], 2).span_text("question") == "ab"
    assert not PromptMaker(SOURCE, rows[:2]).has_question, "then no row is skipped for want of one"
    many = [text_row("ab", (0, 1), name=f"s{i}") for i in range(MAX_SPANS)]
    assert len(PromptMaker(SOURCE, many[: MAX_SPANS - len(ALWAYS_SPANS)]).span_names) == MAX_SPANS
    with pytest.raises(InputError, match=r"rows.jsonl: brings 10 spans, template and special included; a cache holds 8"):
        PromptMaker(SOURCE, many)


def test_a_fault_in_any_row_is_told_with_its_number() -> None:
    with pytest.raises(InputError, match=r"rows.jsonl: row 1: spans\[0\]: 0 to 9"):
        PromptMaker(SOURCE, [text_row("ab"), text_row("ab", (0, 9))])


def test_every_file_kind_brings_the_same_spans(tmp_path: Path) -> None:
    rows = [text_row("né 🧊 cold?", (0, 2), (5, 10)), text_row("b", (0, 1), name="fact")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "spans"), *((row["text"], json.dumps(row["spans"])) for row in rows)])
    drawn = [read_prompts(CaptureSettings(data=str(tmp_path / f"a.{kind}"))).drawn for kind in ("jsonl", "parquet", "csv")]
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0][0][1].span_text("question") == "nécold?"


def test_a_users_template_takes_the_text_alone() -> None:
    made = prompt(text_row("Is ice cold?", (3, 6)), Template("t", "Say: {text}"))
    assert made.text == "Say: Is ice cold?" and made.span_text("text") == "Is ice cold?" and not made.span_text("question")
