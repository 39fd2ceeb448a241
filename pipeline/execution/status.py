"""How far a run is, from the plan and the receipts alone: any terminal can ask."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from koe.dataflow import (
    INTERLEAVE,
    ORDER_UNIT,
    PLAN,
    is_temporary,
    rates_of,
    stage_chain,
    stage_names,
)
from koe.numbers import clock_time
from koe.schema import SPEECH, TEXT
from pipeline.execution.node_status import NodeStatus, Working, nodes_of, nodes_table
from pipeline.execution.rates import RECENT_SECONDS, UnitWork, rate_measures, recent_rates
from pipeline.execution.status_table import StageRow, StageTable, flowing
from pipeline.run_dir.ledger import Ledger, Receipt
from pipeline.run_dir.passes import PassStatus, read_passes
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.reading import trace_history
from pipeline.run_dir.set_aside import AttemptsFile, InFlight, read_attempts, set_aside_units


class _Done(NamedTuple):
    """What a receipt says, as little as the table needs: a large run has 60,000."""

    input_sha256: str
    output_sha256: str
    records: int
    kept: int
    rejected: int
    quarantined: int
    shards: int
    node: str
    work: UnitWork


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is; the fields are those of `koe status --json`.

    `done` and `left` count units. `units_per_second`, `rates` and `eta_seconds` are those of one
    worker, from the seconds that the receipts name. `run_units_per_second`, `run_rates` and
    `run_eta_seconds` are those of all workers together, from when recent receipts were written;
    None or empty when none was. `nodes` has the same by the machine that did it. `passes` tells of
    the two passes before the shards while there are any.
    """

    stage: str
    done: int
    left: int
    records: int
    kept: int
    rejected: int
    quarantined: int
    seconds: float
    units_per_second: float
    rates: dict[str, float]
    eta_seconds: float | None
    run_units_per_second: float | None
    run_rates: dict[str, float]
    run_eta_seconds: float | None
    newest_seconds_ago: float | None
    nodes: tuple[NodeStatus, ...] = ()
    passes: tuple[PassStatus, ...] = ()
    set_aside: tuple[
        str, ...
    ] = ()  # units that are left aside, since each attempt ended its worker


