"""Folders that a run reads and writes, on a local disk or at a URL that fsspec knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from koe.errors import KoeError, StorageError
from koe.remote import fresh_file_system

Place = str | Path

_LOCAL = ("file://", "local://")


def local_folder(place: Place) -> Path | None:
    """Return the local folder that a path or file URL names; None for any other URL."""
    text = str(place)
    if text.startswith(_LOCAL):
        return Path(LocalFileSystem._strip_protocol(text))
    return None if "://" in text else Path(text)


def absolute(place: Place) -> Place:
    """Return a local place as an absolute path, and a URL without slashes at its end."""
    folder = local_folder(place)
    return str(place).rstrip("/") if folder is None else folder.resolve()


def beside(place: Place, name: str) -> Place:
    """Return the place called `name` in another."""
    folder = local_folder(place)
    return f"{str(place).rstrip('/')}/{name}" if folder is None else folder / name


def read_bytes(place: Place, name: str) -> bytes:
    """Read a file as it is now.

    Raises: FileNotFoundError; OSError of a local disk; StorageError of any other storage.
    """
    folder = local_folder(place)
    return RemoteFolder(str(place)).read(name) if folder is None else (folder / name).read_bytes()


class RemoteFolder:
    """Files at a URL, named by relative paths; no listing or size is ever taken from a cache.

    Raises: FileNotFoundError for a file that is not there; StorageError when the storage fails;
    ConfigError for a URL that cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.system, self.base = fresh_file_system(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFolder, (self.url,)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        with self._reaching("read", name):
            return self.system.cat_file(f"{self.base}/{name}", start=start, end=end)

    def write(self, name: str, data: bytes) -> None:
        with self._reaching("written", name):
            self.system.pipe_file(f"{self.base}/{name}", data)

    def upload(self, path: Path, name: str) -> None:
        """Write a local file, complete or not at all."""
        with self._reaching("written", name):
            self.system.put_file(str(path), f"{self.base}/{name}")

    def download(self, name: str, path: Path) -> None:
        with self._reaching("read", name):
            self.system.get_file(f"{self.base}/{name}", str(path))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of all files below a folder by their names in it."""
        path = f"{self.base}/{folder}".rstrip("/")
        with self._reaching("listed", folder):
            found = self.system.find(path, detail=True)
        return {
            str(name)[str(name).index(path) + len(path) + 1 :]: int(entry["size"])
            for name, entry in found.items()
        }

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._reaching("deleted", name):
            try:
                self.system.rm_file(f"{self.base}/{name}")
            except FileNotFoundError:
                return

    @contextmanager
    def _reaching(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, KoeError):
            raise
        # Each storage has its own errors, and not all of them are OSErrors.
        except Exception as error:
            raise StorageError(
                f"{self.url}/{name} cannot be {verb}",
                f"{type(error).__name__}: {error}",
                "Repair the access to the storage and start again: the run resumes from its last "
                "checkpoint.",
            ) from error
