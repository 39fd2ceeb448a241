"""Access to Parquet files: row groups, and single audio cells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from koe.errors import BadRecord, StorageError
from stages.sources.files import is_remote, open_binary, reading

BATCH_CELLS = 32  # audio cells decoded at once: some MB, however large the row group


class Corrupt(Exception):
    """The content of a Parquet file can be reached, but not decoded."""


@contextmanager
def decoding() -> Iterator[None]:
    """Tell broken content from failing storage: Arrow sets errno for the latter only."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise Corrupt(str(error)) from error
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        raise Corrupt(str(error)) from error


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a local or remote Parquet file; its pages are read when they are asked for."""
    with decoding():
        return pq.ParquetFile(open_binary(path) if is_remote(path) else path)


def group_rows(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """List (first row, row after the last) of every row group."""
    groups = range(file.metadata.num_row_groups)
    rows = (file.metadata.row_group(group).num_rows for group in groups)
    return list(pairwise(accumulate(rows, initial=0)))


class CellReader:
    """Reads audio cells of one column in ascending order: each row group once, in batches."""

    def __init__(self, path: str, column: str) -> None:
        self._path = path
        with reading(path):
            try:
                self._file = open_parquet(path)
            except Corrupt as error:
                raise BadRecord("broken_parquet", str(error)) from error
        field = self._file.schema_arrow.field(column)
        self._leaf = f"{column}.bytes" if pa.types.is_struct(field.type) else column
        self._groups = group_rows(self._file)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._group, self._first, self._cells = -1, 0, pa.array([], pa.binary())
        self._broken: dict[int, tuple[int, str]] = {}  # by row group: first row lost, and why

    def close(self) -> None:
        self._file.close()

    def read(self, row: int) -> bytes:
        """Return the bytes of the cell in `row`.

        Raises: BadRecord `missing_audio` for a null cell, `broken_parquet` for a damaged one;
        StorageError when the row no longer exists.
        """
        group = next((i for i, (_, last) in enumerate(self._groups) if row < last), None)
        if group is None:
            raise StorageError(
                f"{self._path} has fewer rows than when its clips were listed",
                f"row {row} was asked for",
                "Restore the file, or run again from ingest.",
            )
        lost, why = self._broken.get(group, (row + 1, ""))
        if row >= lost:
            raise BadRecord("broken_parquet", f"row {row}: {why}")
        with reading(self._path):
            try:
                with decoding():
                    self._seek(group, row)
            except Corrupt as error:
                lost = self._first + len(self._cells) if self._group == group else row
                self._broken[group] = (lost, str(error))
                self._group = -1
                raise BadRecord("broken_parquet", f"row {row}: {error}") from error
        cell = self._cells[row - self._first].as_py()
        if cell is None:
            raise BadRecord("missing_audio", f"row {row} holds no audio")
        return cell

    def _seek(self, group: int, row: int) -> None:
        """Load the batch that holds `row`, of row group `group`, into `_cells`."""
        if group != self._group or row < self._first:
            self._batches = self._file.iter_batches(
                BATCH_CELLS, row_groups=[group], columns=[self._leaf], use_threads=False
            )
            self._group, self._first = group, self._groups[group][0]
            self._cells = pa.array([], pa.binary())
        while row >= self._first + len(self._cells):
            column = next(self._batches).column(0)
            self._first += len(self._cells)
            self._cells = column.flatten()[0] if pa.types.is_struct(column.type) else column
