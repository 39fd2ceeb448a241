"""WebDataset tars, as plain ones and compressed: each sample of a tar is a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO, ClassVar

from koe.errors import BadRecord, attempt
from koe.schema import Unit
from stages.boundary import attempt_read
from stages.sources.base import AudioLocation, Record, SpeechFiles
from stages.sources.fields import parse_object
from stages.sources.files.lines import require_size
from stages.sources.files.listing import SourceFile
from stages.sources.planning import Gap, Slice, cut
from stages.sources.tars.header import Member
from stages.sources.tars.members import read_members
from stages.sources.tars.samples import Placed, Sample, read_samples, span_of

# Formats that libsndfile cannot read count as audio too: "unreadable" says more than "missing".
_AUDIO = frozenset(
    ["wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "wma", "webm", "aiff"]
)

FieldsOf = Callable[[BinaryIO, Sample], dict[str, Any]]  # may raise BadRecord


class WebDatasetSource(SpeechFiles):
    """Tars with `.json` or `.txt` beside the audio, as in Emilia."""

    reads_compressed: ClassVar[bool] = True

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with self.scanned(file) as tar:
            # unbuffered: a buffer would read 8 KiB for each header of 512 bytes
            headers = getattr(tar, "raw", tar)
            samples = read_samples(read_members(headers, 0), self._is_audio)
            yield from cut(map(span_of, self.seen(samples, file)), self.unit_records)

    def seen(
        self, samples: Iterator[Sample | Placed], file: SourceFile
    ) -> Iterator[Sample | Placed]:
        """Pass on the samples of a file that is planned, to a source that keeps something of them."""
        return samples

    def read(self, unit: Unit) -> Iterator[Record]:
        prefix, fields_of = self.prefix(unit), self.fields_of(unit)
        with self.opened(unit) as tar:
            members = read_members(tar, unit.start)
            samples = read_samples(members, self._is_audio, unit.state)
            for item in islice(samples, unit.records):
                yield self._record(tar, unit, prefix, item, fields_of)

    def _is_audio(self, extension: str) -> bool:
        asked = self.settings.fields.audio
        if asked is None:
            return extension.rpartition(".")[2] in _AUDIO
        return f".{extension}".endswith(f".{asked}")

    def fields_of(self, unit: Unit) -> FieldsOf:
        """Return what reads the fields of each sample of a unit from its tar."""
        return self.sidecars

    def _record(
        self, tar: BinaryIO, unit: Unit, prefix: str, item: Sample | Placed, fields_of: FieldsOf
    ) -> Record:
        path = unit.path
        if isinstance(item, Placed):
            found = item.found
            if isinstance(found, Gap):
                return self.unreadable(unit, found)
            key, location = f"{prefix}/{found.name}", f"{path}:{found.name}@{found.offset}"
            bad = BadRecord("unsafe_tar_member", f"{found.name!r}: {found.unsafe}")
            return self.record(key, location, bad)
        key, location = f"{prefix}/{item.key}", f"{path}:{item.key}@{item.start}"
        record = self.record(key, location, attempt_read("broken_sample", fields_of, tar, item))
        if record.bad:
            return record
        audio = attempt(self.audio_of, item)
        if isinstance(audio, BadRecord):
            return replace(record, bad=audio)
        if not self.settings.transcripts and not self._texts(item):
            detail = f"of {_names(item)} none is a .json or .txt; {_remedy(item, 'fields.text')}"
            return replace(record, bad=BadRecord("missing_transcript", detail))
        place = AudioLocation("tar", path, audio.name, audio.data_offset, audio.size)
        return replace(record, location=f"{path}:{audio.name}@{audio.data_offset}", audio=place)

    def _texts(self, sample: Sample) -> list[str]:
        """List the extensions of members that hold fields: .json, .txt, and the names of fields."""
        named = {"json", "txt", *self.settings.fields.named()}
        return [extension for extension in sample.members if extension in named]

    def audio_of(self, sample: Sample) -> Member:
        """Return the member that is the audio. Raises: BadRecord."""
        return _audio_member(sample, self.settings.fields.audio)

    def sidecars(self, tar: BinaryIO, sample: Sample) -> dict[str, Any]:
        """Read the fields of a sample; what is no `.json` is a text, a field called as it is.

        That of `.txt` is `text` too, if there is none.
        """
        fields: dict[str, Any] = {}
        if "json" in sample.members:
            fields = parse_object(_read(tar, sample.members["json"]))
        for name in self._texts(sample):
            if name != "json":
                fields.setdefault(name, _text(tar, sample.members[name]))
        if "txt" in sample.members:
            fields.setdefault("text", fields["txt"])
        return fields


def _text(tar: BinaryIO, member: Member) -> str:
    try:
        return _read(tar, member).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        detail = f"{member.name} is not valid UTF-8: {error.reason}"
        raise BadRecord("broken_text", detail) from None


def _read(tar: BinaryIO, member: Member) -> bytes:
    require_size(member.size, member.name)
    tar.seek(member.data_offset)
    return tar.read(member.size)


def _names(sample: Sample) -> str:
    return ", ".join(member.name for member in sample.members.values())


def _remedy(sample: Sample, key: str) -> str:
    """Say what to do about a sample that lacks a member."""
    if len(sample.members) == 1:
        return (
            f"name its extension in {key}; if it stands elsewhere in the tar, sort the tar by name, "
            "since the members of a sample must follow one another"
        )
    return f"name its extension in {key}; an extension begins at the first dot of a name"


def _audio_member(sample: Sample, extension: str | None) -> Member:
    if extension is not None:
        found = [sample.members[extension]] if extension in sample.members else []
    else:
        found = [m for ext, m in sample.members.items() if ext.rpartition(".")[2] in _AUDIO]
    if not found:
        if extension is None:
            why = f"none is called as audio files are; {_remedy(sample, 'fields.audio')}"
        else:
            why = f"none has the extension {extension!r}, which fields.audio names"
        raise BadRecord("missing_audio", f"of {_names(sample)} {why}")
    if len(found) > 1:
        names = ", ".join(member.name for member in found)
        raise BadRecord("ambiguous_audio", f"{names}; name the extension in fields.audio")
    return found[0]
