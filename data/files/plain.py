"""Opens the files of a cache, which may be a stranger's, and tells what the system refuses from what is damaged.

HDF5 reads through the files opened here. Those that it opens by itself it locks, which some file systems cannot and which a
variable of the environment may demand, and it does not always pass on why a read failed. No lock is needed: a file of a cache
appears whole under its name and never changes.
"""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DamagedShardError, HeadscoreError, InputError, UnreadableFileError, one_line

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_OTHER_KINDS = {
    stat.S_IFLNK: "a link, which may lead elsewhere; put the file itself there",
    stat.S_IFDIR: "a folder, not a file",
}

# What Windows lacks; it has no pipes among its files either.
_DO_NOT_WAIT: int = getattr(os, "O_NONBLOCK", 0)
_FOLLOW_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)


class PlainFile(io.FileIO):
    """A regular file open for reading, which remembers whether a read was refused by the system or went beyond the file's end.

    Args:
        path: of the file.
        follow_links: whether a symbolic link may stand for it.

    Raises InputError where there is none, and for a link, a pipe or a device, which might lead elsewhere or never end;
    UnreadableFileError where the system refuses to open it.
    """

    _refused: OSError | None = None
    _lost = False  # stands at a place that no file has
    _too_short = False  # for what was to be read

    def __init__(self, path: Path, *, follow_links: bool = False):
        self._path = path
        more = _DO_NOT_WAIT | (0 if follow_links else _FOLLOW_NO_LINK)
        try:
            found = path.stat(follow_symlinks=follow_links)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path}: is {_OTHER_KINDS.get(stat.S_IFMT(found.st_mode), 'not a regular file')}")
            super().__init__(path, opener=lambda name, flags: os.open(name, flags | more))
            opened = os.fstat(self.fileno())
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise InputError(f"{path}: does not exist") from error
            raise unreadable(path, error) from error
        link_followed = not (follow_links or _FOLLOW_NO_LINK or os.path.samestat(opened, found))
        if link_followed or not stat.S_ISREG(opened.st_mode):
            self.close()
            raise InputError(f"{path}: is not a regular file, or was replaced while it was opened")

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` from where the file stands, as HDF5 reads; the number of bytes.

        Nothing is raised: whoever keeps an error keeps its frames, and with them the buffer, which is HDF5's own memory, and
        the program would crash as it ends. What could not be read is 0, and `require_read` raises.
        """
        size = memoryview(buffer).nbytes
        try:
            if not self._lost:
                count = self._fill(buffer)
                self._too_short |= count < size
                return count
        except OSError as error:
            self._note(error)
        self._too_short = True
        with memoryview(buffer).cast("B") as view:
            view[:] = bytes(size)
        return size

    def _fill(self, buffer: Any) -> int:
        return super().readinto(buffer)

    def size(self) -> int:
        """How many bytes the file has."""
        return os.fstat(self.fileno()).st_size

    def read_at(self, place: int, size: int) -> bytes:
        """The `size` bytes at a place; ValueError where the file does not have them all."""
        if not 0 <= place <= place + size <= self.size():
            raise ValueError("it leads beyond the file's end")
        super().seek(place)
        if len(content := self.read(size)) < size:
            raise ValueError("it was cut while it was read")
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to another place; what is read from one that no file has is 0. Nothing is raised, as in `readinto`."""
        try:
            self._lost = False
            return super().seek(offset, whence)
        except (OSError, OverflowError, ValueError) as error:
            self._lost = True
            if isinstance(error, OSError):
                self._note(error)
            return 0

    def require_read(self) -> None:
        """Raises an error if what was taken for the file's content is not.

        UnreadableFileError where the system has refused a read. DamagedShardError where one went beyond the file's end: so it
        got zeros, and the checksum of zeros is 0.
        """
        if self._refused or self._too_short:
            raise self.fault("is damaged: it ends before its data does")

    def fault(self, damage: str) -> HeadscoreError:
        """The error to raise where reading has failed: that the system refused a read, or else that the shard is damaged."""
        return unreadable(self._path, self._refused) if self._refused else DamagedShardError(f"{self._path}: {damage}")

    def _note(self, error: OSError) -> None:
        """Remember that a read was refused, but not the error's frames: they hold HDF5's memory, which is gone before them."""
        if error.errno != errno.EINVAL:  # which is about a place that no file has, so damage
            self._refused = OSError(error.errno, error.strerror)


def read_plain(path: Path, max_bytes: int, *, follow_links: bool = False) -> bytes | None:
    """The content of a regular file, None where there is none; raises as PlainFile, and InputError beyond `max_bytes`."""
    if not kind_of(path, follow_links=follow_links):
        return None
    with PlainFile(path, follow_links=follow_links) as file, refusals_told(path):
        content = file.read(max_bytes + 1)
        while len(content) <= max_bytes and (more := file.read(max_bytes + 1 - len(content))):
            content += more
    if len(content) > max_bytes:
        raise InputError(f"{path}: is larger than {max_bytes} bytes")
    return content


def require_own(folder: Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Raises InputError where something in `folder` that is to be read or written is a link, or of another kind.

    Args:
        folder: to be worked in.
        files: names of files; each may be missing.
        folders: names of folders; each may be missing.
    """
    for names, kind, wanted in ((files, stat.S_IFREG, "a regular file"), (folders, stat.S_IFDIR, "a folder")):
        for path in (folder / name for name in names):
            if found := kind_of(path):
                if found == stat.S_IFLNK:
                    raise InputError(f"{path}: is a link, which may lead elsewhere; put {wanted} there, or remove it")
                if found != kind:
                    raise InputError(f"{path}: is not {wanted}; remove it, or use another --out")


def kind_of(path: Path, *, follow_links: bool = False) -> int:
    """What is at `path`, as S_IFREG, S_IFDIR and so on; 0 where there is nothing.

    The tests of pathlib and os.path take whatever the system refuses to tell for nothing. Here it is an UnreadableFileError.
    """
    with refusals_told(path):
        try:
            return stat.S_IFMT(path.stat(follow_symlinks=follow_links).st_mode)
        except ValueError:  # no path can have a null byte
            return 0
        except OSError as error:
            if error.errno in _NOT_THERE:
                return 0
            raise


def names_in(folder: Path) -> list[str]:
    """The names of what is in a folder; none where there is no such folder. Raises UnreadableFileError."""
    if kind_of(folder, follow_links=True) != stat.S_IFDIR:
        return []
    with refusals_told(folder):
        return [path.name for path in folder.iterdir()]


@contextlib.contextmanager
def refusals_told(path: Path) -> Iterator[None]:
    """Within this context an OSError becomes an UnreadableFileError about `path`."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UnreadableFileError:
    """The error to raise about a file that the system refuses."""
    return UnreadableFileError(
        f"{path}: cannot be read: {error.strerror or one_line(error)[:160]}; it may be whole, so it is left as it is: "
        "fix what is in the way (permissions, disk, mount) or remove the file"
    )
