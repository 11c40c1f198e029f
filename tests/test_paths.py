"""Templates reach nested values and lists, in any shape in which data sets come, and say what there is where one does not."""

import csv
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscore.capture.inputs.tokenising import read_prompts
from headscore.data.errors import InputError
from headscore.data.options.settings import CaptureSettings
from headscore.data.prompts.maker import PromptMaker
from headscore.data.prompts.paths import known_paths
from headscore.data.prompts.templates import MAX_SPANS, Prompt, Template

SOURCE = Path("rows.jsonl")
NESTED = {"question": {"stem": "Hot?", "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}]}, "key": "B"}


def filled(text: str, *rows: dict[str, Any], source: Path = SOURCE) -> Prompt:
    """The prompt of the first row."""
    made = PromptMaker(source, rows, Template("t", text))(rows[0], 0)
    assert isinstance(made, Prompt)
    return made


def refused(text: str, *rows: dict[str, Any], source: Path = SOURCE) -> str:
    with pytest.raises(InputError) as error:
        filled(text, *rows, source=source)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


# ------------------------------------------------------------------------------------------------------------------- paths

NAMES = st.from_regex(r"[a-z_][\w -]{0,5}", fullmatch=True)
VALUES = st.recursive(
    st.text(max_size=9),
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(NAMES, inner, min_size=1, max_size=3),
)


def leaves(value: Any, path: str = "") -> dict[str, str]:
    """Every text in a value, by its path."""
    if isinstance(value, str):
        return {path: value}
    found = {}
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found |= leaves(inner, f"{path}.{key}" if path else str(key))
    return found


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
def test_every_text_in_a_row_can_be_reached_by_its_path(row: dict[str, Any]) -> None:
    for path, text in leaves(row).items():
        made = filled(f"<{{it={path}}}>", row)
        assert made.text == f"<{text}>" and made.span_text("it") == text


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3))
def test_each_path_that_a_message_names_leads_somewhere(row: dict[str, Any]) -> None:
    for path in known_paths([row]):
        try:
            filled(f"{{it={path}}}", row)
        except InputError as error:
            assert "is no" not in str(error) and "has no" not in str(error), "what it leads to is no text"


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["['a']", '{"a": 1}', "array([1])"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "A", "a.b", "\n"]), inner, max_size=3)
    ),
)


@given(
    row=st.dictionaries(st.sampled_from(["a", "a.b", "text", "\n"]), ANYTHING, max_size=4),
    kind=st.sampled_from(["csv", "jsonl"]),
)
def test_whatever_a_row_holds_a_template_is_filled_or_refused_in_one_line(row: dict[str, Any], kind: str) -> None:
    for text in ("{a}", "{a.b}", "{text}", "{a.0.text}", "{a.A} {a.label}", "{text.text.1}"):
        try:
            made = PromptMaker(Path(f"d.{kind}"), [row], Template("t", text))(row, 0)
            assert isinstance(made, Prompt) or "has no choices" in made.reason
        except InputError as error:
            assert "\n" not in str(error) and f"d.{kind}" in str(error) and len(str(error)) < 1000


def test_a_column_whose_name_has_dots_comes_first() -> None:
    row = {"a.b": "column", "a": {"b": "inner", "c.d": "dotted", "c": {"e": "deep"}}, "a.b.c": {"d": "longest"}}
    assert filled("{a.b} {a.c.d} {a.c.e} {a.b.c.d}", row).text == "column dotted deep longest"
    assert filled("{question.stem}", {"question.stem": "Hot?"}).span_text("question") == "Hot?", "as pandas flattens it"


@pytest.mark.parametrize(
    ("placeholder", "span"),
    [
        ("goal", "goal"),
        ("question", "question"),
        ("question.stem", "question"),
        ("question.choices", "choices"),
        ("choices.0", "choices"),
        ("question.choices.0.text", "choices"),
        ("item.question.text", "question"),
        ("options.A", "options"),
        ("question=goal", "question"),
        ("question = goal", "question"),
        ("my span=question.choices", "my span"),
    ],
)
def test_the_span_of_a_placeholder(placeholder: str, span: str) -> None:
    assert [each.span for each in Template("t", f"{{{placeholder}}}").placeholders] == [span]


