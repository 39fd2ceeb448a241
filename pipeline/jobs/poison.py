"""Finds the records that end their worker, in the units that were set aside because of them.

Parts of a unit are taken through its stage in processes of their own, on this machine, and what they
make is thrown away: `find_killers` says which parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from koe.errors import ConfigError, KoeError, StageError
from koe.stage import Outcome
from pipeline.execution.attempt_log import AttemptLog
from pipeline.execution.bisection import Found, find_killers
from pipeline.execution.deadlines import Deadlines
from pipeline.execution.isolated import Died, in_new_process
from pipeline.execution.last_words import Doing, here
from pipeline.execution.stage_work import StageWork, transformed, unit_input
from pipeline.run_dir.killers import REASON, Killer, UnitKillers, add_killers
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.lock import worker_storage
from pipeline.run_dir.set_aside import RETRY, read_set_aside
from stages.clips import location

_MEASURED = 100  # finished units that deadlines are taken of

Say = Callable[[str], None]


def find_poison(
    works: Sequence[StageWork], unit: str | None, ledger: Ledger, log: AttemptLog, say: Say
) -> None:
    """Search the units of these stages that are set aside, or the one that is named.

    What is found is noted for the run that follows, which leaves it out. A unit of which nothing else
    ends its worker is no longer set aside.

    Raises: ConfigError where there is no such unit; StageError where a stage fails otherwise.
    """
    chosen = [
        (work, name)
        for work in works
        for name in work.units
        if (work.stage.name, name) in log.set_aside and unit in (None, name)
    ]
    if not log.set_aside and unit is None:
        say("there is nothing to search: no unit is set aside")
    elif not chosen:
        stages = ", ".join(dict.fromkeys(work.stage.name for work in works)) or "the stages chosen"
        what = f"unit {unit} is not" if unit else "no unit is"
        others = ", ".join(f"{stage} {name}" for stage, name in sorted(log.set_aside))
        raise ConfigError(
            f"there is nothing to search: {what} set aside by {stages}",
            f"set aside are {others}" if others else "none is set aside by any stage",
            "Shards are made of many units and cannot be searched." if others else "",
        )
    for work, name in chosen:
        _search(_Unit(work.under(ledger.storage.token), name, ledger, log), say)


@dataclass(frozen=True)
class _Unit:
    """A unit that is searched, in the stage that left it aside."""

    work: StageWork
    name: str
    ledger: Ledger
    log: AttemptLog

    @property
    def key(self) -> tuple[str, str]:
        return self.work.stage.name, self.name

    def deadline(self, records: int) -> float | None:
        """Return the seconds that a part may take, by the pace of the units that are finished."""
        source = self.work.units[self.name].source
        names = [unit for unit, planned in self.work.units.items() if planned.source == source]
        read = self.ledger.receipts((self.work.stage.name, unit) for unit in names)
        deadlines = Deadlines(self.log.limits.max_seconds)
        for receipt in islice((found for found in read if found), _MEASURED):
            deadlines.measure(receipt.stage, source, receipt.records_in, receipt.seconds)
        return deadlines.seconds(self.work.stage.name, source, records)

    def call(self, deadline: float | None, left_out: Sequence[Killer] | None) -> list[Killer] | str:
        """Take a part through the stage; return its records, or how the process died."""
        node, boot = here()
        what = Doing(
            stage=self.key[0],
            unit=self.name,
            since=time.time(),
            deadline=deadline,
            node=node,
            boot=boot,
        )
        try:
            made = in_new_process(_part, self.work.root, what, self.work, self.name, left_out)
        except KoeError:
            raise
        except Exception as error:
            raise StageError(
                f"the search in {' '.join(self.key)} ended",
                f"its stage failed with {type(error).__name__}: {error}",
                "That ends no worker, but the unit cannot be done before it is repaired.",
            ) from error
        return made.how if isinstance(made, Died) else made


def _search(unit: _Unit, say: Say) -> None:
    name = " ".join(unit.key)
    number = unit.work.units[unit.name].records
    deadline = unit.deadline(number)
    minutes = "" if deadline is None else f"; a part may take {deadline / 60:.3g} minutes"
    say(f"{name}: searching about {number:,} records for those that end the worker{minutes}")
    records = unit.call(deadline, None)
    if isinstance(records, str):
        say(
            f"{name}: its worker ends with none of its records processed ({records}): opening the "
            "stage or reading the unit does it, and no record can be named. It stays set aside"
        )
        return
    input_sha256, _ = unit_input(unit.ledger, unit.work, unit.name)
    known = unit.work.killers_of(unit.name, input_sha256)
    places = {killer.place for killer in known}
    open_records = [record for record in records if record.place not in places]
    found = _find(unit, deadline, known, open_records)
    new = [
        open_records[place].model_copy(update={"how": how}) for place, how in found.killers.items()
    ]
    killers = sorted([*known, *new], key=lambda killer: killer.place)
    if killers:
        unit_killers = UnitKillers(input_sha256=input_sha256, records=tuple(killers))
        add_killers(unit.ledger.storage, unit.key, unit_killers)
    for line in _report(name, new, found.rest_lives):
        say(line)
    if found.rest_lives:
        unit.log.forget(unit.key)


def _find(
    unit: _Unit, deadline: float | None, known: Sequence[Killer], records: Sequence[Killer]
) -> Found:
    def fails(part: Sequence[int]) -> str:
        tried = {records[place].place for place in part}
        left_out = [*known, *(record for record in records if record.place not in tried)]
        made = unit.call(deadline, left_out)
        return made if isinstance(made, str) else ""

    return find_killers(len(records), fails, _guess(unit, records))


def _guess(unit: _Unit, records: Iterable[Killer]) -> int | None:
    """Return the record that the worker began last when it died."""
    why = read_set_aside(unit.ledger.storage, *unit.key)
    last = why.attempts[-1].last_record if why else ""
    return next((place for place, record in enumerate(records) if last and record.id == last), None)


def _report(name: str, new: Sequence[Killer], rest_lives: bool) -> Iterator[str]:
    for killer in new:
        where = f" ({killer.location})" if killer.location else ""
        yield f"{name}: {killer.id}{where} ends its worker: {killer.how}. Quarantined: {REASON}"
    if not rest_lives:
        others = "what is left of it" if new else "the unit"
        yield (
            f"{name}: {others} still ends its worker, but no single record that was tried does it "
            f"alone, or the search took too many tries. It stays set aside; `{RETRY}` tries it again"
        )
    elif not new:
        yield f"{name}: no record ended a worker this time, so the unit is tried again"


def _part(work: StageWork, unit: str, left_out: Sequence[Killer] | None) -> list[Killer]:
    """Take a unit without some records through the stage, and return these; None leaves out all."""
    ledger = Ledger(worker_storage(work.root, work.lock))
    _, upstream = unit_input(ledger, work, unit)

    def transform(table: pa.Table) -> Outcome:
        return work.stage.open()(table)

    if left_out is not None:
        transformed(work, ledger, unit, upstream, transform, left_out)
        return list(left_out)
    if upstream is not None:
        listed = [_record(place, row) for place, row in enumerate(_rows(ledger.read(upstream)))]
        transformed(work, ledger, unit, upstream, transform, listed)
        return listed
    nameless = [_record(place, {}) for place in range(work.units[unit].records)]
    made = transformed(work, ledger, unit, None, transform, nameless).outcome
    assert isinstance(made, Outcome), "a stage of units makes tables"
    return [_record(place, row) for place, row in enumerate(made.quarantined.to_pylist())]


def _rows(table: pa.Table) -> Iterator[dict[str, object]]:
    names = [name for name in table.column_names if name in ("id", "source")]
    places = [name for name in table.column_names if name.startswith("audio_")]
    for row in table.select([*names, *places]).to_pylist():
        yield {**row, "location": location(row) if "audio_path" in row else ""}


def _record(place: int, row: dict[str, object]) -> Killer:
    id, source, where = (str(row.get(name) or "") for name in ("id", "source", "location"))
    return Killer(place=place, id=id, source=source, location=where, how="it was not tried")
