"""Parquet sources: speech with audio in a column, and instruction samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from koe.errors import BadRecord, ConfigError
from koe.schema import Unit
from stages.looks import looks_like
from stages.sources.absent import absent_field
from stages.sources.base import AudioLocation, Record, SourceFiles, SpeechFiles, TextFiles
from stages.sources.columns import (
    ARRAY,
    BYTES,
    PATH,
    STRUCT,
    AudioColumn,
    audio_column,
    column_names,
    find_type,
    leaf_columns,
    message_type,
    require_named,
)
from stages.sources.fields import describe, lookup
from stages.sources.files import (
    SourceFile,
    join,
    num_bytes,
    open_binary,
    parent,
    reading,
    require_unchanged,
)
from stages.sources.look_alikes import parent_of
from stages.sources.parquet_file import BATCH_CELLS, Corrupt, decoding, group_rows, open_parquet
from stages.sources.planning import Gap, Slice, cut
from stages.sources.settings import CALLS, SpeechSourceConfig, TextSourceConfig


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
    if gap := _unreadable_file(path):
        yield from cut([gap], unit_records)
        return
    with open_parquet(path) as opened:
        check(path, opened.schema_arrow)
        yield from plan_rows(group_rows(opened), unit_records)


def _unreadable_file(path: str) -> Gap | None:
    """Return the gap that a file is if no row of it can be reached."""
    try:
        open_parquet(path).close()
    except Corrupt as error:
        with open_binary(path) as file:
            name = looks_like(file.read(64))
            why = f"no Parquet file but {name}" if name else f"not a complete Parquet file: {error}"
            return Gap(0, num_bytes(file), why)
    return None


def _unreadable_records(source: SourceFiles[Any], unit: Unit) -> Iterator[Record]:
    require_unchanged(unit)
    with reading(unit.path):
        gap = _unreadable_file(unit.path)
    if gap:
        yield source.unreadable(unit, gap)


def _rows(unit: Unit, columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
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
                if columns and table.num_rows != last - first:
                    raise Corrupt(f"{table.num_rows} rows instead of {last - first}")
            except Corrupt as error:
                bad = BadRecord("broken_parquet", f"row group {group}: {error}")
                yield from ((row, bad) for row in range(start, stop))
                continue
            yield from enumerate(_values(table.slice(start - first, stop - start)), start)


def _values(table: pa.Table) -> list[dict[str, Any] | BadRecord]:
    """Return the rows of a table; a row that Python cannot hold is a BadRecord."""
    try:
        return list(table.to_pylist())
    except (ValueError, OverflowError):  # text that is not UTF-8, or a date after the year 9999
        if table.num_rows == 1:
            return [_unreadable(table)]
        return [_values(table.slice(row, 1))[0] for row in range(table.num_rows)]


def _unreadable(row: pa.Table) -> BadRecord:
    for name, column in zip(row.column_names, row.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError as error:
            detail = f"the text in column {name!r} is not valid UTF-8: {error.reason}"
            return BadRecord("broken_text", detail)
        except (ValueError, OverflowError) as error:
            return BadRecord("unreadable_value", f"column {name!r} of type {column.type}: {error}")
    raise AssertionError("a row that could not be read has a column that cannot be read")


class ParquetSpeechSource(SpeechFiles):
    """Parquet with a column of audio: its bytes, its path, or one of Hugging Face's structs."""

    def _audio(self, path: str, schema: pa.Schema) -> AudioColumn:
        return audio_column(self.name, path, schema, self.settings.fields.audio or "audio")

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        return _slices(file.path, self.unit_records, self._check)

    def _check(self, path: str, schema: pa.Schema) -> None:
        _require_fields(self.settings, path, schema, self.settings.fields.required())
        self._audio(path, schema)

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.gaps:
            yield from _unreadable_records(self, unit)
            return
        prefix = self.prefix(unit)
        with reading(unit.path), open_parquet(unit.path) as file:
            schema = file.schema_arrow
            audio = self._audio(unit.path, schema)
            absent = _null_bytes(file, audio.name, unit) if audio.form == STRUCT else frozenset()
            left_out = _left_out(schema, self.settings.fields.named())
        names = [*self.settings.fields.named(), *([] if audio.form == ARRAY else [audio.path_name])]
        columns = [name for name in dict.fromkeys(names) if find_type(schema, name) is not None]
        if audio.form == BYTES:
            columns = [name for name in columns if name != audio.name]
        for row, values in _rows(unit, columns):
            key, location = f"{prefix}/{row:08d}", f"{unit.path}:row {row}"
            place = AudioLocation("parquet", unit.path, audio.name, row)
            if not isinstance(values, BadRecord) and (audio.form == PATH or row in absent):
                path = lookup(values, audio.path_name)
                if isinstance(path, str) and path.strip():
                    folder = self.settings.audio_root or parent(unit.path)
                    place = AudioLocation("file", join(folder, path))
                elif audio.form == PATH:
                    values = BadRecord("missing_audio", describe(values, audio.name))
            yield replace(self.record(key, location, values, place), left_out=left_out)


