"""What every source offers: slices of its files (units), and the records of one slice."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ClassVar, Generic, TypeVar

from koe.errors import BadRecord, StageError
from koe.schema import SPEECH, TEXT, Unit
from stages.boundary import attempt_read, bad_record, passes, planned
from stages.sources.fields import record_key
from stages.sources.files.compressed import damage, opened, scanned, stream_index
from stages.sources.files.lines import num_bytes
from stages.sources.files.listing import SourceFile, expand, relative_name, stem
from stages.sources.files.opening import (
    is_empty,
    open_binary,
    own_stamp,
    reading,
    require_unchanged,
)
from stages.sources.files.streams import is_compressed
from stages.sources.planning import Gap, Known, Slice, plan_units, scan_all
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig

_MAX_KEY_CHARS = 4096  # a path may have as many on Linux
_SHORT_KEY_CHARS = 200
_DAMAGE = "damage"  # the state of a unit that is the unreadable end of a compressed file
_UNREADABLE = "unreadable: "  # and why: the state of a unit that is a whole file

Settings = TypeVar("Settings", SpeechSourceConfig, TextSourceConfig)


@dataclass(frozen=True)
class AudioLocation:
    """Where a clip's audio lies; fields as `audio_*` of `koe.schema.CLIP`."""

    kind: str
    path: str
    member: str = ""
    offset: int = 0
    num_bytes: int = 0


@dataclass(frozen=True)
class Record:
    """One record of a slice: its raw fields, or the reason why it has none.

    `key` is unique within the source unless the source itself repeats an id. `audio` is set for
    the records of speech. `bad` is set when the record could not be read (broken JSON line, tar
    member outside its archive). `left_out` names further fields that the record has and that
    were not asked for, such as columns of a Parquet file.
    """

    key: str
    location: str
    fields: dict[str, Any]
    audio: AudioLocation | None = None
    bad: BadRecord | None = None
    left_out: tuple[str, ...] = ()


def leaving_out(records: Iterable[Record], bad: Mapping[int, BadRecord]) -> Iterator[Record]:
    """Yield records; those at the places of `bad`, counted from 0, are bad because of it."""
    for place, record in enumerate(records):
        why = record.bad or bad.get(place)
        yield record if why is record.bad else replace(record, bad=why)


