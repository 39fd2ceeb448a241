"""Who may begin a unit, how often and for how long: the one count of attempts, in memory.

Ray starts workers that died again, and gives them their unit again, without end. This count ends it:
a unit that is begun while it is in flight has lost its worker. What has been lost so often that it is
set aside is passed through instead, so that the stream goes on and ends.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.execution.deadlines import Deadlines
from pipeline.execution.last_words import Doing, here
from pipeline.execution.runner import DONE, SET_ASIDE, SKIPPED, STOPPED, UnitResult
from pipeline.run_dir.set_aside import UnitKey

# A unit set aside is an exception. When a stage finishes none and loses this many, the stage itself
# cannot work here, and a run of thousands of units must not try each of them.
_HOPELESS = 5
_HOPELESS_ERROR = (
    "the first {number} units of {stage} each ended their worker, and none was finished: stage "
    "{stage} cannot work here. See how they ended in {stage}/*.set-aside.json, then run "
    "`koe run --retry-set-aside`"
)
_NODES = 3  # times as many attempts may end with their node: most nodes leave for their own reasons
GRACE_SECONDS = 60.0  # between a deadline, which the worker keeps itself, and the end of its worker


@dataclass(frozen=True)
class Limits:
    """`attempts` of a unit in a stage, and the most seconds that one may take (None: any)."""

    attempts: int = 3
    max_seconds: float | None = None


@dataclass(frozen=True)
class Place:
    """A worker: where it is, and where its last words lie there. `handle` is Ray's, to end it by."""

    node: str = ""
    worker: str = ""
    words: str = ""
    handle: Any = None
    machine: str = ""  # as its receipts name it


@dataclass(frozen=True)
class Begun:
    """An attempt in flight; `token` tells it from all others of the run."""

    stage: str
    unit: str
    source: str
    records: int
    token: int
    place: Place
    since: float  # of the clock of Attempts
    deadline: float | None
    alone: bool

    @property
    def key(self) -> UnitKey:
        return self.stage, self.unit

    def describe(self) -> Doing:
        """Say what the worker begins to do, on the machine that it is on."""
        node, boot = here()
        return Doing(
            stage=self.stage,
            unit=self.unit,
            since=time.time(),
            deadline=self.deadline,
            alone=self.alone,
            node=node,
            boot=boot,
        )


@dataclass(frozen=True)
class Refusal:
    """Why a unit may not begin: SET_ASIDE, or STOPPED for all units."""

    status: str
    error: str = ""


@dataclass
class Attempts:
    """Grants every start of a unit.

    `deaths` counts the earlier attempts that count against a unit, `set_aside` names the units that
    are left aside from the start.
    """

    limits: Limits
    deaths: Counter[UnitKey] = field(default_factory=Counter)
    set_aside: set[UnitKey] = field(default_factory=set)
    clock: Callable[[], float] = time.monotonic
    deadlines: Deadlines = field(init=False)
    lost: list[Begun] = field(default_factory=list)  # since somebody took them
    in_flight: dict[UnitKey, Begun] = field(default_factory=dict)
    stopped: bool = False
    _tokens: int = 0
    _nodes: Counter[UnitKey] = field(default_factory=Counter)  # attempts that ended with their node
    _ended: Counter[str] = field(default_factory=Counter)  # units finished, by stage
    _dropped: Counter[str] = field(default_factory=Counter)  # units set aside by this run

    def __post_init__(self) -> None:
        self.deadlines = Deadlines(self.limits.max_seconds)

    def begin(
        self,
        stage: str,
        unit: str,
        source: str,
        records: int,
        place: Place = Place(),  # noqa: B008: frozen
        node_is_gone: Callable[[str], bool] = lambda node: False,
    ) -> Begun | Refusal:
        """Let a worker begin a unit, or say why it may not."""
        key = stage, unit
        if key in self.in_flight:
            self.lose(key, node_is_gone)
        if self._is_hopeless(stage):
            return Refusal(STOPPED, _HOPELESS_ERROR.format(stage=stage, number=_HOPELESS))
        if self.stopped:
            return Refusal(STOPPED)
        if key in self.set_aside:
            return Refusal(SET_ASIDE)
        self._tokens += 1
        deadline = self.deadlines.seconds(stage, source, records, self.deaths[key])
        begun = Begun(
            stage, unit, source, records, self._tokens, place, self.clock(), deadline,
            alone=not self.in_flight,
        )  # fmt: skip
        self.in_flight[key] = begun
        return begun

    def lose(self, key: UnitKey, node_is_gone: Callable[[str], bool] = lambda node: False) -> None:
        """Count that the worker of a unit in flight died."""
        begun = self.in_flight.pop(key)
        self.lost.append(begun)
        of_node = node_is_gone(begun.place.node)
        counted = self._nodes if of_node else self.deaths
        counted[key] += 1
        if counted[key] >= self.limits.attempts * (_NODES if of_node else 1):
            self.set_aside.add(key)
            self._dropped[begun.stage] += 1

    def _is_hopeless(self, stage: str) -> bool:
        return self._dropped[stage] >= _HOPELESS and not self._ended[stage]

    def is_current(self, stage: str, unit: str, token: int) -> bool:
        """Say whether an attempt may still commit: no other has taken its place."""
        begun = self.in_flight.get((stage, unit))
        return begun is not None and begun.token == token

    def end(self, stage: str, unit: str, token: int, result: UnitResult) -> bool:
        """Take the result of an attempt; False for one whose place another has taken."""
        if not self.is_current(stage, unit, token):
            return False
        begun = self.in_flight.pop((stage, unit))
        self.stopped |= result.status == STOPPED
        if result.status in (DONE, SKIPPED):
            self._ended[stage] += 1
            self.deadlines.measure(stage, begun.source, begun.records, result.seconds)
        return True

    def overdue(self) -> list[Begun]:
        """List the units whose worker did not end itself at its deadline."""
        now = self.clock()
        return [
            begun
            for begun in self.in_flight.values()
            if begun.deadline is not None and now > begun.since + begun.deadline + GRACE_SECONDS
        ]

    def take_lost(self) -> list[Begun]:
        """Hand over the attempts lost since the last call."""
        lost, self.lost = self.lost, []
        return lost


def counted_deaths(
    deaths: Mapping[UnitKey, Collection[Any]], ended: Collection[str] = ("worker", "machine")
) -> Counter[UnitKey]:
    """Count the deaths that speak against a unit."""
    return Counter({key: sum(d.ended in ended for d in found) for key, found in deaths.items()})
