"""Damaged tokenizers, YAML files and Parquet files are read or refused in one line, in processes of their own.

Deeper: HEADSCORE_FUZZ=200 python -m pytest tests/test_fuzz_input.py (as many cases of each, of Parquet five times as many)
"""

import os

import fuzzing
import pytest

CASES = int(os.environ.get("HEADSCORE_FUZZ", "0"))


@pytest.mark.parametrize(("kind", "cases"), [("tokenizer", CASES or 20), ("yaml", CASES or 40), ("parquet", 5 * CASES or 20)])
def test_any_input_is_read_or_refused(kind: str, cases: int) -> None:
    found = fuzzing.run(kind, cases, seed=CASES)
    print(dict(found))
    assert found.keys() <= {"read", "refused"}
    assert found.total() == cases and found["read"] and found["refused"], "the mutations tell nothing"