def short_key(key: str) -> str:
    """Return a key as it is, or if it is longer than any path, its beginning and its hash."""
    if len(key) <= _MAX_KEY_CHARS:
        return key
    return f"{key[:_SHORT_KEY_CHARS]}…{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class SourceFiles(ABC, Generic[Settings]):
    """A named set of files of one kind. Frozen and picklable."""

    modality: ClassVar[str]
    settings: Settings
    unit_records: int  # how many records a unit holds at most
    index_folder: str = ""  # where the checkpoints of compressed files are kept; empty: nowhere

    reads_compressed: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def own_names(self) -> frozenset[str]:
        """The fields that this source reads by itself, whatever the settings name."""
        return frozenset()

    def units(self, known: Known = scan_all) -> Iterator[Unit]:
        """Plan the slices of all files, in a fixed order; files that are `known` are not read.

        Raises: ConfigError when a path matches nothing.
        """
        with planned(self.name):
            files = self.files()
        return plan_units(self.name, self.modality, files, self.all_slices, known)

    def files(self) -> list[SourceFile]:
        return expand(self.name, self.settings.paths, compressed=self.reads_compressed)

    def scanned(self, file: SourceFile) -> AbstractContextManager[BinaryIO]:
        """Open a file to plan its units, decompressed."""
        return scanned(file.path, self.index_folder)

    @contextmanager
    def opened(self, unit: Unit) -> Iterator[BinaryIO]:
        """Open the file of a unit, decompressed; it must be as it was when the unit was planned."""
        require_unchanged(unit)
        with reading(unit.path), opened(unit.path, own_stamp(unit), self.index_folder) as file:
            yield file

    def all_slices(self, file: SourceFile) -> Iterator[Slice]:
        """Cut one file into slices; damage at the end of a compressed one is a slice of its own.

        A file whose reader fails is one slice with one record, which says why.
        """
        if not is_compressed(file.path):
            yield from self._whole_or_gap(file)
            return
        index = stream_index(file.path, self.index_folder)
        records = 0
        for part in self._whole_or_gap(file) if index.num_bytes else ():
            records += part.records
            yield part
        if gap := damage(file.path, index):
            size = gap.stop - gap.start
            lost = max(1, round(records * size / index.place)) if index.place else 1
            yield Slice(gap.start, gap.stop, 1, 1, size, lost, _DAMAGE)

    def _whole_or_gap(self, file: SourceFile) -> list[Slice]:
        found = attempt_read("unreadable_bytes", lambda: list(self.slices(file)))
        if not isinstance(found, BadRecord):
            return found
        with open_binary(file.path) as opened_file:
            size = num_bytes(opened_file)
        return [Slice(0, size, 1, 1, size, 1, f"{_UNREADABLE}{found.detail}")]

    @abstractmethod
    def slices(self, file: SourceFile) -> Iterator[Slice]:
        """Cut one file into slices of at most `unit_records` records."""

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[Record]:
        """Yield the records of one slice of a file that is not empty.

        A gap is a record too (see `unreadable`).
        """

    def records_of(self, unit: Unit) -> Iterator[Record]:
        """Yield the records of a unit: exactly `unit.records` of them.

        Where their reader fails, those that it has not given are bad records.

        Raises: StageError where the file gives another number than when it was planned;
        StorageError.
        """
        number = 0
        try:
            for record in self._records_of(unit):
                number += 1
                yield record
        except Exception as error:
            if passes(error):
                raise
            bad = bad_record("unreadable_bytes", error)
            yield from (self._lost(unit, place, bad) for place in range(number, unit.records))
            number = max(number, unit.records)
        if number != unit.records:
            raise StageError(
                f"unit {unit.unit} gave {number} records instead of {unit.records}",
                f"{unit.path} is not the file that was planned",
                "Restore the file, or run again so that it is planned again.",
                unit=unit.unit,
            )

    def _records_of(self, unit: Unit) -> Iterator[Record]:
        if is_empty(unit.stamp):
            yield self._empty_file(unit)
        elif unit.state.startswith(_UNREADABLE):
            require_unchanged(unit)
            gap = Gap(unit.start, unit.stop, unit.state.removeprefix(_UNREADABLE))
            yield self.unreadable(unit, gap)
        elif unit.state == _DAMAGE:
            require_unchanged(unit)
            if gap := damage(unit.path, stream_index(unit.path, self.index_folder)):
                yield self.unreadable(unit, gap)
        else:
            yield from self.read(unit)

    def _lost(self, unit: Unit, number: int, bad: BadRecord) -> Record:
        """Make the record that stands for the record `number` of a unit, which its reader did not give."""
        place = f"@{unit.start}#{number}"
        return Record(f"{self.relative(unit)}{place}", f"{unit.path}{place}", {}, bad=bad)

    def _empty_file(self, unit: Unit) -> Record:
        bad = BadRecord("empty_file", "the file holds no byte")
        return Record(self.relative(unit), unit.path, {}, bad=bad)

    def unreadable(self, unit: Unit, gap: Gap) -> Record:
        """Make the one record that stands for all that lay in a gap of a unit's file."""
        detail = f"{gap.stop - gap.start:,} bytes from byte {gap.start:,} on: {gap.why}"
        bad = BadRecord(gap.reason, detail)
        place = f"@{gap.start}"
        return Record(f"{self.relative(unit)}{place}", f"{unit.path}{place}", {}, bad=bad)

    def record(
        self,
        key: str,
        location: str,
        fields: dict[str, Any] | BadRecord,
        audio: AudioLocation | None = None,
    ) -> Record:
        """Make a record, whose key is its id if the settings name a field with the id."""
        if isinstance(fields, BadRecord):
            return Record(short_key(key), location, {}, bad=fields)
        place = short_key(key)
        try:
            key = short_key(record_key(fields, self.settings.fields.id, key))
            return Record(key, location, fields, audio)
        except BadRecord as bad:
            return Record(place, location, fields, bad=bad)

    def remarks(self, units: Sequence[Unit]) -> dict[str, int]:
        """Return what a user should know of the source as a whole, whose units these are.

        Each remark has the number of records that it is about.
        """
        return {}

    def relative(self, unit: Unit) -> str:
        """Return the name of the unit's file, on which the keys of its records are based."""
        return relative_name(unit.path, self.settings.paths)

    def prefix(self, unit: Unit) -> str:
        """Return `relative` without the extension."""
        return stem(self.relative(unit))


class SpeechFiles(SourceFiles[SpeechSourceConfig]):
    """A source of speech clips."""

    modality = SPEECH


class TextFiles(SourceFiles[TextSourceConfig]):
    """A source of instruction samples."""

    modality = TEXT
