"""Files that receipts vouch for: what is read are the very bytes whose size and hash were proved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from koe.arrow_files import ArrowFile
from koe.dataflow import stored_schema
from koe.errors import ContractError
from koe.fingerprint import sha256_bytes
from pipeline.run_dir.storage import Output, Storage

REMEDY = "Remove it and run `koe run`: it is made again."
_HELD_BYTES = 64 * 2**20  # a larger file is not held in memory: it is hashed, then read once more


def vouched_bytes(storage: Storage, output: Output) -> bytes:
    """Read a file, and prove that it is the one that `output` describes.

    Raises: ContractError where it is missing or another one.
    """
    data = storage.find_bytes(output.path)
    if data is None:
        raise ContractError(
            f"{output.path} is missing",
            "its receipt vouches for it",
            "Run `koe run`: the unit is done again.",
        )
    _require_same(output, len(data), sha256_bytes(data))
    return data


@contextmanager
def vouched_source(storage: Storage, output: Output) -> Iterator[pa.NativeFile]:
    """Open a file for Arrow that was proved as by `vouched_bytes`, however large it is.

    A large one of an object store is fetched once, into a temporary file.
    """
    if output.num_bytes <= _HELD_BYTES:
        with pa.BufferReader(vouched_bytes(storage, output)) as source:
            yield source
        return
    with storage.local_file(output.path) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        _require_same(output, file.tell(), sha256)
        file.seek(0)
        yield pa.PythonFile(file, mode="r")


@contextmanager
def open_vouched(
    storage: Storage, output: Output, columns: Sequence[str]
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield the batches of a file, however large, with some of its columns.

    Raises: ContractError as `vouched_bytes` does, or for a file without one of the columns.
    """
    with vouched_source(storage, output) as source:
        yield _batches(source, output, columns)


class UnitFiles:
    """The files of one unit at a time: however often one is opened, it is read and hashed once."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._held: dict[str, bytes] = {}

    def next_unit(self) -> None:
        """Forget the files of the last unit."""
        self._held.clear()

    def batches(self, output: Output, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a file with some of its columns.

        Raises: ContractError as `open_vouched` does.
        """
        return _batches(pa.BufferReader(self.read(output)), output, columns)

    def read(self, output: Output) -> bytes:
        """Return all of a file, as `vouched_bytes` does."""
        if output.path not in self._held:
            self._held[output.path] = vouched_bytes(self.storage, output)
        return self._held[output.path]


def _batches(
    source: pa.NativeFile, output: Output, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    schema = stored_schema(output.path)
    return ArrowFile(source, output.path, schema=schema, columns=columns, remedy=REMEDY).batches()


def require_rows(output: Output, num_rows: int) -> None:
    """Prove that a file holds the rows that `output` counts."""
    if num_rows != output.rows:
        raise _other_file(output, f"it holds {num_rows} rows, not {output.rows}")


def _require_same(output: Output, num_bytes: int, sha256: str) -> None:
    if num_bytes != output.num_bytes:
        raise _other_file(output, f"it has {num_bytes} bytes, not {output.num_bytes}")
    if sha256 != output.sha256:
        raise _other_file(output, f"SHA-256 {sha256[:12]} is not {output.sha256[:12]}")


def _other_file(output: Output, why: str) -> ContractError:
    what = f"{output.path} is not the file that its receipt vouches for"
    return ContractError(what, why, REMEDY)
