"""Ingest: records of a source become clip rows, each with what the header of its audio says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pyarrow as pa

from koe.errors import BadRecord, ContractError
from koe.last_record import began
from koe.schema import CLIP, Unit, units_in
from koe.stage import Exclusions, Outcome, Resources, Transform
from stages.audio.decode import (
    SEGMENT_TOLERANCE_SECONDS,
    AudioHeader,
    require_channel,
    segment_frames,
)
from stages.boundary import attempt_read
from stages.settings import IngestConfig
from stages.sources.base import Record, SpeechFiles, leaving_out
from stages.sources.checks.notes import Notes
from stages.sources.fields import describe, lookup, name_of, number_of
from stages.sources.location import ClipReader
from stages.sources.settings import SpeechFields
from stages.text.unicode import has_visible_text


@dataclass(frozen=True)
class IngestStage:
    """Reads the headers of audio, and copies no audio."""

    sources: tuple[SpeechFiles, ...]
    settings: IngestConfig = field(default_factory=IngestConfig)
    left_out: Mapping[int, BadRecord] = field(default_factory=dict)  # by their place in the unit
    name: str = field(default="ingest", init=False)
    version: int = field(default=3, init=False)
    output_schema: pa.Schema = field(default=CLIP, init=False, repr=False)

    @property
    def content(self) -> dict[str, Any]:
        # How the records of a source are read is part of the units' input, not of this content: a
        # new source must not make the units of the others stale.
        return self.settings.content()

    @property
    def resources(self) -> Resources:
        return self.settings.resources

    def leaving_out(self, records: Mapping[int, BadRecord]) -> Self:
        return replace(self, left_out=records)

    def open(self) -> Transform:
        return self._transform

    def _transform(self, units: pa.Table) -> Outcome:
        sources = {source.name: source for source in self.sources}
        exclusions = Exclusions(self.name)
        rows: list[dict[str, Any]] = []
        found: Counter[str] = Counter()
        index_folder = next((source.index_folder for source in self.sources), "")
        with ClipReader(index_folder) as reader:
            for unit in units_in(units):
                if unit.source not in sources:
                    raise ContractError(
                        f"unit {unit.unit} belongs to a source that ingest does not know",
                        f"its source is {unit.source!r}, known are {sorted(sources)}",
                        "Run again: units are planned with the present configuration.",
                    )
                notes = Notes(sources[unit.source])
                rows += self._clips(unit, sources[unit.source], reader, exclusions, notes)
                found.update(notes.counts())
        return exclusions.outcome(pa.Table.from_pylist(rows, schema=CLIP), found)

    def _clips(
        self,
        unit: Unit,
        source: SpeechFiles,
        reader: ClipReader,
        exclusions: Exclusions,
        notes: Notes,
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        seen: set[str] = set()
        for record in leaving_out(source.records_of(unit), self.left_out):
            clip_id = f"{source.name}/{record.key}"
            began(clip_id)
            is_repeated = record.bad is None and clip_id in seen
            seen.update([clip_id] if record.bad is None else [])
            clip = attempt_read(
                "broken_record", self._clip, record, source, reader, notes, is_repeated
            )
            if isinstance(clip, BadRecord):
                exclusions.quarantine(clip_id, source.name, clip, record.location)
            else:
                rows.append({"id": clip_id, "source": source.name, **clip})
        return rows

    def _clip(
        self,
        record: Record,
        source: SpeechFiles,
        reader: ClipReader,
        notes: Notes,
        is_repeated: bool,
    ) -> dict[str, Any]:
        notes.add(record)
        if record.bad:
            raise record.bad
        if is_repeated:
            raise BadRecord("duplicate_id", "an earlier record of the unit has this id")
        clip = clip_row(record, source.settings.fields, reader, self.settings.max_seconds)
        notes.add_length(record, clip["seconds"])
        return clip


def clip_row(
    record: Record, fields: SpeechFields, reader: ClipReader, max_seconds: float
) -> dict[str, Any]:
    """Make the CLIP row of a record, without `id` and `source`.

    Raises: BadRecord for a record without transcript or usable audio; StorageError.
    """
    text = lookup(record.fields, fields.text)
    if not isinstance(text, str) or not has_visible_text(text):
        raise BadRecord("missing_transcript", describe(record.fields, fields.text))
    place = record.audio
    assert place is not None, "a record of speech that is not bad has audio"
    header, audio_bytes = reader.header(place)
    start_seconds, seconds = clip_range(record.fields, fields, header)
    channel = clip_channel(record.fields, fields, header)
    if seconds > max_seconds:
        raise BadRecord("too_long", f"{seconds:.3f} s of at most {max_seconds} s")
    speaker = name_of(lookup(record.fields, fields.speaker))
    if speaker is None:
        raise BadRecord(
            "bad_speaker", f"{describe(record.fields, fields.speaker or '')}, which is no name"
        )
    return {
        "text": text,
        "speaker": speaker or None,
        "audio_kind": place.kind,
        "audio_path": place.path,
        "audio_member": place.member,
        "audio_offset": place.offset,
        "audio_bytes": audio_bytes,
        "start_seconds": start_seconds,
        "seconds": seconds,
        "audio_hz": header.audio_hz,
        "channels": header.channels,
        "channel": channel,
        "source_ovrl": number_of(lookup(record.fields, fields.ovrl)),
    }


def clip_range(
    values: dict[str, Any], fields: SpeechFields, header: AudioHeader
) -> tuple[float, float]:
    """Return start and length of a clip in its audio, both in seconds.

    A record without a start and an end is all of its audio, whatever duration it states.

    Raises: BadRecord with reason bad_segment.
    """
    start = _number(values, fields.start_seconds)
    stop = _number(values, fields.end_seconds)
    if start is None and stop is None:
        return 0.0, header.seconds
    start = start or 0.0
    length = _number(values, fields.seconds)
    if stop is not None:
        length = _length(start, stop, length)
    try:
        _, num_frames = segment_frames(header, start, length)
    except BadRecord as bad:
        last = (start + (length or 0.0)) / 1000
        if start < 0 or not header.seconds / 100 < last <= header.seconds:
            raise
        raise BadRecord(bad.reason, f"{bad.detail}; as milliseconds they would lie in it") from None
    return start, num_frames / header.audio_hz


def _length(start: float, stop: float, stated: float | None) -> float:
    """Return the seconds from `start` to `stop`, which must agree with the length that is stated."""
    # to the nanosecond, since 2.3 - 1.2 is not 1.1 in floating point, and may hold a sample less
    length = round(stop - start, 9)
    if length <= 0:
        raise BadRecord("bad_segment", f"it ends at {stop} s and starts at {start} s")
    if stated is not None and abs(length - stated) > SEGMENT_TOLERANCE_SECONDS:
        detail = f"{start} s to {stop} s are {length} s, but its length is said to be {stated} s"
        raise BadRecord("bad_segment", detail)
    return length


def clip_channel(values: dict[str, Any], fields: SpeechFields, header: AudioHeader) -> int | None:
    """Return the channel that a clip is, counted from 0; None for the average of all.

    A record that says nothing, or NeMo's "average", is that average.

    Raises: BadRecord with reason bad_channel, also for a list of channels.
    """
    value = lookup(values, fields.channel)
    if value is None or value in ("", "average"):
        return None
    number = number_of(value)
    if number is None or not number.is_integer():
        detail = f"field {fields.channel!r} holds {value!r}, expected one number counted from 0"
        raise BadRecord("bad_channel", detail)
    require_channel(header, int(number))
    return int(number)


def _number(values: dict[str, Any], name: str | None) -> float | None:
    """Return a field's number; None where the record does not have the field, or it is empty.

    Raises: BadRecord with reason bad_segment.
    """
    value = lookup(values, name)
    if name is None or value is None or value == "":
        return None
    number = number_of(value)
    if number is None:
        raise BadRecord(
            "bad_segment", f"{describe(values, name)}, which is not a number of seconds"
        )
    return number
