"""WebDataset tars: samples are runs of members that share a name up to its first dot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, ClassVar, NamedTuple

from koe.errors import BadRecord, attempt
from koe.schema import Unit
from stages.boundary import attempt_read
from stages.sources.base import AudioLocation, Record, SpeechFiles
from stages.sources.fields import parse_object
from stages.sources.files.lines import require_size
from stages.sources.files.listing import SourceFile
from stages.sources.planning import Gap, Slice, Span, cut
from stages.sources.tars.header import Member
from stages.sources.tars.members import read_members

# Formats that libsndfile cannot read count as audio too: "unreadable" says more than "missing".
_AUDIO = frozenset(
    ["wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "wma", "webm", "aiff"]
)
_TEXTS = frozenset(["json", "txt"])  # beside the audio
_LOOK_AHEAD = 64  # members of a run, before it is decided how long its keys are


@dataclass
class Sample:
    """Members of one sample by extension, in the order of the archive; `state` as in `Unit`."""

    key: str
    start: int
    stop: int
    state: str = ""
    members: dict[str, Member] = field(default_factory=dict)


Found = Member | Gap  # what lies in an archive, one after the other


class Placed(NamedTuple):
    """A member or gap in a run of members whose names agree up to the first dot.

    The keys of the run's samples have `key_parts` parts, joined by dots. `state` is that number as
    text, or empty for the first of the run.
    """

    found: Found
    key_parts: int
    state: str


@lru_cache(maxsize=4 * _LOOK_AHEAD)  # each name is asked for three times
def _parts(name: str) -> tuple[str, ...]:
    """Split a name at the dots of its last component; the folders belong to the first part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    first, *others = last.split(".")
    return (f"{folder}{slash}{first}" if first else "", *others)


def _key(parts: tuple[str, ...], key_parts: int) -> tuple[str, str]:
    """Split the parts of a name into the sample's key and an extension of at least one part."""
    num_parts = max(1, min(key_parts, len(parts) - 1))
    return ".".join(parts[:num_parts]), ".".join(parts[num_parts:]).lower()


IsAudio = Callable[[str], bool]  # by extension
FieldsOf = Callable[[BinaryIO, Sample], dict[str, Any]]  # may raise BadRecord


def _key_parts(run: Iterable[Found], is_audio: IsAudio) -> int:
    """Return how many parts the keys of a run have: one, unless its audio tells otherwise.

    JA.000.mp3 and JA.001.mp3 are two clips; 1.speech.wav and 1.noise.wav beside 1.txt are one
    sample with two audio members. A single clip whose text has the same name but for the last part is
    one sample.
    """
    names = [_parts(found.name) for found in run if isinstance(found, Member) and not found.unsafe]
    if all(len(parts) <= 2 for parts in names):
        return 1
    audio = [parts for parts in names if is_audio(".".join(parts[1:]).lower())]
    first = next(iter(audio), ())
    other = next((parts for parts in audio if parts[:-1] != first[:-1]), None)
    stems = [parts[:-1] for parts in audio]
    texts = [parts[:-1] for parts in names if parts[-1].lower() in _TEXTS]
    if other is None:
        # w1.0.wav beside w1.0.txt, as the names of one sample
        has_text = len(first) > 2 and first[:-1] in texts and is_audio(first[-1].lower())
        return len(first) - 1 if has_text and first[:1] not in texts else 1
    if any(len(stem) == 1 for stem in texts) and not any(stem in stems for stem in texts):
        return 1
    same = zip(first[:-1], other[:-1], strict=False)
    return 1 + next((at for at, (one, two) in enumerate(same) if one != two), len(first) - 1)


def _placed(found: Iterable[Found], is_audio: IsAudio, key_parts: int) -> Iterator[Placed]:
    """Decide for each run of members how long its keys are; `key_parts`: of the first, or 0.

    What is no safe member belongs to the run on both of its sides, or else to the one behind it.
    """
    base: str | None = None
    run: list[Found] = []  # not yielded, because the keys are not known yet
    between: list[Found] = []  # since the last member
    is_first = True

    def decided() -> Iterator[Placed]:
        nonlocal is_first, key_parts
        key_parts = key_parts or _key_parts(run, is_audio)
        for item in run:
            yield Placed(item, key_parts, "" if is_first else str(key_parts))
            is_first = False
        run.clear()

    for item in found:
        if isinstance(item, Gap) or item.unsafe:
            between.append(item)
            continue
        first = _parts(item.name)[0]
        if not first:  # hidden, such as ._x.mp3 of macOS: part of no sample, as in WebDataset
            continue
        if base is not None and first != base:
            yield from decided()
            key_parts, is_first = 0, True
        base = first
        run += [*between, item]
        between.clear()
        if key_parts or len(run) >= _LOOK_AHEAD:
            yield from decided()
    yield from decided()
    for item in between:
        yield Placed(item, 1, "")


def read_samples(
    found: Iterable[Found], is_audio: IsAudio, state: str = ""
) -> Iterator[Sample | Placed]:
    """Group members into samples; an unsafe member or a gap stands alone and ends the sample before.

    `state`: of the first. A key ends at the first dot of a name's last component, as in
    WebDataset; it holds dots where members that agree up to the first one are audio of several
    clips (JA.000.mp3, JA.001.mp3).
    """
    sample: Sample | None = None
    for placed in _placed(found, is_audio, int(state or 0)):
        member = placed.found
        if isinstance(member, Gap) or member.unsafe:
            if sample:
                yield sample
            sample = None
            yield placed
            continue
        key, extension = _key(_parts(member.name), placed.key_parts)
        if sample and (key != sample.key or extension in sample.members):
            yield sample
            sample = None
        sample = sample or Sample(key, member.offset, 0, placed.state)
        sample.members[extension] = member
        sample.stop = member.data_offset + member.size
    if sample:
        yield sample


def _span(item: Sample | Placed) -> Span | Gap:
    if isinstance(item, Sample):
        return Span(item.start, item.stop, item.state)
    found = item.found
    if isinstance(found, Gap):
        return found._replace(state=item.state)
    return Span(found.offset, found.data_offset, item.state)


class WebDatasetSource(SpeechFiles):
    """Tars with `.json` or `.txt` beside the audio, as in Emilia."""

    reads_compressed: ClassVar[bool] = True

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with self.scanned(file) as tar:
            # unbuffered: a buffer would read 8 KiB for each header of 512 bytes
            headers = getattr(tar, "raw", tar)
            samples = read_samples(read_members(headers, 0), self._is_audio)
            yield from cut(map(_span, self.seen(samples, file)), self.unit_records)

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
