"""Tables in Arrow IPC files: how rows become batches, and what is said of a file that is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from koe.errors import ContractError

BATCH_ROWS = 1024  # of a record batch: bounds what one random access has to touch


def write_batches(file: Any, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables one after the other into an Arrow IPC file; return the number of rows."""
    num_rows = 0
    with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
        for table in _in_batches(schema, tables):
            writer.write_table(table, max_chunksize=BATCH_ROWS)
            num_rows += table.num_rows
    return num_rows


def read_batches(source: pa.NativeFile, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Return the record batches of an Arrow IPC file, with some columns only, read one by one.

    Raises: ContractError for a file that is incomplete, not Arrow, or without one of the columns.
    """
    with complete_arrow(path):
        names = pa.ipc.open_file(source).schema.names
        _require_columns(columns, names, path)
        wanted = [names.index(column) for column in columns]
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        opened = pa.ipc.open_file(source, options=options)
    return _batches(opened, path)


@contextmanager
def complete_arrow(path: str) -> Iterator[None]:
    """Turn Arrow's complaint of a file into a ContractError."""
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
        with complete_arrow(path):
            batch = opened.get_batch(number)
        yield batch


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
