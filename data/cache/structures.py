"""What HDF5 believes without a check, checked before it reads a file, as wrong numbers may have a right checksum.

HDF5 keeps many or large attributes in a fractal heap, and looks them up in B-trees of version 2. With numbers there that cannot
be, it reads where it has no memory, or divides by 0. So these must be of the kind that HDF5 writes for attributes, and lead to
places inside the file. Nothing else in a shard needs such structures, as its groups are small and its arrays do not grow, and
whatever else has some is refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

Read = Callable[[int, int], bytes]  # place and number of bytes

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NOWHERE = (1 << 64) - 1

_LINK_INFO, _LAYOUT, _CONTINUED, _ATTRIBUTE_INFO = 0x02, 0x08, 0x10, 0x15
_MAX_BLOCKS = 64  # that a header is in
_MAX_MESSAGES = 4096
_CHUNKED = 2
_INDEXES = (1, 3)  # of chunks: one chunk, and an array of fixed length

# What HDF5 writes for attributes.
_HEAP_START = b"FRHP\x00" + (8).to_bytes(2, "little") + bytes(2)  # 8 bytes of ID, no filters
_TABLE = (4, 1024, 65536, 40, 1)  # width, first and last size of a block, bits of a place in the heap, rows at first
_MAX_OBJECT = 4096
_MAX_ROWS = 8  # of blocks that hold objects; in more rows there would be blocks of blocks
_NAMES, _HUGE = (8, 17), (1, 24)  # kind and bytes of a record, of the tree of names and of that of large attributes
_NODE = 512
_SHARED = 2  # flag of an attribute that is kept elsewhere


class StructureError(ValueError):
    """The file has structures that are not safe to be read."""


@dataclass(frozen=True)
class Structures:
    """The structures of a file that `read` gives the bytes of; `read` raises ValueError beyond its end."""

    read: Read

    def require_safe_root(self) -> None:
        """Raises ValueError where the file's root group is not safe to be read."""
        start = self.read(0, 96)
        if start[:8] != SIGNATURE or start[8] > 3:
            raise StructureError("it does not begin as HDF5 files do")
        base, others, root = {0: (24, (32, 48), 64), 1: (28, (36, 52), 68)}.get(start[8], (12, (20,), 36))
        if _number(start, base) != 0 or any(_number(start, other) != NOWHERE for other in others):
            raise StructureError("it has more than groups, arrays and attributes")
        self.require_safe(_number(start, root))

    def require_safe(self, header: int) -> None:
        """Raises ValueError where the group or array whose header is at a place is not safe to be read."""
        for kind, content in self._messages(header):
            if kind == _LINK_INFO and _number(content, 2 + 8 * (content[1] & 1)) != NOWHERE:
                raise StructureError("it has a group of too many members")
            if kind == _LAYOUT and not _is_safe_layout(content):
                raise StructureError("it has an array whose chunks are listed in another way")
            if kind == _ATTRIBUTE_INFO:
                place = 2 + 2 * (content[1] & 1)
                heap, names = _number(content, place), _number(content, place + 8)
                if heap != NOWHERE:
                    self._require_safe_heap(heap, names)

    def _messages(self, header: int) -> Iterator[tuple[int, bytes]]:
        """Kind and content of each message of an object's header."""
        start = self.read(header, 16)
        if start[:4] == b"OHDR":
            flags = start[5]
            place = header + 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1)
            width = 1 << (flags & 3)
            blocks = [(place + width, int.from_bytes(self.read(place, width), "little"))]
            before, inside = 4 + 2 * (flags >> 2 & 1), 4  # bytes before a message's content, and of a signature
        else:
            blocks = [(header + 16, int.from_bytes(start[8:12], "little"))]
            before, inside = 8, 0
        count = 0
        for number in range(_MAX_BLOCKS):
            if number == len(blocks):
                return
            block, place = self.read(*blocks[number]), 0
            while place + before <= len(block):
                kind = block[place] if inside else int.from_bytes(block[place : place + 2], "little")
                size = int.from_bytes(block[place + 1 : place + 3] if inside else block[place + 2 : place + 4], "little")
                content = block[place + before : place + before + size]
                count, place = count + 1, place + before + size
                if len(content) < size or count > _MAX_MESSAGES:
                    raise StructureError("it has a header that does not end where it says")
                if kind == _CONTINUED:
                    start_of_next, length = _number(content, 0), _number(content, 8)
                    blocks.append((start_of_next + inside, length - 2 * inside))  # less signature and checksum
                yield kind, content
        raise StructureError("it has a header in too many parts")

    def _require_safe_heap(self, heap: int, names: int) -> None:
        """Raises ValueError where a name leads to no attribute in a heap of attributes."""
        header = self.read(heap, 142)
        table = tuple(_number(header, at, size) for at, size in ((110, 2), (112, 8), (120, 8), (128, 2), (130, 2)))
        if header[:9] != _HEAP_START or table != _TABLE or _number(header, 10, 4) != _MAX_OBJECT:
            raise StructureError("it keeps attributes in another way than HDF5 does")
        blocks = self._blocks(_number(header, 132), _number(header, 140, 2))
        large = set()
        for record in self._records(_number(header, 22), _HUGE) if _number(header, 22) != NOWHERE else ():
            self.read(_number(record, 0) + _number(record, 8), 0)
            large.add(_number(record, 16))
        for record in self._records(names, _NAMES):
            place, length = _number(record, 1, 5), _number(record, 6, 2)
            managed = record[0] == 0 and any(place in block and place + length <= block.stop for block in blocks)
            is_large = record[0] == 0x10 and _number(record, 1, 7) in large
            if not (managed or is_large) or record[8] & _SHARED:
                raise StructureError("it names an attribute that does not exist")

    def _blocks(self, root: int, rows: int) -> list[range]:
        """The places in a heap, after their own headers, that its blocks hold."""
        width, first = _TABLE[:2]
        head = 22  # of each block: signature, version, heap, place in the heap, checksum
        if rows == 0:
            return [range(head, first)] if root != NOWHERE else []
        if rows > _MAX_ROWS:
            raise StructureError("it has more attributes than a shard may have")
        places = self.read(root + 18, 8 * width * rows)
        sizes = [first << max(0, row - 1) for row in range(rows) for _ in range(width)]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        there = [_number(places, 8 * number) != NOWHERE for number in range(len(sizes))]
        return [range(at + head, at + size) for at, size, is_there in zip(starts, sizes, there, strict=True) if is_there]

    def _records(self, tree: int, kind: tuple[int, int]) -> list[bytes]:
        """All records of a B-tree of two levels at most, which is more than a shard's attributes need."""
        header = self.read(tree, 36)
        depth = _number(header, 12, 2)
        told = (header[5], _number(header, 6, 4), _number(header, 10, 2))
        if header[:5] != b"BTHD\x00" or told != (kind[0], _NODE, kind[1]) or depth > 1:
            raise StructureError("it lists attributes in another way than HDF5 does")
        root, count = _number(header, 16), _number(header, 24, 2)
        found = [] if root == NOWHERE else self._node(root, count, kind, depth)
        if len(found) != _number(header, 26):
            raise StructureError("it has another number of attributes than it says")
        return found

    def _node(self, place: int, count: int, kind: tuple[int, int], depth: int) -> list[bytes]:
        size = kind[1]
        node = self.read(place, 6 + count * size + (count + 1) * 9 * depth)
        signature = b"BTIN" if depth else b"BTLF"
        if node[:6] != signature + bytes([0, kind[0]]) or len(node) + 4 > _NODE:
            raise StructureError("it lists attributes in another way than HDF5 does")
        found = [node[start:stop] for start, stop in pairwise(range(6, 7 + count * size, size))]
        for child in range(count + 1) if depth else ():
            at = 6 + count * size + child * 9
            found += self._node(_number(node, at), node[at + 8], kind, 0)
        return found


def _is_safe_layout(content: bytes) -> bool:
    if content[0] < 4 or content[1] != _CHUNKED:  # older ones list chunks in B-trees of version 1
        return True
    axes, width = content[3], content[4]
    return _number(content, 5 + axes * width, 1) in _INDEXES


def _number(content: bytes, place: int, size: int = 8) -> int:
    if place + size > len(content):
        raise StructureError("it has a structure that ends too early")
    return int.from_bytes(content[place : place + size], "little")
