"""Parquet sources: speech with audio in a column, and instruction samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from koe.errors import BadRecord, ConfigError, attempt
from koe.schema import Unit
from stages.sources.base import AudioLocation, Record, SpeechFiles, TextFiles
from stages.sources.fields import describe, lookup
from stages.sources.files.listing import SourceFile
from stages.sources.files.opening import own_stamp, reading
from stages.sources.files.places import resolve
from stages.sources.parquet.columns import (
    ARRAY,
    BYTES,
    PATH,
    STRUCT,
    AudioColumn,
    audio_column,
    find_type,
    leaf_columns,
    message_type,
    require_named,
)
from stages.sources.parquet.file import BATCH_CELLS, Corrupt, decoding, group_rows, open_parquet
from stages.sources.parquet.footer import null_counts
from stages.sources.parquet.rows import (
    columns_beside,
    leaves_of,
    require_fields,
    rows_of,
    slices_of,
    unreadable_records,
)
from stages.sources.planning import Slice
from stages.sources.settings import CALLS


class ParquetSpeechSource(SpeechFiles):
    """Parquet with a column of audio: its bytes, its path, or one of Hugging Face's structs."""

    def _audio(self, path: str, schema: pa.Schema) -> AudioColumn:
        return audio_column(self.name, path, schema, self.settings.fields.audio or "audio")

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        return slices_of(file.path, self.unit_records, self._check)

    def _check(self, path: str, schema: pa.Schema) -> None:
        require_fields(self.settings, path, schema, self.settings.fields.required())
        self._audio(path, schema)

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.gaps:
            yield from unreadable_records(self, unit)
            return
        prefix = self.prefix(unit)
        with reading(unit.path), open_parquet(unit.path) as file:
            schema = file.schema_arrow
            audio = self._audio(unit.path, schema)
            absent = _null_bytes(file, audio.name, unit) if audio.form == STRUCT else frozenset()
            left_out = columns_beside(file, unit, self.settings.fields.named())
        names = [*self.settings.fields.named(), *([] if audio.form == ARRAY else [audio.path_name])]
        columns = [name for name in dict.fromkeys(names) if find_type(schema, name) is not None]
        if audio.form == BYTES:
            columns = [name for name in columns if name != audio.name]
        for row, values in rows_of(unit, columns):
            key, location = f"{prefix}/{row:08d}", f"{unit.path}:row {row}"
            place = AudioLocation("parquet", unit.path, audio.name, row)
            if not isinstance(values, BadRecord) and (audio.form == PATH or row in absent):
                path = lookup(values, audio.path_name)
                if isinstance(path, str) and path.strip():
                    found = attempt(resolve, self.settings, unit.path, path)
                    is_bad = isinstance(found, BadRecord)
                    values, place = (
                        (found, place) if is_bad else (values, AudioLocation("file", found))
                    )
                elif audio.form == PATH:
                    values = BadRecord("missing_audio", describe(values, audio.name))
            yield replace(self.record(key, location, values, place), left_out=left_out)


def _null_bytes(file: pq.ParquetFile, audio: str, unit: Unit) -> frozenset[int]:
    """List the rows of a unit whose audio struct holds no bytes, but perhaps a path.

    The statistics of row groups tell this of nearly every file; audio is read only in groups that
    mix both kinds.
    """
    leaf, rows = f"{audio}.bytes", set[int]()
    is_there, counts = leaf in leaves_of(file), null_counts(unit.path, own_stamp(unit))
    for group, (first, last) in enumerate(group_rows(file)):
        wanted = range(max(first, unit.start), min(last, unit.stop))
        if not wanted:
            continue
        found = counts[group].get(leaf) if group < len(counts) else None
        nulls = found.nulls if found else None
        if not is_there or nulls == last - first:
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
        return slices_of(file.path, self.unit_records, self._check)

    def _check(self, path: str, schema: pa.Schema) -> None:
        fields, layout = self.settings.fields, self.settings.layout
        needed = fields.required(layout, lambda name: find_type(schema, name) is not None)
        require_fields(self.settings, path, schema, needed)
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
            parts = (role.split(".")[0], content.split(".")[0], *CALLS)
            del columns["messages"]
            found = [f"{name}.{part}" for part in parts if find_type(schema, f"{name}.{part}")]
            found = found or leaf_columns(leaves_of(file), name, parts) or [name]
        found += [name for name in columns.values() if find_type(schema, name) is not None]
        return list(dict.fromkeys(found))

    def _not_read(self, file: pq.ParquetFile, unit: Unit) -> tuple[str, ...]:
        """List the columns of a file, and the fields of its messages, as `Notes` needs them."""
        fields, layout = self.settings.fields, self.settings.layout
        columns = columns_beside(file, unit, fields.named(layout).values())
        if layout == "instruction":
            return columns
        name = fields.chat_names(layout)[0]
        column = find_type(file.schema_arrow, name)
        messages = None if column is None else message_type(column)
        return (*columns, *(f"{name}.{part.name}" for part in messages or ()))

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.gaps:
            yield from unreadable_records(self, unit)
            return
        prefix = self.prefix(unit)
        with reading(unit.path), open_parquet(unit.path) as file:
            columns, left_out = self._columns(file), self._not_read(file, unit)
        for row, values in rows_of(unit, columns):
            record = self.record(f"{prefix}/{row:08d}", f"{unit.path}:row {row}", values)
            yield replace(record, left_out=left_out)
