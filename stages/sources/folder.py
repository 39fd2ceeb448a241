"""Folders of audio files with a `metadata.csv` (or `.jsonl`) that transcribes them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from koe.errors import BadRecord, ConfigError
from koe.schema import Unit
from stages.sources.base import Record
from stages.sources.fields import require_columns
from stages.sources.files import SourceFile, expand, join, list_folder, open_binary, open_unit
from stages.sources.manifest import AUDIO_NAMES, ManifestSource
from stages.sources.planning import Slice, cut

_METADATA = ("metadata.csv", "metadata.jsonl")
_LJSPEECH_COLUMNS = ("file_name", "text", "normalized_text")


@dataclass(frozen=True)
class Table:
    """How to read a metadata file; `start` is the first byte after its header."""

    delimiter: str
    columns: tuple[str, ...]
    start: int
    ljspeech: bool = False


def read_layout(source: str, path: str, file: BinaryIO, audio: str | None) -> Table:
    """Find the delimiter by the header that names the audio column, or recognise LJSpeech's lines.

    Raises: ConfigError when the first line is neither.
    """
    file.seek(0)
    line = file.readline()
    first = line.decode("utf-8-sig", "replace").rstrip("\r\n")
    wanted = {audio} if audio else set(AUDIO_NAMES)
    for delimiter in ",\t|":
        columns = next(csv.reader([first], delimiter=delimiter), [])
        if wanted & set(columns):
            if len(set(columns)) != len(columns):
                raise ConfigError(
                    f"source {source} cannot read {path}",
                    f"its header repeats a column name: {', '.join(columns)}",
                    "Give every column a name of its own.",
                )
            return Table(delimiter, tuple(columns), len(line))
    num_columns = first.count("|") + 1
    if num_columns in (2, 3) and audio is None:
        return Table("|", _LJSPEECH_COLUMNS[:num_columns], 0, ljspeech=True)
    raise ConfigError(
        f"source {source} finds no column of audio paths in {path}",
        f"the first line is {first[:200]!r}, without {' or '.join(sorted(wanted))}",
        "Set fields.audio to the column that holds the file names.",
    )


def read_rows(
    file: BinaryIO, table: Table, start: int, stop: int | None
) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield (start, stop, cells) of the rows in a byte range; for a broken row, cells is a message.

    A quoted cell may span several lines. Files with `|` have no quoting, as in LJSpeech.
    """
    file.seek(start)
    place, first_stop = start, start

    def text_lines() -> Iterator[str]:
        nonlocal place, first_stop
        first_stop = 0
        while line := file.readline():
            line = line.removeprefix(b"\xef\xbb\xbf") if place == 0 else line
            place = file.tell()
            first_stop = first_stop or place
            yield line.decode("utf-8", "surrogateescape")

    quoting = csv.QUOTE_NONE if table.delimiter == "|" else csv.QUOTE_MINIMAL
    while stop is None or place < stop:
        first = place
        reader = csv.reader(text_lines(), delimiter=table.delimiter, quoting=quoting, strict=True)
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            problem = _problem(cells, table)
        except csv.Error as error:
            cells, problem = [], str(error)
        if problem:
            # An unbalanced quote swallows what follows: continue after the line where it began.
            place = file.seek(first_stop)
        yield first, place, problem or cells


def _problem(cells: list[str], table: Table) -> str:
    if len(cells) != len(table.columns):
        return f"{len(cells)} cells for {len(table.columns)} columns"
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return "text is not valid UTF-8"
    return ""


class FolderSource(ManifestSource):
    """Folders of audio with a `metadata.csv` or `metadata.jsonl`, or such metadata files."""

    def files(self) -> list[SourceFile]:
        found = expand(self.name, self.settings.paths, folders=True)
        return [self._metadata(file) for file in found]

    def _metadata(self, file: SourceFile) -> SourceFile:
        """Return the metadata file of a folder, or the file itself."""
        names = list_folder(file.path)
        if names is None:
            return file
        present = [name for name in _METADATA if name in names]
        if len(present) != 1:
            raise ConfigError(
                f"source {self.name} needs one metadata file in {file.path}",
                f"it has {' and '.join(present) or 'neither ' + ' nor '.join(_METADATA)}",
                "Name the metadata file itself in paths.",
            )
        return SourceFile(join(file.path, present[0]), f"{file.relative}/{present[0]}")

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        if file.path.endswith(".jsonl"):
            yield from super().slices(file)
            return
        with open_binary(file.path) as opened:
            if not opened.read(1):
                return
            table = read_layout(self.name, file.path, opened, self.settings.fields.audio)
            self._require_columns(file.path, table)
            rows = read_rows(opened, table, table.start, None)
            yield from cut(((start, stop) for start, stop, _ in rows), self.unit_records)

    def _require_columns(self, path: str, table: Table) -> None:
        columns = set(table.columns) | ({"text"} if "transcription" in table.columns else set())
        require_columns(self.name, path, columns, self.settings.fields.required())

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.path.endswith(".jsonl"):
            yield from map(_with_text, super().read(unit))
            return
        relative = self.relative(unit)
        with open_unit(unit) as file:
            table = read_layout(self.name, unit.path, file, self.settings.fields.audio)
            for start, _, cells in read_rows(file, table, unit.start, unit.stop):
                if isinstance(cells, str):
                    yield self.clip(BadRecord("broken_csv", cells), unit, relative, start)
                    continue
                values = dict(zip(table.columns, cells, strict=True))
                if table.ljspeech and "." not in values["file_name"]:
                    values["file_name"] = f"wavs/{values['file_name']}.wav"
                yield _with_text(self.clip(values, unit, relative, start))


def _with_text(record: Record) -> Record:
    """Copy Hugging Face's column `transcription` to the usual name `text`."""
    if "transcription" in record.fields:
        record.fields.setdefault("text", record.fields["transcription"])
    return record
