"""Files and URLs: what is there, whether it changed, and how it is opened."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, cast

from koe.errors import StorageError
from koe.remote import NO_PLACE, file_system, forget_listings, is_there, no_place
from koe.schema import Unit
from koe.store_errors import is_absent as is_absent_in_store
from koe.store_errors import storage_errors

BESIDE = " beside "  # in a stamp, before that of the files beside
# Errors of a file system that mean a wrong name, not a failing disk.
_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP))


class NotAFile(OSError):
    """A local path leads to a folder, a FIFO, a device or a socket."""


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def join(root: str, name: str) -> str:
    """Resolve `name` against the folder `root`, unless it is absolute or a URL."""
    if name.startswith("/") or "://" in name:
        return name
    return f"{root.rstrip('/')}/{name}"


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def plain(path: str) -> str:
    """Return a path without `file://` and without the slashes at its end."""
    path = path.removeprefix("file://")
    return path if len(path) == 1 else path.rstrip("/")


def stamp(path: str) -> str:
    """Return `size:mtime_ns` of a local file, and `size:etag` or similar of a remote one."""
    with reading(path):
        if not is_remote(path):
            status = os.stat(plain(path))
            return f"{status.st_size}:{status.st_mtime_ns}"
        fs, place = file_system(path)
        info: dict[str, Any] = fs.info(place)
        marks = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
        mark = next((str(info[key]) for key in marks if info.get(key)), None)
        return f"{info.get('size')}:{(mark or fs.ukey(place)).strip(chr(34))}"


def own_stamp(unit: Unit) -> str:
    """Return the stamp of a unit's own file, without that of the files beside it."""
    return unit.stamp.partition(BESIDE)[0]


def is_empty(stamp: str) -> bool:
    """Tell from the stamp of a file whether it holds no byte."""
    return stamp.startswith("0:")


def exists(path: str) -> bool:
    with reading(path):
        fs, place = file_system(plain(path))
        return is_there(fs, place)


def require_unchanged(unit: Unit) -> None:
    """Raise StorageError if the file of `unit` is not the one that was planned."""
    if is_remote(unit.path):
        forget_listings(*file_system(unit.path))
    now = stamp(unit.path)
    if now != own_stamp(unit):
        raise StorageError(
            f"{unit.path} changed since it was planned",
            f"its size and modification were {unit.stamp} and are {now}",
            "Run again: units are planned again, and only those that changed are redone.",
        )


def reading(path: str) -> AbstractContextManager[None]:
    """Turn a failure of the storage that holds `path` into a StorageError."""
    remedy = "Check the mount, the network and the permissions, then run again: it resumes."
    return storage_errors(f"{path} cannot be read", remedy)


def is_absent(error: OSError) -> bool:
    """Tell whether there is no such file, as opposed to storage that fails."""
    if isinstance(error, FileNotFoundError):
        return is_absent_in_store(error)
    return isinstance(error, NotAFile) or error.errno in _ABSENT


def open_binary(path: str) -> BinaryIO:
    """Open a local file or URL for reading and seeking.

    Raises: OSError, as the file system raises it; ConfigError for what is no URL of a file.
    """
    if not is_remote(path):
        return _open_regular(plain(path))
    fs, place = file_system(path)
    try:
        # a file of fsspec does not bound the length of a line
        return cast(BinaryIO, io.BufferedReader(fs.open(place, "rb")))
    except OSError:
        raise
    except NO_PLACE as error:
        raise no_place(path, error) from error
    except Exception as error:  # of a client library, whose connections and credentials fail so
        raise OSError(f"{type(error).__name__}: {error}") from error


def _open_regular(path: str) -> BinaryIO:
    """Open a local file, without waiting for what is at the other end of a FIFO or a device.

    Raises: NotAFile; OSError as the system raises it.
    """
    require_file(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was put there since
        os.close(descriptor)
        raise NotAFile(errno.EINVAL, "it is no longer a file", path)
    return os.fdopen(descriptor, "rb")


def require_file(path: str) -> None:
    """Raise NotAFile where a local path leads to what is no file; a URL, or nothing, passes."""
    if kind := what_else(path):
        raise NotAFile(errno.EINVAL, f"it is {kind}, not a file", path)


@contextmanager
def open_unit(unit: Unit) -> Iterator[BinaryIO]:
    """Open the file of a unit, which must be as it was when the unit was planned."""
    require_unchanged(unit)
    with reading(unit.path), open_binary(unit.path) as file:
        yield file


def read_range(path: str, start: int, stop: int) -> bytes:
    """Read the bytes [start, stop) of a local file or URL, fewer where it ends before.

    Raises: OSError, as the file system raises it.
    """
    if is_remote(path):
        fs, place = file_system(path)
        return cast(bytes, fs.cat_file(place, start=start, end=stop))
    with open_binary(path) as file:
        file.seek(start)
        return file.read(stop - start)


def what_else(path: str) -> str:
    """Say what a local path is if it is no file, such as `a FIFO`; empty for a file or a URL.

    Nothing of the kind may be opened: a FIFO waits for a writer, and a device may act on it. What
    cannot even be looked at is left to the one who opens it.
    """
    if is_remote(path):
        return ""
    try:
        mode = os.stat(plain(path)).st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
