"""The count of attempts: no unit is begun forever, and only the current attempt may commit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.attempts import Attempts, Begun, Limits, Place, Refusal
from pipeline.execution.deadlines import MIN_SECONDS, Deadlines
from pipeline.execution.runner import DONE, SET_ASIDE, SUPERSEDED, Superseded, UnitResult
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from tests.pipeline.execution.fatal import fatal_work

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60)


@given(steps=STEPS, limit=st.integers(1, 4))
def test_a_unit_is_lost_at_most_as_often_as_it_may_be(steps, limit):
    """Workers begin units in any order; each ends its unit, or dies and another begins it again."""
    attempts, deaths, old = Attempts(Limits(limit)), Counter(), []
    attempts.begin("other", "done", "s", 1)
    attempts.end("other", "done", 1, UnitResult("other", "done", DONE))
    for unit, ends in steps:
        begun = attempts.begin("stage", unit, "s", 1)
        deaths.update(lost.unit for lost in attempts.take_lost())
        assert deaths[unit] <= limit
        if isinstance(begun, Refusal):
            assert begun.status == SET_ASIDE
            assert deaths[unit] == limit
            continue
        assert deaths[unit] < limit
        for late in old:
            assert not attempts.is_current("stage", late.unit, late.token)
            result = UnitResult("stage", late.unit, DONE)
            assert not attempts.end("stage", late.unit, late.token, result)
        if ends:
            assert attempts.end("stage", unit, begun.token, UnitResult("stage", unit, DONE))
        old = [begun] if ends else []


def test_nodes_that_leave_speak_less_against_a_unit_than_workers():
    attempts, begins = Attempts(Limits(2)), 0
    while isinstance(attempts.begin("s", "u", "", 1, Place("n"), lambda node: True), Begun):
        begins += 1
    assert begins == 6


def test_a_stage_that_only_loses_workers_stops_the_run():
    attempts = Attempts(Limits(1))
    refusals = [attempts.begin("s", f"u{k // 2}", "", 1) for k in range(14)][1::2]
    assert [r.status for r in refusals if isinstance(r, Refusal)][:4] == [SET_ASIDE] * 4
    last = refusals[-1]
    assert isinstance(last, Refusal)
    assert "cannot work here" in last.error


def test_deadlines_follow_what_units_of_the_source_took():
    deadlines = Deadlines(max_seconds=10_000.0)
    assert deadlines.seconds("s", "a", 10) == 10_000.0
    for seconds in (100.0, 200.0, 300.0):
        deadlines.measure("s", "a", 100, seconds)
    assert deadlines.seconds("s", "a", 100) == 20 * 200.0
    assert deadlines.seconds("s", "a", 100, deaths=1) == 40 * 200.0
    assert deadlines.seconds("s", "a", 100_000) == 10_000.0
    assert deadlines.seconds("s", "a", 1) == MIN_SECONDS
    assert deadlines.seconds("s", "b", 100) == 10_000.0
    assert Deadlines(None).seconds("s", "a", 1) is None


def test_a_late_worker_does_not_replace_what_another_committed(tmp_path: Path):
    work, ledger = fatal_work(tmp_path, {}), Ledger(Storage(str(tmp_path)))
    assert work.open()("u00", lambda: None).status == DONE
    (tmp_path / "fatal/u00.json").touch()
    before = ledger.receipt("fatal", "u00")
    asked = []

    def superseded_after(number: int):
        def confirm():
            asked.append(number)
            if len(asked) > number:
                raise Superseded("u00 was given to another worker")

        return confirm

    forced = fatal_work(tmp_path, {})
    object.__setattr__(forced, "force", True)
    assert forced.open()("u00", superseded_after(0)).status == SUPERSEDED
    assert ledger.receipt("fatal", "u00") == before
    asked.clear()
    result = forced.open()("u00", superseded_after(1))  # lost between the output and its receipt
    assert result.status == SUPERSEDED
    assert ledger.receipt("fatal", "u00") is None, "a unit without receipt is done again"
