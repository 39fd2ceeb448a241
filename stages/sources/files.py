"""Source files: where they are, whether they changed, and how they are read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from koe.errors import BadRecord, ConfigError, StorageError
from koe.remote import NO_PLACE, file_system, no_place
from koe.schema import Unit
from stages.sources.path_ranges import expand_ranges, has_range
from stages.sources.streams import is_compressed, plain_name

_MAGIC = frozenset("*?[")
# Formats of compression that nothing here reads.
_UNREADABLE = (".bz2", ".tbz2", ".xz", ".txz", ".lz4", ".zip", ".7z", ".rar", ".br", ".lzma", ".z")
# Of one record: a longer one could take all memory of a worker.
MAX_RECORD_BYTES = 1 << 26
_PASSED_BYTES = 1 << 20  # read at once of what is passed over
_BESIDE = " beside "  # in a stamp, before that of the files beside
# Errors of a file system that mean a wrong name, not a failing disk.
_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP))


@dataclass(frozen=True)
class SourceFile:
    """A file of a source and its name relative to the root of the pattern that names it.

    `beside` are other files that its records are in. They need not exist.
    """

    path: str
    relative: str
    beside: tuple[str, ...] = ()


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def join(root: str, name: str) -> str:
    """Resolve `name` against the folder `root`, unless it is absolute or a URL."""
    if name.startswith("/") or "://" in name:
        return name
    return f"{root.rstrip('/')}/{name}"


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def stem(relative: str) -> str:
    """Drop the extension of the last component."""
    folder, slash, last = relative.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"


def expand(
    source: str, patterns: Iterable[str], *, folders: bool = False, compressed: bool = False
) -> list[SourceFile]:
    """List the files that match (with `folders`, folders too), each once, sorted by relative name.

    A pattern may hold ranges, as in `audio_{0..511}.tar`. `compressed` tells whether the source reads
    .gz and .zst.

    Raises: ConfigError when a pattern or a file of a range matches nothing, a file is compressed otherwise, or two files
    would share a relative name, on which the names of units and records are based.
    """
    patterns = tuple(patterns)
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        for path in _matches(source, pattern, folders):
            _require_readable(source, path, compressed)
            file = SourceFile(path, relative_name(path, patterns))
            other = found.setdefault(file.relative, file)
            if other != file:
                raise ConfigError(
                    f"source {source} has two files of the same name",
                    f"{other.path} and {path} are both called {file.relative!r} in it",
                    "Name them with one glob that starts above both, or make two sources.",
                )
    return [found[name] for name in sorted(found)]


def _matches(source: str, pattern: str, folders: bool) -> list[str]:
    with reading(pattern):
        fs, place = file_system(_plain(pattern))
        if has_range(place) and not fs.exists(place):
            each = expand_ranges(pattern)
            return [path for name in each for path in _matches(source, name, folders)]
        is_glob = bool(_MAGIC & set(place)) and not fs.exists(place)
        hits = _listed(fs, place, is_glob)
        paths = [hit for hit, kind in hits.items() if folders or kind != "directory"]
    if not paths:
        why = "it is a folder" if hits else "nothing matches it"
        remedy = "Name files or a glob of files." if hits else "Check the path and its spelling."
        raise ConfigError(f"source {source} cannot use {pattern}", why, remedy)
    return [fs.unstrip_protocol(path) if is_remote(pattern) else path for path in paths]


def _require_readable(source: str, path: str, compressed: bool) -> None:
    if not path.isprintable() and _is_no_text(path):
        raise ConfigError(
            f"source {source} cannot use the file {path!r}",
            "its name is not valid UTF-8, so no table can hold it",
            "Rename it.",
        )
    if not is_remote(path) and os.path.islink(_plain(path)) and not os.path.exists(_plain(path)):
        raise ConfigError(
            f"source {source} cannot read {path}",
            "it is a link that leads to no file",
            "Restore what it leads to, or remove it.",
        )
    kind = what_else(path)
    if kind and kind != "a folder":
        raise ConfigError(
            f"source {source} cannot read {path}",
            f"it is {kind}, not a file",
            "Write what it gives into a file, and name that one.",
        )
    if path.lower().endswith(_UNREADABLE):
        raise ConfigError(
            f"source {source} cannot read {path}",
            "of compressed files, .gz and .zst can be read from the middle, where a unit begins",
            "Decompress it, or compress it with gzip or zstd instead.",
        )
    if is_compressed(path) and not compressed:
        raise ConfigError(
            f"source {source} cannot read {path}",
            "files of this kind are read as they are, since they compress their parts themselves",
            "Decompress it first.",
        )


def _is_no_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return True
    return False


def _listed(fs: Any, place: str, is_glob: bool) -> dict[str, str]:
    """Map each path that matches to its type."""
    if is_glob:
        return {hit: info["type"] for hit, info in fs.glob(place, detail=True).items()}
    return {place: fs.info(place)["type"]} if fs.exists(place) else {}


def relative_name(path: str, patterns: Iterable[str]) -> str:
    """Name `path` relative to the folder above the first part of its pattern that varies, or the last.

    The name depends on the configuration alone, so workers find it without listing any folder. A
    compressed file has the name of what it holds: compressing a file renames no record.
    """
    path = plain_name(path)
    for pattern in patterns:
        root = _root(pattern)
        if path.startswith(root):
            return path[len(root) :]
    return path.rpartition("/")[2]


def _root(pattern: str) -> str:
    fs, place = file_system(_plain(pattern))
    parts = (fs.unstrip_protocol(place) if is_remote(pattern) else place).split("/")
    is_varied = (bool(_MAGIC & set(part)) or has_range(part) for part in parts)
    fixed = next((i for i, varied in enumerate(is_varied) if varied), len(parts) - 1)
    return "/".join(parts[: min(fixed, len(parts) - 1)]) + "/"


def _plain(path: str) -> str:
    path = path.removeprefix("file://")
    return path if len(path) == 1 else path.rstrip("/")


def stamp(path: str) -> str:
    """Return `size:mtime_ns` of a local file, and `size:etag` or similar of a remote one."""
    with reading(path):
        if not is_remote(path):
            status = os.stat(_plain(path))
            return f"{status.st_size}:{status.st_mtime_ns}"
        fs, place = file_system(path)
        info: dict[str, Any] = fs.info(place)
        marks = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
        mark = next((str(info[key]) for key in marks if info.get(key)), None)
        return f"{info.get('size')}:{(mark or fs.ukey(place)).strip(chr(34))}"


def stamp_with_beside(file: SourceFile) -> str:
    """Return the stamp of a file, and what changes when one of those beside it does."""
    if not file.beside:
        return stamp(file.path)
    marks = [stamp(path) if exists(path) else "" for path in file.beside]
    digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]
    return f"{stamp(file.path)}{_BESIDE}{digest}"


def exists(path: str) -> bool:
    with reading(path):
        fs, place = file_system(_plain(path))
        return fs.exists(place)


def is_empty(stamp: str) -> bool:
    """Tell from the stamp of a file whether it holds no byte."""
    return stamp.startswith("0:")


def open_binary(path: str) -> BinaryIO:
    """Open a local file or URL for reading and seeking.

    Raises: OSError, as the file system raises it; ConfigError for what is no URL of a file.
    """
    if not is_remote(path):
        return open(_plain(path), "rb")
    fs, place = file_system(path)
    try:
        return cast(BinaryIO, fs.open(place, "rb"))
    except OSError:
        raise
    except NO_PLACE as error:
        raise no_place(path, error) from error
    except Exception as error:  # of a client library, whose connections and credentials fail so
        raise OSError(f"{type(error).__name__}: {error}") from error


def what_else(path: str) -> str:
    """Say what a local path is if it is no file, such as `a FIFO`; empty for a file or a URL.

    Nothing of the kind may be opened: a FIFO waits for a writer, and a device may act on it. What
    cannot even be looked at is left to the one who opens it.
    """
    if is_remote(path):
        return ""
    try:
        mode = os.stat(_plain(path)).st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


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


def is_absent(error: OSError) -> bool:
    """Tell whether there is no such file, as opposed to storage that fails."""
    return isinstance(error, FileNotFoundError) or error.errno in _ABSENT


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn a failure of the storage that holds `path` into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read",
            error.strerror or str(error) or type(error).__name__,
            "Check the mount, the network and the permissions, then run again: it resumes.",
        ) from error


@contextmanager
def open_unit(unit: Unit) -> Iterator[BinaryIO]:
    """Open the file of a unit, which must be as it was when the unit was planned."""
    require_unchanged(unit)
    with reading(unit.path), open_binary(unit.path) as file:
        yield file


def require_unchanged(unit: Unit) -> None:
    """Raise StorageError if the file of `unit` is not the one that was planned."""
    now = stamp(unit.path)
    if now != own_stamp(unit):
        raise StorageError(
            f"{unit.path} changed since it was planned",
            f"its size and modification were {unit.stamp} and are {now}",
            "Run again: units are planned again, and only those that changed are redone.",
        )


def own_stamp(unit: Unit) -> str:
    """Return the stamp of a unit's own file, without that of the files beside it."""
    return unit.stamp.partition(_BESIDE)[0]


