"""Which table a file is: by the layout or the columns that are configured, or by its header."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, TypeVar

from koe.errors import BadRecord, ConfigError
from stages.sources.checks.absent import absent_field
from stages.sources.files.encodings import require_utf8
from stages.sources.json_files.manifest import AUDIO_NAMES
from stages.sources.settings import SpeechSourceConfig, braces
from stages.sources.tables.layouts import LAYOUTS, Layout, LayoutName, describe
from stages.sources.tables.rows import REST_OF_LINE, Row, Table, read_rows

T = TypeVar("T")
_HEAD_BYTES = 1 << 16
_TRIED_ROWS = 10_000
_DELIMITERS = (",", "\t", "|", ";")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class AudioTable:
    """A table of clips: `audio` is the field with the path, made from `audio_path` if that is set.

    `named_in` as in a layout, for columns; `constants` are fields that all rows share.
    """

    rows: Table
    audio: str
    audio_path: str | None = None
    named_in: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, str | None], ...] = ()

    def values(self, row: Row) -> dict[str, Any] | BadRecord:
        """Return the cells of a row by the names of their columns, and the audio's path.

        Backslashes in the path separate folders: such tables come from Windows.
        """
        if row.problem:
            return BadRecord("broken_row", row.problem)
        values: dict[str, Any] = dict(zip(self.rows.columns, row.cells, strict=False))
        path: str = values.get(self.audio, "")
        if self.audio_path:  # optional columns may lack
            path = self.audio_path.format_map(dict.fromkeys(self.rows.columns, "") | values)
        for column, pattern in self.named_in:
            values |= _groups(pattern, values.get(column, ""))
        return {**values, **dict(self.constants), self.audio: path.replace("\\", "/")}


def find_table(
    settings: SpeechSourceConfig, path: str, file: BinaryIO, needed: Mapping[str, str] | None = None
) -> AudioTable:
    """Say how to read a file with rows, of which the beginning is looked at.

    `needed` maps keys of `fields` to the columns that it must have; None: those of the settings.

    Raises: ConfigError where neither the settings nor the first line tell what the columns are, or
    the settings do not fit the file.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    require_utf8(settings.name, path, head)
    layout = LAYOUTS[settings.layout] if settings.layout else None
    pattern = settings.audio_path or (layout.audio_path if layout else None)
    given = layout.columns if layout else settings.columns
    delimiter = layout.delimiter if layout else settings.delimiter
    first, start = _first_line(head)
    if given is None:
        delimiter, columns = _header(settings, path, first, delimiter, pattern)
    else:
        columns, start = tuple(given), len(_BOM) if head.startswith(_BOM) else 0
    columns = tuple(with_text(dict.fromkeys(columns), settings.fields.text))
    audio = audio_column(columns, _audio_name(settings), pattern)
    if audio is None or delimiter is None:
        raise _unclear(settings, path, first, pattern, ", ".join(columns))
    key = audio if audio in columns else braces(pattern or "")[0]
    body = head[start:]
    table = Table(
        delimiter, columns, start, optional=layout.optional if layout else 0,
        audio=columns.index(key), only_returns=b"\n" not in body and b"\r" in body,
    )  # fmt: skip
    if given is not None:
        _require_fit(settings, path, file, table)
    needed = settings.fields.required() if needed is None else needed
    named_in = layout.named_in if layout else ()
    made = {name for _, regex in named_in for name in re.compile(regex).groupindex}
    names = sorted({*columns, audio, *made})
    for role, name in needed.items():
        if name not in names:
            raise absent_field(settings, role, name, names, "column", f"{path} lacks it")
    constants = {
        name: value
        for column, regex in named_in
        if not column
        for name, value in _groups(regex, path).items()
    }
    of_columns = tuple((column, regex) for column, regex in named_in if column)
    return AudioTable(table, audio, pattern, of_columns, tuple(constants.items()))


def _groups(pattern: str, text: str) -> dict[str, str | None]:
    """Return the named groups of a pattern; each is None where it does not match."""
    regex = re.compile(pattern)
    found = regex.search(text)
    return found.groupdict() if found else dict.fromkeys(regex.groupindex)


def _audio_name(settings: SpeechSourceConfig) -> str | None:
    """Return the name of the column with the audio's path, as far as it is given."""
    if settings.kind == "folder":
        return settings.fields.audio
    return LAYOUTS[settings.layout].fields.get("audio") if settings.layout else None


