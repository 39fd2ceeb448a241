"""The workers of Ray's pools, and the actor that grants them their units and collects the results."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.execution.attempts import Attempts, Begun, Place, Refusal
from pipeline.execution.last_words import LastWords, Left, doing, read_left
from pipeline.execution.nodes import with_the_driver
from pipeline.execution.runner import (
    NOT_MADE,
    SET_ASIDE,
    STOPPED,
    SUPERSEDED,
    Superseded,
    UnitResult,
    Work,
)
from pipeline.execution.starts import Starts
from pipeline.run_dir.set_aside import UnitKey

_WORDS_SECONDS = 30.0  # that reading a dead worker's words on its node may take


@dataclass(frozen=True)
class Drained:
    """What happened since the last call."""

    results: list[tuple[UnitKey, UnitResult]]
    lost: list[Begun]
    in_flight: list[Begun]
    overdue: list[Begun]
    stopped: bool
    starts: Starts


@ray.remote(num_cpus=0)
class ProgressActor:
    """Collects results as they arise, so that progress is seen in every stage, not only at the end."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts, self._starts = attempts, Starts()
        self._results: list[tuple[UnitKey, UnitResult]] = []

    def begin(
        self, name: str, stage: str, unit: str, source: str, records: int, place: Place
    ) -> Begun | Refusal:
        """Let a worker begin a unit, or say why it may not; a refusal is its result."""
        begun = self._attempts.begin(stage, unit, source, records, place, node_is_gone)
        if isinstance(begun, Begun):
            return replace(begun, place=Place())
        if begun.status == SET_ASIDE or begun.error:
            result = UnitResult(name, unit, begun.status, error=begun.error)
            self._results.append(((stage, unit), result))
            self._attempts.stopped |= begun.status == STOPPED
        return begun

    def starting(self, name: str, worker: str) -> None:
        """Note that a worker opens its stage, before anything of it can end the worker."""
        self._starts.begin(name, worker)

    def started(self, name: str, worker: str) -> None:
        self._starts.end(name, worker)

    def is_current(self, stage: str, unit: str, token: int) -> bool:
        return self._attempts.is_current(stage, unit, token)

    def post(self, stage: str, unit: str, token: int, result: UnitResult) -> bool:
        """Take a result; False for that of a worker whose unit was given to another."""
        if not self._attempts.end(stage, unit, token, result):
            return False
        self._results.append(((stage, unit), result))
        return True

    def stop(self) -> None:
        """Let no more units begin."""
        self._attempts.stopped = True

    def drain(self) -> Drained:
        """Hand over what happened since the last call."""
        results, self._results = self._results, []
        return Drained(
            results,
            self._attempts.take_lost(),
            list(self._attempts.in_flight.values()),
            self._attempts.overdue(),
            self._attempts.stopped,
            self._starts,
        )


class Worker:
    """One actor of a stage's pool."""

    def __init__(self, name: str, work: list[Any], progress: Any) -> None:
        context = ray.get_runtime_context()
        me = str(context.get_actor_id())  # which stays the same when Ray starts it again
        ray.get(progress.starting.remote(name, me))
        opened: Work = ray.get(work[0])  # pyright: ignore[reportAssignmentType]
        self._work, self._run, self._progress = opened, opened.open(), progress
        self._words = LastWords(opened.root, catches=True)
        self._place = Place(
            context.get_node_id(),
            context.get_worker_id(),
            str(self._words.path),
            context.current_actor,
            platform.node(),
        )
        ray.get(progress.started.remote(name, me))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch["unit"], batch["status"], strict=True)
        # What an earlier stage could not do, and after a stop everything, passes through.
        statuses = [
            status if status in NOT_MADE else self._attempt(str(unit)) for unit, status in pairs
        ]
        return {"unit": batch["unit"], "status": statuses}

    def _attempt(self, unit: str) -> str:
        stage, progress = self._work.stage.name, self._progress
        size = self._work.size(unit)
        asked = progress.begin.remote(self._work.name, stage, unit, *size, self._place)
        begun: Begun | Refusal = ray.get(asked)  # pyright: ignore[reportAssignmentType]
        if isinstance(begun, Refusal):
            return begun.status

        def confirm() -> None:
            # A worker that cannot reach the actor fails here, and commits nothing either.
            if not ray.get(progress.is_current.remote(stage, unit, begun.token)):
                raise Superseded(f"{stage} {unit} was given to another worker")

        with doing(self._words, begun.describe()):
            result = self._run(unit, confirm)
        # Before the stream counts it as done.
        posted = ray.get(progress.post.remote(stage, unit, begun.token, result))
        return result.status if posted else SUPERSEDED


def start_progress(attempts: Attempts) -> Any:
    """Start the actor beside the driver: it ends with the process that runs the engine, not before."""
    return ProgressActor.options(scheduling_strategy=with_the_driver()).remote(attempts)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def own_node() -> str:
    return ray.get_runtime_context().get_node_id()


def node_is_gone(node: str) -> bool:
    """Say whether a node has left the cluster."""
    return not any(known["NodeID"] == node and known["Alive"] for known in ray.nodes())


def words_of(lost: Begun) -> tuple[Left, str, bool]:
    """Return what a dead worker left, what Ray says of its end, and whether its node is gone."""
    if node_is_gone(lost.place.node):
        return Left(doing=None), "", True
    if lost.place.node == own_node():
        return _take(lost.place.words), how_ray_says(lost.place.worker), False
    there = NodeAffinitySchedulingStrategy(lost.place.node, soft=False)
    reader = ray.remote(num_cpus=0, max_retries=0)(_take).options(scheduling_strategy=there)
    try:
        left = ray.get(reader.remote(lost.place.words), timeout=_WORDS_SECONDS)
    except (RayError, TimeoutError):  # the node went, or is as stuck as its worker
        return Left(doing=None), how_ray_says(lost.place.worker), node_is_gone(lost.place.node)
    return left, how_ray_says(lost.place.worker), False


def _take(words: str) -> Left:
    left = read_left(Path(words))
    for path in (Path(words), Path(words).with_suffix(".text")):
        path.unlink(missing_ok=True)
    return left


def how_ray_says(worker: str) -> str:
    """Return Ray's word on a worker that its memory monitor ended; empty for any other end.

    Of other ends Ray says only what they may have been. The table of workers has no public door
    without Ray's dashboard, which a local Ray does not start; where a version of Ray has another
    door, the end is described without it.
    """
    with contextlib.suppress(AttributeError, ImportError, TypeError):
        from ray._private.state import state
        from ray.core.generated import common_pb2, gcs_pb2

        accessor = state._connect_and_get_accessor()
        data = accessor.get_worker_info(ray.WorkerID.from_hex(worker))
        if data is not None:
            info = gcs_pb2.WorkerTableData.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]
            if info.exit_type == common_pb2.NODE_OUT_OF_MEMORY:  # pyright: ignore[reportAttributeAccessIssue]
                return f"out of memory, says Ray: {info.exit_detail}"
    return ""


def end_overdue(overdue: Sequence[Begun]) -> None:
    """End workers that did not end themselves at their deadline; Ray starts each again."""
    for begun in overdue:
        if begun.place.handle is not None:
            ray.kill(begun.place.handle, no_restart=False)
