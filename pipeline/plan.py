"""The plan: which slices of which source files are the run's units, decided once from the inputs.

`plan.json` in the run directory remembers the slices of each file by the file's stamp, so that a
file is scanned again only when it changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

from pipeline.errors import ContractError
from pipeline.fingerprint import sha256_json
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage import Storage

PLAN = "plan.json"


class PlannedUnit(Protocol):
    """A slice of a source file; fields as in `pipeline.schema.UNIT`."""

    @property
    def unit(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def modality(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def stamp(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def records(self) -> int: ...
    @property
    def fault(self) -> str | None: ...


class PlannedSource(Protocol):
    """A source as far as the plan needs it."""

    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> str: ...
    def files(self) -> list[tuple[str, str]]: ...
    def units_of(self, path: str, stamp: str) -> Iterable[PlannedUnit]: ...


@dataclass(frozen=True)
class Plan:
    """All units of a run in their fixed order, and the modality of every source."""

    units: tuple[PlannedUnit, ...]
    modalities: dict[str, str]

    @cached_property
    def descriptors(self) -> dict[str, dict[str, Any]]:
        """Units by name, as rows of UNIT."""
        return {unit.unit: asdict(unit) for unit in self.units}  # type: ignore[call-overload]

    def of(self, modality: str) -> list[str]:
        return [unit.unit for unit in self.units if unit.modality == modality]


@dataclass(frozen=True)
class StoredUnit:
    """A unit as `plan.json` keeps it; fields as in `pipeline.schema.UNIT`."""

    unit: str
    source: str
    modality: str
    path: str
    stamp: str
    start: int
    stop: int
    records: int
    fault: str | None = None


def make_plan(
    sources: Iterable[tuple[PlannedSource, dict[str, Any]]],
    storage: Storage,
    on_file: Callable[[str, str], None] = lambda source, path: None,
) -> Plan:
    """Plan the units of all sources and remember them in the run directory.

    `sources`: each source with the settings that decide its slices. A file whose stamp and
    settings are those of the stored plan is not scanned again. `on_file` is told of every file
    that is.
    Raises: ConfigError when a path of a source matches nothing.
    """
    known = _stored_files(storage)
    files: dict[str, list[dict[str, Any]]] = {}
    units: list[StoredUnit] = []
    modalities: dict[str, str] = {}
    for source, settings in sources:
        modalities[source.name] = source.modality
        for path, stamp in source.files():
            key = sha256_json([source.name, settings, path, stamp])
            if key not in known:
                on_file(source.name, path)
                known[key] = [asdict(unit) for unit in source.units_of(path, stamp)]  # type: ignore[call-overload]
            files[key] = known[key]
            units += [StoredUnit(**row) for row in known[key]]
    names = [unit.unit for unit in units]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ContractError(
            f"two units are called {twice[0]}",
            "two sources of one name read the same file",
            "List every file once.",
        )
    body = {"schema_version": SCHEMA_VERSION, "modalities": modalities, "files": files}
    storage.write_bytes(PLAN, json.dumps(body, ensure_ascii=False, indent=1).encode())
    return Plan(tuple(units), modalities)


def load_plan(storage: Storage) -> Plan | None:
    """Read the stored plan; None where nothing was planned yet."""
    if storage.size(PLAN) is None:
        return None
    body = json.loads(storage.read_bytes(PLAN))
    units = tuple(StoredUnit(**row) for rows in body["files"].values() for row in rows)
    return Plan(units, body["modalities"])


def _stored_files(storage: Storage) -> dict[str, list[dict[str, Any]]]:
    if storage.size(PLAN) is None:
        return {}
    try:
        body = json.loads(storage.read_bytes(PLAN))
    except json.JSONDecodeError:
        return {}  # torn by another writer: planned afresh, it holds nothing that is not derived
    return body.get("files", {}) if body.get("schema_version") == SCHEMA_VERSION else {}
