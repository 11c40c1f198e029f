"""Keeps a tokenizer's normalizer from making a text so large that it fills the memory: its steps are tried one by one."""

import json
from collections.abc import Iterator
from typing import Any

from ..errors import InputError

MAX_INSERTED = 1000  # characters that a step puts in the place of a match
MAX_GROWTH, ALWAYS_ALLOWED = 100, 10_000  # characters of a normalised text for one of its own, and in any case


def require_bounded_text(tokenizer: Any, text: str, where: str) -> None:
    """Raises InputError where the normalizer would make a text more than MAX_GROWTH times as long.

    Args:
        tokenizer: one of transformers; those that are written in Python have no such steps.
        text: that is to be tokenised.
        where: the beginning of the message.
    """
    most = max(ALWAYS_ALLOWED, MAX_GROWTH * len(text))
    for step in _steps_of(getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)):
        text = step.normalize_str(text)
        if len(text) > most:
            raise InputError(f"{where}its normalizer makes more than {most} characters of a text; use another tokenizer")


def require_short_insertions(tokenizer: Any, where: str) -> None:
    """Raises InputError where a step of the normalizer or of the decoder puts in more than MAX_INSERTED characters at once.

    Args:
        tokenizer: as above.
        where: the beginning of the message.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "decoder"):
        step = getattr(backend, part, None)
        longest = max(map(len, _inserted(json.loads(step.__getstate__()))), default=0) if step is not None else 0
        if longest > MAX_INSERTED:
            raise InputError(f"{where}its {part} puts in {longest} characters at once; at most {MAX_INSERTED} are allowed")


def _inserted(state: Any) -> Iterator[str]:
    """The texts that the steps in the JSON of a tokenizer's part put in."""
    if isinstance(state, dict):
        yield from (str(state[name]) for name in ("content", "prepend", "replacement") if isinstance(state.get(name), str))
        state = list(state.values())
    if isinstance(state, list):
        for inner in state:
            yield from _inserted(inner)


def _steps_of(part: Any) -> Iterator[Any]:
    """The steps of a part of a tokenizer, with those of sequences in it; none where there is no such part."""
    if type(part).__name__ == "Sequence":
        for place in range(len(part)):
            yield from _steps_of(part[place])
    elif part is not None:
        yield part
