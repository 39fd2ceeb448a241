"""Rows of a table in a text file: found by their bytes, so that a broken one costs no other.

Only comma- and semicolon-separated files have quoting (RFC 4180). Tabs, bars, colons and spaces
separate cells whose text stands as it is, as in Common Voice, LJSpeech, JSUT and Kaldi.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

MAX_ROW_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
_USUAL_LINE_BYTES = 1 << 12
_QUOTING = (",", ";")
REST_OF_LINE = (" ", ":")  # what separates cells here occurs in a transcript as well
_LINE_END = re.compile(rb"\r\n?|\n")
_BLANKS = re.compile(r"[ \t]+")
_NAME_OF_FILE = re.compile(rb"\S.*(\.[A-Za-z][A-Za-z0-9]{1,4})|\S+", re.DOTALL)
_USUAL = frozenset((b".wav", b".flac", b".mp3", b".ogg", b".opus", b".m4a"))
_INSIDE_QUOTES = re.compile(rb'[^"]*+(?:""[^"]*+)*+')


@dataclass(frozen=True)
class Table:
    """How to read a file of rows.

    `start` is the first byte after the header. The last `optional` columns may be missing. `audio`
    is the place of the column by which a row is known among the lines of a quoted cell. Lines end
    with a line feed, or where the file has none (`only_returns`) with a carriage return.
    """

    delimiter: str
    columns: tuple[str, ...]
    start: int = 0
    optional: int = 0
    audio: int = 0
    only_returns: bool = False

    @property
    def quoted(self) -> bool:
        return self.delimiter in _QUOTING

    def problem(self, cells: int) -> str:
        """Say what is wrong with a row of so many cells; empty for the right number."""
        wanted = len(self.columns)
        if wanted - self.optional <= cells <= wanted:
            return ""
        least = f"{wanted - self.optional} to " if self.optional else ""
        return f"{cells} cells for {least}{wanted} columns ({', '.join(self.columns)})"


class Row(NamedTuple):
    """The bytes of a row, and its cells, or else why they cannot be read."""

    start: int
    stop: int
    cells: tuple[str, ...]
    problem: str = ""


class _Line(NamedTuple):
    stop: int
    text: bytes  # without its end
    end: bytes
    too_long: bool = False  # `text` is then only its beginning


def _line(text: bytes, end: bytes, place: int) -> _Line:
    bare = text.rstrip(b"\r")
    return _Line(place + len(text) + len(end), bare, text[len(bare) :] + end)


class _Lines:
    """The lines of a file by the byte at which they start; holds a little over one row."""

    def __init__(self, file: BinaryIO, start: int, only_returns: bool, chunk_bytes: int) -> None:
        self._file, self._base, self._data, self._ended = file, max(start - 1, 0), b"", False
        self._only_returns, self._chunk_bytes = only_returns, chunk_bytes
        self._file.seek(self._base)

    def after_return(self, place: int) -> bool:
        """Tell whether lines that start at `place` end at the next carriage return."""
        if self._only_returns:
            return True
        self._reach(place)
        return self._data[place - self._base - 1 : place - self._base] == b"\r" and place > 0

    def line(self, place: int, at_returns: bool, keep: int) -> _Line | None:
        """Return the line at `place`; None at the end of the file. Drops what precedes `keep`."""
        if len(self._data) > keep - 1 - self._base > self._chunk_bytes:
            self._data, self._base = self._data[keep - 1 - self._base :], keep - 1
        size = _USUAL_LINE_BYTES
        while True:
            self._reach(place + size)
            at = place - self._base
            found = self._end(at, min(at + size, len(self._data)), at_returns)
            if found:
                return _line(self._data[at : found[0]], self._data[found[0] : found[1]], place)
            if self._ended and len(self._data) - at <= size:
                return _line(self._data[at:], b"", place) if len(self._data) > at else None
            if size >= MAX_ROW_BYTES:
                text = self._data[at : at + size]
                return _Line(self._skip(place + size - 1, at_returns), text, b"", too_long=True)
            size *= 4

    def _reach(self, place: int) -> None:
        while not self._ended and self._base + len(self._data) <= place:
            chunk = self._file.read(self._chunk_bytes)
            self._ended = not chunk
            self._data += chunk

    def _end(self, start: int, stop: int, at_returns: bool) -> tuple[int, int] | None:
        if at_returns:
            match = _LINE_END.search(self._data, start, stop)
            if not match:
                return None
            first, last = match.span()
            self._reach(self._base + last)  # a line feed may follow just behind the return
            is_pair = self._data[first : first + 2] == b"\r\n"
            return first, first + 2 if is_pair else last
        at = self._data.find(b"\n", start, stop)
        return None if at < 0 else (at, at + 1)

    def _skip(self, place: int, at_returns: bool) -> int:
        """Return where a line ends that is at least as long as to `place`, without keeping it."""
        while True:
            self._reach(place)
            at = place - self._base
            if found := self._end(at, len(self._data), at_returns):
                return self._base + found[1]
            place = self._base + len(self._data)
            self._data, self._base = self._data[-1:], place - 1
            if self._ended:
                return place


class _Quoted:
    """The cells of a row with quoting, line by line (RFC 4180, section 2).

    A quote inside a cell that does not begin with one stands for itself, as in Python's csv.
    """

    def __init__(self, delimiter: bytes) -> None:
        self.cells: list[bytes] = []
        self.is_open, self.problem = False, ""
        self._delimiter, self._parts = delimiter, list[bytes]()

    def add(self, line: bytes, end: bytes) -> None:
        at = 0
        while not self.problem:
            if not self.is_open and line[at : at + 1] != b'"':
                stop = line.find(self._delimiter, at)
                self.cells.append(line[at:] if stop < 0 else line[at:stop])
                if stop < 0:
                    return
                at = stop + 1
                continue
            at += not self.is_open
            self.is_open = True
            inside = _INSIDE_QUOTES.match(line, at)
            assert inside is not None, "it matches the empty text"
            self._parts.append(inside.group())
            at = inside.end()
            if at == len(line):
                self._parts.append(end)
                return
            self.cells.append(b"".join(self._parts).replace(b'""', b'"'))
            self._parts, self.is_open, at = [], False, at + 1
            if at == len(line):
                return
            if line[at : at + 1] != self._delimiter:
                self.problem = "text follows the closing quote of a cell"
            at += 1


def read_rows(
    file: BinaryIO, table: Table, start: int, stop: int | None, chunk_bytes: int = _CHUNK_BYTES
) -> Iterator[Row]:
    """Yield the rows in a byte range, in one pass that holds at most two rows of the largest size.

    What a row is depends on the bytes from its start on alone, so a range may begin at any row.
    A row that cannot be read ends with its first line; the next line is tried as a row of its own.
    A carriage return inside a line ends a row only where the line is no row as a whole. The file is
    read in pieces of `chunk_bytes`.
    """
    lines = _Lines(file, start, table.only_returns, chunk_bytes)
    place = start
    while stop is None or place < stop:
        at_returns = lines.after_return(place)
        line = lines.line(place, at_returns, place)
        if line is None:
            return
        row = _row(lines, table, place, line, at_returns)
        if row.problem and not at_returns and b"\r" in line.text:
            line = lines.line(place, True, place)
            assert line is not None, "the line is not empty"
            row = _row(lines, table, place, line, True)
        if row.problem or any(cell.strip() for cell in row.cells):
            yield row
        place = row.stop


def _row(lines: _Lines, table: Table, place: int, line: _Line, at_returns: bool) -> Row:
    if line.too_long:
        size = f"a line of {line.stop - place:,} bytes, of at most {MAX_ROW_BYTES:,}"
        return Row(place, line.stop, (), size)
    if table.quoted and b'"' in line.text:
        return _quoted_row(lines, table, place, line, at_returns)
    if not line.text.strip():
        return Row(place, line.stop, ())
    try:
        text = line.text.decode()
    except UnicodeDecodeError as error:
        return Row(place, line.stop, (), _not_text(error))
    return Row(place, line.stop, *_checked(_split(text, table), table))


def _split(text: str, table: Table) -> list[str]:
    most = len(table.columns) - 1
    if table.delimiter == " ":
        return _BLANKS.split(text.strip(" \t"), most)
    return text.split(table.delimiter, most if table.delimiter in REST_OF_LINE else -1)


def _checked(cells: list[str], table: Table) -> tuple[tuple[str, ...], str]:
    """Return the cells, and what is wrong with them; blank cells alone are a blank line."""
    if not any(cell.strip() for cell in cells):
        return (), ""
    problem = table.problem(len(cells))
    if not problem and any("\0" in cell for cell in cells):
        problem = "a cell holds a NUL character, as damaged files and other encodings do"
    return (() if problem else tuple(cells)), problem


def _not_text(error: UnicodeDecodeError) -> str:
    return f"text is not valid UTF-8: {error.reason} (0x{error.object[error.start]:02x})"


def _quoted_row(lines: _Lines, table: Table, place: int, line: _Line, at_returns: bool) -> Row:
    row, stop, most = _Quoted(table.delimiter.encode()), line.stop, len(table.columns)
    row.add(line.text, line.end)
    while row.is_open and not row.problem:
        following = lines.line(stop, at_returns or lines.after_return(stop), place)
        if following is None:
            row.problem = "the quote of a cell is never closed"
        elif following.too_long or following.stop - place > MAX_ROW_BYTES:
            row.problem = f"the quote of a cell is not closed within {MAX_ROW_BYTES:,} bytes"
        elif _begins_row(following.text, row.cells, table):
            row.problem = f"the quote of a cell is not closed before the next row, at byte {stop}"
        else:
            row.add(following.text, following.end)
            stop = following.stop
            if len(row.cells) > most:
                row.problem = table.problem(len(row.cells))
    if row.problem:
        return Row(place, line.stop, (), row.problem)
    try:
        cells = [cell.decode() for cell in row.cells]
    except UnicodeDecodeError as error:
        return Row(place, line.stop, (), _not_text(error))
    found, problem = _checked(cells, table)
    if not problem and stop > line.stop:  # blank cells are no blank line here
        name = found[table.audio] if found else ""
        if not name.strip() or "\n" in name or "\r" in name:
            problem = f"a quoted cell has several lines, and the audio's name is {name!r}"
    return Row(place, line.stop, (), problem) if problem else Row(place, stop, found)


def _begins_row(line: bytes, before: list[bytes], table: Table) -> bool:
    """Tell whether a line inside a quoted cell is a row by itself, so that the quote is a stray.

    It is one if it has the right number of cells, or itself opens one of them, and in the place of
    the audio's path a name with a usual extension, or with that of the name in `before`. These are
    the cells that precede the open one; where the name is not among them, any extension will do.
    """
    row = _Quoted(table.delimiter.encode())
    row.add(line, b"")
    misfit = (
        table.problem(len(row.cells)) if not row.is_open else len(row.cells) >= len(table.columns)
    )
    if row.problem or misfit or len(row.cells) <= table.audio:
        return False
    if any(b'"' in cell for cell in row.cells[: table.audio + 1]):
        return False
    name = _NAME_OF_FILE.fullmatch(row.cells[table.audio])
    own = _NAME_OF_FILE.fullmatch(before[table.audio]) if table.audio < len(before) else None
    if name is None:
        return False
    is_known = name[1] is not None and name[1].lower() in _USUAL
    return is_known or (name[1] is not None if own is None else own[1] in (None, name[1]))
