"""Reads a shard as untrusted input: what is needed is opened once its links, layout, dtype and dims have been checked."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import DamagedShardError, HeadscoreError, InputError, one_line
from ..files.plain import PlainFile
from ..options.settings import MAX_TOKENS
from .attributes import shard_metadata
from .kept_columns import checked_kept
from .layout import checked_layout, linked, too_large
from .metadata import MAX_HEADS, MAX_LAYERS, SkippedRow
from .shard import ARRAYS, Array, stored_arrays
from .structures import Structures
from .value_checks import require_row_sums, require_values

BLOCK_ITEMS = 1 << 22  # values of one array that are read at once, unless a single sample has more

_FAULTS = (ArithmeticError, LookupError, ValueError, TypeError, OSError, RuntimeError)  # as HDF5 and Python find them in a file


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a shard: where they and their tokens stand, and `offsets` [b+1], the token starts in the block."""

    samples: slice
    tokens: slice
    offsets: npt.NDArray[np.int64]


class Shard:
    """One open shard file: its metadata, its dims, and its arrays read on demand.

    `samples`, `tokens`, `layers`, `heads` are its dims; `kept` has by column a value of each sample. Use it as a context
    manager. It takes no lock. follow_links: whether a symbolic link may stand for the file.

    Raises DamagedShardError for a file that is not a shard, or that is damaged or unsafe to read, UnreadableFileError where the
    system refuses to read it; of the arrays, when they are asked for. Raises InputError as PlainFile, and
    NewerFormatError.
    """

    def __init__(self, path: Path, *, follow_links: bool = False):
        self.path = path
        self._plain_file = PlainFile(path, follow_links=follow_links)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._plain_file.close)
            with self._faults_told("is not a readable shard, or is damaged"):
                self._structures = Structures(self._plain_file.read_at)
                self._structures.require_safe_root()
                self._file = _opened(self._plain_file)
            on_failure.callback(self._close_file)
            with self._faults_told():
                self.metadata = shard_metadata(path, self._file.id)
                self.number: int = self.metadata.pop("shard")
                self.skipped: list[SkippedRow] = self.metadata.pop("skipped")
                self.names = stored_arrays(self.metadata)
                self._places: dict[str, Any] = {}  # HDF5's identifiers of groups and arrays
                self._shapes: dict[str, tuple[int, ...]] = {}
                self._dims = self._declared_dims()
                self._require_layers()
                self.layers, self.heads = self._dims["L"], self._dims["H"]
                self.samples, self.tokens = self._shape("samples/offset")[0] - 1, self._shape("tokens/span")[0]
                names = self.metadata["settings"].get("keep", [])
                self.kept = checked_kept(self.metadata.pop("kept", None), names, self.samples, str(path))
            on_failure.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_file()
        self._plain_file.close()

    def _close_file(self) -> None:
        with contextlib.suppress(*_FAULTS):  # HDF5 refuses to close some that are damaged, which then are told as such
            self._file.close()

    def read(self, name: str, layer: int | slice | None = None, block: Block | None = None) -> Array:
        """An array of ARRAYS by its name, whole, of one layer or some, or of the samples of a block; what is read is checked.

        Raises InputError where the shard has no such array, DamagedShardError where its data is damaged or holds values that
        cannot be (`value_checks.require_values`), and UnreadableFileError where the system refuses to read it.
        """
        shape = self._shape(name)
        dtype, axes = ARRAYS[name]
        parts = {"n": block.samples, "t": block.tokens} if block else {}
        if layer is not None:
            parts["L"] = layer if isinstance(layer, slice) else slice(layer, layer + 1)
        ranges = [parts.get(axis, slice(0, length)) for axis, length in zip(axes, shape, strict=True)]
        start, count = tuple(part.start for part in ranges), tuple(part.stop - part.start for part in ranges)
        values = np.empty(count, dtype)
        with self._faults_told(f"'{name}' cannot be read"):
            if values.size:
                place = self._places[name].get_space()
                place.select_hyperslab(start, count)
                self._places[name].read(h5py.h5s.create_simple(count), place, values)
            require_values(self.path, name, values, len(self.metadata["span_names"]))
        return values[0] if isinstance(layer, int) and axes[0] == "L" else values

    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each sample's tokens start, int64 [n+1]; checked to begin at 0, to rise, and to end at `tokens`."""
        offsets = self.read("samples/offset")
        if offsets[0] != 0 or offsets[-1] != self.tokens or (offsets[1:] <= offsets[:-1]).any():
            raise DamagedShardError(f"{self.path}: 'samples/offset' does not divide the {self.tokens} tokens into samples")
        if fault := too_large(int(np.diff(offsets).max(initial=0)), self.tokens, self.heads):
            raise DamagedShardError(f"{self.path}: 'samples/offset' has {fault}")
        return offsets

    def blocks(self) -> Iterator[Block]:
        """The samples in blocks of bounded size, so that a reader's memory is bounded however large the shard is."""
        yield from sample_blocks(self.offsets(), self.layers, self.heads)

    def require_arrays(self) -> None:
        """Raises DamagedShardError where an array is stored in a way that `read` would refuse."""
        for name in self.names:
            self._shape(name)

    @contextlib.contextmanager
    def _faults_told(self, what: str = "is damaged, or not a shard") -> Iterator[None]:
        """What HDF5 or Python finds wrong about a file becomes a DamagedShardError, unless the system refused to read it."""
        try:
            yield
        except HeadscoreError:
            self._plain_file.require_read()  # a read that the system refused is not damage
            raise
        except _FAULTS as error:
            raise self._plain_file.fault(f"{what}: {one_line(error)[:160]}") from error
        self._plain_file.require_read()

    def _shape(self, name: str) -> tuple[int, ...]:
        """The dims of an array. When it is first asked for, its links and layout are checked to stay inside this file.

        With HDF5's own calls, which take less time than h5py's objects: a large cache has many shards to open.
        """
        if name not in self.names:
            raise InputError(f"{self.path}: has no '{name}': {_why_absent(name)}")
        if name not in self._shapes:
            group, array = name.split("/")
            with self._faults_told():
                if group not in self._places:
                    self._places[group] = linked(self.path, self._file.id, group, name, self._structures)
                self._places[name] = linked(self.path, self._places[group], array, name, self._structures)
                shape = checked_layout(self.path, name, self._places[name], self._plain_file.size())
                self._require_dims(name, shape)
                self._shapes[name] = shape
        return self._shapes[name]

    def _declared_dims(self) -> dict[str, int]:
        """The dims by their axis, as far as the metadata has them."""
        layers, heads = self.metadata["dims"]["layers"], self.metadata["dims"]["heads"]
        if min(layers, heads) < 1 or layers > MAX_LAYERS or layers * heads > MAX_HEADS:
            most = f"{MAX_LAYERS} layers or {MAX_HEADS} heads in all"
            raise DamagedShardError(f"{self.path}: has {layers} layers of {heads} heads, none or more than {most}")
        return {"L": layers, "H": heads}

    def _require_dims(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises DamagedShardError for an array whose dims are not those of the metadata and of the arrays before it."""
        for axis, length in zip(ARRAYS[name][1], shape, strict=True):
            key, length = ("n", length - 1) if axis == "n+1" else (axis, length)
            if length < 0 or self._dims.setdefault(key, length) != length:
                why = f", not {self._dims[key]} as its metadata says or another array has" if key in self._dims else ""
                raise DamagedShardError(f"{self.path}: '{name}' has {length} along {key}{why}")

    def _require_layers(self) -> None:
        layers = self.read("layers/index").tolist()
        if layers != self.metadata["layers"] or layers != sorted(set(layers)):
            raise DamagedShardError(f"{self.path}: 'layers/index' is not as its metadata says")


def sample_blocks(offsets: npt.NDArray[np.int64], layers: int, heads: int) -> Iterator[Block]:
    """Samples whose tokens start at `offsets` [n+1], in blocks of bounded size for so many layers and heads."""
    samples, start = len(offsets) - 1, 0
    most_tokens = min(BLOCK_ITEMS // heads, MAX_TOKENS)
    most_samples = max(1, BLOCK_ITEMS // (8 * layers * heads))
    while start < samples:
        end = int(np.searchsorted(offsets, offsets[start] + most_tokens, side="right")) - 1
        stop = min(max(start + 1, end), start + most_samples, samples)
        tokens = slice(int(offsets[start]), int(offsets[stop]))
        yield Block(slice(start, stop), tokens, offsets[start : stop + 1] - offsets[start])
        start = stop


def _opened(file: PlainFile) -> h5py.File:
    """The file as HDF5 reads it."""
    try:
        # Without HDF5's cache of chunks, which takes time: each chunk is read once, or twice where a block ends inside it.
        return h5py.File(file, "r", rdcc_nbytes=0)
    except _FAULTS as error:
        # Whoever keeps the error keeps its frames. Those of h5py hold what it had opened: the program would crash as it ends.
        raise error.with_traceback(None) from None


def verify_shard(shard: Shard) -> None:
    """Read every array of a shard and check it: checksums, offsets, values that can be, and pattern rows that sum to 1.

    Raises DamagedShardError for the first thing that is wrong.
    """
    shard.require_arrays()  # those of a shard without samples are not read
    for name in ("samples/row", "tokens/id", "tokens/span"):
        shard.read(name)
    per_head = [name for name in shard.names if ARRAYS[name][1][:2] == ("L", "H")]
    for block, name in itertools.product(shard.blocks(), per_head):
        for layers in layer_groups(shard, block):
            values = shard.read(name, layers, block)
            if name.endswith("attention"):
                require_row_sums(shard.path, name, values, block.offsets, shard.metadata["attention"]["full_rows"])


def layer_groups(shard: Shard, block: Block) -> Iterator[slice]:
    """The layers, as many at once as have a bounded number of values in a block: reading takes time however few there are."""
    step = max(1, BLOCK_ITEMS // (shard.heads * int(block.offsets[-1])))
    for start in range(0, shard.layers, step):
        yield slice(start, min(start + step, shard.layers))


def _why_absent(name: str) -> str:
    if name.endswith("result_norm"):
        return "this model's output projection cannot be split by heads"
    return "it was captured with --queries last_token; capture it again with --queries all_tokens"
