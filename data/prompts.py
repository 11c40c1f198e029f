"""Turns the rows of a data file into prompts: by their detected style, by the user's template, or as they bring them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .errors import InputError
from .rows import Row
from .styles import INSTRUCTION_PARTS, ROW_STYLES, RowStyle, column_text
from .templates import ALWAYS_SPANS, BASE_SPANS, MAX_SPANS, Piece, Prompt, Template
from .text_rows import TEXT_COLUMNS, TEXT_STYLE, text_prompt, text_span_names


class PromptMaker:
    """Makes the prompt of each row of one data file.

    source: the file, for messages. rows: all of them, for their columns and the names of their spans. template: the user's own,
    the name of a built-in one, or None for that of the rows' style. style: arc, llm-adapters, text, or other. templates: those
    in use. span_names: the spans of its prompts, in the order of the token mask's bits. has_question: whether each prompt is to
    have such a span.

    Raises InputError when made for columns of no known style without a user's template, for a placeholder without a column,
    for rows with spans of their own and a built-in template, and for too many spans.
    """

    def __init__(self, source: Path, rows: Sequence[Row], template: Template | str | None = None):
        self._source = source
        columns = list(dict.fromkeys(column for row in rows for column in row))
        brings_spans = set(TEXT_COLUMNS) <= set(columns)
        style = None if brings_spans else next((style for style in ROW_STYLES if set(style.columns) <= set(columns)), None)
        self.style = TEXT_STYLE if brings_spans else style.name if style else "other"
        self.templates: tuple[Template, ...] = ()
        self._prompt: Callable[[Row, str], Prompt] = text_prompt
        if isinstance(template, Template):
            self.templates = (template,)
            style = _style_in_use(template, style, columns)
            derived = style.derived if style else ()
            _require_columns(template, (*columns, *derived), source)
            self._prompt = partial(_custom_prompt, template, style, [name for name in derived if name in columns])
        elif style:
            self.templates = style.templates[template] if template else next(iter(style.templates.values()))
            self._prompt = partial(_styled_prompt, style, self.templates)
        elif brings_spans and template:
            raise InputError(f"--template {template}: {source} brings text and spans of its own; leave it out")
        elif not brings_spans:
            raise _unknown_style(source, columns)
        filled = list(dict.fromkeys(column for each in self.templates for column in each.columns))
        found = text_span_names(rows, source) if self._prompt is text_prompt else filled
        if style and "instruction" in found:
            found = [*found, *INSTRUCTION_PARTS]
        self.has_question = "question" in (filled if isinstance(template, Template) else found)
        self.span_names = tuple(n for n in dict.fromkeys((*BASE_SPANS, *found)) if n in found or n in ALWAYS_SPANS)
        if len(self.span_names) > MAX_SPANS:
            where = f"template {self.templates[0].name}: makes" if self.templates else f"{source}: brings"
            raise InputError(
                f"{where} {len(self.span_names)} spans with {' and '.join(ALWAYS_SPANS)}; a cache holds {MAX_SPANS}"
            )

    def __call__(self, row: Row, number: int) -> Prompt:
        """The prompt of row `number`; raises InputError, naming file and row, where the row does not fit."""
        where = f"{self._source}: row {number}"
        prompt = self._prompt(row, where)
        try:
            prompt.text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: holds half a surrogate pair ({error.object[error.start]!a}), which is not text"
            ) from error
        return prompt


def _styled_prompt(style: RowStyle, templates: Sequence[Template], row: Row, where: str) -> Prompt:
    pieces = style.pieces(row, where)
    return templates[-1 if "input" in pieces and pieces["input"].text else 0].fill(pieces)


def _custom_prompt(template: Template, style: RowStyle | None, own: Sequence[str], row: Row, where: str) -> Prompt:
    """The user's template filled with the style's pieces and else, as for those in `own`, with the columns as they are."""
    pieces = style.pieces(row, where) if style else {}
    missing = [column for column in template.columns if column not in pieces or column in own]
    return template.fill(pieces | {column: Piece(_printable(row, column, where)) for column in missing})


def _style_in_use(template: Template, style: RowStyle | None, columns: Sequence[str]) -> RowStyle | None:
    """The style if the user's template needs what it makes; else the columns are taken as they are."""
    if style is None:
        return None
    made = {style.made, *(name for name in style.derived if name not in columns)}
    return style if made & set(template.columns) else None


def _require_columns(template: Template, known: Sequence[str], source: Path) -> None:
    for column in template.columns:
        if column not in known:
            raise InputError(f"template {template.name}: {{{column}}} is no column of {source}; it has {', '.join(known)}")


def _unknown_style(source: Path, columns: Sequence[str]) -> InputError:
    styles = [*((style.name, style.columns) for style in ROW_STYLES), (TEXT_STYLE, TEXT_COLUMNS)]
    known = " or ".join(f"{name} ({', '.join(marks)})" for name, marks in styles)
    return InputError(f"{source}: columns {_some(columns)} are of no known style: {known}; give --template FILE for others")


def _printable(row: Row, column: str, where: str) -> str:
    """A value for a user's template: text as it is, numbers and booleans as Python writes them."""
    value = row.get(column)
    return str(value) if isinstance(value, int | float) else column_text(row, column, where)


def _some(names: Sequence[str], most: int = 12) -> str:
    """The first names, each cut where it is long, and how many more there are."""
    shown = ", ".join(f"{name:.40}" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
