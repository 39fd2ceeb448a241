"""Instruction samples as lines of JSON or as one JSON array; tokenize applies the layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from koe.errors import BadRecord, ConfigError
from koe.schema import Unit
from stages.sources.base import Known, Record, TextFiles, scan_all
from stages.sources.fields import parse_object, record_key, require_object
from stages.sources.files import (
    SourceFile,
    expand,
    lines,
    open_binary,
    open_unit,
    relative_name,
    stem,
)
from stages.sources.json_array import array_elements
from stages.sources.manifest import line_slices
from stages.sources.planning import Slice, cut, plan_units


@dataclass(frozen=True)
class JsonLinesSource(TextFiles):
    """Files with one JSON object per line."""

    def units(self, known: Known = scan_all) -> Iterator[Unit]:
        files = expand(self.name, self.settings.paths)
        return plan_units(
            self.name,
            self.modality,
            files,
            lambda file: line_slices(file, self.unit_records),
            known=known,
        )

    def read(self, unit: Unit) -> Iterator[Record]:
        prefix = stem(relative_name(unit.path, self.settings.paths))
        with open_unit(unit) as file:
            for start, _, line in lines(file, unit.start, unit.stop):
                key, location = f"{prefix}@{start}", f"{unit.path}@{start}"
                try:
                    values = parse_object(line)
                    yield Record(record_key(values, self.settings.fields.id, key), location, values)
                except BadRecord as bad:
                    yield Record(key, location, {}, reason=bad.reason, detail=bad.detail)


@dataclass(frozen=True)
class JsonArraySource(TextFiles):
    """Files that hold one JSON array of objects."""

    def units(self, known: Known = scan_all) -> Iterator[Unit]:
        return plan_units(
            self.name,
            self.modality,
            expand(self.name, self.settings.paths),
            self._slices,
            known=known,
        )

    def _slices(self, file: SourceFile) -> Iterator[Slice]:
        with open_binary(file.path) as opened:
            if opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                raise ConfigError(
                    f"source {self.name} expects {file.path} to hold an array",
                    "it begins with an object",
                    "Set kind: jsonl if every line holds an object.",
                )
            spans = ((start, stop) for start, stop, _ in array_elements(opened, 0, None))
            yield from cut(spans, self.unit_records)

    def read(self, unit: Unit) -> Iterator[Record]:
        if unit.records == 0:
            return
        prefix = stem(relative_name(unit.path, self.settings.paths))
        with open_unit(unit) as file:
            for start, _, value in array_elements(file, unit.start, unit.stop):
                key, location = f"{prefix}@{start}", f"{unit.path}@{start}"
                try:
                    values = require_object(value)
                    yield Record(record_key(values, self.settings.fields.id, key), location, values)
                except BadRecord as bad:
                    yield Record(key, location, {}, reason=bad.reason, detail=bad.detail)
