"""The files of a run directory by relative names, and tables in them; every write is atomic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from koe.arrow_files import ArrowFile
from koe.atomic import Hashed
from koe.cells import Cell
from koe.dataflow import stored_schema
from koe.errors import ContractError, StorageError
from koe.fingerprint import sha256_bytes
from koe.store_errors import absent_as_none, storage_errors
from pipeline.run_dir.storage.local import LocalFiles
from pipeline.run_dir.storage.remote import RemoteFiles
from pipeline.run_dir.storage.tables import write_batches

MANY = 256  # small files that are read at a time: enough requests to wait for, and little memory


class Output(BaseModel):
    """A file that was written, as receipts vouch for it; `rows` is 0 for one that is no table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    num_bytes: int
    rows: int


class Fence(Protocol):
    """What tells before each write whether this process may still write."""

    def require(self) -> None:
        """Raise StorageError where it may not."""
        ...

    @property
    def token(self) -> str:
        """Name the lock that the right to write comes from."""
        ...


@dataclass(frozen=True)
class Storage:
    """Files below one root, named by relative paths with forward slashes.

    A local write goes to a temporary name, is synced and renamed; an object store's single PUT
    is atomic by itself. Raises: StorageError for any read or write that fails, or that `fence` forbids.
    """

    root: str
    fence: Fence | None = field(default=None, compare=False, repr=False)

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    @cached_property
    def _files(self) -> LocalFiles | RemoteFiles:
        return LocalFiles(Path(self.root)) if self.is_local else RemoteFiles(self.root)

    def local_path(self, path: str = "") -> Path:
        """Return the path on the local disk.

        Raises: StorageError when the storage is not local.
        """
        if not self.is_local:
            raise StorageError(
                f"{self.root} is not a local folder",
                "this step memory-maps its files",
                "Copy the folder to a local disk first.",
            )
        return Path(self.root) / path

    def write_bytes(self, path: str, data: bytes | memoryview) -> Output:
        self._require()
        with self._explained("write", path):
            self._files.write(path, data)
        return Output(path=path, sha256=sha256_bytes(data), num_bytes=len(data), rows=0)

    def write_table(self, path: str, table: pa.Table) -> Output:
        """Write an Arrow IPC file, the same bytes for the same rows."""
        return self.write_tables(path, table.schema, [table])

    def write_tables(self, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> Output:
        """Write tables one after the other as one Arrow IPC file, holding one of them at a time.

        The bytes are those of `write_table` on all of them together.
        """
        with self._stream(path) as hashed:
            num_rows = write_batches(hashed, schema, tables)
        sha256 = hashed.sha256.hexdigest()
        return Output(path=path, sha256=sha256, num_bytes=hashed.num_bytes, rows=num_rows)

    def write_segments(self, path: str, segments: Iterable[pa.Table]) -> tuple[Output, list[int]]:
        """Write tables as Arrow IPC files one behind the other; a table without rows has no byte.

        Returns also where each begins and the last ends, in bytes [segments + 1], for
        `read_segment`. One table is held at a time.
        """
        ends, num_rows = [0], 0
        with self._stream(path) as hashed:
            for table in segments:
                if table.num_rows:
                    num_rows += write_batches(hashed, table.schema, [table])
                ends.append(hashed.num_bytes)
        sha256 = hashed.sha256.hexdigest()
        return Output(path=path, sha256=sha256, num_bytes=ends[-1], rows=num_rows), ends

    def read_segment(self, path: str, begin: int, end: int, schema: pa.Schema) -> pa.Table:
        """Read one table of `write_segments` by the bytes it lies in, with a single request.

        Raises: ContractError where these bytes are no table of this schema.
        """
        source = pa.BufferReader(self.read_range(path, begin, end))
        return ArrowFile(source, f"{path} from byte {begin}", schema=schema).table()

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        """Read the bytes `begin` to `end` of a file. Raises: ContractError where it has fewer."""
        with self._explained("read", path):
            data = self._files.read_range(path, begin, end)
        if len(data) != end - begin:
            raise ContractError(
                f"{path} ends before its byte {end:,}",
                f"{len(data):,} of the {end - begin:,} bytes from {begin:,} are there",
                "Run again: a unit whose output is incomplete is redone.",
            )
        return data

    def read_bytes(self, path: str) -> bytes:
        with self._explained("read", path):
            return self._files.read(path)

    def find_bytes(self, path: str) -> bytes | None:
        """Read a file; None where there is no such file. One request asks and reads."""
        return next(self.read_many([path]))

    def read_many(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        """Yield the content of each file, None where there is no such file.

        On an object store many requests are under way at a time; about MANY files are held.
        """
        left = iter(paths)
        while some := list(islice(left, MANY)):
            with self._explained("read", some[0]):
                read = self._files.read_many(some)
            for path, found in zip(some, read, strict=True):
                yield self._content(path, found)

    def _content(self, path: str, found: bytes | BaseException) -> bytes | None:
        if isinstance(found, bytes):
            return found
        with self._explained("read", path), absent_as_none():
            raise found
        return None

    @contextmanager
    def local_file(self, path: str) -> Iterator[BufferedReader]:
        """Open a file to be read in pieces; one of an object store is fetched first, in one request."""
        with self._explained("read", path), self._files.local_file(path) as file:
            yield file

    def read_table(self, path: str) -> pa.Table:
        """Read an Arrow IPC file, memory-mapped where the storage is local.

        Raises: ContractError for a file that is incomplete, not Arrow, or not what `path` holds.
        """
        with self._explained("read", path):
            source = self._files.source(path, mapped=True)
            return ArrowFile(source, path, schema=stored_schema(path)).table()

    @contextmanager
    def open_batches(self, path: str, columns: list[str]) -> Iterator[Iterator[pa.RecordBatch]]:
        """Yield the record batches of an Arrow IPC file one by one, with some columns only.

        Read, not mapped: mapped pages would count as this process's memory.
        Raises: ContractError for a file that is incomplete, not Arrow, or without one of the columns.
        """
        with self._explained("read", path), self._files.source(path, mapped=False) as source:
            yield ArrowFile(source, path, schema=stored_schema(path), columns=columns).batches()

    def size(self, path: str) -> int | None:
        """Return the size in bytes, or None where there is no such file."""
        with self._explained("read", path), absent_as_none():
            return self._files.size(path)
        return None

    def names(self, folder: str) -> list[str]:
        """List the file names in a folder, sorted; none if there is no such folder."""
        with self._explained("list", folder), absent_as_none():
            return sorted(self._files.names(folder))
        return []

    def stamps(self, folder: str, suffix: str = "") -> dict[str, tuple[int, float]]:
        """Map each file name with this suffix to its size and modification time (0 where unknown)."""
        with self._explained("list", folder), absent_as_none():
            return dict(self._files.stamps(folder, suffix))
        return {}

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        self._require()
        with self._explained("remove", path), absent_as_none():
            self._files.remove(path)

    def sweep(self, folders: Iterable[str]) -> int:
        """Remove what killed writers left unfinished in these folders; return how many."""
        self._require()
        with self._explained("sweep", ""):
            return self._files.sweep(folders)

    def cell(self, path: str) -> Cell:
        """Open a small file that processes change in turn; only on an object store."""
        if isinstance(self._files, LocalFiles):
            raise StorageError(
                f"{self.root} is a local folder", "its files are locked by the kernel"
            )
        with self._explained("open", path):
            return self._files.cell(path)

    @property
    def token(self) -> str:
        """Name the lock that allows to write, for workers (`worker_storage`); empty where there is none."""
        return "" if self.fence is None else self.fence.token

    @contextmanager
    def _stream(self, path: str) -> Iterator[Hashed]:
        """Open a file that appears under its name once it is complete, if it may still be written."""
        with self._explained("write", path), self._files.stream(path) as file:
            yield Hashed(file)
            self._require()

    def _require(self) -> None:
        if self.fence is not None:
            self.fence.require()

    def _explained(self, verb: str, path: str) -> AbstractContextManager[None]:
        return storage_errors(f"cannot {verb} {path} in {self.root}")
