"""Instruction samples as lines of JSON or as one JSON array; tokenize applies the layouts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

from koe.errors import BadRecord, ConfigError
from koe.schema import Unit
from stages.boundary import attempt_read
from stages.sources.base import Record, TextFiles
from stages.sources.fields import BROKEN_JSON, parse_object, require_object
from stages.sources.files.lines import lines
from stages.sources.files.listing import SourceFile
from stages.sources.json_files.array import array_elements
from stages.sources.json_files.manifest import line_slices
from stages.sources.planning import Broken, Gap, Slice, Span, cut


class JsonLinesSource(TextFiles):
    """Files with one JSON object per line."""

    reads_compressed: ClassVar[bool] = True

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with self.scanned(file) as opened:
            yield from line_slices(opened, self.unit_records)

    def read(self, unit: Unit) -> Iterator[Record]:
        prefix = self.prefix(unit)
        with self.opened(unit) as file:
            for start, _, line in lines(file, unit.start, unit.stop):
                fields = attempt_read(BROKEN_JSON, parse_object, line)
                yield self.record(f"{prefix}@{start}", f"{unit.path}@{start}", fields)


class JsonArraySource(TextFiles):
    """Files that hold one JSON array of objects."""

    reads_compressed: ClassVar[bool] = True

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with self.scanned(file) as opened:
            if opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                raise ConfigError(
                    f"source {self.name} expects {file.path} to hold an array",
                    "it begins with an object",
                    "Set kind: jsonl if every line holds an object.",
                )
            yield from cut(map(_span, array_elements(opened, 0)), self.unit_records)

    def read(self, unit: Unit) -> Iterator[Record]:
        prefix = self.prefix(unit)
        with self.opened(unit) as file:
            elements = array_elements(file, unit.start, unit.state)
            for item in islice(elements, unit.records):
                if isinstance(item, Gap):
                    yield self.unreadable(unit, item)
                    continue
                start, _, value = item
                fields = (
                    value
                    if isinstance(value, BadRecord)
                    else attempt_read(BROKEN_JSON, require_object, value)
                )
                yield self.record(f"{prefix}@{start}", f"{unit.path}@{start}", fields)


def _span(item: Gap | tuple[int, int, Any]) -> Span | Gap | Broken:
    if isinstance(item, Gap):
        return item
    start, stop, value = item
    return Broken(start, stop) if isinstance(value, BadRecord) else Span(start, stop)