def with_text(values: dict[str, T], name: str) -> dict[str, T]:
    """Call the field `transcription` of `datasets` text, where that is asked for and absent."""
    if name != "text" or "text" in values or "transcription" not in values:
        return values
    return {"text" if key == "transcription" else key: value for key, value in values.items()}


def audio_column(columns: tuple[str, ...], name: str | None, pattern: str | None) -> str | None:
    """Return the field that the audio's path is in, or is put into; None where it is not clear."""
    if pattern:
        return (name or AUDIO_NAMES[-1]) if set(braces(pattern)) <= set(columns) else None
    if name:
        return name if name in columns else None
    # `datasets` takes file_name and any column that ends so
    ends = [column for column in columns if column.endswith("_file_name")]
    return next((usual for usual in AUDIO_NAMES if usual in columns), None) or (
        ends[0] if len(ends) == 1 else None
    )


def _first_line(head: bytes) -> tuple[str, int]:
    """Return the first line without its end, and the byte at which the next one starts."""
    line = next(iter(head.splitlines(keepends=True)), b"")
    return line.decode("utf-8-sig", "replace").rstrip("\r\n"), len(line)


def _header(
    settings: SpeechSourceConfig, path: str, first: str, delimiter: str | None, pattern: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the delimiter and the columns of a first line that names the column of the audio."""
    for mark in (delimiter,) if delimiter else _DELIMITERS:
        columns = _cells(first, mark)
        if audio_column(columns, _audio_name(settings), pattern) is None:
            continue
        if len(set(columns)) != len(columns):
            raise ConfigError(
                f"source {settings.name} cannot read {path}",
                f"its header repeats a column name: {', '.join(columns)}",
                "Give every column a name of its own.",
            )
        return mark, columns
    raise _unclear(settings, path, first, pattern)


def _cells(line: str, delimiter: str) -> tuple[str, ...]:
    quoting = csv.QUOTE_MINIMAL if delimiter in ",;" else csv.QUOTE_NONE
    return tuple(next(csv.reader([line], delimiter=delimiter, quoting=quoting), []))


def _unclear(
    settings: SpeechSourceConfig, path: str, first: str, pattern: str | None, columns: str = ""
) -> ConfigError:
    names = braces(pattern or "") or [_audio_name(settings) or " or ".join(AUDIO_NAMES)]
    found = f"its columns are {columns}" if columns else f"its first line is {first[:200]!r}"
    fitting = _fitting(first)
    known = "; ".join(f"{name}: {describe(LAYOUTS[name])}" for name in fitting or LAYOUTS)
    others = ", ".join(name for name in LAYOUTS if name not in fitting) if fitting else ""
    return ConfigError(
        f"source {settings.name} finds no column of audio paths in {path}",
        f"{found}, without {' and '.join(names)}",
        "If the first line names the columns, set fields.audio to the one with the file names. If "
        f"not, set columns and delimiter, or layout to the corpus that it is from ({known}"
        + (f"; other layouts have other lines: {others})." if others else ")."),
    )


def _fitting(line: str) -> list[LayoutName]:
    """List the layouts whose rows have as many cells as a line."""
    return [
        name
        for name, layout in LAYOUTS.items()
        if layout.columns and 0 <= len(layout.columns) - _count(line, layout) <= layout.optional
    ]


def _count(line: str, layout: Layout) -> int:
    """Count the cells of a line; where the last cell is the rest of it, there is no more than two."""
    cells = line.strip().split(layout.delimiter, 1 if layout.delimiter in REST_OF_LINE else -1)
    return len(cells)


def _require_fit(settings: SpeechSourceConfig, path: str, file: BinaryIO, table: Table) -> None:
    """Check that one of the first rows has the right number of cells; others may be broken."""
    first, number = None, 0
    for row in islice(read_rows(file, table, table.start, None), _TRIED_ROWS):
        if not row.problem:
            return
        first, number = first or row, number + 1
    if first is None:
        return
    file.seek(first.start)
    line = file.read(min(200, first.stop - first.start)).decode("utf-8", "replace").rstrip()
    key = f"layout {settings.layout}" if settings.layout else "columns"
    fitting = [name for name in _fitting(line) if name != settings.layout]
    raise ConfigError(
        f"source {settings.name} cannot read {path} by its {key}",
        f"none of its first {number:,} rows fits, and the first is {line!r}: {first.problem}",
        "Set columns and delimiter to what the file has"
        + (f", or layout to one with as many cells: {', '.join(fitting)}." if fitting else "."),
    )
