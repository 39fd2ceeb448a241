"""The plan: which slices of which source files are the run's units, decided once from the inputs.

`plan.json` in the run directory remembers the slices of each file by the file's stamp, so that a
file is scanned again only when it changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

from koe.dataflow import PLAN
from koe.errors import ContractError
from koe.fingerprint import sha256_json
from koe.schema import SCHEMA_VERSION, Unit
from pipeline.run_dir.storage import Storage
from stages.sources.files.moves import Move, between
from stages.sources.planning import unit_prefix

# Returns the units of a file (path, stamp) that was planned before; None for a new one.
Known = Callable[[str, str], Sequence[Unit] | None]


class PlannedSource(Protocol):
    """A source as far as the plan needs it."""

    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> str: ...
    def units(self, known: Known = ...) -> Iterable[Unit]: ...
    def relative(self, unit: Unit) -> str: ...
    def remarks(self, units: Sequence[Unit]) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Lost:
    """What lies in the gaps of units, about `records` records in `num_bytes` bytes.

    `gaps` records stand for it in the quarantine.
    """

    gaps: int
    num_bytes: int
    records: int

    @property
    def uncounted(self) -> int:
        """About how many records were lost beyond those that the quarantine counts."""
        return self.records - self.gaps


def by_source(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    """Group units by the name of their source."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.source, []).append(unit)
    return groups


def lost_in(units: Iterable[Unit]) -> Lost:
    """Sum up the gaps of units of one source.

    A file in which nothing can be read tells nothing of the size of its records: those of the other
    files count.
    """
    units = list(units)
    gaps = sum(unit.gaps for unit in units)
    num_bytes = sum(unit.lost_bytes for unit in units)
    num_read = Counter[str]()
    for unit in units:
        num_read[unit.path] += unit.records - unit.gaps
    sizes = {unit.path: _file_bytes(unit) for unit in units}
    mean = max(sum(sizes.values()) - num_bytes, 0) / (num_read.total() or 1)
    records = 0
    for unit in units:
        by_size = round(unit.lost_bytes / mean) if mean and not num_read[unit.path] else 0
        records += max(unit.lost_records, by_size)
    return Lost(gaps, num_bytes, records)


def _file_bytes(unit: Unit) -> int:
    size = unit.stamp.partition(":")[0]
    return int(size) if size.isdecimal() else 0


@dataclass(frozen=True)
class Plan:
    """All units of a run in their fixed order, and the modality of every source.

    `remarks` are what a user should know of a source as a whole, each with a number. `moves`: of the
    sources whose files lie elsewhere than when they were planned. A plan that was just made names
    files where they are, and a stored one where they were.
    """

    units: tuple[Unit, ...]
    modalities: dict[str, str]
    remarks: dict[str, dict[str, int]] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)

    def units_of(self, modality: str, source: str | None = None) -> list[Unit]:
        """List the units of a modality, of one source only where it is named."""
        return [
            unit
            for unit in self.units
            if unit.modality == modality and source in (None, unit.source)
        ]


def make_plan(
    sources: Iterable[tuple[PlannedSource, Any]],
    storage: Storage,
    on_file: Callable[[str, str], None] = lambda source, path: None,
) -> Plan:
    """Plan the units of all sources and remember them in the run directory.

    `sources`: each source with all that decides its slices beside the files. A file whose stamp
    and settings are those of the stored plan is not scanned again, also where it was copied elsewhere
    with the folders around it; `on_file` is told of the others.
    Raises: ConfigError when a path of a source matches nothing.
    """
    stored = _stored_files(storage)
    files: dict[str, list[dict[str, Any]]] = {}
    units: list[Unit] = []
    modalities: dict[str, str] = {}
    remarks: dict[str, dict[str, int]] = {}
    moves: dict[str, Move] = {}
    for source, settings in sources:
        modalities[source.name] = source.modality
        files_before = _FilesBefore(source, settings, stored)
        own = list(source.units(partial(files_before.known, on_file)))
        for unit in own:
            planned = files_before.as_planned(unit)
            key = files_before.key(unit.path, unit.stamp)
            files.setdefault(key, []).append(planned.to_row())
        units += own
        if files_before.move:
            moves[source.name] = files_before.move
        if found := source.remarks(own):
            remarks[source.name] = dict(found)
    _require_distinct(units)
    body = {"schema_version": SCHEMA_VERSION, "modalities": modalities, "files": files}
    body["remarks"] = remarks
    storage.write_bytes(PLAN, json.dumps(body, ensure_ascii=False, indent=1).encode())
    return Plan(tuple(units), modalities, remarks, moves)


