"""Tables that a receipt vouches for: hash, size, schema and rows are proved in one reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from koe.errors import ContractError
from koe.fingerprint import sha256_bytes, sha256_file
from koe.schema import require_schema
from pipeline.run_dir.ledger import Output
from pipeline.run_dir.storage import Storage

REMAKE = "Remove it and run `koe run`: it is made again."


def vouched_table(storage: Storage, output: Output, schema: pa.Schema) -> pa.Table:
    """Read a table from the very bytes that were hashed.

    Raises: ContractError when file and `output` disagree, or the table breaks its schema.
    """
    _require_size(storage, output)
    data = storage.read_bytes(output.path)
    _require_hash(output, sha256_bytes(data))
    with _explained(output.path):
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        _require_valid(require_schema(table, schema, output.path), output.path)
    _require_rows(output, table.num_rows)
    return table


@contextmanager
def vouched_batches(
    storage: Storage, output: Output, schema: pa.Schema
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield the batches of a table that is too large to hold; its hash is proved first.

    Raises: ContractError as `vouched_table` does; for the rows, once all batches were taken.
    """
    _require_size(storage, output)
    if storage.is_local:
        _require_hash(output, sha256_file(storage.local_path(output.path)))
        source = pa.OSFile(str(storage.local_path(output.path)))
    else:
        data = storage.read_bytes(output.path)
        _require_hash(output, sha256_bytes(data))
        source = pa.BufferReader(data)
    with source:
        with _explained(output.path):
            opened = pa.ipc.open_file(source)
        require_schema(opened.schema.empty_table(), schema, output.path)
        yield _batches(opened, output)


def _batches(opened: pa.RecordBatchFileReader, output: Output) -> Iterator[pa.RecordBatch]:
    num_rows = 0
    for place in range(opened.num_record_batches):
        with _explained(output.path):
            batch = opened.get_batch(place)
            _require_valid(batch, output.path)
        num_rows += batch.num_rows
        yield batch
    _require_rows(output, num_rows)


def _require_size(storage: Storage, output: Output) -> None:
    size = storage.size(output.path)
    if size is None:
        raise ContractError(
            f"{output.path} is missing",
            "its receipt vouches for it",
            "Run `koe run`: the unit is done again.",
        )
    if size != output.num_bytes:
        raise ContractError(
            f"{output.path} is not the file that its receipt vouches for",
            f"it has {size} bytes, not {output.num_bytes}",
            REMAKE,
        )


def _require_hash(output: Output, sha256: str) -> None:
    if sha256 != output.sha256:
        raise ContractError(
            f"{output.path} is not the file that its receipt vouches for",
            f"SHA-256 {sha256[:12]} is not {output.sha256[:12]}",
            REMAKE,
        )


def _require_rows(output: Output, num_rows: int) -> None:
    if num_rows != output.rows:
        raise ContractError(
            f"{output.path} holds {num_rows} rows, not {output.rows}",
            "that is what its receipt vouches for",
            REMAKE,
        )


def _require_valid(table: pa.Table | pa.RecordBatch, path: str) -> None:
    """Prove that offsets and strings are sound and that no null is where none may be."""
    table.validate(full=True)
    for field, column in zip(table.schema, table.columns, strict=True):
        if not field.nullable and column.null_count:
            raise ContractError(
                f"{path} holds {column.null_count} nulls in {field.name}",
                "the schema allows none",
                REMAKE,
            )
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        if pa.types.is_list(field.type) and any(chunk.flatten().null_count for chunk in chunks):
            raise ContractError(
                f"{path} holds nulls inside the lists of {field.name}",
                "every token and label must be there",
                REMAKE,
            )


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        raise ContractError(f"{path} is not a valid Arrow file", str(error), REMAKE) from error
