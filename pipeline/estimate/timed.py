"""Times a stage on units and clips, as one worker in this process, until its time is up.

Units and clips (of all units that were read) come in random order, so that stopping after any of
them introduces no bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from koe.schema import Unit, unit_table
from koe.stage import Outcome, Stage

Clock = Callable[[], float]  # seconds since some moment

_FIRST_CLIPS = 2  # tell how many more there is time for
_MIN_CLIPS = 8  # are taken however long they take: fewer tell neither the work nor its spread
_WARM_UP_CLIPS = 8  # at most, until one is kept: a clip that is rejected at once warms nothing up


class Opened:
    """A stage that is loaded, and warmed up before its first measurement of clips.

    `measured` makes the same and is run in its place, with more `threads`.
    """

    def __init__(self, stage: Stage, clock: Clock, measured: Stage | None = None) -> None:
        self.name = stage.name
        self.resources = stage.resources
        measured = measured or stage
        self.threads = measured.resources.threads
        self._clock = clock
        self._transform = measured.open()
        self._warm = False

    def run(self, table: pa.Table) -> tuple[Outcome, float]:
        """Run the stage; return its outcome and the seconds that it took."""
        started = self._clock()
        outcome = self._transform(table)
        return outcome, self._clock() - started

    def warm_up(self, clips: pa.Table) -> None:
        """Run the stage on some clip, if it has kept none yet."""
        for row in range(min(_WARM_UP_CLIPS, clips.num_rows)):
            if not self._warm:
                self._warm = self._transform(clips.slice(row, 1)).kept.num_rows > 0


@dataclass(frozen=True)
class Read:
    """Units that were read, in plan order, and what was kept of each."""

    units: list[Unit]
    seconds: float
    tables: list[pa.Table]

    @property
    def records(self) -> int:
        return sum(unit.records for unit in self.units)

    @property
    def kept(self) -> pa.Table:
        return pa.concat_tables(self.tables)


def read_units(
    stage: Opened, units: Sequence[Unit], seconds: float, rng: np.random.Generator
) -> Read:
    """Run a stage on units until its time is up, and on at least one that has records."""
    found: dict[int, pa.Table] = {}
    read, spent = 0, 0.0
    for place in rng.permutation(len(units)).tolist():
        if read and spent >= seconds:
            break
        outcome, took = stage.run(unit_table([units[place]]))
        found[place] = outcome.kept
        read, spent = read + units[place].records, spent + took
    places = sorted(found)
    return Read([units[place] for place in places], spent, [found[place] for place in places])


@dataclass(frozen=True)
class Taken:
    """The clips that a stage ran on: their `rows`, ascending, and those it kept (`kept_rows`)."""

    rows: np.ndarray  # int64
    seconds: float
    kept: pa.Table
    kept_rows: np.ndarray  # int64


def take_clips(
    stage: Opened, clips: pa.Table, most: int, seconds: float, rng: np.random.Generator
) -> Taken:
    """Run a stage on at most `most` clips until its time is up, and on a few in any case."""
    stage.warm_up(clips)
    order = rng.permutation(clips.num_rows)[:most]
    done, spent = 0, 0.0
    tables: list[pa.Table] = []
    kept_rows: list[int] = []
    while number := _next_clips(done, len(order), spent, seconds):
        rows = np.sort(order[done : done + number])
        given = clips.take(pa.array(rows))
        outcome, took = stage.run(given)
        tables.append(outcome.kept)
        kept_rows += _rows_kept(rows, given, outcome.kept)
        done, spent = done + number, spent + took
    kept = pa.concat_tables(tables).take(pa.array(np.argsort(kept_rows)))
    return Taken(np.sort(order[:done]), spent, kept, np.array(sorted(kept_rows), np.int64))


def _next_clips(done: int, total: int, spent: float, seconds: float) -> int:
    """Return how many clips to take next: half as many as the time that is left is enough for."""
    if not done:
        return min(_FIRST_CLIPS, total)
    allowed = (seconds - spent) * done / max(spent, 1e-9)
    # A few clips tell the time per clip badly: at most twice as many follow them.
    number = int(min(2 * done, allowed / 2 + 1)) if allowed >= 1 else 0
    return min(total - done, max(number, _MIN_CLIPS - done))


def _rows_kept(rows: np.ndarray, given: pa.Table, kept: pa.Table) -> list[int]:
    """Find the rows of the clips that were kept; a stage keeps their order."""
    ids, place, found = given["id"].to_pylist(), -1, []
    for clip_id in kept["id"].to_pylist():
        place = ids.index(clip_id, place + 1)
        found.append(int(rows[place]))
    return found
