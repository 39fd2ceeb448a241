"""Files below a folder of a local disk or NFS."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa

from koe.atomic import TEMPORARY, atomically


@dataclass(frozen=True)
class LocalFiles:
    """What `Storage` does with files, on a disk; a write is complete or leaves the old file.

    Raises: OSError, FileNotFoundError where there is no such file or folder.
    """

    root: Path

    def write(self, path: str, data: bytes | memoryview) -> None:
        with self.stream(path) as file:
            file.write(data)

    def stream(self, path: str) -> AbstractContextManager[Any]:
        """Open a file that appears under its name once it is complete."""
        return atomically(self.root / path)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def read_many(self, paths: list[str]) -> list[bytes | BaseException]:
        """Read whole files; an exception stands for a file that failed."""
        return [self._attempt(path) for path in paths]

    def _attempt(self, path: str) -> bytes | BaseException:
        try:
            return self.read(path)
        except OSError as error:
            return error

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        with (self.root / path).open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    def local_file(self, path: str) -> AbstractContextManager[BufferedReader]:
        return (self.root / path).open("rb")

    def source(self, path: str, mapped: bool) -> pa.NativeFile:
        """Open a file for Arrow; a mapped one is not copied, and its pages count as this process's."""
        place = str(self.root / path)
        return pa.memory_map(place) if mapped else pa.OSFile(place)

    def size(self, path: str) -> int:
        return (self.root / path).stat().st_size

    def names(self, folder: str) -> list[str]:
        return [entry.name for entry in os.scandir(self.root / folder)]

    def stamps(self, folder: str, suffix: str) -> Iterator[tuple[str, tuple[int, float]]]:
        """Yield name, size and modification time of each file with this suffix."""
        with os.scandir(self.root / folder) as entries:
            for entry in (e for e in entries if e.name.endswith(suffix)):
                with suppress(FileNotFoundError):  # renamed since it was listed
                    stat = entry.stat()
                    yield entry.name, (stat.st_size, stat.st_mtime)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def sweep(self, folders: Iterable[str]) -> int:
        """Remove what a killed writer left under temporary names; return how many."""
        unfinished = [
            f"{folder}/{name}"
            for folder in folders
            if (self.root / folder).is_dir()
            for name in self.names(folder)
            if name.endswith(TEMPORARY)
        ]
        for path in unfinished:
            self.remove(path)
        return len(unfinished)
