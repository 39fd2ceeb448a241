"""Takes one unit through one stage: the work of an engine's worker."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, Self, TypeVar

from koe.errors import KoeError, StorageError
from koe.stage import Outcome, Recorded, Resources, SharesGpu
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

    def with_share(self, needs: Resources) -> Self:
        """Return this work for workers that are given `needs`, perhaps a part of the GPU asked for."""
        if needs == self.resources or not isinstance(self.stage, SharesGpu):
            return self
        sharing = copy(self)
        object.__setattr__(sharing, "stage", self.stage.with_gpus(needs.gpus))
        return sharing

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

    def recorded(self, unit: str, input_sha256: str) -> Recorded:
        """Return what the receipt of a unit with this input records of the work."""
        return self.stage

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
            stage = self.recorded(unit, input_sha256)
            result = do_unit(stage, ledger, unit, input_sha256, make, self.force, confirm)
            return replace(result, stage=self.name)

        return lambda unit, confirm: guarded(self.name, unit, lambda: run(unit, confirm))


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
