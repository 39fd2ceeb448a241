"""How far a run is, from the plan and the receipts alone: any terminal can ask."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.live import Live

from koe.dataflow import INTERLEAVE, ORDER_UNIT, PLAN, rates_of, stage_chain, stage_names
from koe.numbers import clock_time
from koe.schema import SPEECH, TEXT
from pipeline.execution.status_table import StageRow, StageTable, flowing
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.reading import trace_history

_RECENT_SECONDS = 600.0  # what the rates of the whole run are taken over, at least
_RECENT_UNITS = 4.0  # and as many times the duration of a unit, where that is longer


class _Done(NamedTuple):
    """What a receipt says, as little as the table needs: a large run has 60,000."""

    stamp: tuple[int, float]
    input_sha256: str
    output_sha256: str
    records: int
    kept: int
    rejected: int
    quarantined: int
    seconds: float
    measures: tuple[float, ...]  # rates of the stage
    shards: int


class StatusReader:
    """Reads the run's state again and again, and only receipts whose file changed."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock = ledger, clock
        self._known: dict[tuple[str, str], _Done | None] = {}
        self._stamps: dict[tuple[str, str], tuple[int, float]] = {}
        self._plan: Plan | None = None
        self._plan_stamp: tuple[int, float] | None = None

    def plan(self) -> Plan | None:
        """Return the stored plan, read again when a new run replaced it."""
        stamp = self._ledger.storage.stamps("", PLAN).get(PLAN)
        if stamp != self._plan_stamp:
            self._plan, self._plan_stamp = load_plan(self._ledger.storage), stamp
        return self._plan

    def read(self) -> list[dict[str, Any]]:
        """Return one dictionary per stage, in the layout of `koe status --json`.

        `units_per_second` and `eta_seconds` are those of one worker, from the seconds that the
        receipts name. `run_rates`, `run_units_per_second` and `run_eta_seconds` are those of all
        workers together, from when recent receipts were written; None when none was.
        """
        plan = self.plan()
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

    def _shards_row(self) -> dict[str, Any]:
        stamps = self._ledger.storage.stamps(INTERLEAVE, ".json")
        names = [name[:-5] for name in stamps]
        done = self._receipts(INTERLEAVE, names, stamps)
        order = done.pop(ORDER_UNIT, None)
        if order is None:
            return self._row(INTERLEAVE, (), 1)
        current = [r for r in done.values() if r.input_sha256 == order.output_sha256]
        row = self._row(INTERLEAVE, current, order.shards)
        return {**row, "done": row["done"] + 1}

    def _receipts(
        self,
        stage: str,
        units: Iterable[str],
        stamps: dict[str, tuple[int, float]] | None = None,
    ) -> dict[str, _Done]:
        stamps = self._ledger.storage.stamps(stage, ".json") if stamps is None else stamps
        found = {}
        for unit in units:
            stamp = stamps.get(f"{unit}.json")
            if stamp is None:
                continue
            key = (stage, unit)
            if self._stamps.get(key) != stamp:
                self._stamps[key], self._known[key] = stamp, self._receipt(stage, unit, stamp)
            if (receipt := self._known[key]) is not None:
                found[unit] = receipt
        return found

    def _receipt(self, stage: str, unit: str, stamp: tuple[int, float]) -> _Done | None:
        receipt = self._ledger.receipt(stage, unit)
        if receipt is None:
            return None
        return _Done(
            stamp,
            receipt.input_sha256,
            receipt.output.sha256,
            receipt.records_in,
            receipt.kept,
            sum(receipt.rejected.values()),
            sum(receipt.quarantined.values()),
            receipt.seconds,
            tuple(receipt.measures.get(name, 0.0) for name in rates_of(stage)),
            int(receipt.measures.get("shards", 0)),
        )

    def _row(self, stage: str, receipts: Iterable[_Done], num_units: int) -> dict[str, Any]:
        done = list(receipts)
        seconds = sum(receipt.seconds for receipt in done)
        left = max(0, num_units - len(done))
        rate = len(done) / seconds if seconds else 0.0
        measured = [sum(r.measures[k] for r in done) for k in range(len(rates_of(stage)))]
        run = _run_rates(done, self._clock())
        return {
            "stage": stage,
            "done": len(done),
            "left": left,
            "records": sum(receipt.records for receipt in done),
            "kept": sum(receipt.kept for receipt in done),
            "rejected": sum(receipt.rejected for receipt in done),
            "quarantined": sum(receipt.quarantined for receipt in done),
            "seconds": seconds,
            "units_per_second": rate,
            "rates": _named(stage, [value / seconds for value in measured] if seconds else []),
            "eta_seconds": left / rate if rate else None,
            "run_units_per_second": run[0] if run else None,
            "run_rates": _named(stage, run[1:]),
            "run_eta_seconds": left / run[0] if run else None,
            "newest_seconds_ago": max(0.0, self._clock() - max(r.stamp[1] for r in done))
            if done
            else None,
        }