def test_spans_of_one_name_are_one_bit_of_the_mask() -> None:
    options = {letter: f"choice {letter}" for letter in "ABCDEFGHIJ"}
    row = {"question": "Which?", "options": options}
    text = "{question}" + "".join(f"\n{letter}: {{options.{letter}}}" for letter in options)
    maker = PromptMaker(SOURCE, [row], Template("t", text))
    assert maker.span_names == ("question", "template", "special", "options") and len(options) > MAX_SPANS
    assert filled(text, row).span_text("options") == "".join(options.values())


def test_a_question_inside_an_instruction_is_not_marked_where_another_name_is_given() -> None:
    known = "Please answer the following question with true or false, question: is tea hot?\n\nAnswer format: true/false"
    row = {"instruction": known, "input": "", "output": ""}
    assert filled("{instruction}", row).span_text("question") == "is tea hot?"
    made = filled("{question=instruction}!", row)
    assert made.span_text("question") == known and made.span_text("template") == "!"


# ----------------------------------------------------------------------------------------------------------------- choices

LINES = "A. ice\nB. fire"
CHOICES: dict[str, Any] = {
    "a list": ["ice", "fire"],
    "objects": [{"text": "ice", "label": "A"}, {"label": "B", "text": "fire", "note": 1}],
    "lists in an object": {"text": ["ice", "fire"], "label": ["A", "B"]},
    "by label": {"A": "ice", "B": "fire"},
    "by label, with nulls": {"A": "ice", "B": "fire", "C": None},
}


@pytest.mark.parametrize("shape", CHOICES)
def test_choices_of_every_shape_are_the_same_lines(shape: str, tmp_path: Path) -> None:
    choices = CHOICES[shape]
    assert filled("{offered}", {"offered": choices}).text == LINES
    assert filled("{question.choices}", {"question": {"choices": choices}}).span_text("choices") == LINES
    assert filled("{choices}", {"question": "Hot?", "choices": choices}).text == LINES, "rows of the style arc"
    row = {"question": "Hot?", "choices": choices, "answerKey": "B"}
    styled = PromptMaker(SOURCE, [row])(row, 0)
    assert isinstance(styled, Prompt) and styled.span_text("choices") == LINES
    pl.DataFrame([{"offered": choices}]).write_parquet(tmp_path / "d.parquet")
    (tmp_path / "t.txt").write_text("{offered}")
    ((_, made),) = read_prompts(CaptureSettings(data=str(tmp_path / "d.parquet"), template=str(tmp_path / "t.txt"))).drawn
    assert isinstance(made, Prompt) and made.text == LINES


def test_rows_with_the_columns_of_a_style_may_have_another_shape() -> None:
    row = {"question": {"stem": "Hot?"}, "choices": CHOICES["objects"], "answerKey": "B"}
    made = filled("{question.stem} {choices}", row)
    assert made.span_text("question") == "Hot?" and made.span_text("choices") == LINES


def test_many_choices_are_numbered() -> None:
    assert filled("{c}", {"c": ["x"] * 26}).text.endswith("\nZ. x")
    assert filled("{c}", {"c": ["x"] * 27}).text.startswith("1. x\n") and filled("{c}", {"c": ["x"] * 27}).text.endswith(
        "\n27. x"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (1.0, "1.0"),
        (0.25, "0.25"),
        (Decimal("1.50"), "1.50"),
        ("True", "True"),
    ],
)
def test_numbers_and_booleans_are_their_text_wherever_they_stand(value: Any, text: str) -> None:
    assert filled("{a}|{b.0}|{c.d}", {"a": value, "b": [value], "c": {"d": value}}).text == "|".join([text] * 3)
    row = {"question": "Which?", "choices": {"text": [value], "label": [value]}, "answerKey": value}
    for choices in (row["choices"], [{"text": value, "label": value}]):
        made = PromptMaker(SOURCE, [row])({**row, "choices": choices}, 0)
        assert isinstance(made, Prompt) and made.span_text("choices") == f"{text}. {text}"


# ---------------------------------------------------------------------------------------------------------------- messages


def test_a_path_to_nothing_names_columns_and_paths() -> None:
    message = refused("{question.stm}", NESTED)
    assert message == (
        "template t: {question.stm} is not a path of rows.jsonl; it has question, key, question.stem, question.choices, "
        "question.choices.0.text, question.choices.0.label"
    )
    assert "{stem} is not a column of rows.jsonl; it has question, key, question.stem" in refused("{stem}", NESTED)
    assert "{question.choices.2} is not a path of" in refused("{question.choices.2}", NESTED)
    assert "{key.text} is not a path of" in refused("{key.text}", NESTED), "a text has no inside"
    with pytest.raises(InputError, match=r"columns question, key, question.stem, .* are of no known style"):
        PromptMaker(SOURCE, [NESTED])


