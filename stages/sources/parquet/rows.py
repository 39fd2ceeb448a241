"""Rows of Parquet files: planned by row groups, read by columns, and the columns that are not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from koe.errors import BadRecord
from koe.schema import Unit
from stages.boundary import bad_record, passes
from stages.file_signatures import looks_like
from stages.sources.base import Record, SourceFiles
from stages.sources.checks.absent import absent_field
from stages.sources.checks.look_alikes import parent_of
from stages.sources.files.lines import num_bytes
from stages.sources.files.opening import open_binary, own_stamp, reading, require_unchanged
from stages.sources.parquet.columns import column_names, find_type, require_named
from stages.sources.parquet.file import Corrupt, decoding, group_rows, open_parquet
from stages.sources.parquet.footer import null_counts
from stages.sources.planning import Gap, Slice, cut
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig


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


def slices_of(
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


def unreadable_records(source: SourceFiles[Any], unit: Unit) -> Iterator[Record]:
    require_unchanged(unit)
    with reading(unit.path):
        gap = _unreadable_file(unit.path)
    if gap:
        yield source.unreadable(unit, gap)


def rows_of(unit: Unit, columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
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
    except Exception as error:  # of text that is not UTF-8, or a date after the year 9999
        if passes(error):
            raise
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
        except Exception as error:
            if passes(error):
                raise
            detail = bad_record("", error).detail
            return BadRecord("unreadable_value", f"column {name!r} of type {column.type}: {detail}")
    raise AssertionError("a row that could not be read has a column that cannot be read")


def require_fields(
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


def columns_beside(file: pq.ParquetFile, unit: Unit, named: Iterable[str]) -> tuple[str, ...]:
    """List the columns of a file, and of the structs that named ones lie in, as `Notes` needs them.

    Columns that hold nothing in the unit's row groups are left out, as far as statistics tell.
    """
    parents, empty = {"", *map(parent_of, named)}, _empty_leaves(file, unit)
    leaves = leaves_of(file)

    def is_empty(name: str) -> bool:
        if (found := find_type(file.schema_arrow, name)) is not None and pa.types.is_null(found):
            return True
        return all(leaf in empty for leaf in leaves if f"{leaf}.".startswith(f"{name}."))

    names = (name for name in column_names(file.schema_arrow) if parent_of(name) in parents)
    return tuple(name for name in names if not is_empty(name))


def leaves_of(file: pq.ParquetFile) -> list[str]:
    return [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]


def _empty_leaves(file: pq.ParquetFile, unit: Unit) -> set[str]:
    """Return the leaves of a file whose statistics say that a unit's row groups hold none of them."""
    empty, counts = set(leaves_of(file)), null_counts(unit.path, own_stamp(unit))
    groups = group_rows(file)
    if len(counts) != len(groups):
        return set()
    for (first, last), columns in zip(groups, counts, strict=True):
        if first < unit.stop and last > unit.start:
            held = (name for name, column in columns.items() if (column.nulls or 0) < column.values)
            empty.difference_update(held)
    return empty
