"""Control prompts: the same prompts with other words where the question stands, so that a score may be compared with theirs."""

import hashlib
import re
from collections.abc import Callable, Mapping

from ..errors import OptionError
from .templates import Prompt, Span

CONTROLLED = "question"  # the span whose text is replaced
WHAT_CONTROLS_ARE: Mapping[str, str] = {  # by their kind; another text or another shuffling is to be another kind
    "null": "a neutral question stands in the place of each",
    "shuffle": "the words of each question are shuffled",
}

# What says nothing of any task, sentence by sentence. As many of the last ones are taken as come next to a question's length.
_NEUTRAL = (
    "There is something here that somebody would like to know, and it is quite short.",
    "It can be read once more where that is of any use.",
    "Nothing else is needed for it.",
    "Take as long as it takes.",
    "Then say what you think about all of this.",
    "So what is it?",
)
_WORD = re.compile(r"\S+")


def controlled(prompt: Prompt, kind: str, seed: int, row: int) -> Prompt:
    """The prompt with other text in each of its question spans; every other character stays.

    Args:
        prompt: any.
        kind: `null` for a neutral question of about as many words, `shuffle` for the same words in another order, with the
            white space between them as it was. A text without words stays as it is; so does one of equal words that is
            shuffled.
        seed: of the order.
        row: the row that the prompt is of; with the seed, it decides the order.

    The words of a question have moved: a span that began inside one begins at its end, one that ended inside ends at its start.
    Raises InputError where two question spans overlap.
    """
    made = _MAKERS[kind]
    text, spans, done = prompt.text, prompt.spans, len(prompt.text)
    for number, place in reversed(list(enumerate(_places(prompt)))):
        if place.end > done:
            raise OptionError(f"--control {kind}: row {row}: two spans '{CONTROLLED}' overlap, so neither can be replaced")
        done = place.start
        new = made(text[place.start : place.end], f"{seed} {row} {number}")
        spans = tuple(_moved(span, place, len(new)) for span in spans)
        text = text[: place.start] + new + text[place.end :]
    return Prompt(text, spans)


def require_controlled_span(kind: str, span_names: tuple[str, ...], source: str) -> None:
    """Raises InputError where no prompt of a data file has a span that a control could replace."""
    if CONTROLLED not in span_names:
        raise OptionError(
            f"--control {kind}: replaces the span '{CONTROLLED}', and the prompts of {source} have only "
            f"{', '.join(span_names)}; name the placeholder that asks '{CONTROLLED}', as in {{{CONTROLLED}=goal}}"
        )


def _places(prompt: Prompt) -> list[Span]:
    """Where the questions stand, in order, each once and none of them empty."""
    places = {span for span in prompt.spans if span.name == CONTROLLED and span.start < span.end}
    return sorted(places, key=lambda span: (span.start, span.end))


def _moved(span: Span, place: Span, length: int) -> Span:
    """A span once the text in a place is `length` characters long."""
    more = length - (place.end - place.start)

    def at(edge: int, inside: int) -> int:
        return edge if edge <= place.start else edge + more if edge >= place.end else inside

    start = at(span.start, place.end + more)
    return Span(span.name, start, max(start, at(span.end, place.start)))


def _neutral(text: str, _: str) -> str:
    """A neutral text of about as many words, as questions that are longer than all of it get it again and again."""
    words = len(_WORD.findall(text))
    if not words:
        return text
    sentences: list[str] = []
    while True:
        longer = [_NEUTRAL[-1 - len(sentences) % len(_NEUTRAL)], *sentences]
        if sentences and abs(_words(longer) - words) >= abs(_words(sentences) - words):
            return _between_blanks(text, " ".join(sentences))
        sentences = longer


def _words(sentences: list[str]) -> int:
    return sum(len(_WORD.findall(sentence)) for sentence in sentences)


def _between_blanks(text: str, new: str) -> str:
    """New text between the white space that is at the ends of the old one."""
    inner = text.strip()
    start = text.index(inner)
    return text[:start] + new + text[start + len(inner) :]


def _shuffled(text: str, key: str) -> str:
    """The same words in another order: that of hashes, which is the same on every machine, whatever library is there."""
    words = _WORD.findall(text)
    if len(set(words)) < 2:
        return text
    attempt, order = 0, words
    while order == words:
        order = [words[place] for place in sorted(range(len(words)), key=lambda place: _hash(f"{key} {attempt} {place}"))]
        attempt += 1
    left = iter(order)
    return _WORD.sub(lambda _: next(left), text)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


_MAKERS: Mapping[str, Callable[[str, str], str]] = {"null": _neutral, "shuffle": _shuffled}
