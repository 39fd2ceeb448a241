"""The plain engine: every unit through every stage in this process; tests compare Ray with it."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.execution.attempt_log import AttemptLog, log_of
from pipeline.execution.attempts import Attempts, Refusal
from pipeline.execution.isolated import Died, run_isolated
from pipeline.execution.last_words import LastWords, doing
from pipeline.execution.runner import (
    NOT_MADE,
    SET_ASIDE,
    STOPPED,
    Stop,
    UnitFunction,
    UnitResult,
    Work,
    always,
)
from pipeline.execution.watcher import watched


def run_plain(
    chain: Sequence[Work],
    units: Iterable[str],
    on_result: Callable[[UnitResult], None],
    stop: Stop | None = None,
    log: AttemptLog | None = None,
) -> bool:
    """Take every unit through every stage.

    A unit that was begun before and did not end is done in a process of its own. Returns False when
    the run had to stop, or was asked to by `stop`.
    """
    stop = stop or Stop()
    with log_of(chain, log) as log, _words(log.storage.root) as words:
        engine = _Plain(log, log.attempts(), words)
        functions = [(work, work.open()) for work in chain]
        for unit in units:
            for work, function in functions:
                if stop.requested:
                    return False
                stop.in_flight = 1
                result = engine.attempt(work, function, unit)
                stop.in_flight = 0
                on_result(result)
                if result.status == STOPPED:
                    return False
                if result.status in NOT_MADE:
                    break
    return True


@contextmanager
def _words(root: str) -> Iterator[LastWords]:
    words = LastWords(root, catches=not faulthandler.is_enabled())
    try:
        with watched(words.path):
            yield words
    finally:
        words.close()


@dataclass(frozen=True)
class _Plain:
    log: AttemptLog
    attempts: Attempts
    words: LastWords

    def attempt(self, work: Work, function: UnitFunction, unit: str) -> UnitResult:
        """Take a unit through one stage; where it ends the process it is in, as often as it may."""
        key = work.stage.name, unit
        while True:
            begun = self.attempts.begin(*key, *work.size(unit))
            if isinstance(begun, Refusal):
                if begun.status == SET_ASIDE:
                    return self.log.refused(work.name, key)
                return UnitResult(work.name, unit, begun.status, error=begun.error)
            self.log.see([begun])
            if self.log.suspects([key]):
                result = run_isolated(work, unit, begun.describe())
            else:
                with doing(self.words, begun.describe()):
                    result = function(unit, always)
            if isinstance(result, Died):
                self.attempts.lose(key)
                (lost,) = self.attempts.take_lost()
                self.log.lost(lost, result.left, result.how)
                continue
            self.attempts.end(*key, begun.token, result)
            self.log.forget(key)
            return result
