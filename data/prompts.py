"""Turns the rows of a data file into prompts, by their detected style or by the user's template."""

from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .rows import Row
from .styles import ROW_STYLES, column_text
from .templates import ALWAYS_SPANS, BASE_SPANS, MAX_SPANS, Piece, Prompt, Template


class PromptMaker:
    """Makes the prompt of each row of one data file, by the file's detected row style or by the user's template.

    source: the file, for messages. columns: the names in its rows. style: arc, llm-adapters, or other. templates: those in use.
    span_names: the spans of its prompts, in the order of the token mask's bits. has_question: whether there is such a span.

    Raises InputError when made for columns of no known style without a template, for a placeholder without a column, and for
    a template with too many placeholders.
    """

    def __init__(self, source: Path, columns: Sequence[str], template: Template | None):
        self._source = source
        self._custom = template
        self._style = next((style for style in ROW_STYLES if set(style.columns) <= set(columns)), None)
        if template is None and self._style is None:
            known = " or ".join(f"{style.name} ({', '.join(style.columns)})" for style in ROW_STYLES)
            raise InputError(
                f"{source}: columns {_some(columns)} are of no known style: {known}; give --template FILE for others"
            )
        self.style = self._style.name if self._style else "other"
        if template and self._style and self._style.made not in template.columns:
            self._style = None  # the template takes the columns as they are
        self.templates = (template,) if template else self._style.templates if self._style else ()
        for column in template.columns if template else ():
            if column not in columns:
                raise InputError(
                    f"template {self.templates[0].name}: {{{column}}} is no column of {source}; it has {', '.join(columns)}"
                )
        made = {column for t in self.templates for column in t.columns}
        if self.style == "llm-adapters" and "instruction" in made:
            made |= {"question", "choices"}
        ordered = dict.fromkeys((*BASE_SPANS, *(column for t in self.templates for column in t.columns)))
        self.span_names = tuple(name for name in ordered if name in made or name in ALWAYS_SPANS)
        self.has_question = "question" in (made if template is None else template.columns)
        if len(self.span_names) > MAX_SPANS:
            raise InputError(
                f"template {self.templates[0].name}: makes {len(self.span_names)} spans with {' and '.join(ALWAYS_SPANS)}; "
                f"a cache holds {MAX_SPANS}"
            )

    def __call__(self, row: Row, number: int) -> Prompt:
        """The prompt of row `number`; raises InputError, naming file and row, where the row does not fit."""
        where = f"{self._source}: row {number}"
        pieces = self._style.pieces(row, where) if self._style else {}
        template = self._custom or (self._style.choose(pieces) if self._style else self.templates[0])
        for column in template.columns:
            if column not in pieces:
                pieces[column] = Piece(_printable(row, column, where))
        prompt = template.fill(pieces)
        try:
            prompt.text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: holds half a surrogate pair ({error.object[error.start]!a}), which is not text"
            ) from error
        return prompt


def _printable(row: Row, column: str, where: str) -> str:
    """A value for a user's template: text as it is, numbers and booleans as Python writes them."""
    value = row.get(column)
    return str(value) if isinstance(value, int | float) else column_text(row, column, where)


def _some(names: Sequence[str], most: int = 12) -> str:
    """The first names, each cut where it is long, and how many more there are."""
    shown = ", ".join(f"{name:.40}" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
