"""Access to Parquet files: row groups, and single audio cells."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from koe.errors import BadRecord, StorageError
from koe.store_errors import comes_from_store
from stages.boundary import bad_record, passes
from stages.sources.fields import holders
from stages.sources.files.opening import is_remote, open_binary, reading, require_file
from stages.sources.parquet.columns import ARRAY, STRUCT, audio_column

MAX_CHANNELS = 64  # of decoded audio: more lists are samples of [samples, channels]
BATCH_CELLS = 32  # audio cells decoded at once: some MB, however large the row group


class Corrupt(Exception):
    """The content of a Parquet file can be reached, but not decoded."""


@contextmanager
def decoding() -> Iterator[None]:
    """Tell broken content from failing storage: Arrow sets errno for the latter only."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise Corrupt(f"the name of a column is not valid UTF-8: {error.reason}") from error
    except OSError as error:
        if type(error) is not OSError or error.errno is not None or comes_from_store(error):
            raise
        raise Corrupt(str(error)) from error
    except Exception as error:
        if passes(error) or isinstance(error, Corrupt):
            raise
        raise Corrupt(bad_record("", error).detail) from error


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a local or remote Parquet file; its pages are read when they are asked for.

    The checksums of pages are verified where the file has them.
    """
    require_file(path)
    with decoding():
        file = open_binary(path) if is_remote(path) else path
        return pq.ParquetFile(file, page_checksum_verification=True)


def group_rows(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """List (first row, row after the last) of every row group."""
    groups = range(file.metadata.num_row_groups)
    rows = (file.metadata.row_group(group).num_rows for group in groups)
    return list(pairwise(accumulate(rows, initial=0)))


def cells_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return the column of a batch that has a dotted name; what lies in a null struct is null."""
    structs: dict[str, pa.Array] = dict(zip(batch.schema.names, batch.columns, strict=True))
    for holder, rest in holders(structs, name):
        cells = structs[holder]
        if not rest:
            return cells
        if pa.types.is_struct(cells.type):
            inner = pa.RecordBatch.from_arrays(cells.flatten(), cells.type.names)
            return cells_of(inner, rest)
    raise KeyError(name)


def wav_of(cell: pa.Scalar, where: str) -> bytes:
    """Write decoded audio, a struct of array and sampling_rate, as a WAV file of floats.

    The array holds samples, or one list of samples per channel, as Hugging Face's `datasets`
    decodes audio.

    Raises: BadRecord `missing_audio` for a null, `unreadable_audio` for anything but audio.
    """
    array = cell["array"] if cell.is_valid else cell
    rate = cell["sampling_rate"].as_py() if cell.is_valid else None
    if not array.is_valid or not len(array):
        raise BadRecord("missing_audio", f"{where} holds no audio")
    samples = _samples(array.values, where)
    if not isinstance(rate, int | float) or rate != rate // 1 or not 0 < rate < 1 << 31:
        detail = f"{where} has a sampling_rate of {rate!r}, expected a whole number of hertz"
        raise BadRecord("unreadable_audio", detail)
    file = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    soundfile.write(file, samples, int(rate), format="WAV", subtype=subtype)
    return file.getvalue()


def _samples(values: pa.Array, where: str) -> np.ndarray:
    """Return float32 or int16 [samples], or [samples, channels]."""
    if not isinstance(values.type, pa.FixedSizeListType | pa.ListType | pa.LargeListType):
        channels = [values]
    else:
        channels = [channel.values for channel in values if channel.is_valid]
    lengths = {len(channel) for channel in channels}
    if len(channels) > MAX_CHANNELS or len(lengths) != 1 or any(c.null_count for c in channels):
        shape = f"{len(channels)} lists of {min(lengths, default=0)} to {max(lengths, default=0)}"
        detail = f"{where} holds {shape} samples, expected one list of equal length per channel"
        raise BadRecord("unreadable_audio", detail)
    kind = np.int16 if values.type == pa.int16() or channels[0].type == pa.int16() else np.float32
    audio = np.stack([channel.to_numpy(zero_copy_only=False) for channel in channels], axis=1)
    return audio.astype(kind)


class CellReader:
    """Reads audio cells of one column in ascending order: each row group once, in batches.

    Decoded audio is returned as a WAV file of floats.
    """

    def __init__(self, path: str, column: str) -> None:
        self._path = path
        with reading(path):
            try:
                self._file = open_parquet(path)
            except Corrupt as error:
                raise BadRecord("broken_parquet", str(error)) from error
        self._column = audio_column(path, path, self._file.schema_arrow, column)
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
        cell = self._cells[row - self._first]
        if self._column.form == ARRAY:
            return wav_of(cell, f"row {row}")
        if not cell.is_valid:
            raise BadRecord("missing_audio", f"row {row} holds no audio")
        return cell.as_py()

    def _seek(self, group: int, row: int) -> None:
        """Load the batch that holds `row`, of row group `group`, into `_cells`."""
        if group != self._group or row < self._first:
            self._batches = self._file.iter_batches(
                BATCH_CELLS, row_groups=[group], columns=self._column.cells(), use_threads=False
            )
            self._group, self._first = group, self._groups[group][0]
            self._cells = pa.array([], pa.binary())
        while row >= self._first + len(self._cells):
            batch = next(self._batches, None)
            if batch is None:
                raise Corrupt("its row group holds fewer rows than its footer says")
            self._first += len(self._cells)
            name = self._column.name
            name = f"{name}.bytes" if self._column.form == STRUCT else name
            self._cells = cells_of(batch, name)
