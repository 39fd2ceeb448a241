"""Workers that never start, and runs in which nothing happens, end."""

from __future__ import annotations

from collections import Counter

import pytest

from koe.errors import StageError
from koe.stage import Resources
from pipeline.execution.starts import MAX_STARTS, StallGuard, Starts


def test_a_worker_may_die_now_and_then_but_not_again_and_again():
    starts = Starts()
    for _ in range(10 * MAX_STARTS):  # it gets through each time, and dies of its units
        starts.begin("score", "a")
        starts.end("score", "a")
    for worker in range(10 * MAX_STARTS):  # many begin at the same time
        starts.begin("score", f"w{worker}")
    assert not starts.broken
    for _ in range(MAX_STARTS):
        assert not starts.broken
        starts.begin("encode", "b")
    starts.begin("encode", "b")
    assert starts.broken == "encode"


def test_the_guard_ends_what_gives_no_sign():
    now = [0.0]
    needs = [("score", Resources()), ("encode", Resources(gpus=1.0))]
    guard = StallGuard(needs, seconds=100.0, clock=lambda: now[0])
    opened = Counter({"score": 1})

    def check(active: bool, signs: int, later: float = 99.0) -> None:
        now[0] += later
        guard.check(active, signs, opened, lambda: [{"CPU": 4.0}])

    for signs in range(5):
        check(False, signs)  # a worker starts from time to time
    for _ in range(5):
        check(True, 4)  # units are done
    check(False, 4)
    with pytest.raises(StageError, match=r"encode has no worker.*1 GPU.*1 node of 4 CPUs"):
        check(False, 4, 2.0)
