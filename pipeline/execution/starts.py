"""Whether the workers of a run start at all: without this Ray tries forever, and nobody hears of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from koe.errors import StageError
from koe.numbers import counted
from koe.stage import Resources
from pipeline.execution.placement import Amounts, describe, describe_nodes

MAX_STARTS = 5  # of one worker that does not get as far as its first unit
STALL_SECONDS = (
    30 * 60.0
)  # without a sign of any worker: nodes are added and models fetched in less


@dataclass
class Starts:
    """Counts what workers begin to open their stage, and which of them get through.

    Ray starts a worker that dies again under its name; `broken` says of which stage one died too often.
    """

    signs: int = 0
    opened: Counter[str] = field(default_factory=Counter)  # workers, by stage
    broken: str = ""
    _begun: Counter[str] = field(default_factory=Counter)  # by worker

    def begin(self, stage: str, worker: str) -> None:
        self.signs += 1
        if self._begun[worker] >= MAX_STARTS:
            self.broken = stage
        self._begun[worker] += 1

    def end(self, stage: str, worker: str) -> None:
        self.signs += 1
        self._begun.pop(worker, None)
        self.opened[stage] += 1


def cannot_start(stage: str) -> StageError:
    """Return the error for a stage whose worker dies before its first unit, each time."""
    return StageError(
        f"a worker of stage {stage} cannot start",
        f"its process died {MAX_STARTS} times in a row while it opened the stage",
        "Run with `--set engine=inline` to see how it dies. Finished work is kept.",
        stage=stage,
    )


@dataclass
class StallGuard:
    """Ends a run in which nothing happens: no unit in flight, none finished, no worker started."""

    needs: Sequence[tuple[str, Resources]]  # of the stages of the chain
    seconds: float = STALL_SECONDS
    clock: Callable[[], float] = time.monotonic
    _signs: int = -1
    _since: float = 0.0

    def check(
        self, active: bool, signs: int, opened: Counter[str], nodes: Callable[[], Sequence[Amounts]]
    ) -> None:
        """Take in how it is now. Raises: StageError that says which stage has no worker."""
        if active or signs != self._signs:
            self._signs, self._since = signs, self.clock()
        elif self.clock() - self._since > self.seconds:
            raise self._stalled(opened, nodes())

    def _stalled(self, opened: Counter[str], nodes: Sequence[Amounts]) -> StageError:
        idle = [(stage, needs) for stage, needs in self.needs if not opened[stage]] or self.needs
        asked = {stage: needs.amounts() for stage, needs in idle}
        names = dict.fromkeys(name for amounts in asked.values() for name in amounts)
        wants = ", ".join(f"{stage} asks for {describe(found)}" for stage, found in asked.items())
        return StageError(
            f"the run stalled: {', '.join(asked)} has no worker",
            f"nothing happened for {counted(round(self.seconds / 60), 'minute')}; a worker of {wants}, "
            f"and there is {describe_nodes(nodes, names) or 'no node'}",
            "Add nodes, or lower what the stage asks for. Finished work is kept: run the same command "
            "again.",
            stage=idle[0][0],
        )
