"""Takes one unit through one stage: the work of an engine's worker."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar

from koe.errors import KoeError, StageError, StorageError
from koe.fingerprint import sha256_json
from koe.schema import Unit, unit_table
from koe.stage import Outcome, Recorded, Resources, Stage, Transform, check_outcome
from koe.store_errors import comes_from_store, storage_error
from pipeline.run_dir.ledger import Ledger, Receipt, Streamed
from pipeline.run_dir.lock import worker_storage

DONE, SKIPPED, FAILED, STOPPED = "done", "skipped", "failed", "stopped"
SET_ASIDE, SUPERSEDED = "set aside", "superseded"
NOT_MADE = (FAILED, STOPPED, SET_ASIDE, SUPERSEDED)  # the stages behind do not get such a unit

_LOGGERS = ("koe", "stages")  # whose warnings become notes: nobody reads a worker's own log


@dataclass(frozen=True)
class UnitResult:
    """What became of one unit in one stage; `why` says why it was redone, `error` why it failed.

    `notes` are warnings of the worker (such as: the engine is slow because there is no compiler).
    STOPPED means that the whole run cannot go on (disk full), not just this unit. SET_ASIDE: it was
    begun several times and never ended. SUPERSEDED: another attempt has taken its place.
    """

    stage: str
    unit: str
    status: str
    records_in: int = 0
    kept: int = 0
    rejected: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    measures: dict[str, float] = field(default_factory=dict)
    why: str = ""
    error: str = ""
    notes: tuple[str, ...] = ()


def result_of(receipt: Receipt, status: str, why: str = "") -> UnitResult:
    return UnitResult(
        stage=receipt.stage,
        unit=receipt.unit,
        status=status,
        records_in=receipt.records_in,
        kept=receipt.kept,
        rejected=sum(receipt.rejected.values()),
        quarantined=sum(receipt.quarantined.values()),
        seconds=receipt.seconds,
        measures=receipt.measures,
        why=why,
    )


@dataclass
class Stop:
    """What a run and its engine tell each other about ending early.

    `requested` asks the engine to begin no more units; `in_flight` counts those being worked on.
    """

    requested: bool = False
    in_flight: int = 0


class Superseded(KoeError):
    """Another worker has been given the unit: this one must not commit it."""


# Raises Superseded where the worker may no longer commit its unit.
Confirm = Callable[[], None]
UnitFunction = Callable[[str, Confirm], UnitResult]


def always() -> None:
    """Confirm every commit: nobody else can have the unit."""


@dataclass(frozen=True)
class UnitOutput:
    """What work made of a unit; `kept` and `measures` as in `Ledger.commit`."""

    outcome: Outcome | Streamed
    records_in: int
    kept: int | None = None
    measures: dict[str, float] | None = None


# The fingerprint of a unit's input, and the function that makes its output.
UnitTask = tuple[str, Callable[[], UnitOutput]]


class PooledStage(Recorded, Protocol):
    """A stage as far as a pool of workers needs it."""

    @property
    def resources(self) -> Resources: ...


S = TypeVar("S", bound=PooledStage, covariant=True)


class Work(ABC, Generic[S]):
    """A picklable description of what one pool of workers does to a unit."""

    stage: S
    root: str  # the run directory
    force: bool
    lock: str = ""  # the token of the run's lock, without which a worker may not write to a store

    @property
    def name(self) -> str:
        """What results are shown under."""
        return self.stage.name

    @property
    def resources(self) -> Resources:
        return self.stage.resources

    def under(self, lock: str) -> Self:
        """Return this work as part of a run that holds the lock with this token."""
        held = copy(self)
        object.__setattr__(
            held, "lock", lock
        )  # no field: each kind of work would have to declare it
        return held

    def size(self, unit: str) -> tuple[str, int]:
        """Return the source of a unit and its number of records: units of a source take alike."""
        return "", 1

    @abstractmethod
    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        """Return the function that tells what is to be done for a unit.

        Models and tables are opened by the first unit that needs them: a worker whose units are
        all done loads nothing.
        """

    def open(self) -> UnitFunction:
        """Return the function that takes a unit through the work and records its outcome."""
        ledger = Ledger(worker_storage(self.root, self.lock))
        task = self.tasks(ledger)

        def run(unit: str, confirm: Confirm) -> UnitResult:
            input_sha256, make = task(unit)
            result = do_unit(self.stage, ledger, unit, input_sha256, make, self.force, confirm)
            return replace(result, stage=self.name)

        return lambda unit, confirm: guarded(self.name, unit, lambda: run(unit, confirm))


@dataclass(frozen=True)
class StageWork(Work[Stage]):
    """One stage over the units of one modality.

    `upstream` is the stage whose output is read; None passes the unit itself to the stage.
    `reading` maps names of sources to the fingerprint of how their records are read.
    """

    stage: Stage
    upstream: str | None
    root: str
    units: Mapping[str, Unit]
    reading: Mapping[str, str] = field(default_factory=dict)
    force: bool = False

    def size(self, unit: str) -> tuple[str, int]:
        planned = self.units[unit]
        return planned.source, planned.records

    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        opened: list[Transform] = []

        def make(unit: str, upstream: Receipt | None) -> UnitOutput:
            if not opened:
                opened.append(self.stage.open())
            return _transformed(self, ledger, unit, upstream, opened[0])

        def task(unit: str) -> UnitTask:
            input_sha256, upstream = _unit_input(ledger, self, unit)
            return input_sha256, lambda: make(unit, upstream)

        return task


def guarded(stage: str, unit: str, run: Callable[[], UnitResult]) -> UnitResult:
    """Turn an exception into a failed unit, so that it does not end the run.

    The unit has no receipt, is listed, and is redone by the next run. A storage that fails stops
    the run, because every other unit would fail as well.
    """
    with _collected_notes() as notes:
        try:
            result = run()
        except StorageError as error:
            result = UnitResult(stage, unit, STOPPED, error=str(error))
        except Superseded as error:
            result = UnitResult(stage, unit, SUPERSEDED, error=str(error))
        except KoeError as error:
            result = UnitResult(stage, unit, FAILED, error=str(error))
        except Exception as error:  # reported with its type and made resumable, never swallowed
            failure = storage_error(f"{stage} {unit} failed", error)
            if failure and comes_from_store(error):
                result = UnitResult(stage, unit, STOPPED, error=str(failure))
            else:
                result = UnitResult(stage, unit, FAILED, error=f"{type(error).__name__}: {error}")
    return replace(result, notes=tuple(dict.fromkeys(notes)))


@contextmanager
def _collected_notes() -> Iterator[list[str]]:
    """Collect what koe's own code logs as a warning or worse."""
    notes: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield notes
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def do_unit(
    stage: Recorded,
    ledger: Ledger,
    unit: str,
    input_sha256: str,
    make: Callable[[], UnitOutput],
    force: bool = False,
    confirm: Confirm = always,
) -> UnitResult:
    """Skip a unit whose receipt still holds; otherwise make its output and commit it."""
    check = ledger.check(stage, unit, input_sha256)
    if check.receipt and not force:
        return result_of(check.receipt, SKIPPED)
    started = time.perf_counter()
    made = make()
    receipt = ledger.commit(
        stage,
        unit,
        input_sha256,
        made.outcome,
        records_in=made.records_in,
        seconds=time.perf_counter() - started,
        kept=made.kept,
        measures=made.measures,
        found=check.found,
        confirm=confirm,
    )
    return result_of(receipt, DONE, "forced" if check.receipt else check.why)


