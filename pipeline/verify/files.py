"""Tables that a receipt vouches for: hash, size, schema and rows are proved in one reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from koe.arrow_files import ArrowFile
from koe.errors import ContractError
from koe.fingerprint import sha256_bytes, sha256_file
from koe.schema import require_schema
from pipeline.run_dir.storage import Output, Storage

_REMEDY = "Remove it and run `koe run`: it is made again."


def vouched_table(storage: Storage, output: Output, schema: pa.Schema) -> pa.Table:
    """Read a table from the very bytes that were hashed.

    Raises: ContractError when file and `output` disagree, or the table breaks its schema.
    """
    data = _proved_bytes(storage, output)
    with _opened(pa.BufferReader(data), output, schema) as file:
        return pa.Table.from_batches(_batches(file, output), file.schema)


@contextmanager
def vouched_batches(
    storage: Storage, output: Output, schema: pa.Schema
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield the batches of a table that is too large to hold; its hash is proved first.

    Raises: ContractError as `vouched_table` does; for the number of rows after the last batch.
    """
    if storage.is_local:
        path = storage.local_path(output.path)
        _require_size(storage, output)
        _require_hash(output, sha256_file(path))
        source = pa.OSFile(str(path))
    else:
        source = pa.BufferReader(_proved_bytes(storage, output))
    with _opened(source, output, schema) as file:
        yield _batches(file, output)


def _proved_bytes(storage: Storage, output: Output) -> bytes:
    _require_size(storage, output)
    data = storage.read_bytes(output.path)
    _require_hash(output, sha256_bytes(data))
    return data


@contextmanager
def _opened(source: pa.NativeFile, output: Output, schema: pa.Schema) -> Iterator[ArrowFile]:
    with source:
        file = ArrowFile(source, output.path, remedy=_REMEDY)
        require_schema(file.schema.empty_table(), schema, output.path)
        yield file


def _batches(file: ArrowFile, output: Output) -> Iterator[pa.RecordBatch]:
    num_rows = 0
    for batch in file.batches():
        num_rows += batch.num_rows
        yield batch
    if num_rows != output.rows:
        raise _other_file(output, f"it holds {num_rows} rows, not {output.rows}")


def _require_size(storage: Storage, output: Output) -> None:
    size = storage.size(output.path)
    if size is None:
        raise ContractError(
            f"{output.path} is missing",
            "its receipt vouches for it",
            "Run `koe run`: the unit is done again.",
        )
    if size != output.num_bytes:
        raise _other_file(output, f"it has {size} bytes, not {output.num_bytes}")


def _require_hash(output: Output, sha256: str) -> None:
    if sha256 != output.sha256:
        raise _other_file(output, f"SHA-256 {sha256[:12]} is not {output.sha256[:12]}")


def _other_file(output: Output, why: str) -> ContractError:
    what = f"{output.path} is not the file that its receipt vouches for"
    return ContractError(what, why, _REMEDY)
