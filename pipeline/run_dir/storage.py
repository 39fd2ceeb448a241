"""The run directory on a local disk, NFS, or any fsspec file system; every write is atomic."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from koe.atomic import TEMPORARY, Hashed, atomically
from koe.errors import ContractError, StorageError
from koe.fingerprint import sha256_bytes
from koe.remote import file_system

BATCH_ROWS = 1024  # of a record batch: bounds what one random access has to touch


class Output(BaseModel):
    """A file that was written, as receipts vouch for it; `rows` is 0 for one that is no table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: str
    num_bytes: int
    rows: int


@dataclass(frozen=True)
class Storage:
    """Files below one root, named by relative paths with forward slashes.

    A local write goes to a temporary name, is synced and renamed; an object store's single PUT
    is atomic by itself. Raises: StorageError for any read or write that fails.
    """

    root: str

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        # only needed here: object stores have no folders
        options = {"auto_mkdir": True} if self.root.startswith("file://") else {}
        return file_system(self.root, **options)

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
        with self._explained("write", path):
            if self.is_local:
                with atomically(self.local_path(path)) as file:
                    file.write(data)
            else:
                remote, base = self._remote
                remote.pipe_file(f"{base}/{path}", bytes(data))
        return Output(path=path, sha256=sha256_bytes(data), num_bytes=len(data), rows=0)

    def write_table(self, path: str, table: pa.Table) -> Output:
        """Write an Arrow IPC file, the same bytes for the same rows."""
        return self.write_tables(path, table.schema, [table])

    def write_tables(self, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> Output:
        """Write tables one after the other as one Arrow IPC file, holding one of them at a time.

        The bytes are those of `write_table` on all of them together.
        """
        with self._explained("write", path), self._stream(path) as file:
            hashed = Hashed(file)
            num_rows = 0
            with pa.ipc.new_file(pa.PythonFile(hashed, mode="w"), schema) as writer:
                for table in _in_batches(schema, tables):
                    writer.write_table(table, max_chunksize=BATCH_ROWS)
                    num_rows += table.num_rows
        sha256 = hashed.sha256.hexdigest()
        return Output(path=path, sha256=sha256, num_bytes=hashed.num_bytes, rows=num_rows)

    @contextmanager
    def _stream(self, path: str) -> Iterator[Any]:
        """Open a file that appears under its name once it is complete."""
        if self.is_local:
            with atomically(self.local_path(path)) as file:
                yield file
        else:
            remote, base = self._remote
            with remote.transaction, remote.open(f"{base}/{path}", "wb") as file:
                yield file

    def read_bytes(self, path: str) -> bytes:
        with self._explained("read", path):
            if self.is_local:
                return self.local_path(path).read_bytes()
            remote, base = self._remote
            return remote.cat_file(f"{base}/{path}")

    def read_table(self, path: str) -> pa.Table:
        """Read an Arrow IPC file, memory-mapped where the storage is local.

        Raises: ContractError for a file that is incomplete or not Arrow.
        """
        with self._explained("read", path), _complete_arrow(path):
            if self.is_local:
                return pa.ipc.open_file(pa.memory_map(str(self.local_path(path)))).read_all()
            return pa.ipc.open_file(pa.BufferReader(self.read_bytes(path))).read_all()

    @contextmanager
    def open_batches(self, path: str, columns: list[str]) -> Iterator[Iterator[pa.RecordBatch]]:
        """Yield the record batches of an Arrow IPC file one by one, with some columns only.

        Read, not mapped: mapped pages would count as this process's memory.
        Raises: ContractError for a file that is incomplete, not Arrow, or without one of the columns.
        """
        with self._explained("read", path):
            if self.is_local:
                source = pa.OSFile(str(self.local_path(path)))
            else:
                source = pa.BufferReader(self.read_bytes(path))
            with source:
                with _complete_arrow(path):
                    names = pa.ipc.open_file(source).schema.names
                    _require_columns(columns, names, path)
                    wanted = [names.index(column) for column in columns]
                    options = pa.ipc.IpcReadOptions(included_fields=wanted)
                    opened = pa.ipc.open_file(source, options=options)
                yield _batches(opened, path)

    def size(self, path: str) -> int | None:
        """Return the size in bytes, or None where there is no such file."""
        with self._explained("read", path):
            try:
                if self.is_local:
                    return self.local_path(path).stat().st_size
                remote, base = self._remote
                return remote.size(f"{base}/{path}")
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """List the file names in a folder, sorted; none if there is no such folder."""
        with self._explained("list", folder):
            try:
                if self.is_local:
                    found = [entry.name for entry in os.scandir(self.local_path(folder))]
                else:
                    remote, base = self._remote
                    listed = remote.ls(f"{base}/{folder}", detail=False, refresh=True)
                    found = [name.rstrip("/").rsplit("/", 1)[-1] for name in listed]
            except FileNotFoundError:
                return []
        return sorted(found)

    def stamps(self, folder: str, suffix: str = "") -> dict[str, tuple[int, float]]:
        """Map each file name with this suffix to its size and modification time (0 where unknown)."""
        with self._explained("list", folder):
            found = {}
            try:
                if self.is_local:
                    with os.scandir(self.local_path(folder)) as entries:
                        for entry in (e for e in entries if e.name.endswith(suffix)):
                            with suppress(FileNotFoundError):  # renamed since it was listed
                                stat = entry.stat()
                                found[entry.name] = stat.st_size, stat.st_mtime
                else:
                    remote, base = self._remote
                    for entry in remote.ls(f"{base}/{folder}", detail=True, refresh=True):
                        name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
                        if name.endswith(suffix):
                            found[name] = entry.get("size") or 0, _modified(entry)
            except FileNotFoundError:
                return {}
        return found

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        with self._explained("remove", path):
            try:
                if self.is_local:
                    self.local_path(path).unlink()
                else:
                    remote, base = self._remote
                    remote.rm_file(f"{base}/{path}")
            except FileNotFoundError:
                return

    def sweep(self, folder: str) -> int:
        """Remove what a killed writer left under temporary names; return how many."""
        unfinished = [name for name in self.names(folder) if name.endswith(TEMPORARY)]
        for name in unfinished:
            self.remove(f"{folder}/{name}")
        return len(unfinished)

    @contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot {verb} {path} in {self.root}",
                str(error),
                "Free space or restore access, then run the same command again: it resumes.",
            ) from error


