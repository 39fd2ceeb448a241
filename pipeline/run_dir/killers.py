"""Records that were found to end the worker that works on them: a stage leaves them out, unopened."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, ValidationError

from koe.dataflow import KILLERS
from koe.errors import BadRecord, ContractError
from pipeline.run_dir.set_aside import UnitKey
from pipeline.run_dir.storage import Storage

REASON = "kills_the_worker"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Killer(_Stored):
    """A record that ends its worker; `place` counts the records of the unit's input from 0."""

    place: int
    id: str
    source: str
    location: str
    how: str

    def bad(self) -> BadRecord:
        return BadRecord(REASON, self.how)


class UnitKillers(_Stored):
    """Those of a unit in a stage. With another input than they were found in, nothing is known."""

    input_sha256: str
    records: tuple[Killer, ...]


class KillersFile(_Stored):
    """All that is known of a run: one small file, which one request reads."""

    found: dict[str, dict[str, UnitKillers]] = {}  # by stage and unit


def read_killers(storage: Storage) -> KillersFile:
    """Read `killers.json`; without the file none is known.

    Raises: ContractError for a file that is damaged or of another version, since it decides bytes.
    """
    data = storage.find_bytes(KILLERS)
    try:
        return KillersFile() if data is None else KillersFile.model_validate_json(data)
    except ValidationError as error:
        raise ContractError(
            f"{KILLERS} does not say which records end their worker",
            "it is damaged, or another version of koe wrote it",
            "Remove it: the units that it is about are tried with all of their records again.",
        ) from error


def add_killers(storage: Storage, key: UnitKey, killers: UnitKillers) -> None:
    """Note the killers of a unit in a stage, in place of those noted before."""
    stage, unit = key
    found = read_killers(storage).found
    of_stage = dict(sorted({**found.get(stage, {}), unit: killers}.items()))
    _write(storage, KillersFile(found=dict(sorted({**found, stage: of_stage}.items()))))


def forget_killers(storage: Storage, stages: Collection[str]) -> None:
    """Forget the killers of stages: their records are tried again."""
    known = read_killers(storage)
    left = {stage: units for stage, units in known.found.items() if stage not in stages}
    if left != known.found:
        _write(storage, KillersFile(found=left))


def _write(storage: Storage, killers: KillersFile) -> None:
    if killers.found:
        storage.write_bytes(KILLERS, killers.model_dump_json(indent=1).encode())
    else:
        storage.remove(KILLERS)