def _transformed(
    work: StageWork, ledger: Ledger, unit: str, upstream: Receipt | None, transform: Transform
) -> UnitOutput:
    """Take one unit through a stage's transform.

    Raises: StageError that names stage, unit and clip.
    """
    if upstream is None:
        table, records_in = unit_table([work.units[unit]]), work.units[unit].records
    else:
        table = ledger.read(upstream)
        records_in = table.num_rows
    try:
        return UnitOutput(check_outcome(work.stage, records_in, transform(table)), records_in)
    except StageError as error:
        clip = f" (clip {error.clip_id})" if error.clip_id else ""
        raise StageError(
            f"stage {work.name} failed on unit {unit}{clip}: {error.what}",
            error.why,
            error.remedy,
            stage=work.name,
            unit=unit,
            clip_id=error.clip_id,
        ) from error


def _unit_input(ledger: Ledger, work: StageWork, unit: str) -> tuple[str, Receipt | None]:
    """Return the fingerprint of a unit's input and, after the first stage, the receipt of it.

    Raises: StageError when the stage before has not done the unit.
    """
    if work.upstream is None:
        return planned_sha256(work, unit), None
    receipt = ledger.receipt(work.upstream, unit)
    if receipt is None:
        raise StageError(
            f"unit {unit} has no output of stage {work.upstream}",
            "that stage has not done it yet",
            f"Run `koe run --from {work.upstream}`.",
            unit=unit,
        )
    return receipt.output.sha256, receipt


def planned_sha256(work: StageWork, unit: str) -> str:
    """Return the fingerprint of the input of a first stage: the unit as it was planned."""
    planned = work.units[unit]
    return sha256_json([planned.to_row(), work.reading.get(planned.source)])
