"""Parses the JSON of strangers. Python's own parser keeps the last of two equal names; here nothing is dropped."""

import json
from typing import Any


def parse_strictly(text: str | bytes) -> Any:
    """The value of a JSON text, NaN and Infinity included.

    Raises ValueError, a JSONDecodeError where it knows the place, for what is no JSON, an object in which a name appears twice,
    a whole number of more digits than Python takes, and for what is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r:.80} appears twice in one object")
    return made
