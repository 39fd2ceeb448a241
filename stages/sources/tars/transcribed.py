"""Tars of audio alone, whose transcripts stand in a table, as in ReazonSpeech.

Planning looks up the members of a tar in the table and keeps where their rows are, so that a unit
reads these rows and nothing else of the table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from koe.errors import BadRecord, ConfigError, StorageError, attempt
from koe.schema import Unit
from stages.sources.files.compressed import opened
from stages.sources.files.kept import keep, kept, kept_numbers
from stages.sources.files.listing import SourceFile, stamp_with_beside
from stages.sources.files.moves import name_of
from stages.sources.files.opening import exists, is_empty, reading, stamp, what_else
from stages.sources.planning import Known, scan_all
from stages.sources.tables.forms import AudioTable, find_table
from stages.sources.tables.rows import Row
from stages.sources.tars.samples import Placed, Sample
from stages.sources.tars.transcript_index import (
    ABSENT,
    Numbers,
    TranscriptIndex,
    plain_path,
    rows_at,
    transcript_index,
)
from stages.sources.tars.webdataset import FieldsOf, WebDatasetSource

_FOUND, _REMARKS = ".found", ".remarks"
_EXAMPLES = 3


class TranscribedTars(WebDatasetSource):
    """Tars whose audio is known to a table by its path in the tar."""

    @property
    def _path(self) -> str:
        assert self.settings.transcripts is not None
        return self.settings.transcripts

    @property
    def own_names(self) -> frozenset[str]:
        return frozenset(self._table.rows.columns) if self.settings.layout else frozenset()

    def files(self) -> list[SourceFile]:
        """List the tars, each with the table beside it.

        Raises: ConfigError also where there is no table, or it lacks a column.
        """
        kind = what_else(self._path)
        if kind or not exists(self._path):
            raise ConfigError(
                f"source {self.name} finds no table of transcripts",
                f"{self._path} is {kind}" if kind else f"there is no {self._path}",
                "Set transcripts to the file with the table.",
            )
        assert self._table is not None  # it is looked at before any work
        return [SourceFile(f.path, f.relative, (self._path,)) for f in super().files()]

    def units(self, known: Known = scan_all) -> Iterator[Unit]:
        def known_or_indexed(path: str, mark: str) -> Sequence[Unit] | None:
            planned = known(path, mark)
            if planned is None:
                with reading(self._path):
                    self._index()  # here, before several processes ask for it
            return planned

        yield from super().units(known_or_indexed)

    @cached_property
    def _table(self) -> AudioTable:
        path, fields = self._path, self.settings.fields
        with reading(path), opened(path, stamp(path), self.index_folder) as file:
            return find_table(self.settings, path, file, {"text": fields.text})

    def _index(self) -> TranscriptIndex:
        return transcript_index(self._path, stamp(self._path), self._table, self.index_folder)

    def seen(
        self, samples: Iterator[Sample | Placed], file: SourceFile
    ) -> Iterator[Sample | Placed]:
        """Keep where the rows of a tar's samples are: all places in the tar, then all in the table."""
        names: list[str] = []
        places: list[int] = []
        for item in samples:
            audio = attempt(self.audio_of, item) if isinstance(item, Sample) else None
            if audio is not None and not isinstance(audio, BadRecord):
                names.append(audio.name)
                places.append(audio.offset)
            yield item
        with reading(self._path):
            found = np.concatenate([np.array(places, np.int64), self._index().find(names)])
        key = self._key(file.path, stamp_with_beside(file))
        if self.index_folder:
            keep(self.index_folder, key, found.tobytes())
        self._last.clear()
        self._last[key] = found

    @cached_property
    def _last(self) -> dict[str, Numbers]:
        """What was found for the tar that was asked for last, because its units follow each other."""
        return {}

    def _key(self, path: str, mark: str) -> str:
        return name_of(
            self.index_folder, path, f"{mark}|{self._table}|{self.settings.fields.audio}", _FOUND
        )

    def _found(self, path: str, mark: str) -> tuple[Numbers, Numbers]:
        """Return where the audio members of a tar begin, and for each what the index gives."""
        key = self._key(path, mark)
        found = self._last.get(key)
        if found is None and self.index_folder:
            found = kept_numbers(self.index_folder, key)
        if found is None and not is_empty(mark):
            for _ in self.slices(SourceFile(path, "", (self._path,))):
                pass  # planned elsewhere, or nothing is kept
            found = self._last[key]
        places, rows = np.split(np.empty(0, np.int64) if found is None else found, 2)
        return places, rows

    def fields_of(self, unit: Unit) -> FieldsOf:
        """Read the rows of a unit's samples; a sample's fields are those of its row and of its tar."""
        self._require_unchanged(unit)
        places, rows = self._found(unit.path, unit.stamp)
        inside = (places >= unit.start) & (places < unit.stop)
        row_of = dict(zip(places[inside].tolist(), rows[inside].tolist(), strict=True))
        by_place = self._rows(row_of.values())

        def fields(tar: BinaryIO, sample: Sample) -> dict[str, Any]:
            audio = self.audio_of(sample)
            row = row_of.get(audio.offset, ABSENT)
            return {**self.sidecars(tar, sample), **self._values(audio.name, row, by_place)}

        return fields

    def _require_unchanged(self, unit: Unit) -> None:
        if stamp_with_beside(SourceFile(unit.path, "", (self._path,))) != unit.stamp:
            raise StorageError(
                f"{unit.path} or {self._path} changed since it was planned",
                "their sizes and modifications are other ones",
                "Run again: units are planned again, and only those that changed are redone.",
            )

    def _rows(self, rows: Iterable[int]) -> dict[int, Row]:
        """Read the rows of a table that an index gave."""
        path, wanted = self._path, [_place(row) for row in rows if row != ABSENT]
        with reading(path):
            found = rows_at(path, stamp(path), self._table.rows, wanted, self.index_folder)
            return {row.start: row for row in found}

    def _values(self, audio: str, row: int, by_place: Mapping[int, Row]) -> dict[str, Any]:
        """Return the cells of the row for a member. Raises: BadRecord."""
        name, path = plain_path(audio), self._path
        if row == ABSENT:
            raise BadRecord("missing_transcript", f"{path} has no row for {name}")
        if row < 0:
            detail = f"{path} has several rows for {name}, with other texts; the first is at byte"
            raise BadRecord("ambiguous_transcript", f"{detail} {_place(row)}")
        values = self._table.values(by_place[row])
        if isinstance(values, BadRecord):
            raise values
        if plain_path(values[self._table.audio]) != name:
            detail = f"{name} has the hash of {values[self._table.audio]} in {path}"
            raise BadRecord("ambiguous_transcript", f"{detail}: rename it")
        return values

    def remarks(self, units: Sequence[Unit]) -> dict[str, int]:
        """Count the rows that have no audio, more than one, or cannot be read, with examples.

        Raises: StorageError.
        """
        tars = list(dict.fromkeys((unit.path, unit.stamp) for unit in units))
        digest = hashlib.sha256(repr((tars, stamp(self._path))).encode()).hexdigest()
        name = name_of(self.index_folder, self._path, digest, _REMARKS)
        if self.index_folder and (stored := kept(self.index_folder, name)):
            return json.loads(stored)
        with reading(self._path):
            remarks = self._remarks(tars)
        if self.index_folder:
            keep(self.index_folder, name, json.dumps(remarks).encode())
        return remarks

    def _remarks(self, tars: Iterable[tuple[str, str]]) -> dict[str, int]:
        index, path = self._index(), self._path
        found = np.concatenate([np.empty(0, np.int64), *(self._found(*tar)[1] for tar in tars)])
        used, times = np.unique(_places(found[found != ABSENT]), return_counts=True)
        unused = np.setdiff1d(_places(index.rows), used)
        remarks: dict[str, int] = {}
        for rows, what in (
            (unused, "name audio that is in none of the tars"),
            (used[times > 1], "name audio that is several members of tars"),
            (index.broken, "cannot be read"),
        ):
            if len(rows):
                shown = ", ".join(self._shown(rows[:_EXAMPLES].tolist()))
                remarks[f"rows of {path} {what}, such as {shown}"] = len(rows)
        return remarks

    def _shown(self, places: Sequence[int]) -> Iterator[str]:
        for place, row in sorted(self._rows(places).items()):
            values = self._table.values(row)
            is_broken = isinstance(values, BadRecord)
            yield f"byte {place} ({values.detail})" if is_broken else values[self._table.audio]


def _place(row: int) -> int:
    return ~row if row < 0 else row


def _places(rows: Numbers) -> Numbers:
    return np.where(rows < 0, ~rows, rows)
