"""JSON of a stranger is refused before it is parsed where it would fill memory; all other JSON is parsed as Python does."""

import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscore.data.files.bounded_json import MAX_DEPTH, parse_json, require_bounded

TEXT = st.text(st.sampled_from('"\\[]{},:a\n😀é\x00'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=25,
)


def elements(value: object) -> int:
    """Values in lists and objects, and for each list or object one more."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else max(len(inner), 1) + sum(map(elements, inner))


def depth(value: object) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES, st.booleans())
def test_what_is_counted_is_what_is_there(value: object, ascii_only: bool) -> None:
    content = json.dumps(value, ensure_ascii=ascii_only).encode()
    count = elements(value)
    if depth(value) <= MAX_DEPTH:
        assert parse_json(content, max(count, 1)) == value
    if count > 1:
        with pytest.raises(ValueError, match="has more than"):
            parse_json(content, count - 1)


@given(st.text(st.sampled_from('"\\[]{},:1 a'), max_size=40))
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    try:
        found = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            parse_json(text.encode())
    else:
        assert parse_json(text.encode()) == found


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "\\u0061": 3}}]'])
def test_a_key_that_appears_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the key 'a' appears twice"):
        parse_json(text.encode())


def nested(times: int) -> bytes:
    return b"[" * times + b"]" * times


@pytest.mark.parametrize("times", [MAX_DEPTH + 1, 10_000, 8 << 20])
def test_deep_nesting_is_refused(times: int) -> None:
    assert parse_json(nested(MAX_DEPTH))
    with pytest.raises(ValueError, match=f"more than {MAX_DEPTH} deep|has more than"):
        parse_json(nested(times))
    assert parse_json(b'"' + b"[" * 100_000 + b'"') == "[" * 100_000, "brackets in a string are text"


LARGE: dict[str, Callable[[], bytes]] = {
    "objects": lambda: b"[" + b'{"a":1},' * (2 << 20) + b"1]",
    "lists": lambda: b"[" + b"[]," * (5 << 20) + b"1]",
    "numbers": lambda: b"[" + b"1," * (8 << 20) + b"1]",
    "texts": lambda: b"[" + b'"ab",' * (3 << 20) + b"1]",
    "keys": lambda: (
        b"{" + b",".join(b'"%d":0' % number for number in range(1_500_000)) + b"," + b'"a":1,' * 1_000_000 + b'"b":1}'
    ),
    "quotes": lambda: b'"' * (16 << 20),
    "backslashes": lambda: b'"' + b"\\" * (16 << 20),
}


@pytest.mark.parametrize("what", LARGE)
def test_many_values_are_refused_in_bounded_time_and_memory(what: str) -> None:
    content = LARGE[what]()
    tracemalloc.start()
    started = time.process_time()  # of work, as the machine may have other things to do
    with pytest.raises(ValueError, match=r"has more than|Invalid|Unterminated|Extra data"):
        parse_json(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600 << 20 and time.process_time() - started < 20


def test_texts_count_together() -> None:
    require_bounded([b"[1,2,3]", b"[4,5,6]"], 6)
    with pytest.raises(ValueError, match="has more than 5 values"):
        require_bounded([b"[1,2,3]", b"[4,5,6]"], 5)
