"""The shape of a captured model, as the config.yaml of a ranking tells it: layers, heads, widths, and its modules' paths."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .metadata import MAX_HEADS, MAX_LAYERS, Metadata

PARTS = ("query", "key", "value", "output")
LAYER = "{layer}"  # in a path, for the layer's number
_DIMS = ("layers", "heads", "kv_heads", "head_dim", "hidden_size")
_MAX_WIDTH = 1 << 20
_MAX_PATH = 256
_MAX_TEXT = 1 << 16  # of all paths of layers that follow no pattern, as a config.yaml is to be small
_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)


@dataclass(frozen=True)
class ModelShape:
    """The attention of a model.

    Args:
        layers: the model's numbers of the L layers with attention, ascending.
        heads: query heads H of each.
        kv_heads: groups of them that share a key; None where that is not known, and so are the next two.
        head_dim: width D of a head's z.
        hidden_size: width M of the residual stream.
        paths: of the modules `query`, `key`, `value` and `output` in each of `layers`, None where there is none; no parts at
            all where they are not known.
    """

    layers: tuple[int, ...]
    heads: int
    kv_heads: int | None
    head_dim: int | None
    hidden_size: int | None
    paths: Mapping[str, tuple[str | None, ...]]


def shape_record(metadata: Metadata) -> dict[str, Any]:
    """What the metadata of a cache says about the shape of its model, for a record: `dims`, `layers`, `projections`.

    `layers` is there only if they are not 0…L−1. A projection is one path with `{layer}` in the place of the number where all
    layers follow it, else the list of theirs, or None where no layer has it.
    """
    dims: Mapping[str, Any] = metadata.get("dims", {})
    record: dict[str, Any] = {"dims": {name: dims[name] for name in _DIMS if name in dims}}
    layers = metadata.get("layers", [])
    if layers != list(range(len(layers))):
        record["layers"] = layers
    if projections := metadata.get("projections"):
        found = {part: _compact([each[part] for each in projections], layers) for part in PARTS}
        if len(str(found)) <= _MAX_TEXT:
            record["projections"] = found
    return record


def _compact(paths: Sequence[str | None], layers: Sequence[int]) -> str | list[str | None] | None:
    if not any(paths):
        return None
    pieces = (paths[0] or "").split(".")
    for place in (place for place, piece in enumerate(pieces) if piece == str(layers[0])):
        pattern = ".".join([*pieces[:place], LAYER, *pieces[place + 1 :]])
        if [pattern.replace(LAYER, str(layer)) for layer in layers] == list(paths):
            return pattern
    return list(paths)


def shape_of(record: Mapping[str, Any], where: str) -> ModelShape | None:
    """The shape that a record tells; None where it tells none, as those of older rankings.

    Args:
        record: which may be a stranger's.
        where: its file, for the message.

    Raises InputError where it tells what no model has.
    """
    dims = record.get("dims")
    if dims is None:
        return None
    if not _is_dims(dims):
        raise _unusable(where, "dims")
    layers = record.get("layers", list(range(dims["layers"])))
    if not _is_layers(layers, dims["layers"]):
        raise _unusable(where, "layers")
    paths: dict[str, tuple[str | None, ...]] = {}
    if (projections := record.get("projections")) is not None:
        if not isinstance(projections, dict) or set(projections) != set(PARTS):
            raise _unusable(where, "projections")
        paths = {part: _spread(projections[part], layers, where) for part in PARTS}
    kv_heads, head_dim, hidden_size = (dims.get(name) for name in _DIMS[2:])
    return ModelShape(tuple(layers), dims["heads"], kv_heads, head_dim, hidden_size, paths)


def _is_dims(dims: Any) -> bool:
    if not isinstance(dims, dict) or not {"layers", "heads"} <= dims.keys():
        return False
    known = [dims[name] for name in _DIMS if name in dims]
    if any(type(value) is not int or not 1 <= value <= _MAX_WIDTH for value in known):
        return False
    few = dims["layers"] <= MAX_LAYERS and dims["layers"] * dims["heads"] <= MAX_HEADS
    return bool(few and dims["heads"] % dims.get("kv_heads", 1) == 0)


def _is_layers(layers: Any, count: int) -> bool:
    if not isinstance(layers, list) or len(layers) != count:
        return False
    if any(type(layer) is not int or not 0 <= layer < _MAX_WIDTH for layer in layers):
        return False
    return layers == sorted(set(layers))


def _spread(found: Any, layers: Sequence[int], where: str) -> tuple[str | None, ...]:
    paths = [found] * len(layers) if found is None or isinstance(found, str) else found
    if not isinstance(paths, list) or len(paths) != len(layers):
        raise _unusable(where, "projections")
    return tuple(_path(path, layer, where) for path, layer in zip(paths, layers, strict=True))


def _path(path: Any, layer: int, where: str) -> str | None:
    if path is None:
        return None
    if not isinstance(path, str) or len(path) > _MAX_PATH or not _PATH.fullmatch(path.replace(LAYER, str(layer))):
        raise _unusable(where, "projections")
    return path.replace(LAYER, str(layer))


def _unusable(where: str, key: str) -> InputError:
    return InputError(f"{where}: its record has no usable '{key}'; run headscore score again with --overwrite")
