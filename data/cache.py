"""The cache format, version 1: everything about its files is here and in docs/cache-format.md.

A cache is a folder with `cache.json` and `shards/00000.h5`, `00001.h5`, …. A shard is complete in itself. Caches are read as
untrusted input: an array is opened only after its links, layout, dtype and dims have been checked against the table below.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import h5py
import numpy as np
import numpy.typing as npt

from .errors import InputError, one_line
from .files import write_bytes, write_text
from .settings import QueryMode
from .templates import MAX_SPANS

FORMAT = "headscore-cache"
FORMAT_VERSION = 1
METADATA_FILE = "cache.json"
SKIPPED_FILE = "skipped.jsonl"
MAX_METADATA_BYTES = 1 << 20
CHUNK_ITEMS = 1 << 17  # values in one chunk: large enough for fast reads, small enough for a short sample range
ROW_SUM_TOLERANCE = 0.01  # what rounding many small weights to half precision can add up to
MAX_GZIP_RATIO = 1032  # deflate cannot expand more than this, so larger declared dims are a lie

Array = npt.NDArray[Any]
Metadata = dict[str, Any]

# Every array of a shard: its dtype and its axes. n samples, t tokens, L layers, H heads.
ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "samples/row": ("int64", ("n",)),
    "samples/offset": ("int64", ("n+1",)),
    "tokens/id": ("int32", ("t",)),
    "tokens/span": ("uint8", ("t",)),
    "layers/index": ("int32", ("L",)),
    "last_token/attention": ("float16", ("L", "H", "t")),
    "last_token/output_norm": ("float32", ("L", "H", "n")),
    "last_token/result_norm": ("float32", ("L", "H", "n")),
    "all_tokens/output_norm": ("float32", ("L", "H", "n")),
    "all_tokens/result_norm": ("float32", ("L", "H", "n")),
    "all_tokens/attention": ("float16", ("L", "H", "t")),
    "all_tokens/entropy": ("float32", ("L", "H", "n")),
}
ALL_TOKENS_ARRAYS = ("all_tokens/attention", "all_tokens/entropy")  # only with --queries all_tokens
_METADATA_SHAPE: dict[str, Any] = {  # what a reader relies on; a list has elements of the shape given
    "versions": {},
    "model": {},
    "data": {},
    "templates": [{"name": str, "text": str}],
    "span_names": [str],
    "settings": {"queries": str, "compression": str},
    "dims": {"layers": int, "heads": int},
    "layers": [int],
    "plan": {"shards": int},
    "example": {"row": int, "pieces": [{"text": str, "spans": [str]}]},
}


def array_names(queries: QueryMode | str) -> list[str]:
    """The arrays that a shard captured with `--queries` holds."""
    return [name for name in ARRAYS if queries == "all_tokens" or name not in ALL_TOKENS_ARRAYS]


# ---------------------------------------------------------------------------------------------------------------- writing


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write `cache.json`, whole or not at all."""
    write_text(folder / METADATA_FILE, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")


def write_skipped(folder: Path, skipped: Sequence[Mapping[str, Any]]) -> None:
    """Write `skipped.jsonl`: one object with `row` and `reason` per skipped row, in row order; empty if there is none."""
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in sorted(skipped, key=lambda entry: entry["row"]))
    write_text(folder / SKIPPED_FILE, "".join(lines))


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` (0-based) of a cache lies."""
    return folder / "shards" / f"{number:05d}.h5"


def write_shard(
    path: Path, number: int, arrays: Mapping[str, Array], metadata: Metadata, skipped: Sequence[Mapping[str, Any]]
) -> None:
    """Write one shard under its final name, whole or not at all.

    `arrays` holds what `array_names` lists, in the dtypes and dims of ARRAYS. Raises RunError where the disk refuses.
    """
    compression = None if metadata["settings"]["compression"] == "none" else "gzip"
    content = io.BytesIO()  # HDF5 does not survive a full disk, plain files do
    # v110 adds checksums to HDF5's own structures, so that damage outside the arrays is found too
    with h5py.File(content, "w", libver=("v110", "v110")) as file:
        for key, value in {**metadata, "shard": number, "skipped": list(skipped)}.items():
            text = value if isinstance(value, int | str) else json.dumps(value, ensure_ascii=False)
            _write_attribute(file, key, text)
        for name in array_names(metadata["settings"]["queries"]):
            data = np.ascontiguousarray(arrays[name], dtype=ARRAYS[name][0])
            storage = {"chunks": _chunks(data.shape), "fletcher32": True, "compression": compression}
            shuffle = compression is not None
            file.create_dataset(name, data=data, **({**storage, "shuffle": shuffle} if data.size else {}))
        names = [name.encode() for name in metadata["span_names"]]
        file["tokens/span"].attrs["names"] = np.array(names, f"S{max(map(len, names))}")
    write_bytes(path, content.getbuffer())


def _write_attribute(file: h5py.File, key: str, value: int | str) -> None:
    """Text is written with its length fixed, since HDF5 keeps other strings in a heap that has no checksum."""
    if isinstance(value, int):
        file.attrs[key] = value
    else:
        encoded = value.encode()
        file.attrs.create(key, encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One layer with all its heads to a chunk, and about CHUNK_ITEMS values at most; no axis may be empty."""
    if len(shape) == 1:
        return (min(shape[0], CHUNK_ITEMS),)
    return (1, shape[1], min(shape[2], max(1, CHUNK_ITEMS // shape[1])))


# ---------------------------------------------------------------------------------------------------------------- reading


class Shard:
    """One open shard file: its metadata, its dims, and its arrays read on demand.

    `samples`, `tokens`, `layers`, `heads` are its dims. Use it as a context manager. Raises InputError for a file that is not
    a shard of this format, or that is damaged or unsafe to read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path}: is not a readable shard, or is damaged: {one_line(error)[:160]}") from error
        try:
            self.metadata = self._read_attributes()
            check_metadata(self.metadata, str(path))
            self.number = int(self.metadata.pop("shard"))
            skipped = self.metadata.pop("skipped")
            self.skipped = [{"row": int(entry["row"]), "reason": str(entry["reason"])} for entry in skipped]
            self.names = array_names(self.metadata["settings"]["queries"])
            self._datasets = {name: self._checked_dataset(name) for name in self.names}
            self.samples, self.tokens, self.layers, self.heads = self._checked_dims()
        except (InputError, KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
            self._file.close()
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: is damaged, or not a shard: {one_line(error)[:160]}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str, layer: int | None = None) -> Array:
        """An array of ARRAYS by its name, whole or for one layer; its checksums are verified as it is read.

        Raises InputError where the shard has no such array or its data is damaged.
        """
        if name not in self._datasets:
            raise InputError(f"{self.path}: has no '{name}': it was captured with --queries last_token")
        dataset = self._datasets[name]
        try:
            return np.asarray(dataset[...] if layer is None else dataset[layer])
        except OSError as error:
            raise InputError(f"{self.path}: '{name}' cannot be read, most likely as its checksum does not match") from error

    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each sample's tokens start, int64 [n+1]; checked to begin at 0, to rise, and to end at `tokens`."""
        offsets = self.read("samples/offset")
        if offsets[0] != 0 or offsets[-1] != self.tokens or (offsets[1:] <= offsets[:-1]).any():
            raise InputError(f"{self.path}: 'samples/offset' does not divide the {self.tokens} tokens into samples")
        return offsets

    def _read_attributes(self) -> Metadata:
        attributes: Metadata = {}
        for key in self._file.attrs:
            if self._file.attrs.get_id(key).dtype.kind not in "Siu":  # others would be read from an unchecked heap
                continue
            value = self._file.attrs[key]
            text = value.decode() if isinstance(value, bytes) else int(value)
            attributes[key] = json.loads(text) if isinstance(text, str) and key != "format" else text
        if attributes.get("format") != FORMAT:
            raise InputError(f"{self.path}: is not a shard of a headscore cache")
        return attributes

    def _checked_dataset(self, name: str) -> h5py.Dataset:
        """The dataset of that name, once every link to it and its layout are known to stay inside this file."""
        place: h5py.Group = self._file
        for part in name.split("/"):
            if not isinstance(place, h5py.Group) or not isinstance(place.get(part, getlink=True), h5py.HardLink):
                raise InputError(f"{self.path}: '{name}' is missing or is not a plain array of this file")
            place = place[part]
        dtype, axes = ARRAYS[name]
        layout = place.id.get_create_plist() if isinstance(place, h5py.Dataset) else None
        if layout is None or layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
            raise InputError(f"{self.path}: '{name}' is not a plain array of this file")
        if place.dtype != np.dtype(dtype) or place.ndim != len(axes):
            raise InputError(f"{self.path}: '{name}' is {place.dtype} with {place.ndim} axes, not {dtype} with {len(axes)}")
        if place.size and not place.fletcher32:
            raise InputError(f"{self.path}: '{name}' has no checksums")
        if place.nbytes > place.id.get_storage_size() * MAX_GZIP_RATIO:
            raise InputError(f"{self.path}: '{name}' declares more data than the file holds")
        return place

    def _checked_dims(self) -> tuple[int, int, int, int]:
        dims: dict[str, int] = {}
        for name in self.names:
            for axis, length in zip(ARRAYS[name][1], self._datasets[name].shape, strict=True):
                key, length = ("n", length - 1) if axis == "n+1" else (axis, length)
                if dims.setdefault(key, length) != length:
                    raise InputError(f"{self.path}: '{name}' has {length} along {key}, other arrays have {dims[key]}")
        declared = self.metadata["dims"]
        if (dims["L"], dims["H"]) != (declared["layers"], declared["heads"]) or dims["H"] < 1:
            raise InputError(f"{self.path}: arrays of {dims['L']} layers and {dims['H']} heads, not as its metadata says")
        layers = self.read("layers/index").tolist()
        if layers != self.metadata["layers"] or layers != sorted(set(layers)) or not layers:
            raise InputError(f"{self.path}: 'layers/index' is not as its metadata says")
        return dims["n"], dims["t"], dims["L"], dims["H"]


def verify_shard(shard: Shard) -> None:
    """Read every array of a shard and check it: checksums, offsets, finite values, and pattern rows that sum to 1.

    Raises InputError for the first thing that is wrong.
    """
    offsets = shard.offsets()
    if (np.diff(shard.read("samples/row")) <= 0).any():
        raise InputError(f"{shard.path}: 'samples/row' does not rise")
    for name in shard.names:
        per_layer = ARRAYS[name][1][0] == "L" and len(ARRAYS[name][1]) > 1
        for layer in range(shard.layers) if per_layer else [None]:
            values = shard.read(name, layer)
            if not np.isfinite(values).all() or values.min(initial=0) < 0:
                raise InputError(f"{shard.path}: '{name}' holds values that are negative or not finite")
            if name.endswith("attention") and shard.samples:
                sums = np.add.reduceat(values, offsets[:-1], axis=1, dtype=np.float32)
                if np.abs(sums - 1).max() > ROW_SUM_TOLERANCE:
                    raise InputError(f"{shard.path}: '{name}' holds rows that do not sum to 1")


@dataclass(frozen=True)
class Cache:
    """A cache on disk: its metadata and its shard files in order. `planned` is how many shards a complete one has."""

    path: Path
    metadata: Metadata
    shards: tuple[Path, ...]
    planned: int

    @property
    def missing(self) -> int:
        """How many planned shards are not there yet."""
        return self.planned - len(self.shards)

    def require_complete(self) -> None:
        """Raises InputError, saying what to do, if a shard is missing."""
        if self.missing:
            raise InputError(
                f"{self.path}: {self.missing} of {self.planned} shards are missing; "
                "run the same `headscore capture` command again to make them"
            )

    def require_spans(self, names: Sequence[str]) -> int:
        """The bits of the named spans, or-ed together; InputError where the cache has no span of a name."""
        known = self.metadata["span_names"]
        require_known_spans(names, known, str(self.path))
        return sum(1 << known.index(name) for name in dict.fromkeys(names))

    def open_shards(self) -> Iterator[Shard]:
        """Each shard in turn, opened, and closed when the next is asked for.

        Raises InputError for one that is damaged or that belongs to another capture.
        """
        for path in self.shards:
            with Shard(path) as shard:
                self.require_own(shard)
                yield shard

    def require_own(self, shard: Shard) -> None:
        """Raises InputError where a shard belongs to another capture, or to another place in this one."""
        if shard.metadata != self.metadata or (self.path.is_dir() and shard_path(self.path, shard.number) != shard.path):
            raise InputError(f"{shard.path}: belongs to another capture, or to another place in this one")


def require_known_spans(asked: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises InputError where a name in `asked` is no span of `where`."""
    for name in asked:
        if name not in known:
            raise InputError(f"--task-span: {where} has no span '{name}'; it has {', '.join(known)}")


def open_cache(path: Path) -> Cache:
    """Open a cache folder, or a single shard file as a cache of its own.

    Raises InputError where there is none, where it is of a newer format, or where its metadata cannot be used.
    """
    if path.is_file():
        with Shard(path) as shard:
            return Cache(path, shard.metadata, (path,), 1)
    if not path.is_dir():
        raise InputError(f"{path}: cache not found; make one with `headscore capture --out {path}`")
    metadata = read_metadata(path)
    if metadata is None:
        raise InputError(f"{path}: is not a cache: it has no {METADATA_FILE}")
    planned = metadata["plan"]["shards"]
    there = (int(p.stem) for p in (path / "shards").glob("*.h5") if p.stem.isdecimal() and p == shard_path(path, int(p.stem)))
    return Cache(path, metadata, tuple(shard_path(path, number) for number in sorted(there) if number < planned), planned)


def read_metadata(folder: Path) -> Metadata | None:
    """The checked content of a cache folder's `cache.json`, or None where there is none."""
    path = folder / METADATA_FILE
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise InputError(f"{path}: is larger than {MAX_METADATA_BYTES} bytes, so it is not cache metadata")
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {one_line(error)[:160]}") from error
    check_metadata(metadata, str(path))
    return dict(metadata)


def check_metadata(metadata: Any, where: str) -> None:
    """Raises InputError unless `metadata` is of this format and version and has what readers rely on."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"{where}: is not a headscore cache")
    version = metadata.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        advice = "upgrade headscore to read it" if newer else "capture it again"
        raise InputError(f"{where}: cache format {version!r}, this headscore reads {FORMAT_VERSION}; {advice}")
    for key, shape in _METADATA_SHAPE.items():
        if not _has_shape(metadata.get(key), shape):
            raise InputError(f"{where}: its metadata has no usable '{key}'; capture it again")
    names, queries = metadata["span_names"], metadata["settings"]["queries"]
    if not 0 < len(names) <= MAX_SPANS or len(set(names)) < len(names):
        raise InputError(f"{where}: its metadata has no usable 'span_names'; capture it again")
    if metadata["plan"]["shards"] < 1 or queries not in get_args(QueryMode):
        raise InputError(f"{where}: its metadata has no usable 'plan' or 'settings'; capture it again")


def _has_shape(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_has_shape(value.get(key), inner) for key, inner in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_has_shape(inner, shape[0]) for inner in value)
    return type(value) is shape  # True is no integer here