def test_a_row_that_lacks_what_others_have_is_named_with_what_it_has() -> None:
    other = {"question": {"text": "Hot?"}}
    assert refused("{question.stem}", other, NESTED) == (
        "rows.jsonl: row 0: has no 'question.stem'; it has question, question.text"
    )
    assert "row 0: has no 'question.stem'" in refused("{question.stem}", {"question": None}, NESTED)
    assert "row 0: has no 'c.1'; it has c" in refused("{c.1}", {"c": ["a"]}, {"c": ["a", "b"]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"stem": "Hot?"},
            "'q' must hold the lists 'text' and 'label', or be a list of choices, got dict {'stem': 'Hot?'}; it has q.stem",
        ),
        ([{"answer": "ice"}], "'q[0]' must be text, a number or a boolean, got dict {'answer': 'ice'}; it has q.0.answer"),
        ([["ice"]], "'q[0]' must be text, a number or a boolean, got list ['ice']"),
        (["ice", None], "has no 'q[1]'"),
        (["ice", math.nan], "'q[1]' must be text, a number or a boolean, got NaN"),
        (math.nan, "'q' must be text, a number or a boolean, got NaN"),
        (-math.inf, "'q' must be text, a number or a boolean, got -Infinity"),
        (b"ice", "'q' must be text, a number or a boolean, got bytes b'ice'"),
        (None, "has no 'q': it is null"),
        ({}, "'q' must hold the lists"),
    ],
)
def test_what_is_no_text_and_no_choices_is_named(value: Any, message: str) -> None:
    assert f"rows.jsonl: row 0: {message}" in refused("{q}", {"q": value})


def test_nan_that_no_prompt_needs_is_no_fault() -> None:
    assert filled("{q}", {"q": "Hot?", "score": math.nan, "more": {"x": [math.inf]}}).text == "Hot?"


# --------------------------------------------------------------------------------------------------------------------- CSV


def from_csv(folder: Path, text: str, **columns: list[str]) -> list[str]:
    """The prompts of a CSV file's rows."""
    with (folder / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    (folder / "t.txt").write_text(text)
    drawn = read_prompts(CaptureSettings(data=str(folder / "d.csv"), template=str(folder / "t.txt"))).drawn
    return [made.text for _, made in drawn if isinstance(made, Prompt)]


def test_csv_may_hold_lists_as_json(tmp_path: Path) -> None:
    for choices in CHOICES.values():
        texts = [json.dumps(choices), ""]
        assert from_csv(tmp_path, "{offered}", offered=texts, other=["", "x"]) == [LINES, ""]
    nested = [json.dumps(NESTED["question"])]
    assert from_csv(tmp_path, "{question.stem} {question.choices.1.text}", question=nested) == ["Hot? fire"]
    assert from_csv(tmp_path, "{choices}", question=["Hot?"], choices=[json.dumps(CHOICES["objects"])]) == [LINES]


@pytest.mark.parametrize(
    "text", ["['ice', 'fire']", "['ice' 'fire']", "array(['ice'], dtype=object)", "{'text': array(['ice'])}"]
)
@pytest.mark.parametrize("template", ["{offered}", "{offered.0}", "{offered.text}"])
def test_lists_that_python_wrote_into_csv_are_refused_with_what_works(tmp_path: Path, text: str, template: str) -> None:
    with pytest.raises(
        InputError, match=r"row 0: 'offered' is not a JSON list or object, .*; save the rows as JSON or Parquet"
    ):
        from_csv(tmp_path, template, offered=[text])


def test_other_text_in_csv_stays_text(tmp_path: Path) -> None:
    for texts in (
        ["['a'] is a list", "x"],
        ["[3, 1, 2]", "[2]"],
        ["['a', 'b']", "Hot?"],
        ["{}", "[]"],
        ["[header] Boil", "(x)"],
    ):
        assert from_csv(tmp_path, "{q}", q=texts) == texts


def test_text_in_files_that_keep_lists_is_text() -> None:
    for text in ("['ice', 'fire']", '["ice"]', '{"A": "ice"}'):
        assert filled("{q}", {"q": text}).text == text