class StatusReader:
    """Reads the run's state again and again, and only receipts whose file changed."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock = ledger, clock
        self._known: dict[tuple[str, str], _Done | None] = {}
        self._stamps: dict[tuple[str, str], tuple[int, float]] = {}
        self._plan: Plan | None = None
        self._plan_stamp: tuple[int, float] | None = None
        self._attempts = AttemptsFile()
        self._set_aside: dict[str, list[str]] = {}

    def plan(self) -> Plan | None:
        """Return the stored plan, read again when a new run replaced it."""
        stamp = self._ledger.storage.stamps("", PLAN).get(PLAN)
        if stamp != self._plan_stamp:
            self._plan, self._plan_stamp = load_plan(self._ledger.storage), stamp
        return self._plan

    def read(self) -> list[StageStatus]:
        """Read how far each stage is, in the order of the data."""
        plan = self.plan()
        self._attempts = read_attempts(self._ledger.storage)
        self._set_aside = defaultdict(list)
        for why in set_aside_units(self._ledger.storage, self._attempts):
            self._set_aside[why.stage].append(why.unit)
        chains = {modality: stage_chain(modality) for modality in (SPEECH, TEXT)}
        stages = [stage for stage in stage_names() if any(stage in c for c in chains.values())]
        units = plan.units if plan else ()
        numbers: Counter[str] = Counter()
        receipts = {
            stage: self._receipts(stage, [u.unit for u in units if stage in chains[u.modality]])
            for stage in stages
        }
        done: dict[str, list[_Done]] = {stage: [] for stage in stages}
        for unit in units:
            numbers.update(chains[unit.modality])
            history = trace_history(
                chains[unit.modality], lambda stage, name=unit.unit: receipts[stage].get(name)
            )
            for stage, receipt in history.receipts.items():
                done[stage].append(receipt)
        rows = [self._row(stage, done[stage], numbers[stage]) for stage in stages]
        return [*rows, self._shards_row()]

    def _shards_row(self) -> StageStatus:
        stamps = self._ledger.storage.stamps(INTERLEAVE, ".json")
        names = [name[:-5] for name in stamps]
        shards = [name for name in names if not is_temporary(name)]
        done = self._receipts(INTERLEAVE, shards, stamps)
        order = done.pop(ORDER_UNIT, None)
        if order is None:
            return self._row(INTERLEAVE, (), 1)
        current = [r for r in done.values() if r.input_sha256 == order.output_sha256]
        row = self._row(INTERLEAVE, current, order.shards)
        working = [item.stage for item in self._attempts.in_flight]
        passes = read_passes(self._ledger, names, working)
        return replace(row, done=row.done + 1, passes=passes)

    def _receipts(
        self, stage: str, units: Iterable[str], stamps: dict[str, tuple[int, float]] | None = None
    ) -> dict[str, _Done]:
        stamps = self._ledger.storage.stamps(stage, ".json") if stamps is None else stamps
        written = {unit: stamps[f"{unit}.json"] for unit in units if f"{unit}.json" in stamps}
        changed = [unit for unit in written if self._stamps.get((stage, unit)) != written[unit]]
        read = self._ledger.receipts((stage, unit) for unit in changed)
        for unit, receipt in zip(changed, read, strict=True):
            key, stamp = (stage, unit), written[unit]
            self._stamps[key], self._known[key] = stamp, _done(stage, receipt, stamp)
        known = {unit: self._known[stage, unit] for unit in written}
        return {unit: receipt for unit, receipt in known.items() if receipt is not None}

    def _row(self, stage: str, done: Collection[_Done], num_units: int) -> StageStatus:
        now = self._clock()
        working = [
            Working(i.machine, i.since) for i in self._attempts.in_flight if _stage_of(i) == stage
        ]
        seconds = sum(receipt.work.seconds for receipt in done)
        left = max(0, num_units - len(done))
        rate = len(done) / seconds if seconds else 0.0
        measured = [sum(r.work.measures[k] for r in done) for k in range(len(rates_of(stage)))]
        run_rates = recent_rates(stage, (receipt.work for receipt in done), now)
        run_units = run_rates.pop("units", None)
        return StageStatus(
            stage=stage,
            done=len(done),
            left=left,
            records=sum(receipt.records for receipt in done),
            kept=sum(receipt.kept for receipt in done),
            rejected=sum(receipt.rejected for receipt in done),
            quarantined=sum(receipt.quarantined for receipt in done),
            seconds=seconds,
            units_per_second=rate,
            rates=dict(zip(rates_of(stage), (value / seconds for value in measured), strict=True))
            if seconds
            else {},
            eta_seconds=left / rate if rate else None,
            run_units_per_second=run_units,
            run_rates=run_rates,
            run_eta_seconds=left / run_units if run_units else None,
            newest_seconds_ago=max(0.0, now - max(r.work.ended for r in done)) if done else None,
            nodes=tuple(nodes_of(stage, [(r.node, r.work) for r in done], working, now)),
            set_aside=tuple(self._set_aside.get(stage, ())),
        )


def _stage_of(item: InFlight) -> str:
    """Name the stage of a unit in flight; the passes before the shards belong to theirs."""
    return item.stage if item.stage in stage_names() else INTERLEAVE


def _done(stage: str, receipt: Receipt | None, stamp: tuple[int, float]) -> _Done | None:
    if receipt is None:
        return None
    return _Done(
        receipt.input_sha256,
        receipt.output.sha256,
        receipt.records_in,
        receipt.kept,
        sum(receipt.rejected.values()),
        sum(receipt.quarantined.values()),
        int(receipt.measures.get("shards", 0)),
        sys.intern(receipt.node),
        UnitWork(stamp[1], receipt.seconds, rate_measures(stage, receipt.measures)),
    )


def status_json(rows: list[StageStatus]) -> list[dict[str, Any]]:
    """Return what `koe status --json` prints."""
    return [asdict(row) for row in rows]


def finished(rows: list[StageStatus]) -> bool:
    """Say whether every stage up to the shards is done."""
    return not any(row.left for row in rows)


def status_rows(rows: list[StageStatus]) -> tuple[list[StageRow], str]:
    """Return the rows of the table, and a note that says what their rates are.

    While receipts are written the rates are the whole run's; otherwise those of one worker.
    """
    ages = [row.newest_seconds_ago for row in rows if row.newest_seconds_ago is not None]
    running = any(row.run_units_per_second for row in rows if row.left)
    found = [
        StageRow(
            row.stage, row.done, row.done + row.left, row.records, row.kept, row.rejected,
            row.quarantined,
            (row.run_rates if row.left else {}) if running else row.rates,
            row.run_eta_seconds if running else row.eta_seconds,
        )
        for row in rows
    ]  # fmt: skip
    if not ages:
        return found, "no unit is done yet"
    newest = f"newest unit done {clock_time(min(ages))} ago"
    if running:
        return flowing(found), f"rates and ETA of all workers, over their last units; {newest}"
    if finished(rows):
        return found, f"all is done; {newest}"
    lately = "no rate yet" if min(ages) < RECENT_SECONDS else "nothing was done lately"
    return found, f"rates and ETA of one worker, {lately}; {newest}"


def status_table(rows: list[StageStatus]) -> RenderableType:
    """Render `koe status`."""
    found, note = status_rows(rows)
    nodes = nodes_table({row.stage: row.nodes for row in rows})
    passes = [_passes_note(row) for row in rows if row.passes]
    aside = [
        f"{row.stage} leaves aside what ended its worker: {', '.join(row.set_aside)}"
        for row in rows
        if row.set_aside
    ]
    return Group(StageTable(found, [*passes, *aside, note]), *([Text(), nodes] if nodes else []))


def _passes_note(row: StageStatus) -> str:
    """Say how far the passes before the shards are, in one line."""
    return f"{row.stage}, before the shards: " + ", ".join(
        f"{one.name} {one.done}/{'?' if one.left is None else one.done + one.left}"
        + (f" (+{one.working} in work)" if one.working else "")
        for one in row.passes
    )


def follow(reader: StatusReader, console: Console, seconds: float) -> None:
    """Show the table again every `seconds` seconds, until every stage is done."""
    rows = reader.read()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(status_table(rows), refresh=True)
            else:  # a live table would be printed only once, at the end
                console.print(status_table(rows))
            if finished(rows):
                return
            time.sleep(seconds)
            rows = reader.read()