class _FilesBefore:
    """What a stored plan knows of the files of a source, and where they have moved since."""

    def __init__(
        self, source: PlannedSource, settings: Any, stored: Mapping[str, list[dict[str, Any]]]
    ) -> None:
        self._source, self._settings, self._stored = source, settings, stored
        self._stays = False  # a file was found where it was
        self.move: Move | None = None

    def known(
        self, on_file: Callable[[str, str], None], path: str, stamp: str
    ) -> list[Unit] | None:
        """Return the units of a file that was planned before, wherever it was then."""
        rows = self._stored.get(self.key(path, stamp))
        self._stays = self._stays or (rows is not None and self.move is None)
        if rows is None and self.move is None and not self._stays:
            self.move = self._found_elsewhere(path, stamp)
            rows = self._stored[self.key(path, stamp)] if self.move else None
        if rows is None:
            on_file(self._source.name, path)
            return None
        return [replace(Unit.from_row(row), path=path) for row in rows]

    def key(self, path: str, stamp: str) -> str:
        return _key(self._source.name, self._settings, path, stamp, self.move)

    def as_planned(self, unit: Unit) -> Unit:
        """Return a unit as it is stored: with the path that its file had when it was planned."""
        return replace(unit, path=self.move.to_planned(unit.path)) if self.move else unit

    def _found_elsewhere(self, path: str, stamp: str) -> Move | None:
        """Find a file of this stamp and name, which the source calls the same, in another folder."""
        name = self._source.name
        for before, unit in self._by_name.get((stamp, path.rpartition("/")[2]), ()):
            move = between(before, path)
            is_same = _key(name, self._settings, path, stamp, move) in self._stored
            relative = self._source.relative(replace(unit, path=path))
            if is_same and unit.unit.startswith(unit_prefix(name, relative)):
                return move
        return None

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], list[tuple[str, Unit]]]:
        """List the stored files of the source, with a unit of each, by stamp and last part."""
        found: dict[tuple[str, str], list[tuple[str, Unit]]] = {}
        for unit in (Unit.from_row(row) for rows in self._stored.values() for row in rows[:1]):
            if unit.source == self._source.name:
                key = (unit.stamp, unit.path.rpartition("/")[2])
                found.setdefault(key, []).append((unit.path, unit))
        return found


def _key(name: str, settings: Any, path: str, stamp: str, move: Move | None) -> str:
    """Fingerprint all that decides the units of a file, named as it was when it was planned."""
    if move:
        settings, path = move.settings_as_planned(settings), move.to_planned(path)
    return sha256_json([name, settings, path, stamp])


def _require_distinct(units: Iterable[Unit]) -> None:
    seen: dict[str, str] = {}
    for unit in units:
        if unit.unit in seen:
            raise ContractError(
                f"two units are called {unit.unit}",
                f"they are slices of {seen[unit.unit]} and {unit.path}",
                "Rename one of the files or its source.",
            )
        seen[unit.unit] = unit.path


def load_plan(storage: Storage) -> Plan | None:
    """Read the stored plan; None where nothing was planned yet.

    Raises: ContractError for a plan that is incomplete, or of another version of koe.
    """
    data = storage.find_bytes(PLAN)
    if data is None:
        return None
    body = _stored_body(data)
    if body is None:
        raise ContractError(
            f"{PLAN} in {storage.root} is not a complete plan of this version of koe",
            "writing it was interrupted, or another version of koe or another program wrote it",
            "Run `koe run`: it is planned again.",
        )
    units = tuple(Unit.from_row(row) for rows in body["files"].values() for row in rows)
    return Plan(units, body["modalities"], body.get("remarks", {}))


def _stored_files(storage: Storage) -> dict[str, list[dict[str, Any]]]:
    data = storage.find_bytes(PLAN)
    body = None if data is None else _stored_body(data)
    return (
        {} if body is None else body["files"]
    )  # unusable: it is planned again, since everything in it is derived


def _stored_body(data: bytes) -> dict[str, Any] | None:
    """Read a stored plan; None if it is not complete, or not of this version."""
    try:
        body = json.loads(data)
        units = [Unit.from_row(row) for rows in body["files"].values() for row in rows]
        known = body["modalities"].keys()
        is_complete = all(unit.source in known for unit in units)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return body if is_complete and body.get("schema_version") == SCHEMA_VERSION else None
