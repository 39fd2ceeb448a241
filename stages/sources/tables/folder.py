"""Folders of audio with a table, or with lines of JSON, that says what is spoken in each file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from koe.errors import ConfigError
from koe.schema import Unit
from stages.sources.base import Record
from stages.sources.files.listing import SourceFile, expand, list_folder
from stages.sources.files.opening import join
from stages.sources.files.streams import plain_name
from stages.sources.json_files.manifest import ManifestSource
from stages.sources.planning import Broken, Slice, Span, cut
from stages.sources.settings import braces
from stages.sources.tables.forms import find_table, with_text
from stages.sources.tables.layouts import LAYOUTS
from stages.sources.tables.rows import Row, read_rows

_METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl")


class FolderSource(ManifestSource):
    """Tables or lines of JSON that name audio files, given themselves or as their folders."""

    @property
    def own_names(self) -> frozenset[str]:
        layout = LAYOUTS[self.settings.layout] if self.settings.layout else None
        pattern = self.settings.audio_path or (layout.audio_path if layout else None)
        columns = layout.columns if layout else None
        return frozenset((*(columns or ()), *braces(pattern or "")))

    def files(self) -> list[SourceFile]:
        found = expand(self.name, self.settings.paths, folders=True, compressed=True)
        return [self._metadata(file) for file in found]

    def _metadata(self, file: SourceFile) -> SourceFile:
        """Return the metadata file of a folder, or the file itself."""
        names = list_folder(file.path)
        if names is None:
            return file
        usual = LAYOUTS[self.settings.layout].file if self.settings.layout else ""
        wanted = (usual,) if usual else _METADATA
        present = sorted(name for name in names if plain_name(name) in wanted)
        if "metadata.parquet" in names and not usual:
            raise ConfigError(
                f"source {self.name} cannot read the table of {file.path}",
                "it is metadata.parquet, which is no text",
                "Set kind to parquet, paths to that file, and fields.audio to file_name.",
            )
        if len(present) != 1:
            missing = f"neither {' nor '.join(wanted)}" if len(wanted) > 1 else f"no {usual}"
            raise ConfigError(
                f"source {self.name} needs one metadata file in {file.path}",
                f"it has {' and '.join(present) or missing}",
                "Name the metadata file itself in paths.",
            )
        return SourceFile(join(file.path, present[0]), f"{file.relative}/{present[0]}")

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        if _is_json(file.path):
            yield from super().slices(file)
            return
        with self.scanned(file) as opened:
            if not opened.read(1):
                return
            table = find_table(self.settings, file.path, opened).rows
            rows = read_rows(opened, table, table.start, None)
            yield from cut(map(_span, rows), self.unit_records)

    def read(self, unit: Unit) -> Iterator[Record]:
        if _is_json(unit.path):
            text = self.settings.fields.text
            for record in super().read(unit):
                yield replace(record, fields=with_text(record.fields, text))
            return
        relative = self.relative(unit)
        with self.opened(unit) as file:
            table = find_table(self.settings, unit.path, file)
            for row in read_rows(file, table.rows, unit.start, unit.stop):
                yield self.clip(table.values(row), unit, relative, row.start)


def _span(row: Row) -> Span | Broken:
    return (Broken if row.problem else Span)(row.start, row.stop)


def _is_json(path: str) -> bool:
    return plain_name(path).endswith(".jsonl")