@contextmanager
def _complete_arrow(path: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise ContractError(
            f"{path} is not a complete Arrow file",
            str(error),
            "Run again: a unit whose output is incomplete is redone.",
        ) from error


def _batches(opened: Any, path: str) -> Iterator[pa.RecordBatch]:
    for number in range(opened.num_record_batches):
        with _complete_arrow(path):
            batch = opened.get_batch(number)
        yield batch


def _modified(entry: dict[str, Any]) -> float:
    """Return the modification time, which every file system names differently; 0 where unknown."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = entry.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _require_columns(columns: Iterable[str], names: Sequence[str], path: str) -> None:
    missing = [column for column in columns if column not in names]
    if missing:
        raise ContractError(
            f"{path} has no column {', '.join(missing)}",
            "another version of koe wrote it",
            "Run `koe run`: what is stale is redone.",
        )


def _in_batches(schema: pa.Schema, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Divide a sequence of tables into tables of a multiple of BATCH_ROWS rows, and a rest.

    How a table was put together must not change its bytes. Arrow pads the buffers of a batch with
    up to 63 bytes of what follows in the array, so a batch is held back until more has come.
    """
    rest = schema.empty_table()
    for table in tables:
        # joins chunks; a table that is in one chunk already is not copied
        joined = (pa.concat_tables([rest, table]) if rest.num_rows else table).combine_chunks()
        num_ready = max(joined.num_rows // BATCH_ROWS - 1, 0) * BATCH_ROWS
        if num_ready:
            yield joined.slice(0, num_ready)
        rest = joined.slice(num_ready)
    if rest.num_rows:
        yield rest
