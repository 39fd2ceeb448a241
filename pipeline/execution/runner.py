"""Takes units through stages one by one: what an engine's worker does, and the plain engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from koe.errors import KoeError, StageError, StorageError
from koe.fingerprint import sha256_json
from koe.schema import UNIT
from koe.stage import Resources, Stage, Transform, check_outcome
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.storage import Storage

DONE, SKIPPED, FAILED, STOPPED = "done", "skipped", "failed", "stopped"


@dataclass(frozen=True)
class UnitResult:
    """What became of one unit in one stage; `why` says why it was redone, `error` why it failed.

    STOPPED means that the run as a whole cannot go on (disk full), not just this unit.
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

    def to_json(self) -> str:
        return json.dumps(asdict(self))


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

    `requested` asks the engine to begin no more units; `in_flight` says how many it is at.
    """

    requested: bool = False
    in_flight: int = 0


UnitFunction = Callable[[str], UnitResult]


class Work(Protocol):
    """A picklable description of what one pool of workers does to a unit."""

    @property
    def name(self) -> str: ...
    @property
    def resources(self) -> Resources: ...
    def open(self) -> UnitFunction: ...


@dataclass(frozen=True)
class StageWork:
    """One stage over the units of one modality.

    `upstream` is the stage whose output is read; None hands the unit's descriptor itself over.
    `units` maps names to descriptors (as rows of UNIT), `reading` names of sources to the
    fingerprint of how their records are read.
    """

    stage: Stage
    upstream: str | None
    root: str
    units: dict[str, dict[str, Any]]
    reading: dict[str, str] = field(default_factory=dict)
    force: bool = False

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def resources(self) -> Resources:
        return self.stage.resources

    def open(self) -> UnitFunction:
        """Return the function that takes a unit through the stage.

        The model is bound at the first unit that needs it: a worker whose units are all done
        loads nothing.
        """
        ledger = Ledger(Storage(self.root))
        opened: list[Transform] = []

        def transform(table: pa.Table):
            if not opened:
                opened.append(self.stage.open())
            return opened[0](table)

        return lambda unit: guarded(
            self.name, unit, lambda: run_unit(self, ledger, unit, transform)
        )


def guarded(stage: str, unit: str, run: Callable[[], UnitResult]) -> UnitResult:
    """Turn an exception into a failed unit, so that one unit's failure is not the run's.

    The unit has no receipt, is listed, and is redone by the next run. Storage that refuses
    stops the run: every other unit would fail as well.
    """
    try:
        return run()
    except StorageError as error:
        return UnitResult(stage, unit, STOPPED, error=str(error))
    except KoeError as error:
        return UnitResult(stage, unit, FAILED, error=str(error))
    except Exception as error:  # reported with its type and made resumable, never swallowed
        return UnitResult(stage, unit, FAILED, error=f"{type(error).__name__}: {error}")


def run_unit(work: StageWork, ledger: Ledger, unit: str, transform: Transform) -> UnitResult:
    """Take one unit through one stage, or skip it when its receipt still holds."""
    descriptor = work.units[unit]
    input_sha256, upstream = unit_input(ledger, work, unit)
    check = ledger.check(work.stage, unit, input_sha256)
    if check.receipt and not work.force:
        return result_of(check.receipt, SKIPPED)
    started = time.perf_counter()
    if upstream is None:
        table = pa.Table.from_pylist([descriptor], schema=UNIT)
        records_in = descriptor["records"] + (descriptor["fault"] is not None)
    else:
        table = ledger.read(upstream)
        records_in = table.num_rows
    try:
        outcome = check_outcome(work.stage, records_in, transform(table))
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
    receipt = ledger.commit(
        work.stage,
        unit,
        input_sha256,
        outcome,
        records_in=records_in,
        seconds=time.perf_counter() - started,
    )
    return result_of(receipt, DONE, "forced" if work.force and check.receipt else check.why)


def unit_input(ledger: Ledger, work: StageWork, unit: str) -> tuple[str, Receipt | None]:
    """Return the fingerprint of a unit's input and, below the first stage, where it lies.

    Raises: StageError when the stage before has not done the unit.
    """
    if work.upstream is None:
        descriptor = work.units[unit]
        return sha256_json([descriptor, work.reading.get(descriptor["source"])]), None
    receipt = ledger.receipt(work.upstream, unit)
    if receipt is None:
        raise StageError(
            f"unit {unit} has no output of stage {work.upstream}",
            "that stage has not done it yet",
            f"Run `koe run --from {work.upstream}`.",
            unit=unit,
        )
    return receipt.output.sha256, receipt


def run_plain(
    chain: Sequence[Work],
    units: Iterable[str],
    on_result: Callable[[UnitResult], None],
    stop: Stop | None = None,
) -> bool:
    """Take every unit through every stage in this process; the engine's oracle.

    Returns False when the run had to stop, or was asked to by `stop`.
    """
    stop = stop or Stop()
    functions = [work.open() for work in chain]
    for unit in units:
        for function in functions:
            if stop.requested:
                return False
            stop.in_flight = 1
            result = function(unit)
            stop.in_flight = 0
            on_result(result)
            if result.status == STOPPED:
                return False
            if result.status == FAILED:
                break
    return True