def num_bytes(file: BinaryIO) -> int:
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    return size


def lines(file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start, stop, line) of every line in a byte range that is not blank.

    Of a line that is longer than MAX_RECORD_BYTES, it yields the beginning, which is too long too.
    """
    file.seek(start)
    place = start
    while stop is None or place < stop:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        begin, place = place, place + len(line)
        if len(line) > MAX_RECORD_BYTES:
            place += _pass_line(file, line)
        content = line.removeprefix(b"\xef\xbb\xbf") if begin == 0 else line
        if content.strip():
            yield begin, place, content


def _pass_line(file: BinaryIO, line: bytes) -> int:
    """Read the rest of a line that begins with `line`; return how many bytes it has."""
    num_read = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(_PASSED_BYTES)
        num_read += len(line)
    return num_read


def require_size(size: int, what: str) -> None:
    """Raise BadRecord with reason record_too_large for more bytes than a record may have."""
    if size > MAX_RECORD_BYTES:
        detail = f"{what} has more than {MAX_RECORD_BYTES:,} bytes"
        raise BadRecord("record_too_large", detail)


def list_folder(path: str) -> list[str] | None:
    """Return the base names in a folder; None if it is a file."""
    with reading(path):
        fs, place = file_system(_plain(path))
        if not fs.isdir(place):
            return None
        return [PurePosixPath(name).name for name in cast(list[str], fs.ls(place, detail=False))]
