"""Reads the lists of heads that others publish: one function for each format. They are strangers' files, so all is bounded."""

import io
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...data.cache.metadata import MAX_HEADS, MAX_LAYERS
from ...data.errors import InputError, one_line
from ...data.files.bounded_json import parse_json
from ...data.files.foreign import foreign_faults_told
from ...data.files.plain import kind_of, read_plain
from ...data.files.strict_yaml import read_yaml
from ...data.options.export_settings import ImportFormat
from ...data.options.settings import Unit
from .duo import TSV

Scored = tuple[int, int, float]  # layer, head (or KV head), score

_MAX_BYTES = 32 << 20
_KEY = "layer-head"


def read_list(path: Path, format: ImportFormat) -> tuple[Unit, list[Scored], bytes]:
    """A list of heads as it was published.

    Args:
        path: of the file, or of a folder of `duo`.
        format: whose it is.

    Returns what it lists, each (layer, head, score) in the file's order, a score for each; and the file's bytes. Raises
    InputError where it is no such file, or lists a head twice, or one that no model has.
    """
    place = path / TSV if format == "duo" and kind_of(path, follow_links=True) == stat.S_IFDIR else path
    content = read_plain(place, _MAX_BYTES, follow_links=True)
    if content is None:
        raise InputError(f"{place}: does not exist")
    unit, reader = _READERS[format]
    lines = reader(place, content)
    if not 0 < len(lines) <= MAX_HEADS:
        raise InputError(f"{place}: lists {len(lines)} heads; expected 1 to {MAX_HEADS}")
    seen = set()
    for layer, head, score in lines:
        if not 0 <= layer < MAX_LAYERS or not 0 <= head < MAX_HEADS:
            raise InputError(f"{place}: layer {layer!s:.20}, head {head!s:.20} exists in no model")
        if not np.isfinite(score):
            raise InputError(f"{place}: the score of layer {layer}, head {head} is not a finite number")
        if (layer, head) in seen:
            raise InputError(f"{place}: layer {layer}, head {head} appears twice")
        seen.add((layer, head))
    return unit, lines, content


def _duo(path: Path, content: bytes) -> list[Scored]:
    """A matrix of numbers, a line for each layer, with tabs or blanks between its KV heads."""
    lines: list[Scored] = []
    try:
        layers, heads = 0, None
        for line in io.StringIO(content.decode("ascii"), newline=None):
            if not line.strip() or line.startswith("#"):
                continue
            values = line.split(None, MAX_HEADS - len(lines))
            heads = len(values) if heads is None else heads
            if len(values) != heads or len(lines) + heads > MAX_HEADS or layers == MAX_LAYERS:
                raise ValueError("the lines are not of the same length, or too many")
            lines += [(layers, head, float(value)) for head, value in enumerate(values)]
            layers += 1
        return lines
    except ValueError as error:
        raise InputError(f"{path}: is not a matrix of layers and KV heads: {one_line(error)[:120]}") from error


def _retrieval_head(path: Path, content: bytes) -> list[Scored]:
    """`{"layer-head": [score of each sample, …]}`; the score is the mean, as its readers take it."""
    try:
        found = parse_json(content)
        if not isinstance(found, dict):
            raise ValueError("expected an object")
        return [(*_layer_head(key), _mean(key, values)) for key, values in found.items()]
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: is not an object of '{_KEY}' and lists of scores: {one_line(error)[:120]}") from error


def _mean(key: str, values: Any) -> float:
    if not isinstance(values, list) or not values or any(type(value) not in (int, float) for value in values):
        raise ValueError(f"{key[:20]} has no list of numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told once it is known which head it is
        return float(np.mean(np.array(values, np.float64)))


def _qrhead(path: Path, content: bytes) -> list[Scored]:
    """YAML with `attn_head_set`, best first; or the `[["layer-head", score], …]` that its detection writes."""
    try:
        if content.lstrip()[:1] == b"[":
            found = parse_json(content)
            if not all(isinstance(each, list) and len(each) == 2 for each in found):
                raise ValueError("expected pairs")
            return [(*_layer_head(key), _mean(str(key), [score])) for key, score in found]
        told = read_yaml(path, follow_links=True)
        heads = told.get("attn_head_set") if isinstance(told, dict) else None
        if heads == "full_heads":
            raise ValueError("it stands for all heads, and puts none before another")
        if not isinstance(heads, str):
            raise ValueError("it has no attn_head_set")
        return _numbered([_layer_head(each.strip()) for each in heads.split(",")])
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is not a head set of QRHead: {one_line(error)[:120]}") from error


def _lofit(path: Path, content: bytes) -> list[Scored]:
    """An array of whole numbers [k, 2], best first. Its header is read before any of it is."""
    with foreign_faults_told(f"{path}: is not a NumPy array", hold_stderr=False):
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise InputError(f"{path}: is an array in version {version[0]} of NumPy's format; write it with numpy.save")
        shape, by_columns, dtype = _NPY_HEADERS[version](file)
    if (
        any(type(size) is not int for size in shape)
        or dtype.kind not in "iu"
        or len(shape) != 2
        or shape[1] != 2
        or not 0 < shape[0] <= MAX_HEADS
    ):
        raise InputError(f"{path}: is an array {dtype!s:.20} {shape!s:.40}; expected whole numbers [heads, 2]")
    numbers = file.read()
    if len(numbers) != 2 * shape[0] * dtype.itemsize:
        raise InputError(f"{path}: does not have as many numbers as its header says")
    pairs = np.frombuffer(numbers, dtype).reshape(shape, order="F" if by_columns else "C")
    return _numbered([(int(layer), int(head)) for layer, head in pairs])


def _numbered(pairs: Sequence[tuple[int, int]]) -> list[Scored]:
    """With minus the place for a score."""
    return [(layer, head, -float(place)) for place, (layer, head) in enumerate(pairs, 1)]


def _layer_head(text: Any) -> tuple[int, int]:
    parts = text.split("-") if isinstance(text, str) and len(text) < 20 else []
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"{text!r:.20} is no '{_KEY}'")
    return int(parts[0]), int(parts[1])


_NPY_HEADERS: Mapping[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_READERS: Mapping[ImportFormat, tuple[Unit, Callable[[Path, bytes], list[Scored]]]] = {
    "duo": ("kv_head", _duo),
    "retrieval_head": ("head", _retrieval_head),
    "qrhead": ("head", _qrhead),
    "lofit": ("head", _lofit),
}
