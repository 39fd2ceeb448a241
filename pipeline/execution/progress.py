"""Shows a run on stderr while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from koe.dataflow import EXCHANGE, INTERLEAVE, ORDER_UNIT, PLACEMENTS_UNIT, stage_names
from pipeline.execution.rates import UnitWork, rate_measures, recent_rates
from pipeline.execution.runner import NOT_MADE, SKIPPED, STOPPED, UnitResult, Work
from pipeline.execution.status_table import StageRow, StageTable, flowing, stage_line

_LINE_SECONDS = 10.0  # between plain lines of one stage, at least
_QUIET_SECONDS = 60.0  # and at most, where less than _LINE_SHARE was done since the last one
_LINE_SHARE = 0.1
_RECENT_UNITS = 256  # that rates are taken over at most, so that drawing them stays cheap


@dataclass
class StageTally:
    """Running sums of one stage; rates are of units done by this run, not of those skipped."""

    stage: str
    clock: Callable[[], float]
    units: int = 0
    done: int = 0
    skipped: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    recent: deque[UnitWork] = field(default_factory=lambda: deque(maxlen=_RECENT_UNITS))
    since: float = float("-inf")  # when the unit ended that `recent` dropped last

    def add(self, result: UnitResult) -> None:
        self.done += 1
        for name in ("records_in", "kept", "rejected", "quarantined"):
            self.sums[name] += getattr(result, name)
        if result.status == SKIPPED:
            self.skipped += 1
            return
        if len(self.recent) == _RECENT_UNITS:
            self.since = self.recent[0].ended
        measures = rate_measures(self.stage, result.measures)
        self.recent.append(UnitWork(self.clock(), result.seconds, measures))

    def row(self) -> StageRow:
        """Return the stage's row, with its rates over the recent units until now."""
        through = self.done >= self.units and self.recent  # its rates stay as they were at the end
        now = self.recent[-1].ended if through else self.clock()
        rates = recent_rates(self.stage, self.recent, now, self.since)
        per_second = rates.pop("units", None)
        eta = (self.units - self.done) / per_second if per_second else None
        return StageRow(
            self.stage, self.done, self.units, self.sums["records_in"], self.sums["kept"],
            self.sums["rejected"], self.sums["quarantined"], rates, eta,
        )  # fmt: skip


class RunProgress:
    """Context manager that takes unit results and shows them."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.failures: list[UnitResult] = []
        self.stopped: UnitResult | None = None
        self.tallies: dict[str, StageTally] = {}
        self._clock = clock
        self._last_line: dict[str, tuple[float, int]] = {}  # when, and how many units were done
        self._said: set[tuple[str, str]] = set()
        self._live = Live(console=console, get_renderable=self.view, refresh_per_second=4)

    def __enter__(self) -> RunProgress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def expect(self, chain: Sequence[Work], num_units: int) -> None:
        """Announce that the stages of a chain will handle this many (more) units."""
        for work in chain:
            tally = self.tallies.setdefault(work.name, StageTally(work.name, self._clock))
            tally.units += num_units

    def take(self, result: UnitResult) -> None:
        """Show one unit's result; failures, reasons for doing a unit again and notes get a line."""
        tally = self.tallies[result.stage]
        for note in result.notes:
            self._say_once(result.stage, note, f"{result.stage}: {note}", "yellow")
        if result.status in NOT_MADE:
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
        if result.why:
            again = f"{result.stage} {result.unit} done again: {result.why}"
            self._say_once(result.stage, result.why, f"{again} (said once for each reason)")
        tally.add(result)
        if not self.console.is_terminal and self._line_is_due(tally):
            note = f"{tally.skipped} units were done before" if tally.skipped else ""
            self.console.print(
                stage_line(tally.row(), note), markup=False, highlight=False, soft_wrap=True
            )

    def _say_once(self, stage: str, what: str, line: str, style: str = "") -> None:
        if (stage, what) not in self._said:
            self._said.add((stage, what))
            self.console.print(line, style=style, markup=False)

    def view(self) -> RenderableType:
        """Draw the live table."""
        tallies = self._in_order()
        before = [f"{tally.stage} {tally.skipped}" for tally in tallies if tally.skipped]
        notes = [f"done before, not in the rates: {', '.join(before)} units"] if before else []
        return StageTable(flowing([tally.row() for tally in tallies]), notes)

    def _in_order(self) -> list[StageTally]:
        """Return the tallies in the order of the data: text may announce tokenize first."""
        places = {name: place for place, name in enumerate(stage_names())}
        places |= dict.fromkeys((ORDER_UNIT, PLACEMENTS_UNIT, EXCHANGE), places[INTERLEAVE])
        tallies = list(self.tallies.values())  # at once: the live view draws in another thread
        return sorted(tallies, key=lambda tally: places.get(tally.stage, -1))

    def _line_is_due(self, tally: StageTally) -> bool:
        now = self._clock()
        last, done = self._last_line.setdefault(tally.stage, (now, 0))
        waited, moved = now - last, tally.done - done
        due = waited >= _QUIET_SECONDS or (
            waited >= _LINE_SECONDS and moved >= _LINE_SHARE * tally.units
        )
        if due or tally.done == tally.units:
            self._last_line[tally.stage] = (now, tally.done)
            return True
        return False


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