def _require_fields(
    settings: SpeechSourceConfig | TextSourceConfig,
    path: str,
    schema: pa.Schema,
    needed: Mapping[str, str],
) -> None:
    """Check that every needed field is one column.

    Raises: ConfigError.
    """
    for key, name in needed.items():
        if find_type(schema, name) is None:
            names = list(column_names(schema))
            raise absent_field(settings, key, name, names, "column", f"{path} lacks it")
    require_named(settings.name, path, schema, needed)


def _left_out(schema: pa.Schema, named: Iterable[str]) -> tuple[str, ...]:
    """List the columns of a file, and of the structs that named ones lie in, as `Notes` needs them."""
    parents = {"", *map(parent_of, named)}
    return tuple(name for name in column_names(schema) if parent_of(name) in parents)


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
    """Instruction samples in Parquet; a record's fields are the columns that its layout needs."""

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        return _slices(file.path, self.unit_records, self._check)

    def _check(self, path: str, schema: pa.Schema) -> None:
        fields, layout = self.settings.fields, self.settings.layout
        needed = fields.required(layout, lambda name: find_type(schema, name) is not None)
        _require_fields(self.settings, path, schema, needed)
        if layout == "instruction":
            return
        name, *parts = fields.chat_names(layout)
        column = find_type(schema, name)
        messages = None if column is None else message_type(column)
        if messages is None:
            raise ConfigError(
                f"source {self.name} cannot take its conversations from column {name!r}",
                f"{path} holds {column} there, not a list of structs",
                "Set fields.messages to the column with the list of messages.",
            )
        where = f"{path}, in its column {name!r},"
        require_named(
            self.name, where, messages, dict(zip(("role", "content"), parts, strict=True))
        )

    def _columns(self, file: pq.ParquetFile) -> list[str]:
        """List the columns to read: those in use, and of the messages no more than is needed."""
        fields, layout, schema = self.settings.fields, self.settings.layout, file.schema_arrow
        columns = fields.named(layout)
        found: list[str] = []
        if layout != "instruction":
            name, role, content = fields.chat_names(layout)
            leaves = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
            parts = (role.split(".")[0], content.split(".")[0], *CALLS)
            del columns["messages"]
            found = [f"{name}.{part}" for part in parts if find_type(schema, f"{name}.{part}")]
            found = found or leaf_columns(leaves, name, parts) or [name]
        found += [name for name in columns.values() if find_type(schema, name) is not None]
        return list(dict.fromkeys(found))

    def _not_read(self, schema: pa.Schema) -> tuple[str, ...]:
        """List the columns of a file, and the fields of its messages, as `Notes` needs them."""
        fields, layout = self.settings.fields, self.settings.layout
        columns = _left_out(schema, fields.named(layout).values())
        if layout == "instruction":
            return columns
        name = fields.chat_names(layout)[0]
        column = find_type(schema, name)
        messages = None if column is None else message_type(column)
        return (*columns, *(f"{name}.{part.name}" for part in messages or ()))

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.gaps:
            yield from _unreadable_records(self, unit)
            return
        prefix = self.prefix(unit)
        with reading(unit.path), open_parquet(unit.path) as file:
            columns, left_out = self._columns(file), self._not_read(file.schema_arrow)
        for row, values in _rows(unit, columns):
            record = self.record(f"{prefix}/{row:08d}", f"{unit.path}:row {row}", values)
            yield replace(record, left_out=left_out)
