"""Parses JSON of a stranger, whose size as Python objects is bounded before any is made."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

MAX_DEPTH = 32
MAX_ELEMENTS = 1 << 21  # values in lists and objects, which take 8 to 250 bytes of memory each

_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))


def parse_json(content: bytes, max_elements: int = MAX_ELEMENTS) -> Any:
    """What UTF-8 text holds as JSON.

    Raises ValueError where it is no JSON, where an object has a key twice, of which Python keeps the last, and as
    `require_bounded`.
    """
    require_bounded([content], max_elements)
    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} appears twice")
    return found


def require_bounded(contents: Iterable[bytes], max_elements: int = MAX_ELEMENTS) -> None:
    """Raises ValueError where JSON texts have more than `max_elements` values in all, or nest them more than MAX_DEPTH deep."""
    left = max_elements
    for content in contents:
        structure = _structure(content, left)
        left -= sum(map(structure.count, (b"[", b"{", b",")))
        if left < 0:
            raise ValueError(f"has more than {max_elements} values")
        brackets = np.frombuffer(structure.translate(None, b","), np.uint8)
        steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int32(1), np.int32(-1))
        if np.cumsum(steps, dtype=np.int32).max(initial=0) > MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")


def _structure(content: bytes, max_elements: int) -> bytes:
    """The brackets and commas of a JSON text that stand outside its strings, as far as it is JSON."""
    # Outside of strings there is no backslash in JSON: a parser gets no further than the first.
    plain = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * (max_elements + 1):  # those of a key and of its value
        raise ValueError(f"has more than {max_elements} values")
    return b"".join(plain.split(b'"')[::2]).translate(None, _ALL_BUT_STRUCTURE)
