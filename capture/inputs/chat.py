"""Puts prompts into a chat: the tokenizer's own template makes each the message of a user, and the spans move with it.

What the template puts around a message is learnt by rendering a word that stands nowhere else, so a prompt that also stands in
the system prompt is found in its own place. Messages that come out changed are refused: their spans would be guesses.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from ...data.errors import InputError, OptionError
from ...data.files.foreign import foreign_faults_told
from ...data.options.settings import CaptureSettings
from ...data.prompts.templates import Prompt, Span, Template
from ...data.prompts.tokens import Skipped
from .tokenising import Prompts

CHAT_TEMPLATE = "chat"  # its name among the templates of a cache
_CHAT = "--chat: "  # how messages begin
_WORD = "Message5f0c9AeOfHeadscore"  # in both cases, so that a template that changes the case is found out


def in_chat(prompts: Prompts, tokenizer: Any, settings: CaptureSettings) -> Prompts:
    """The same prompts as `--chat` gives them to the model, and what stands around each as `chat`.

    White space that the template takes from a message's ends is taken from its spans too. Raises InputError where the tokenizer
    has no chat template, where that fails or drops the system prompt, and, naming the row, where it changes a message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{_CHAT}the tokenizer of {settings.model} has no chat template; leave out --chat")
    before, after = _frame_with_system(tokenizer, settings)
    special = _special_pattern(tokenizer)
    around = list(_frame_spans(before, special)), list(_frame_spans(after, special))
    drawn: list[tuple[int, Prompt | Skipped]] = []
    for row, prompt in prompts.drawn:
        if isinstance(prompt, Skipped):
            drawn.append((row, prompt))
            continue
        where = f"{prompts.path}: row {row}: "
        rendered = _render(prompt.text, tokenizer, settings, settings.system, where)
        content = rendered[len(before) : len(rendered) - len(after)]
        changed = content.strip() != prompt.text.strip() or content not in prompt.text
        if changed or rendered != before + content + after:
            raise InputError(f"{where}the chat template of {settings.model} rewrites the content; leave out --chat")
        spans = (
            *around[0],
            *_moved(prompt.spans, len(before) - prompt.text.index(content), len(before), len(before + content)),
            *_moved(around[1], len(before + content), 0, len(rendered)),
        )
        drawn.append((row, Prompt(rendered, spans)))
    text = "{prompt}".join(part.replace("{", "{{").replace("}", "}}") for part in (before, after))
    return dataclasses.replace(prompts, drawn=drawn, chat=Template(CHAT_TEMPLATE, text))


def _frame_with_system(tokenizer: Any, settings: CaptureSettings) -> tuple[str, str]:
    """What stands before and after a message; InputError, naming --system, where the fault lies with the system prompt."""
    system = settings.system
    if system is None:
        return _frame(tokenizer, settings, None)
    try:
        frame = _frame(tokenizer, settings, system)
    except InputError as error:
        _frame(tokenizer, settings, None)  # raises where it is not for the system prompt that the template fails
        raise OptionError(f"--system: leave it out: {error.message.removeprefix(_CHAT)}") from error
    if not any(system.strip() in part for part in frame):  # then it is rewritten, or dropped
        try:
            dropped = frame == _frame(tokenizer, settings, None)
        except InputError:
            dropped = False
        if dropped:
            raise OptionError(f"--system: the chat template of {settings.model} drops it; leave it out")
    return frame


def _frame(tokenizer: Any, settings: CaptureSettings, system: str | None) -> tuple[str, str]:
    parts = _render(_WORD, tokenizer, settings, system).split(_WORD)
    if len(parts) != 2:
        fault = "repeats" if len(parts) > 2 else "rewrites"
        raise InputError(f"{_CHAT}the chat template of {settings.model} {fault} the content; leave out --chat")
    return parts[0], parts[1]


def _render(content: str, tokenizer: Any, settings: CaptureSettings, system: str | None, where: str = _CHAT) -> str:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": content})
    with foreign_faults_told(f"{where}the chat template of {settings.model} fails"):  # it may raise what it likes
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=settings.generation_prompt))


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the texts of the tokenizer's control tokens; of several that begin at one place, the longest."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {*map(str, tokenizer.all_special_tokens), *(token.content for token in added if token.special)}
    return re.compile("|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or r"(?!)")


def _frame_spans(text: str, special: re.Pattern[str]) -> Iterator[Span]:
    """A part of the frame as spans: `special` for control tokens, `template` for all between them."""
    done = 0
    for match in special.finditer(text):
        yield Span("template", done, match.start())
        yield Span("special", match.start(), match.end())
        done = match.end()
    yield Span("template", done, len(text))


def _moved(spans: list[Span] | tuple[Span, ...], shift: int, minimum: int, maximum: int) -> Iterator[Span]:
    """The spans `shift` characters on, with their edges kept between `minimum` and `maximum`."""
    for span in spans:
        start, end = (min(max(edge + shift, minimum), maximum) for edge in (span.start, span.end))
        yield Span(span.name, start, end)
