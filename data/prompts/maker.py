"""Turns the rows of a data file into prompts: by their detected style, by the user's template, or as they bring them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..errors import InputError, OptionError, UnfitRowError
from .paths import holds_lists, is_known, known_paths, some, text_at
from .rows import Row
from .styles import ROW_STYLES, RowStyle
from .templates import ALWAYS_SPANS, ASKED_SPANS, BASE_SPANS, MAX_SPANS, Piece, Placeholder, Prompt, Template
from .text_rows import TEXT_COLUMNS, TEXT_STYLE, text_prompt, text_span_names
from .tokens import Skipped

MAX_PATHS = 30  # that a message names


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
            derived = [name for name in style.derived if name not in columns] if style else []
            paths = [placeholder.path for placeholder in template.placeholders if placeholder.path not in derived]
            _require_values(template, paths, rows, source)
            lists = [path for path in paths if source.suffix.lower() == ".csv" and holds_lists(path, rows)]
            self._prompt = partial(_custom_prompt, template, style, derived, lists)
        elif style:
            self.templates = style.templates[template] if template else next(iter(style.templates.values()))
            self._prompt = partial(_styled_prompt, style, self.templates)
        elif brings_spans and template:
            raise OptionError(f"--template {template}: {source} brings text and spans of its own; leave it out")
        elif not brings_spans:
            raise _unknown_style(source, known_paths(rows))
        placeholders = [placeholder for each in self.templates for placeholder in each.placeholders]
        filled = [placeholder.span for placeholder in placeholders]
        found = text_span_names(rows, source) if self._prompt is text_prompt else filled
        if style and Placeholder("instruction", "instruction") in placeholders:
            found = [*found, *ASKED_SPANS]
        self.has_question = "question" in (filled if isinstance(template, Template) else found)
        self.span_names = tuple(n for n in dict.fromkeys((*BASE_SPANS, *found)) if n in found or n in ALWAYS_SPANS)
        if len(self.span_names) > MAX_SPANS:
            where = f"template {self.templates[0].name}: makes" if self.templates else f"{source}: brings"
            raise InputError(
                f"{where} {len(self.span_names)} spans, {' and '.join(ALWAYS_SPANS)} included; a cache holds {MAX_SPANS}"
            )

    def __call__(self, row: Row, number: int) -> Prompt | Skipped:
        """The prompt of row `number`, or why it is left out: its answer is none of its choices.

        Raises InputError, naming file and row, where the row does not fit.
        """
        where = f"{self._source}: row {number}"
        try:
            prompt = self._prompt(row, where)
            prompt.text.encode()
        except UnfitRowError as error:
            return Skipped(number, error.message)
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: holds half a surrogate pair ({error.object[error.start]!a}), which is not text"
            ) from error
        return prompt


def _styled_prompt(style: RowStyle, templates: Sequence[Template], row: Row, where: str) -> Prompt:
    pieces = style.pieces(row, where)
    return templates[-1 if "input" in pieces and pieces["input"].text else 0].fill(pieces)


def _custom_prompt(
    template: Template, style: RowStyle | None, derived: Sequence[str], lists: Sequence[str], row: Row, where: str
) -> Prompt:
    """The user's template filled with the style's pieces and else with what stands in the row.

    derived: pieces that are no columns of the file; a column comes before a piece of its name. lists: columns whose texts hold
    lists.
    """
    pieces = style.pieces(row, where) if style else {}
    for path in (placeholder.path for placeholder in template.placeholders):
        if path not in pieces or (style and path in style.derived and path not in derived):
            pieces[path] = Piece(text_at(row, path, where, is_list=path in lists))
    return template.fill(pieces)


def _style_in_use(template: Template, style: RowStyle | None, columns: Sequence[str]) -> RowStyle | None:
    """The style if the user's template needs what it makes; else the columns are taken as they are.

    They are, too, where the template reaches into the column that must be text: then the rows are of another shape.
    """
    if style is None:
        return None
    made = {style.made, *(name for name in style.derived if name not in columns)}
    paths = {placeholder.path for placeholder in template.placeholders}
    other_shape = any(path.startswith(f"{style.columns[0]}.") for path in paths - set(columns))
    return style if made & paths and not other_shape else None


def _require_values(template: Template, paths: Sequence[str], rows: Sequence[Row], source: Path) -> None:
    for path in paths:
        if not is_known(path, rows):
            what = "path" if "." in path else "column"
            raise InputError(
                f"template {template.name}: {{{path}}} is not a {what} of {source}; it has {some(known_paths(rows), MAX_PATHS)}"
            )


def _unknown_style(source: Path, names: Sequence[str]) -> InputError:
    styles = [*((style.name, style.columns) for style in ROW_STYLES), (TEXT_STYLE, TEXT_COLUMNS)]
    known = " or ".join(f"{name} ({', '.join(marks)})" for name, marks in styles)
    return InputError(f"{source}: columns {some(names)} are of no known style: {known}; give --template FILE for others")
