"""Tables that a receipt vouches for: hash, size, schema and rows are proved in one reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from koe.arrow_files import ArrowFile
from koe.schema import require_schema
from pipeline.run_dir.storage import Output, Storage
from pipeline.run_dir.vouched import REMEDY, UnitFiles, require_rows, vouched_bytes, vouched_source


def vouched_table(files: Storage | UnitFiles, output: Output, schema: pa.Schema) -> pa.Table:
    """Read a table from the very bytes that were hashed.

    Raises: ContractError when file and `output` disagree, or the table breaks its schema.
    """
    data = files.read(output) if isinstance(files, UnitFiles) else vouched_bytes(files, output)
    file = _opened(pa.BufferReader(data), output, schema)
    return pa.Table.from_batches(_batches(file, output), file.schema)


@contextmanager
def vouched_batches(
    storage: Storage, output: Output, schema: pa.Schema
) -> Iterator[Iterator[pa.RecordBatch]]:
    """Yield the batches of a table that is too large to hold; its hash is proved first.

    Raises: ContractError as `vouched_table` does; for the number of rows after the last batch.
    """
    with vouched_source(storage, output) as source:
        yield _batches(_opened(source, output, schema), output)


def _opened(source: pa.NativeFile, output: Output, schema: pa.Schema) -> ArrowFile:
    file = ArrowFile(source, output.path, remedy=REMEDY)
    require_schema(file.schema.empty_table(), schema, output.path)
    return file


def _batches(file: ArrowFile, output: Output) -> Iterator[pa.RecordBatch]:
    num_rows = 0
    for batch in file.batches():
        num_rows += batch.num_rows
        yield batch
    require_rows(output, num_rows)
