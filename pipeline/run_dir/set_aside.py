"""Attempts at units that never ended: those of a run, and the units set aside because of them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from koe.dataflow import ATTEMPTS, set_aside_path
from koe.errors import ContractError
from pipeline.run_dir.storage import Storage

UnitKey = tuple[str, str]  # stage and unit

RETRY = "koe run --retry-set-aside"


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Death(_Stored):
    """An attempt at a unit that never ended.

    `ended` says what ended: the worker, the node that it was on, the machine while no other unit was
    in flight, or the whole run. `how` says how, as far as anything tells. `seconds` is None where
    nobody saw when it began.
    """

    ended: Literal["worker", "node", "machine", "run"]
    at: str  # time of day, ISO 8601
    node: str
    how: str
    seconds: float | None = None
    peak_mb: float | None = None  # of the worker's memory, over all of its units
    last_record: str = ""  # whose decoding was begun last
    traceback: str = ""


class SetAside(_Stored):
    """Why a unit is left aside: the file `<stage>/<unit>.set-aside.json`."""

    stage: str
    unit: str
    attempts: tuple[Death, ...]

    def describe(self) -> str:
        """Say it in one line."""
        last = self.attempts[-1]
        times = "once" if len(self.attempts) == 1 else f"{len(self.attempts)} times"
        record = f", the last record begun was {last.last_record}" if last.last_record else ""
        memory = f", its worker had used {last.peak_mb:,.0f} MB" if last.peak_mb else ""
        return f"it was begun {times} and never ended; at last: {last.how}{record}{memory}"


class InFlight(_Stored):
    """A unit that was being worked on when this was written."""

    stage: str
    unit: str
    since: float
    node: str
    boot: str
    alone: bool
    machine: str = ""  # that the worker is on; `node` and `boot` are those of the run's own process


class AttemptsFile(_Stored):
    """What the next run has to know, in `attempts.json`: one request tells it on an object store."""

    in_flight: tuple[InFlight, ...] = ()
    deaths: dict[str, dict[str, tuple[Death, ...]]] = {}  # by stage and unit
    set_aside: tuple[UnitKey, ...] = ()  # as far as their files are still there


def read_attempts(storage: Storage) -> AttemptsFile:
    """Read `attempts.json`; what is not there, or of another version, counts as nothing."""
    data = storage.find_bytes(ATTEMPTS)
    try:
        return AttemptsFile() if data is None else AttemptsFile.model_validate_json(data)
    except ValidationError:  # it decides no bytes: attempts are counted anew
        return AttemptsFile()


def write_attempts(storage: Storage, attempts: AttemptsFile) -> None:
    """Write `attempts.json`, or remove it when there is nothing to say."""
    if attempts == AttemptsFile():
        storage.remove(ATTEMPTS)
    else:
        storage.write_bytes(ATTEMPTS, attempts.model_dump_json(indent=1).encode())


def set_aside_units(storage: Storage, attempts: AttemptsFile | None = None) -> list[SetAside]:
    """Read which units are set aside, and why. A unit whose file was removed is not.

    `attempts`: what `read_attempts` gave, where it was read already.
    """
    known = read_attempts(storage) if attempts is None else attempts
    found = (read_set_aside(storage, *key) for key in known.set_aside)
    return [why for why in found if why is not None]


def read_set_aside(storage: Storage, stage: str, unit: str) -> SetAside | None:
    """Read why a unit is set aside; None where it is not.

    Raises: ContractError for a file that is damaged or of another version.
    """
    path = set_aside_path(stage, unit)
    data = storage.find_bytes(path)
    try:
        return None if data is None else SetAside.model_validate_json(data)
    except ValidationError as error:
        raise ContractError(
            f"{path} does not say why the unit is set aside",
            "it is damaged, or another version of koe wrote it",
            "Remove it: the next run tries the unit again.",
        ) from error


def write_set_aside(storage: Storage, found: SetAside) -> None:
    """Set a unit aside."""
    data = found.model_dump_json(indent=1).encode()
    storage.write_bytes(set_aside_path(found.stage, found.unit), data)
