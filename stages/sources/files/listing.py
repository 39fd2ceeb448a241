"""Which files a source has: globs, ranges and folders, and the names that records are based on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from koe.errors import ConfigError
from koe.remote import file_system, forget_listings, is_there
from stages.sources.files.opening import BESIDE, exists, is_remote, plain, reading, stamp, what_else
from stages.sources.files.path_ranges import expand_ranges, has_range
from stages.sources.files.streams import is_compressed, plain_name

_MAGIC = frozenset("*?[")
# Formats of compression that nothing here reads.
_UNREADABLE = (".bz2", ".tbz2", ".xz", ".txz", ".lz4", ".zip", ".7z", ".rar", ".br", ".lzma", ".z")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source and its name relative to the root of the pattern that names it.

    `beside` are other files that its records are in. They need not exist.
    """

    path: str
    relative: str
    beside: tuple[str, ...] = ()


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
    for pattern in patterns:  # a process that planned before has listings of that time
        with reading(pattern):
            forget_listings(file_system(plain(pattern))[0])
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
        fs, place = file_system(plain(pattern))
        if has_range(place) and not is_there(fs, place):
            each = expand_ranges(pattern)
            return [path for name in each for path in _matches(source, name, folders)]
        is_glob = bool(_MAGIC & set(place)) and not is_there(fs, place)
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
    if not is_remote(path) and os.path.islink(plain(path)) and not os.path.exists(plain(path)):
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
            "only .gz and .zst can be read from the middle, where a unit begins",
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
    return {place: fs.info(place)["type"]} if is_there(fs, place) else {}


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
    fs, place = file_system(plain(pattern))
    parts = (fs.unstrip_protocol(place) if is_remote(pattern) else place).split("/")
    is_varied = (bool(_MAGIC & set(part)) or has_range(part) for part in parts)
    fixed = next((i for i, varied in enumerate(is_varied) if varied), len(parts) - 1)
    return "/".join(parts[: min(fixed, len(parts) - 1)]) + "/"


def stem(relative: str) -> str:
    """Drop the extension of the last component."""
    folder, slash, last = relative.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"


def list_folder(path: str) -> list[str] | None:
    """Return the base names in a folder; None if it is a file."""
    with reading(path):
        fs, place = file_system(plain(path))
        if not fs.isdir(place):
            return None
        return [PurePosixPath(name).name for name in cast(list[str], fs.ls(place, detail=False))]


def stamp_with_beside(file: SourceFile) -> str:
    """Return the stamp of a file, and what changes when one of those beside it does."""
    if not file.beside:
        return stamp(file.path)
    marks = [stamp(path) if exists(path) else "" for path in file.beside]
    digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16]
    return f"{stamp(file.path)}{BESIDE}{digest}"
