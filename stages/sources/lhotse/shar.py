"""Lhotse's sets: Shar (`cuts.000000.jsonl.gz` beside `recording.000000.tar`), and manifests.

The layout of Shar is that of `lhotse.shar.SharWriter`, version 1.33. A tar holds, for each cut, its audio
as `<cut id>.<format>` and the recording's manifest as `<cut id>.json`; or two empty members,
`<cut id>.nodata` and `<cut id>.nometa`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from koe.errors import BadRecord, ConfigError, attempt
from koe.schema import Unit
from stages.boundary import attempt_read
from stages.sources.base import AudioLocation, Record
from stages.sources.fields import BROKEN_JSON, parse_object
from stages.sources.files.compressed import opened, scanned
from stages.sources.files.lines import lines, require_size
from stages.sources.files.listing import SourceFile
from stages.sources.files.opening import exists, open_binary, reading, stamp
from stages.sources.files.places import named_outside, resolve
from stages.sources.files.streams import SUFFIXES, plain_name
from stages.sources.lhotse.cuts import CutClip, clips_of, source_of
from stages.sources.lhotse.recordings import cut_around, recordings_beside
from stages.sources.planning import Slice
from stages.sources.settings import SpeechSourceConfig
from stages.sources.tars.member_index import TarIndex, index_tar
from stages.sources.tars.tarred import TarredFiles, Unlisted

_RECORDING = "recording"
_LISTS = ".json"
_NO_AUDIO = (_LISTS, ".nodata")  # members that describe a cut's audio, or say that it has none


@dataclass(frozen=True)
class _Shard:
    """A file of cuts, and the tars of which the first that exists holds their audio."""

    file: SourceFile
    tars: tuple[str, ...]


def shar_source(
    settings: SpeechSourceConfig, unit_records: int, index_folder: str = ""
) -> SharSource:
    """Make the reader, with the names of the fields that it makes itself."""
    own = {"start_seconds": "offset", "end_seconds": None, "seconds": "duration"}
    fields = settings.fields.model_copy(update={**own, "channel": "channel"})
    return SharSource(settings.model_copy(update={"fields": fields}), unit_records, index_folder)


class SharSource(TarredFiles):
    """Cuts, each of whose supervisions is a clip.

    A unit is a run of whole cuts: it holds more than `unit_records` where one cut does.
    """

    @property
    def own_names(self) -> frozenset[str]:
        return frozenset(["id"])  # of a supervision

    @property
    def _field(self) -> str:
        """The name of the recording in a cut, and of the tars that hold it."""
        return self.settings.fields.audio or _RECORDING

    @cached_property
    def _shards(self) -> dict[str, _Shard]:
        """The shards that are listed in files, by the path of their cuts."""
        found: dict[str, _Shard] = {}
        for path in self.settings.paths:
            if path.endswith(_LISTS):
                found |= {shard.file.path: shard for shard in self._listed(path)}
        return found

    def files(self) -> list[SourceFile]:
        found = [file for file in super().files() if not file.path.endswith(_LISTS)]
        if tar := next(
            (file.path for file in found if plain_name(file.path).endswith(".tar")), None
        ):
            raise ConfigError(
                f"source {self.name} cannot read cuts from {tar}",
                "it is a tar with their audio, which is found beside the cuts",
                "Name the files of cuts alone in paths, as in cuts.*.jsonl.gz.",
            )
        listed = [shard.file for shard in self._shards.values()]
        # what a glob has matched too, and is read with its supervisions
        others = {*self._shards, *(recordings_beside(file.path) for file in found)}
        named = [
            SourceFile(file.path, file.relative, self.beside(file.path))
            for file in found
            if file.path not in others
        ]
        return sorted([*listed, *named], key=lambda file: file.relative)

    def beside(self, path: str) -> tuple[str, ...]:
        """List the tars of a file of cuts, or the recordings of a file of supervisions."""
        if listed := self._shards.get(path):
            return listed.tars
        recordings = recordings_beside(path)
        if recordings is None:
            return self._tars(path)
        if not exists(recordings):
            raise ConfigError(
                f"source {self.name} has no recordings for {path}",
                f"supervisions name recordings, and there is no {recordings}",
                "Put it beside the supervisions, or make cuts of both with `lhotse cut simple`.",
            )
        return (recordings,)

    def _listed(self, path: str) -> Iterator[_Shard]:
        """Yield the shards that a file lists, as `CutSet.from_shar(fields=...)` takes them."""
        with reading(path), open_binary(path) as file:
            lists = attempt_read(BROKEN_JSON, parse_object, file.read())
        columns = {} if isinstance(lists, BadRecord) else lists
        cuts, tars = _names(columns.get("cuts")), _names(columns.get(self._field))
        if not cuts or len(cuts) != len(tars):
            raise ConfigError(
                f"source {self.name} cannot take its shards from {path}",
                f"it lists {len(cuts)} files under 'cuts' and {len(tars)} under {self._field!r}",
                "List one tar for each file of cuts, or name files such as cuts.*.jsonl.gz instead.",
            )
        for name, tar in zip(cuts, tars, strict=True):
            tars = (self._named(self.settings, path, tar),)
            beside = self.settings.model_copy(update={"audio_root": None})
            relative = plain_name(name.rpartition("://")[2].lstrip("/"))
            yield _Shard(SourceFile(self._named(beside, path, name), relative, tars), tars)

    def _named(self, settings: SpeechSourceConfig, path: str, name: str) -> str:
        """Return the path of a file that a list of shards names."""
        found = attempt(resolve, settings, path, name)
        if isinstance(found, BadRecord):
            raise named_outside(self.name, path, found)
        return found

    def _tars(self, path: str) -> tuple[str, ...]:
        """List the names that the tar of a file of cuts may have; none for another manifest."""
        folder, _, name = path.rpartition("/")
        first, dot, rest = plain_name(name).removesuffix(".jsonl").partition(".")
        if first != "cuts":
            return ()
        base = f"{self.settings.audio_root or folder}/{self._field}{dot}{rest}.tar"
        return (base, *(base.removesuffix(instead) + s for s, instead in SUFFIXES.items()))

    def relative(self, unit: Unit) -> str:
        listed = self._shards.get(unit.path)
        return listed.file.relative if listed else super().relative(unit)

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with self.scanned(file) as cuts:
            counted = (
                (start, stop, self._num_clips(file.path, line))
                for start, stop, line in lines(cuts, 0, None)
            )
            yield from whole_lines(counted, self.unit_records)

    def _num_clips(self, path: str, line: bytes) -> int:
        return 1 if recordings_beside(path) else len(self._clips(path, line))

    def _clips(self, path: str, line: bytes) -> list[CutClip]:
        values = attempt_read(BROKEN_JSON, parse_object, line)
        if isinstance(values, BadRecord):
            return [CutClip("", {}, bad=values)]
        if recordings := recordings_beside(path):
            cut = attempt_read(BROKEN_JSON, cut_around, values, recordings, self.index_folder)
            if isinstance(cut, BadRecord):
                return [CutClip(str(values.get("id") or ""), {}, bad=cut)]
            values = cut
        clips = attempt_read(BROKEN_JSON, clips_of, values, self.settings.supervisions)
        return [CutClip("", {}, bad=clips)] if isinstance(clips, BadRecord) else clips

    def find_unlisted(self, file: SourceFile) -> Iterator[Unlisted]:
        if recordings_beside(file.path):
            return
        tar = _Audio(self, file.path, file.beside).tar
        if tar is None:
            return
        with reading(file.path), scanned(file.path, self.index_folder) as opened_cuts:
            cuts = (
                attempt_read(BROKEN_JSON, parse_object, line)
                for _, _, line in lines(opened_cuts, 0, None)
            )
            ids = {str(cut.get("id")) for cut in cuts if not isinstance(cut, BadRecord)}
        for cut_id, members in tar.members.items():
            if cut_id not in ids:
                audio = (member for member in members if not member.name.endswith(_NO_AUDIO))
                yield from ((tar.path, member) for member in audio)

    def read_listed(self, unit: Unit) -> Iterator[Record]:
        relative = self.relative(unit)
        tars = () if recordings_beside(unit.path) else self.beside(unit.path)
        audio = _Audio(self, unit.path, tars)
        with self.opened(unit) as cuts:
            for start, _, line in lines(cuts, unit.start, unit.stop):
                for clip in self._clips(unit.path, line):
                    key, place = clip.id or f"{relative}@{start}", f"{unit.path}@{start}"
                    yield self._record(key, place, clip, audio)

    def _record(self, key: str, place: str, clip: CutClip, audio: _Audio) -> Record:
        if clip.bad:
            return self.record(key, place, clip.bad)
        found = attempt_read(BROKEN_JSON, audio.find, clip, self._field)
        if isinstance(found, BadRecord):
            return self.record(key, place, found)
        location, channel = found
        part = {"offset": clip.start_seconds, "duration": clip.seconds, "channel": channel}
        return self.record(key, place, {**clip.fields, **part}, location)


def _names(value: Any) -> list[str]:
    """Return a list of names; empty for anything else."""
    is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value if is_names else []


def whole_lines(lines: Iterable[tuple[int, int, int]], unit_records: int) -> Iterator[Slice]:
    """Cut lines, given as (start, stop, records), into slices of at most `unit_records` records.

    A line with more records than that is a slice of its own.
    """
    first, last, count = 0, 0, 0
    for start, stop, records in lines:
        if count and count + records > unit_records:
            yield Slice(first, last, count)
            count = 0
        first = start if count == 0 else first
        last, count = stop, count + records
    if count:
        yield Slice(first, last, count)


class _Audio:
    """Finds the audio of cuts: in the tar of their shard, or in files."""

    def __init__(self, source: SharSource, path: str, tars: tuple[str, ...]) -> None:
        self._path, self._tars, self._settings = path, tars, source.settings
        self._index_folder = source.index_folder

    @cached_property
    def tar(self) -> TarIndex | None:
        for path in self._tars:
            if found := index_tar(path, _cut_id, self._index_folder):
                return found
        return None

    def find(self, clip: CutClip, field: str) -> tuple[AudioLocation, int | None]:
        """Return where the audio of a clip lies, and which of its channels it is; None for all.

        Raises: BadRecord.
        """
        cut = clip.fields["cut"]
        recording = cut.get(field) or (cut.get("custom") or {}).get(field)
        if recording is None:
            place = self._member(cut)
            recording = self._manifest(cut)
            _, channel = source_of(recording, clip.channels)
            return place, channel
        if not isinstance(recording, dict):
            raise BadRecord("broken_json", f"{field} of the cut is no recording")
        source, channel = source_of(recording, clip.channels)
        kind, name = source.get("type"), source.get("source")
        if kind == "shar":
            return self._member(cut), channel
        if kind not in ("file", "url") or not isinstance(name, str) or not name:
            detail = f"its audio is of type {kind!r}; files, URLs and Shar are read"
            raise BadRecord("unsupported_recording", detail)
        return AudioLocation("file", resolve(self._settings, self._path, name)), channel

    def _member(self, cut: dict[str, Any]) -> AudioLocation:
        if self.tar is None:
            detail = f"there is no {self._tars[0]}" if self._tars else "the cut names no recording"
            raise BadRecord("missing_audio", detail)
        place = self.tar.locate(str(cut.get("id")))
        if place.member.endswith(".nodata"):
            raise BadRecord("missing_audio", f"{place.member} says that the cut has no audio")
        return place

    def _manifest(self, cut: dict[str, Any]) -> dict[str, Any]:
        """Read the manifest of a recording that stands only in the tar."""
        assert self.tar is not None
        place = self.tar.locate(f"{cut.get('id')}{_LISTS}")
        with reading(place.path), opened(place.path, stamp(place.path), self._index_folder) as tar:
            require_size(place.num_bytes, place.member)
            tar.seek(place.offset)
            return parse_object(tar.read(place.num_bytes))


def _cut_id(member: str) -> str | None:
    """Return the id of the cut whose audio a member is; the name itself for a manifest."""
    stem, dot, extension = member.rpartition(".")
    if not dot or "/" in extension:
        return None
    return None if extension == "nometa" else member if extension == "json" else stem
