"""The one meter of rates: how much all workers together did per second lately."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from koe.dataflow import rates_of

RECENT_SECONDS = 600.0  # what rates are taken over, at least
_RECENT_UNITS = 4.0  # and as many times the duration of a unit, where that is longer


class UnitWork(NamedTuple):
    """A unit that was done: when, in how many seconds, and its measures named by `rates_of`."""

    ended: float
    seconds: float
    measures: tuple[float, ...]


def rate_measures(stage: str, measures: dict[str, float]) -> tuple[float, ...]:
    """Pick the measures of a unit that its stage shows per second; 0 for one that it lacks."""
    return tuple(measures.get(name, 0.0) for name in rates_of(stage))


def recent_rates(
    stage: str, units: Iterable[UnitWork], now: float, since: float = float("-inf")
) -> dict[str, float]:
    """Return `units` and the measures of the stage per second; empty where none was done lately.

    A unit counts with the share of its time that lies in the window, which never begins before
    `since`. The clock runs on until `now`, so that a stage that stalls shows it.
    """
    done = list(units)
    mean = sum(unit.seconds for unit in done) / len(done) if done else 0.0
    since = max(since, now - max(RECENT_SECONDS, _RECENT_UNITS * mean))
    recent = [unit for unit in done if unit.ended > since]
    if not recent:
        return {}
    began = max(since, min(unit.ended - unit.seconds for unit in recent))
    elapsed = max(now, *(unit.ended for unit in recent)) - began
    if elapsed <= 0:
        return {}
    sums = [0.0] * (1 + len(recent[0].measures))
    for unit in recent:
        share = min(1.0, (unit.ended - began) / unit.seconds) if unit.seconds else 1.0
        for k, value in enumerate((1.0, *unit.measures)):
            sums[k] += share * value
    names = ("units", *rates_of(stage))
    return {name: value / elapsed for name, value in zip(names, sums, strict=True)}
