"""Reads the YAML of strangers, in time and memory that its bytes bound.

There are no aliases, which make a small file stand for a large value, and no key appears twice: PyYAML keeps the last of two.
"""

from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, one_line
from .foreign import foreign_faults_told
from .plain import read_plain

MAX_YAML_BYTES = 1 << 18  # PyYAML takes up to some seconds for as much
MAX_YAML_DEPTH = 16


def read_yaml(path: Path, *, follow_links: bool = False) -> Any:
    """The value of a YAML file; None for one that is empty.

    Args:
        path: of a regular file.
        follow_links: whether a symbolic link may stand for it.

    Raises InputError for what is no such file, is larger than MAX_YAML_BYTES or no YAML, and for aliases, keys that appear
    twice in one mapping or are no text, and nesting beyond MAX_YAML_DEPTH; UnreadableFileError where the system
    refuses to read it.
    """
    content = read_plain(path, MAX_YAML_BYTES, follow_links=follow_links)
    if content is None:
        raise InputError(f"{path}: does not exist")
    # PyYAML raises what it stumbles over in a value, such as a date.
    with foreign_faults_told(f"{path}: cannot be read as YAML", _described, hold_stderr=False):
        return _StrictLoader(content.decode("utf-8-sig")).get_single_data()


def _described(error: BaseException) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"[:200]
    return one_line(error)[:200]


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader without aliases and merges, of bounded depth, in whose mappings each key is a text and stands once."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _fault("an alias (*name) cannot be used here; write the value out", event)
        if self._depth == MAX_YAML_DEPTH:
            raise _fault(f"it is nested more than {MAX_YAML_DEPTH} deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _fault("a key is not text; put it in quotes", key)
            if key.value in keys:
                raise _fault(f"the key {key.value!r:.80} appears twice", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _fault(message: str, place: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=place.start_mark)
