"""The live table and the plain lines: rates of this run's units only, within 80 columns."""

import io
from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console

from pipeline.execution.progress import RunProgress
from pipeline.execution.runner import DONE, FAILED, SKIPPED, UnitResult
from pipeline.execution.status_table import StageRow, StageTable, flowing


@dataclass
class Named:
    """As much of a Work as the progress looks at."""

    name: str
    resources: Any = None
    open: Any = None


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def result(stage="score", status=DONE, **sums) -> UnitResult:
    sums = {"records_in": 100, "kept": 90, "rejected": 7, "quarantined": 3, "seconds": 20.0} | sums
    return UnitResult(stage, "u", status, measures={"windows": 300.0, "seconds": 500.0}, **sums)


def shown(progress: RunProgress) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(progress.view())
    return console.file.getvalue().splitlines()


@pytest.fixture
def plain():
    clock, text = Clock(), io.StringIO()
    return clock, text, RunProgress(Console(file=text, width=80), clock)


def test_units_done_before_are_counted_but_distort_neither_rates_nor_time_left(plain):
    clock, _, progress = plain
    progress.expect([Named("score")], 100)
    for _ in range(50):
        progress.take(result(status=SKIPPED))
    (row,) = (tally.row() for tally in progress.tallies.values())
    assert (row.units_done, row.records, row.rates, row.eta_seconds) == (50, 5000, {}, None)
    for _ in range(10):
        clock.now += 10
        progress.take(result())
    (row,) = (tally.row() for tally in progress.tallies.values())
    elapsed = 20 + 9 * 10  # the first unit's own seconds count, nothing before it
    assert row.rates == pytest.approx({"windows": 3000 / elapsed, "seconds": 5000 / elapsed})
    assert row.eta_seconds == pytest.approx(40 * elapsed / 10)
    assert "done before, not in the rates: score 50 units" in "\n".join(shown(progress))


def test_a_stage_that_is_through_keeps_its_rates(plain):
    clock, _, progress = plain
    progress.expect([Named("score")], 1)
    progress.take(result())
    before = progress.tallies["score"].row()
    clock.now += 1000
    assert progress.tallies["score"].row() == before
    assert before.rates["windows"] == pytest.approx(15)


def test_plain_lines_are_few_and_the_last_one_is_whole(plain):
    clock, text, progress = plain
    progress.expect([Named("score")], 1000)
    for _ in range(1000):
        clock.now += 0.5
        progress.take(result(seconds=0.5))
    lines = text.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("score      1000/1000 units  kept 90,000  rejected 7,000  ")
    assert "600 windows/s" in lines[-1]
    assert "ETA" in lines[0]
    assert "ETA" not in lines[-1]


def test_a_slow_stage_speaks_once_a_minute(plain):
    clock, text, progress = plain
    progress.expect([Named("score")], 10_000)
    for _ in range(120):
        clock.now += 5
        progress.take(result())
    assert len(text.getvalue().splitlines()) == 9  # of 595 s after the first


def test_failures_are_printed_and_are_not_counted_as_done(plain):
    _, text, progress = plain
    progress.expect([Named("score")], 2)
    progress.take(UnitResult("score", "u1", FAILED, error="the model [x] returned NaN"))
    assert text.getvalue() == "score u1 failed: the model [x] returned NaN\n"
    assert progress.tallies["score"].done == 0
    assert [failure.unit for failure in progress.failures] == ["u1"]


def test_the_table_fits_80_columns_at_the_largest_figures():
    rates = {"windows": 123_456.0, "seconds": 999_949.0, "tokens": 12_345_678.0}
    row = StageRow("interleave", 14_999, 15_000, 15_000_000, 14_900_000, 99_949, 99_951, rates, 8e5)
    console = Console(file=io.StringIO(), width=80)
    console.print(StageTable([row]))
    lines = console.file.getvalue().splitlines()
    assert "…" not in lines[1]
    for word in ("interleave", "14999/15000", "15.0M", "14.9M", "99.9k", "100k", "123k", "12.3M"):
        assert word in lines[1].split(), word
    assert lines[1].split()[-1] == "9d06h"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("width", "heads"), [(76, "win/s"), (68, "win/s"), (50, "quar.")])
def test_where_it_is_narrow_the_table_loses_bars_then_rates_but_no_number(width, heads):
    row = StageRow("score", 9, 12, 15_000_000, 14_900_000, 99_949, 7, {"windows": 8.5}, 8e5)
    console = Console(file=io.StringIO(), width=width)
    console.print(StageTable([row], ["a note"]))
    head, line, note = console.file.getvalue().splitlines()
    assert heads in head
    assert head.split()[-1] == "ETA"
    assert line.split()[-1] == "9d06h"
    assert ("win/s" in head) == ("8.5" in line.split())
    assert "…" not in line
    assert note == "a note"


def test_stages_come_in_the_order_of_the_data_and_none_ends_before_the_one_that_feeds_it(plain):
    clock, _, progress = plain
    progress.expect([Named("tokenize")], 4)
    progress.expect([Named(name) for name in ("ingest", "score", "encode", "tokenize")], 4)
    clock.now += 1
    progress.take(result("tokenize", seconds=1.0))
    progress.take(result("score", seconds=100.0))
    lines = shown(progress)
    assert [line.split()[0] for line in lines[1:5]] == ["ingest", "score", "encode", "tokenize"]
    assert lines[2].split()[-1] == lines[4].split()[-1] == "5m00s"
    assert lines[1].split()[-1] == "-"
    assert flowing([]) == []


def test_a_note_of_workers_is_shown_once(plain):
    _, text, progress = plain
    progress.expect([Named("score")], 3)
    for _ in range(3):
        progress.take(replace(result(), notes=("slow without a compiler",)))
    assert text.getvalue().count("score: slow without a compiler") == 1


def test_rates_stay_right_when_early_units_are_no_longer_remembered(plain):
    clock, _, progress = plain
    progress.expect([Named("score")], 10_000)
    for _ in range(400):  # 8 workers, each of whose units takes 8 s: one is done every second
        clock.now += 1
        progress.take(result(seconds=8.0))
    (row,) = (tally.row() for tally in progress.tallies.values())
    # all but the shares of the units that were in flight at the window's beginning
    assert row.rates["windows"] == pytest.approx(300, rel=0.02)
    assert row.eta_seconds == pytest.approx(9600, rel=0.02)
