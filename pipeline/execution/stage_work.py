"""A stage over the units of a modality: the work of its pool of workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from koe.errors import StageError
from koe.fingerprint import sha256_json
from koe.schema import Unit, unit_table
from koe.stage import Exclusions, Outcome, ReadsUnits, Recorded, Stage, Transform, check_outcome
from pipeline.execution.runner import UnitOutput, UnitTask, Work
from pipeline.run_dir.killers import REASON, Killer, UnitKillers
from pipeline.run_dir.ledger import Ledger, Receipt
from stages.sources.files.moves import Move


@dataclass(frozen=True)
class StageWork(Work[Stage]):
    """One stage over the units of one modality.

    `upstream` is the stage whose output is read; None passes the unit itself to the stage.
    `reading` maps names of sources to the fingerprint of how their records are read. `killers` names,
    by unit, the records that are quarantined unopened, since they would end the worker. `moves`: as
    `Plan`, whose units these are.
    """

    stage: Stage
    upstream: str | None
    root: str
    units: Mapping[str, Unit]
    reading: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    killers: Mapping[str, UnitKillers] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)

    def size(self, unit: str) -> tuple[str, int]:
        planned = self.units[unit]
        return planned.source, planned.records

    def recorded(self, unit: str, input_sha256: str) -> Recorded:
        killers = self.killers_of(unit, input_sha256)
        return _Without(self.stage, killers) if killers else self.stage

    def killers_of(self, unit: str, input_sha256: str) -> tuple[Killer, ...]:
        """Return the records to leave out of a unit with this input."""
        known = self.killers.get(unit)
        return known.records if known and known.input_sha256 == input_sha256 else ()

    def tasks(self, ledger: Ledger) -> Callable[[str], UnitTask]:
        opened: list[Transform] = []

        def transform(table: pa.Table) -> Outcome:
            if not opened:
                opened.append(self.stage.open())
            return opened[0](table)

        def task(unit: str) -> UnitTask:
            input_sha256, upstream = unit_input(ledger, self, unit)
            killers = self.killers_of(unit, input_sha256)
            return input_sha256, lambda: transformed(
                self, ledger, unit, upstream, transform, killers
            )

        return task


@dataclass(frozen=True)
class _Without:
    """What is recorded of a stage that left out these records of a unit."""

    stage: Stage
    killers: Sequence[Killer]

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def version(self) -> int:
        return self.stage.version

    @property
    def content(self) -> dict[str, Any]:
        left_out = [[killer.place, killer.id, killer.how] for killer in self.killers]
        return {**self.stage.content, REASON: left_out}


def transformed(
    work: StageWork,
    ledger: Ledger,
    unit: str,
    upstream: Receipt | None,
    transform: Transform,
    killers: Sequence[Killer] = (),
) -> UnitOutput:
    """Take one unit through a stage's transform, without the records that are `killers`.

    Raises: StageError that names stage, unit and clip.
    """
    if upstream is None:
        table, records_in = unit_table([work.units[unit]]), work.units[unit].records
        transform = _reading_without(work.stage, unit, killers) if killers else transform
    else:
        table = ledger.read(upstream)
        records_in = table.num_rows
        transform = _without(work.stage, transform, killers) if killers else transform
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


def _reading_without(stage: Stage, unit: str, killers: Sequence[Killer]) -> Transform:
    """Raises: StageError for a stage that cannot leave out what it reads."""
    if not isinstance(stage, ReadsUnits):
        raise StageError(
            f"stage {stage.name} cannot leave out records of unit {unit}",
            "it reads them by itself, and has no way to pass one by",
            "Repair the source.",
        )
    return stage.leaving_out({killer.place: killer.bad() for killer in killers}).open()


def _without(stage: Stage, transform: Transform, killers: Sequence[Killer]) -> Transform:
    places = {killer.place for killer in killers}

    def rest(table: pa.Table) -> Outcome:
        kept = [place for place in range(table.num_rows) if place not in places]
        outcome = transform(table.take(pa.array(kept, pa.int64())))
        left_out = Exclusions(stage.name)
        for killer in killers:
            left_out.quarantine(killer.id, killer.source, killer.bad(), killer.location)
        added = left_out.outcome(outcome.kept).quarantined
        return replace(outcome, quarantined=pa.concat_tables([outcome.quarantined, added]))

    return rest


def unit_input(ledger: Ledger, work: StageWork, unit: str) -> tuple[str, Receipt | None]:
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
    if move := work.moves.get(planned.source):
        planned = replace(planned, path=move.to_planned(planned.path))
    return sha256_json([planned.to_row(), work.reading.get(planned.source)])
