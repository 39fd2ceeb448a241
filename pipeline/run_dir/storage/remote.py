"""Files below a URL of any fsspec file system."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa

from koe.remote import file_system


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
        return file_system(self.url, **options)

    @property
    def _system(self) -> Any:
        return self._opened[0]

    def _place(self, path: str) -> str:
        return f"{self._opened[1]}/{path}"

    def write(self, path: str, data: bytes | memoryview) -> None:
        self._system.pipe_file(self._place(path), bytes(data))

    @contextmanager
    def stream(self, path: str) -> Iterator[Any]:
        """Open a file that appears under its name once it is complete."""
        with self._system.transaction, self._system.open(self._place(path), "wb") as file:
            yield file

    def read(self, path: str) -> bytes:
        return self._system.cat_file(self._place(path))

    def source(self, path: str, mapped: bool) -> pa.NativeFile:
        """Read a file into memory for Arrow; nothing can be mapped here."""
        del mapped
        return pa.BufferReader(self.read(path))

    def size(self, path: str) -> int:
        return self._system.size(self._place(path))

    def names(self, folder: str) -> list[str]:
        listed = self._system.ls(self._place(folder), detail=False, refresh=True)
        return [_base_name(name) for name in listed]

    def stamps(self, folder: str, suffix: str) -> Iterator[tuple[str, tuple[int, float]]]:
        """Yield name, size and modification time (0 where unknown) of each file with this suffix."""
        for entry in self._system.ls(self._place(folder), detail=True, refresh=True):
            name = _base_name(entry["name"])
            if name.endswith(suffix):
                yield name, (entry.get("size") or 0, _modified(entry))

    def remove(self, path: str) -> None:
        self._system.rm_file(self._place(path))

    def sweep(self, folders: Iterable[str]) -> int:
        """Do nothing: no write goes to a temporary name."""
        del folders
        return 0


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