def _run_rates(done: list[_Done], now: float) -> list[float]:
    """Return units and measures per second of all workers together; empty if none worked lately.

    A unit counts with the share of its time that lies in the window.
    """
    if not done:
        return []
    newest = max(receipt.stamp[1] for receipt in done)
    mean = sum(receipt.seconds for receipt in done) / len(done)
    window = max(_RECENT_SECONDS, _RECENT_UNITS * mean)
    recent = [receipt for receipt in done if receipt.stamp[1] > now - window]
    if not recent:
        return []
    began = max(now - window, min(r.stamp[1] - r.seconds for r in recent))
    elapsed = max(now, newest) - began
    if elapsed <= 0:
        return []
    shares = [min(1.0, (r.stamp[1] - began) / r.seconds) if r.seconds else 1.0 for r in recent]
    sums = [sum(shares)]
    for k in range(len(recent[0].measures)):
        sums.append(sum(s * r.measures[k] for s, r in zip(shares, recent, strict=True)))
    return [value / elapsed for value in sums]


def _named(stage: str, values: list[float]) -> dict[str, float]:
    return dict(zip(rates_of(stage), values, strict=True)) if values else {}


def finished(rows: list[dict[str, Any]]) -> bool:
    """Say whether every stage up to the shards is done."""
    return not any(row["left"] for row in rows)


def status_rows(rows: list[dict[str, Any]]) -> tuple[list[StageRow], str]:
    """Return the rows of the table, and what their rates are.

    While receipts are written the rates are the whole run's; otherwise those of one worker.
    """
    ages = [row["newest_seconds_ago"] for row in rows if row["newest_seconds_ago"] is not None]
    running = any(row["run_units_per_second"] for row in rows if row["left"])
    kind = "run_" if running else ""
    found = [
        StageRow(
            row["stage"], row["done"], row["done"] + row["left"], row["records"], row["kept"],
            row["rejected"], row["quarantined"],
            row["run_rates"] if running and row["left"] else row["rates"] if not running else {},
            row[f"{kind}eta_seconds"],
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
    lately = "no rate yet" if min(ages) < _RECENT_SECONDS else "nothing was done lately"
    return found, f"rates and ETA of one worker, {lately}; {newest}"


def status_table(rows: list[dict[str, Any]]) -> RenderableType:
    """Render `koe status`."""
    found, note = status_rows(rows)
    return StageTable(found, [note])


def follow(reader: StatusReader, console: Console, seconds: float) -> None:
    """Show the table anew every so many seconds, until every stage is done."""
    rows = reader.read()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            if console.is_terminal:
                live.update(status_table(rows), refresh=True)
            else:  # a live table would come out once, at the end
                console.print(status_table(rows))
            if finished(rows):
                return
            time.sleep(seconds)
            rows = reader.read()
