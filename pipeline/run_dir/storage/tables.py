"""Writes tables as Arrow IPC files: how rows become batches (`koe/arrow_files.py` reads them)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

BATCH_ROWS = 1024  # of a record batch: bounds what one random access has to touch


def write_batches(file: Any, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables one after the other into an Arrow IPC file; return the number of rows."""
    num_rows = 0
    with pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
        for table in _in_batches(schema, tables):
            writer.write_table(table, max_chunksize=BATCH_ROWS)
            num_rows += table.num_rows
    return num_rows


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
