"""JSONL manifests with NeMo's keys: audio_filepath, text, duration, offset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from koe.errors import BadRecord
from koe.schema import Unit
from stages.sources.base import Known, Record, SpeechFiles, scan_all
from stages.sources.fields import lookup, parse_object, record_key
from stages.sources.files import (
    SourceFile,
    expand,
    join,
    lines,
    open_binary,
    open_unit,
    parent,
    relative_name,
)
from stages.sources.planning import Slice, cut, plan_units
from stages.sources.settings import SpeechFields

AUDIO_NAMES = ("audio_filepath", "file_name")


def line_slices(file: SourceFile, unit_records: int) -> Iterator[Slice]:
    """Cut a file with one record per line; blank lines are not records."""
    with open_binary(file.path) as opened:
        spans = ((start, stop) for start, stop, _ in lines(opened, 0, None))
        yield from cut(spans, unit_records)


def line_records(
    unit: Unit, relative: str, audio_root: str | None, fields: SpeechFields
) -> Iterator[Record]:
    """Read the speech records of a slice of a JSONL manifest."""
    with open_unit(unit) as file:
        for start, _, line in lines(file, unit.start, unit.stop):
            location = f"{unit.path}@{start}"
            try:
                values = parse_object(line)
            except BadRecord as bad:
                key = f"{relative}@{start}"
                yield Record(key, location, {}, reason=bad.reason, detail=bad.detail)
                continue
            yield file_record(values, unit, f"{relative}@{start}", location, audio_root, fields)


def file_record(
    values: dict[str, Any],
    unit: Unit,
    place: str,
    location: str,
    audio_root: str | None,
    fields: SpeechFields,
) -> Record:
    """Make the record of a clip that is an audio file, or a segment of one.

    `place`, `<relative name>@<byte>`, is the key of a record that names no audio.
    """
    names = (fields.audio,) if fields.audio else AUDIO_NAMES
    audio = next((value for name in names if (value := lookup(values, name))), None)
    if not isinstance(audio, str) or not audio.strip():
        detail = f"no field {' or '.join(names)} with the audio's path"
        return Record(place, location, values, reason="missing_audio", detail=detail)
    folder = "" if audio_root else parent(place.rpartition("@")[0])
    key = join(folder, audio) if folder else audio
    offset = lookup(values, fields.start_seconds)
    if offset is not None and offset != "":
        key = f"{key}@{offset}"
    path = join(audio_root or parent(unit.path), audio)
    try:
        key = record_key(values, fields.id, key)
    except BadRecord as bad:
        return Record(key, location, values, reason=bad.reason, detail=bad.detail)
    return Record(key, location, values, "file", path)


@dataclass(frozen=True)
class ManifestSource(SpeechFiles):
    """JSONL manifests; audio paths are relative to `audio_root` or the manifest's folder."""

    def units(self, known: Known = scan_all) -> Iterator[Unit]:
        files = expand(self.name, self.settings.paths)
        slices = partial(line_slices, unit_records=self.unit_records)
        return plan_units(self.name, self.modality, files, slices, known=known, parallel=True)

    def read(self, unit: Unit) -> Iterator[Record]:
        relative = relative_name(unit.path, self.settings.paths)
        return line_records(unit, relative, self.settings.audio_root, self.settings.fields)
