"""JSONL manifests with NeMo's keys: audio_filepath, text, duration, offset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar

from koe.errors import BadRecord, attempt
from koe.schema import Unit
from stages.boundary import attempt_read
from stages.sources.base import AudioLocation, Record, SpeechFiles
from stages.sources.fields import BROKEN_JSON, lookup, parse_object
from stages.sources.files.lines import MAX_RECORD_BYTES, lines
from stages.sources.files.listing import SourceFile
from stages.sources.files.opening import join, parent
from stages.sources.files.places import resolve
from stages.sources.planning import Broken, Slice, Span, cut
from stages.sources.settings import SpeechFields

AUDIO_NAMES = ("audio_filepath", "file_name")
SKIP = "_skipme"


def line_slices(file: BinaryIO, unit_records: int) -> Iterator[Slice]:
    """Cut an open file with one record per line; blank lines are not records.

    A line is not parsed here, but zeros, as a file system leaves where it lost data, are in none
    that can be read.
    """
    spans = (
        Broken(start, stop) if b"\0" in line or len(line) > MAX_RECORD_BYTES else Span(start, stop)
        for start, stop, line in lines(file, 0, None)
    )
    return cut(spans, unit_records)


def segment_name(values: dict[str, Any], fields: SpeechFields) -> str:
    """Name the part of its audio that a clip is, as in @1.5+2.0 (length), @1.5-3.5 (end), or #1.

    Values stand as the record has them. Empty for all of an audio file.
    """
    names = (fields.start_seconds, fields.end_seconds, fields.seconds, fields.channel)
    given = (lookup(values, name) for name in names)
    start, stop, length, channel = ("" if value is None else value for value in given)
    name = ""
    if start != "" or stop != "":
        name = f"@{0 if start == '' else start}"
        name += f"-{stop}" if stop != "" else f"+{length}" if length != "" else ""
    return name if channel == "" else f"{name}#{channel}"


def marked_to_skip(values: dict[str, Any]) -> BadRecord | None:
    """Say that a record is marked as one that NeMo's readers leave out; None where it is not."""
    if not values.get(SKIP):
        return None
    return BadRecord("marked_to_skip", f"{SKIP} is {values[SKIP]!r:.200}, so NeMo leaves it out")


class ManifestSource(SpeechFiles):
    """JSONL manifests; audio paths are relative to `audio_root` or the manifest's folder."""

    reads_compressed: ClassVar[bool] = True

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with self.scanned(file) as manifest:
            yield from line_slices(manifest, self.unit_records)

    def read(self, unit: Unit) -> Iterator[Record]:
        relative = self.relative(unit)
        with self.opened(unit) as file:
            for start, _, line in lines(file, unit.start, unit.stop):
                yield self.clip(
                    attempt_read(BROKEN_JSON, parse_object, line), unit, relative, start
                )

    def clip(
        self, values: dict[str, Any] | BadRecord, unit: Unit, relative: str, start: int
    ) -> Record:
        """Make the record of a clip that is an audio file, or a segment of one.

        `values` stand at byte `start` of the unit's file, whose relative name is `relative`.
        """
        fields = self.settings.fields
        place, location = f"{relative}@{start}", f"{unit.path}@{start}"
        if isinstance(values, BadRecord):
            return self.record(place, location, values)
        audio = attempt(_audio_path, values, fields.audio)
        if isinstance(audio, BadRecord):
            return self.record(place, location, audio)
        folder = "" if self.settings.audio_root else parent(relative)
        key = (join(folder, audio) if folder else audio) + segment_name(values, fields)
        if skipped := marked_to_skip(values):
            return self.record(key, location, skipped)
        path = attempt(resolve, self.settings, unit.path, audio)
        if isinstance(path, BadRecord):
            return self.record(key, location, path)
        return self.record(key, location, values, AudioLocation("file", path))


def _audio_path(values: dict[str, Any], name: str | None) -> str:
    """Return the path of a record's audio, from the field `name` or one of the usual ones.

    Raises: BadRecord with reason missing_audio or ambiguous_audio.
    """
    names = (name,) if name else AUDIO_NAMES
    found = [value for name in names if (value := lookup(values, name))]
    if not found:
        detail = f"there is no path of audio in {' or '.join(names)}; "
        detail += f"the record has {', '.join(map(str, values)) or 'no fields':.200}"
        raise BadRecord("missing_audio", detail)
    path = found[0]
    if not isinstance(path, str) or not path.strip():
        raise BadRecord("missing_audio", f"the path of the audio is {path!r:.200}, expected text")
    if any(other != path for other in found):
        paths = " and ".join(repr(other)[:200] for other in found)
        detail = f"{' and '.join(names)} name {paths}; say which counts in fields.audio"
        raise BadRecord("ambiguous_audio", detail)
    return path
