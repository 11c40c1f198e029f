"""A journal keeps what was written down, whatever becomes of the process that writes it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscore.data.errors import InputError
from headscore.data.files.journal import Journal

SUBJECT = {"model": "a", "rows": [1, 2]}


def written(path: Path, count: int) -> bytes:
    journal = Journal(path, SUBJECT)
    for number in range(count):
        journal.add(f"set {number}", {"kl": [0.1 * number, None]})
    return path.read_bytes()


def test_what_is_read_back_is_what_was_added(tmp_path: Path) -> None:
    written(tmp_path / "j", 3)
    again = Journal(tmp_path / "j", SUBJECT)
    assert again.records == {f"set {number}": {"kl": [0.1 * number, None]} for number in range(3)}
    again.add("set 3", {"kl": [1e-300]})
    assert Journal(tmp_path / "j", SUBJECT).records == again.records and len(again.records) == 4


@settings(max_examples=60)
@given(st.data())
def test_a_journal_cut_anywhere_loses_the_record_in_hand_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journals") / "j"
    content = written(path, 3)
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    journal = Journal(path, SUBJECT)
    assert list(journal.records) == [f"set {number}" for number in range(whole - 1)]
    for number in range(max(0, whole - 1), 3):
        journal.add(f"set {number}", {"kl": [0.1 * number, None]})
    assert path.read_bytes() == content


@settings(max_examples=100)
@given(st.data())
def test_no_changed_byte_is_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("journals") / "j"
    content = written(path, 2)
    place, change = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(content)
    changed[place] ^= change
    path.write_bytes(changed)
    try:
        found = Journal(path, SUBJECT).records
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert found.items() <= {f"set {number}": {"kl": [0.1 * number, None]} for number in range(2)}.items()


def test_a_journal_of_something_else_is_refused_or_begun_anew(tmp_path: Path) -> None:
    written(tmp_path / "j", 2)
    with pytest.raises(InputError, match=r"holds outcomes for another rows: \[1, 2\], now \[3\]; use another --out|out, or"):
        Journal(tmp_path / "j", {**SUBJECT, "rows": [3]})
    assert Journal(tmp_path / "j", SUBJECT).records
    assert not Journal(tmp_path / "j", {**SUBJECT, "rows": [3]}, overwrite=True).records
    assert not Journal(tmp_path / "j", {**SUBJECT, "rows": [3]}).records


@pytest.mark.parametrize("content", [b"\n", b"{}\n", b"00000000 {}\n", b"a3830348 [1]\n"])
def test_what_is_no_journal_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged|is not a journal"):
        Journal(tmp_path / "j", SUBJECT)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "j").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="link"):
        Journal(tmp_path / "j", SUBJECT)
    assert not (tmp_path / "other").exists()
