"""Files below a URL of any fsspec file system; what is there is always asked of the store itself."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from io import BufferedReader
from typing import Any

import pyarrow as pa

from koe.cells import Cell, conditional_cell
from koe.remote import abort_uploads, forget_listings, fresh_file_system

# Files below it are held in memory and written in one request. The outputs of a unit of 1,000 clips
# are 1 to 3 MB; and with files of 64 MiB a worker still needs little memory beside its model.
SPOOLED_BYTES = 64 * 2**20
_CONCURRENT = 64  # requests in flight while many small files are read
# fsspec's transactions belong to the file system, which all threads of a process share.
_ONE_TRANSACTION = threading.Lock()


@dataclass(frozen=True)
class RemoteFiles:
    """What `Storage` does with files, on an object store; a single PUT is atomic by itself.

    Raises: what the file system raises, FileNotFoundError where there is no such file or folder.
    """

    url: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        # only needed here: object stores have no folders
        options = {"auto_mkdir": True} if self.url.startswith("file://") else {}
        return fresh_file_system(self.url, **options)

    @property
    def _system(self) -> Any:
        return self._opened[0]

    def _place(self, path: str) -> str:
        return f"{self._opened[1]}/{path}"

    def write(self, path: str, data: bytes | memoryview) -> None:
        self._system.pipe_file(self._place(path), data if isinstance(data, bytes) else bytes(data))

    @contextmanager
    def stream(self, path: str) -> Iterator[Any]:
        """Open a file that appears under its name once it is complete.

        One request writes it up to SPOOLED_BYTES; a larger one is uploaded in parts while it is
        written, and the upload is aborted where that fails.
        """
        file = _Spooled(lambda: self._upload(path))
        with file:
            yield file
        if (small := file.spooled()) is not None:
            self.write(path, small)

    @contextmanager
    def _upload(self, path: str) -> Iterator[Any]:
        with (
            _ONE_TRANSACTION,
            self._system.transaction,
            self._system.open(self._place(path), "wb") as file,
        ):
            yield file

    def read(self, path: str) -> bytes:
        return self._system.cat_file(self._place(path))

    def read_many(self, paths: list[str]) -> list[bytes | BaseException]:
        """Read whole files by many requests at a time; an exception stands for a file that failed."""
        places = [self._place(path) for path in paths]
        none = [None] * len(places)
        return self._system.cat_ranges(places, none, none, on_error="return", **self._at_once())

    def _at_once(self) -> dict[str, int]:
        return {"batch_size": _CONCURRENT} if getattr(self._system, "async_impl", False) else {}

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        return self._system.cat_file(self._place(path), start=begin, end=end)

    @contextmanager
    def local_file(self, path: str) -> Iterator[BufferedReader]:
        """Fetch a file into a temporary one, which is removed in the end."""
        with tempfile.NamedTemporaryFile(prefix="koe-") as file:
            self._system.get_file(self._place(path), file.name)
            with open(file.name, "rb") as fetched:
                yield fetched

    def source(self, path: str, mapped: bool) -> pa.NativeFile:
        """Read a file into memory for Arrow; nothing can be mapped here."""
        del mapped
        return pa.BufferReader(self.read(path))

    def size(self, path: str) -> int:
        place = self._place(path)
        forget_listings(self._system, place)
        info = self._system.info(place)
        if info["type"] != "file":
            raise FileNotFoundError(place)
        return info["size"]

    def names(self, folder: str) -> list[str]:
        return [_base_name(entry["name"]) for entry in self._list(folder)]

    def stamps(self, folder: str, suffix: str) -> Iterator[tuple[str, tuple[int, float]]]:
        """Yield name, size and modification time (0 where unknown) of each file with this suffix."""
        for entry in self._list(folder):
            name = _base_name(entry["name"])
            if name.endswith(suffix):
                yield name, (entry.get("size") or 0, _modified(entry))

    def _list(self, folder: str) -> list[dict[str, Any]]:
        place = self._place(folder)
        forget_listings(self._system, place)
        return self._system.ls(place, detail=True, refresh=True)

    def remove(self, path: str) -> None:
        self._system.rm_file(self._place(path))

    def cell(self, path: str) -> Cell:
        """Open a file that is compared before it is written, by the store where it can."""
        return conditional_cell(self._system, self._place(path))

    def sweep(self, folders: Iterable[str]) -> int:
        """Abort the uploads that killed writers left below the root; return how many."""
        del folders  # no write goes to a temporary name
        return abort_uploads(*self._opened)


class _Spooled:
    """A file to write to that stays in memory while it is small, and then goes where `upload` opens."""

    closed = False

    def __init__(self, upload: Callable[[], AbstractContextManager[Any]]) -> None:
        self._upload, self._parts = upload, io.BytesIO()
        self._exit = ExitStack()
        self._file: Any = None

    def __enter__(self) -> _Spooled:
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)

    def write(self, data: Any) -> int:
        if self._file is None and self._parts.tell() + len(data) > SPOOLED_BYTES:
            self._file = self._exit.enter_context(self._upload())
            self._file.write(self._parts.getbuffer())
            self._parts = io.BytesIO()
        return (self._parts if self._file is None else self._file).write(data)

    def flush(self) -> None:
        """Do nothing: what is written is sent in parts of the upload's own size."""

    def spooled(self) -> bytes | None:
        """Return what was written, None where it was uploaded."""
        return self._parts.getvalue() if self._file is None else None


def _base_name(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _modified(entry: dict[str, Any]) -> float:
    """Return the modification time, which every file system names differently; 0 where unknown."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = entry.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0
