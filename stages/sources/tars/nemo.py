"""NeMo's tarred sets: lines of JSON, each of which names a member of the tar of its shard.

The layout is that of scripts/speech_recognition/convert_to_tarred_audio_dataset.py of NeMo 2.6:
`tarred_audio_manifest.json` for all tars `audio_0.tar` and so on, and, in `sharded_manifests`,
`manifest_0.json` and so on for one tar each.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from koe.errors import BadRecord, ConfigError
from koe.schema import Unit
from stages.boundary import attempt_read
from stages.sources.base import AudioLocation, Record
from stages.sources.fields import BROKEN_JSON, lookup, parse_object
from stages.sources.files.compressed import scanned
from stages.sources.files.lines import lines
from stages.sources.files.listing import SourceFile, expand
from stages.sources.files.opening import parent, reading
from stages.sources.files.streams import plain_name
from stages.sources.json_files.manifest import SKIP, line_slices, marked_to_skip, segment_name
from stages.sources.planning import Slice
from stages.sources.tars.header import Member
from stages.sources.tars.member_index import TarIndex, index_tar
from stages.sources.tars.tarred import TarredFiles, Unlisted, unnamed

_AUDIO, _SHARD = "audio_filepath", "shard_id"
_OF_ALL_SHARDS = "tarred_audio_manifest"
_SHARDED = "/sharded_manifests"
_MAX_DIGITS = 18
_TARS = ("audio_*.tar", "audio_*.tar.gz", "audio_*.tgz", "audio_*.tar.zst", "audio_*.tzst")
# The last number behind an underscore, as NeMo finds it, or else the last number.
_NUMBER = re.compile(r"_(\d+)[^/]*\.(?:tar|tgz|tzst)|(\d+)[^/\d]*\.(?:tar|tgz|tzst)")
_NUMBER_OF_MANIFEST = re.compile(r"manifest[^/]*_(\d+)[^/]*\.json")
# Several records of one file have names of their own where that file is stored once.
_SUFFIX = re.compile(r"-sub\d+(?=\.\w+$|$)")

Tars = dict[int, str]  # by the number of the shard


@dataclass(frozen=True)
class _Entry:
    """A record's member, and the shards it may lie in: that which it names, and its manifest's."""

    start: int
    name: str
    shards: tuple[int, ...]
    values: dict[str, Any]


class NemoTarredSource(TarredFiles):
    """Manifests whose records name members of tars."""

    @property
    def own_names(self) -> frozenset[str]:
        return frozenset((_SHARD, SKIP))

    def files(self) -> list[SourceFile]:
        if self.settings.tars and (alone := set(self._tars("").values()) - self._manifests.keys()):
            raise ConfigError(
                f"source {self.name} has a tar without manifest",
                f"{min(alone)} is of a shard that none of its manifests is of",
                "Name the manifest of each shard in paths, or leave the tar out of tars.",
            )
        return [
            SourceFile(file.path, file.relative, self.beside(file.path)) for file in self._found
        ]

    @cached_property
    def _found(self) -> list[SourceFile]:
        return super().files()

    def beside(self, path: str) -> tuple[str, ...]:
        """List the tars of a manifest, and the other manifests that name members of them."""
        tars = self._own(path)
        others = (other for tar in tars.values() for other in self._manifests[tar])
        return tuple(dict.fromkeys([*tars.values(), *(o for o in others if o != path)]))

    @cached_property
    def _manifests(self) -> dict[str, list[str]]:
        """The manifests of each tar."""
        found: dict[str, list[str]] = defaultdict(list)
        for file in self._found:
            for tar in self._own(file.path).values():
                found[tar].append(file.path)
        return found

    def _own(self, path: str) -> Tars:
        """Return the tars that a manifest is of: all of them, unless its name has a number."""
        tars = self._tars(path)
        number = number_of(path)
        if number is None or (number not in tars and len(self._found) == 1):
            return tars
        return {number: tars[number]} if number in tars else {}

    @cached_property
    def _by_folder(self) -> dict[str, Tars]:
        return {}

    def _tars(self, path: str) -> Tars:
        """Return the tars that records of a manifest may name."""
        folder = "" if self.settings.tars else parent(path).removesuffix(_SHARDED)
        if folder not in self._by_folder:
            self._by_folder[folder] = self._list_tars(folder)
        return self._by_folder[folder]

    def _list_tars(self, folder: str) -> Tars:
        paths: list[str] = []
        for pattern in self.settings.tars or [f"{folder}/{name}" for name in _TARS]:
            try:
                paths += [tar.path for tar in expand(self.name, [pattern], compressed=True)]
            except ConfigError:
                if self.settings.tars:
                    raise
        tars: Tars = {}
        for path in dict.fromkeys(paths):
            number = self._shard_of(path)
            if number in tars:
                raise ConfigError(
                    f"source {self.name} has two tars of shard {number}",
                    f"they are {tars[number]} and {path}",
                    "Name the right ones in tars; make a source of each set that has its own.",
                )
            tars[number] = path
        if not tars:
            raise ConfigError(
                f"source {self.name} finds no tars",
                f"there is no {folder}/audio_*.tar",
                "Name them in tars, as in tars: [audio_{0..511}.tar].",
            )
        return tars

    def _shard_of(self, path: str) -> int:
        numbers = [first or other for first, other in _NUMBER.findall(path.rpartition("/")[2])]
        if not numbers:
            raise ConfigError(
                f"source {self.name} cannot tell the shard of {path}",
                "its name has no number",
                "Name it as in audio_0.tar, as NeMo does.",
            )
        return int(numbers[-1])

    def slices(self, file: SourceFile) -> Iterator[Slice]:
        with self.scanned(file) as manifest:
            yield from line_slices(manifest, self.unit_records)

    def read_listed(self, unit: Unit) -> Iterator[Record]:
        relative, tars = self.relative(unit), self._tars(unit.path)
        with self.opened(unit) as file:
            found = [
                (start, attempt_read(BROKEN_JSON, self._entry, tars, unit.path, start, line))
                for start, _, line in lines(file, unit.start, unit.stop)
            ]
        places = self._locate_all(tars, [e for _, e in found if isinstance(e, _Entry)])
        folder = parent(relative).removesuffix(_SHARDED).removesuffix(_SHARDED[1:])
        for start, entry in found:
            location = f"{unit.path}@{start}"
            if isinstance(entry, BadRecord):
                yield self.record(f"{relative}@{start}", location, entry)
                continue
            part = segment_name(entry.values, self.settings.fields)
            shard = "/".join(map(str, entry.shards[:1]))
            key = "/".join(filter(None, (folder, shard, f"{entry.name}{part}")))
            place = places[start]
            if isinstance(place, BadRecord):
                yield self.record(key, location, place)
            else:
                yield self.record(key, location, self._values(entry), place)

    def _entry(self, tars: Tars, path: str, start: int, line: bytes) -> _Entry:
        """Parse the line at byte `start` of a manifest. Raises: BadRecord."""
        values = parse_object(line)
        field = self.settings.fields.audio or _AUDIO
        name = lookup(values, field)
        if not isinstance(name, str) or not name.strip():
            detail = f"no field {field} with the name of a member; the record has "
            raise BadRecord("missing_audio", f"{detail}{', '.join(values) or 'no fields':.200}")
        return _Entry(start, name.removeprefix("./"), _shards(tars, path, values), values)

    def _locate_all(
        self, tars: Tars, entries: list[_Entry]
    ) -> dict[int, AudioLocation | BadRecord]:
        """Map the starts of entries to the places of their audio; looks at each tar once."""
        ordered = sorted(entries, key=lambda entry: entry.shards)
        return {
            entry.start: attempt_read(BROKEN_JSON, self._locate, tars, entry) for entry in ordered
        }

    def _locate(self, tars: Tars, entry: _Entry) -> AudioLocation:
        if skipped := marked_to_skip(entry.values):
            raise skipped
        if not entry.shards:
            detail = f"there is no {_SHARD}, nor a number in the manifest's name"
            raise BadRecord("missing_audio", detail)
        looked = [index for number in entry.shards if (index := self._index(tars.get(number)))]
        if not looked:
            raise BadRecord("missing_audio", f"there is no tar of shard {entry.shards[0]}")
        found = [(index, matches(index, entry.name)) for index in looked]
        holding = [(index, members) for index, members in found if members] or found[:1]
        if len(holding) > 1:
            paths = " and ".join(index.path for index, _ in holding)
            detail = f"{_SHARD} and the manifest's name differ, and {entry.name} is in {paths}"
            raise BadRecord("ambiguous_audio", detail)
        index, members = holding[0]
        return index.place(members, entry.name)

    def _index(self, path: str | None) -> TarIndex | None:
        return index_tar(path, _stem, self.index_folder) if path else None

    def _values(self, entry: _Entry) -> dict[str, Any]:
        """Return the fields of a record: one that states only a length begins where its audio does."""
        fields = self.settings.fields
        starts = (fields.start_seconds, fields.end_seconds)
        if fields.start_seconds is None or any(
            lookup(entry.values, name) not in (None, "") for name in starts
        ):
            return entry.values
        if lookup(entry.values, fields.seconds) in (None, ""):
            return entry.values
        return {**entry.values, fields.start_seconds: 0.0}

    def find_unlisted(self, file: SourceFile) -> Iterator[Unlisted]:
        tars = {self._shard_of(path): path for path in file.beside if _is_tar(path)}
        manifests = sorted(
            [file.path, *(path for path in file.beside if path not in tars.values())]
        )
        named: dict[int, set[str]] = {number: set() for number in tars}
        first: dict[int, str] = {}  # of the manifests that name members of a tar, which counts them
        for manifest in manifests:
            number = number_of(manifest)
            for shard in tars if number is None or number not in tars else [number]:
                first.setdefault(shard, manifest)
            for entry in self._entries(tars, manifest):
                for shard in named.keys() & set(entry.shards):
                    named[shard].add(entry.name)
        for number, path in tars.items():
            index = self._index(path) if first[number] == file.path else None
            if index:
                names = sorted(named[number])
                yield from unnamed(index, (m for name in names for m in matches(index, name)))

    def _entries(self, tars: Tars, path: str) -> Iterator[_Entry]:
        with reading(path), scanned(path, self.index_folder) as manifest:
            for start, _, line in lines(manifest, 0, None):
                entry = attempt_read(BROKEN_JSON, self._entry, tars, path, start, line)
                if isinstance(entry, _Entry):
                    yield entry


def _shards(tars: Tars, path: str, values: dict[str, Any]) -> tuple[int, ...]:
    """Return the shards whose tar may hold the member of a record. Raises: BadRecord."""
    stated, number = values.get(_SHARD), number_of(path)
    text = str(stated) if isinstance(stated, int | str) else ""
    if stated is not None and not (text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise BadRecord(
            "missing_audio", f"{_SHARD} is {stated!r:.200}, which is no number of a tar"
        )
    known = [int(stated)] if stated is not None else []
    if number is not None and (number in tars or not known):
        known.append(number)
    return tuple(dict.fromkeys(known)) or (tuple(tars) if len(tars) == 1 else ())


def number_of(path: str) -> int | None:
    """Return the number of the shard that a manifest is of; None for one of all shards."""
    name = path.rpartition("/")[2]
    found = _NUMBER_OF_MANIFEST.search(name)
    return int(found[1]) if found and _OF_ALL_SHARDS not in name else None


def _is_tar(path: str) -> bool:
    return plain_name(path).lower().endswith(".tar")


def _stem(name: str) -> str | None:
    """Return the last part of a member's name without extension, by which NeMo finds it."""
    last = name.rpartition("/")[2]
    return None if last.startswith(".") else last.rpartition(".")[0] or last


def matches(index: TarIndex, name: str) -> list[Member]:
    """List the members that a record may mean: of its name, or else with another extension or folder.

    A record with a suffix such as `-sub1` means the member without it, if there is none with it.
    """
    for asked in dict.fromkeys((name, _SUFFIX.sub("", name))):
        found = index.members.get(_stem(asked) or "", [])
        exact = [member for member in found if member.name.removeprefix("./") == asked]
        if exact or found:
            return exact or found
    return []
