"""What people see while a run goes on: one bar a stage, or plain lines off a terminal. Stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.runner import FAILED, SKIPPED, STOPPED, UnitResult

_LINE_SECONDS = 5.0  # between plain lines of one stage


@dataclass
class StageTally:
    """Running sums of one stage."""

    units_done: int = 0
    units_skipped: int = 0
    kept: int = 0
    rejected: int = 0
    quarantined: int = 0
    measures: dict[str, float] = field(default_factory=dict)  # of the units done in this run
    started: float = 0.0

    def add(self, result: UnitResult) -> None:
        self.units_done += 1
        self.kept += result.kept
        self.rejected += result.rejected
        self.quarantined += result.quarantined
        if result.status == SKIPPED:
            self.units_skipped += 1
            return
        for name, value in result.measures.items():
            self.measures[name] = self.measures.get(name, 0.0) + value

    def summary(self, stage: str) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        parts = [
            f"kept {self.kept:,}",
            f"rejected {self.rejected:,}",
            f"quarantined {self.quarantined:,}",
        ]
        for name, unit in _RATES.get(stage, {}).items():
            if value := self.measures.get(name):
                parts.append(f"{value / elapsed:,.1f} {unit}/s")
        if self.units_skipped:
            parts.append(f"{self.units_skipped} units were done")
        return "  ".join(parts)


_RATES = {  # which sums of a stage say how fast it is
    "ingest": {"seconds": "audio-s"},
    "score": {"windows": "windows", "seconds": "audio-s"},
    "encode": {"seconds": "audio-s"},
    "tokenize": {"tokens": "tokens"},
    "interleave": {"tokens": "tokens"},
}


class RunProgress:
    """Context manager that takes unit results and shows them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.failures: list[UnitResult] = []
        self.stopped: UnitResult | None = None
        self.tallies: dict[str, StageTally] = {}
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._last_line: dict[str, float] = {}
        self._reasons: set[tuple[str, str]] = set()
        self._live = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} units"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[summary]}"),
            console=console,
        )

    def __enter__(self) -> RunProgress:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()

    def expect(self, stage: str, num_units: int) -> None:
        """Announce that a stage will handle this many (more) units."""
        self._totals[stage] = self._totals.get(stage, 0) + num_units
        tally = self.tallies.setdefault(stage, StageTally(started=time.monotonic()))
        if self._live:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(
                    stage, total=0, summary=tally.summary(stage)
                )
            self._bars.update(self._tasks[stage], total=self._totals[stage])

    def take(self, result: UnitResult) -> None:
        """Show one unit's result; failures and reasons for doing a unit again get a line."""
        tally = self.tallies[result.stage]
        if result.status in (FAILED, STOPPED):
            if result.status == STOPPED:
                self.stopped = self.stopped or result
            self.failures.append(result)
            self.console.print(
                f"{result.stage} {result.unit} {result.status}: {result.error}",
                style="red",
                markup=False,
                soft_wrap=True,
            )
            return
        if result.why and (result.stage, result.why) not in self._reasons:
            self._reasons.add((result.stage, result.why))
            self.console.print(
                f"{result.stage} {result.unit} done again: {result.why} (said once for each reason)",
                markup=False,
            )
        tally.add(result)
        if self._live:
            self._bars.update(
                self._tasks[result.stage],
                completed=tally.units_done,
                summary=tally.summary(result.stage),
            )
        else:
            self._line(result.stage, tally)

    def _line(self, stage: str, tally: StageTally) -> None:
        now, last = time.monotonic(), self._last_line.get(stage, 0.0)
        complete = tally.units_done == self._totals[stage]
        if complete or now - last >= _LINE_SECONDS:
            self._last_line[stage] = now
            self.console.print(
                f"{stage:<11} {tally.units_done}/{self._totals[stage]} units  {tally.summary(stage)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar for a job of known size; yields the function to report (done, total) to."""
    with Progress(
        TextColumn(what),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
