"""Parquet sources: speech with audio in a column, and instruction samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from koe.errors import BadRecord, ConfigError
from koe.schema import Unit
from stages.sources.base import AudioLocation, Record, SpeechFiles, TextFiles
from stages.sources.fields import require_columns
from stages.sources.files import SourceFile, join, parent, reading, require_unchanged
from stages.sources.parquet_file import BATCH_CELLS, Corrupt, decoding, group_rows, open_parquet
from stages.sources.planning import Slice


def plan_rows(groups: Iterable[tuple[int, int]], unit_records: int) -> Iterator[Slice]:
    """Join row groups up to `unit_records` rows; split only a group that is larger by itself."""
    start, stop = 0, 0
    for _, last in groups:
        if stop > start and last - start > unit_records:
            yield Slice(start, stop, stop - start)
            start = stop
        stop = last
        while stop - start > unit_records:
            yield Slice(start, start + unit_records, unit_records)
            start += unit_records
    if stop > start:
        yield Slice(start, stop, stop - start)


def _slices(
    path: str, unit_records: int, check: Callable[[str, pa.Schema], None]
) -> Iterator[Slice]:
    try:
        opened = open_parquet(path)
    except Corrupt as error:
        yield Slice(0, 0, 0, f"not a complete Parquet file: {error}")
        return
    with opened:
        check(path, opened.schema_arrow)
        yield from plan_rows(group_rows(opened), unit_records)


def _rows(
    unit: Unit, columns: list[str] | None
) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Yield (row number, values) for every row of a unit, row group by row group."""
    require_unchanged(unit)
    with reading(unit.path), open_parquet(unit.path) as file:
        for group, (first, last) in enumerate(group_rows(file)):
            start, stop = max(first, unit.start), min(last, unit.stop)
            if start >= stop:
                continue
            try:
                with decoding():
                    table = file.read_row_group(group, columns=columns)
            except Corrupt as error:
                bad = BadRecord("broken_parquet", f"row group {group}: {error}")
                yield from ((row, bad) for row in range(start, stop))
                continue
            yield from enumerate(_values(table.slice(start - first, stop - start)), start)


def _values(table: pa.Table) -> list[dict[str, Any] | BadRecord]:
    try:
        return list(table.to_pylist())
    except UnicodeDecodeError as error:
        if table.num_rows == 1:
            return [BadRecord("broken_text", f"text is not valid UTF-8: {error.reason}")]
        return [_values(table.slice(row, 1))[0] for row in range(table.num_rows)]


class ParquetSpeechSource(SpeechFiles):
    """Parquet with audio as bytes, or in Hugging Face's struct of `bytes` and `path`."""

    @property
    def _audio(self) -> str:
        return self.settings.fields.audio or "audio"

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        return _slices(file.path, self.unit_records, self._check)

    def _check(self, path: str, schema: pa.Schema) -> None:
        needed = self.settings.fields.required() | {"audio": self._audio}
        require_columns(self.name, path, schema.names, needed)
        audio = schema.field(self._audio).type
        if not _holds_audio(audio):
            raise ConfigError(
                f"source {self.name} cannot take its audio from column {self._audio!r}",
                f"{path} holds {audio} there, neither bytes nor a struct of bytes and path",
                "Set fields.audio to the column with the encoded audio.",
            )

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.records == 0:
            return
        prefix, audio = self.prefix(unit), self._audio
        with reading(unit.path), open_parquet(unit.path) as file:
            has_struct = pa.types.is_struct(file.schema_arrow.field(audio).type)
            absent = _null_bytes(file, audio, unit) if has_struct else frozenset()
            columns = self._columns(file)
        for row, values in _rows(unit, columns):
            key, location = f"{prefix}/{row:08d}", f"{unit.path}:row {row}"
            cell = None if isinstance(values, BadRecord) else values.pop(audio, None)
            place = AudioLocation("parquet", unit.path, audio, row)
            if row in absent and cell and cell.get("path"):
                folder = self.settings.audio_root or parent(unit.path)
                place = AudioLocation("file", join(folder, cell["path"]))
            yield self.record(key, location, values, place)

    def _columns(self, file: pq.ParquetFile) -> list[str]:
        """List the columns to read for a unit: those in use, and only the path of the audio."""
        names = file.schema_arrow.names
        wanted = [n for n in self.settings.fields.named() if n in names or n.split(".")[0] in names]
        audio = file.schema_arrow.field(self._audio).type
        if pa.types.is_struct(audio) and audio.get_field_index("path") >= 0:
            wanted.append(f"{self._audio}.path")
        return list(dict.fromkeys(wanted))


def _holds_audio(column: pa.DataType) -> bool:
    if pa.types.is_struct(column):
        return any(column.get_field_index(name) >= 0 for name in ("bytes", "path"))
    return pa.types.is_binary(column) or pa.types.is_large_binary(column)


def _null_bytes(file: pq.ParquetFile, audio: str, unit: Unit) -> frozenset[int]:
    """List the rows of a unit whose audio struct holds no bytes, but perhaps a path.

    The statistics of row groups tell this of nearly every file; audio is read only in groups that
    mix both kinds.
    """
    leaf, metadata = f"{audio}.bytes", file.metadata
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    column = paths.index(leaf) if leaf in paths else None
    rows: set[int] = set()
    for group, (first, last) in enumerate(group_rows(file)):
        wanted = range(max(first, unit.start), min(last, unit.stop))
        if not wanted:
            continue
        statistics = column is not None and metadata.row_group(group).column(column).statistics
        nulls = statistics.null_count if statistics and statistics.has_null_count else None
        if column is None or nulls == last - first:
            rows.update(wanted)
        elif nulls != 0:
            rows.update(_null_cells(file, group, leaf, first).intersection(wanted))
    return frozenset(rows)


def _null_cells(file: pq.ParquetFile, group: int, leaf: str, first: int) -> frozenset[int]:
    rows: set[int] = set()
    try:
        with decoding():
            for batch in file.iter_batches(BATCH_CELLS, row_groups=[group], columns=[leaf]):
                cells = batch.column(0).flatten()[0]
                rows.update(first + i for i, null in enumerate(cells.is_null()) if null.as_py())
                first += batch.num_rows
    except Corrupt:
        pass  # reported clip by clip, when the cells are read
    return frozenset(rows)


class ParquetTextSource(TextFiles):
    """Instruction samples in Parquet; a record's fields are the row's columns."""

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        return _slices(file.path, self.unit_records, self._check)

    def _check(self, path: str, schema: pa.Schema) -> None:
        require_columns(self.name, path, schema.names, {"id": self.settings.fields.id})

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.records == 0:
            return
        prefix = self.prefix(unit)
        for row, values in _rows(unit, None):
            yield self.record(f"{prefix}/{row:08d}", f"{unit.path}:row {row}", values)
