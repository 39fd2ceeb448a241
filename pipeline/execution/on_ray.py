"""Runs chains of stages on Ray Data: one row is one unit, one actor pool per stage.

Only names of units travel between actors; what the stages read and write is in the storage.
Nothing here decides bytes: receipts and unit order in the plan do, so any number of workers and
any order of completion give the same result.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext

from koe.memory import MEMORY_ENVIRONMENT
from koe.ray_session import ray_session
from koe.stage import Resources
from pipeline.execution.attempt_log import AttemptLog, log_of
from pipeline.execution.nodes import Chain, live_nodes, local_options, may_grow, require_room
from pipeline.execution.placement import Amounts, max_workers, sharing_gpus
from pipeline.execution.runner import SET_ASIDE, STOPPED, Stop, UnitResult, Work
from pipeline.execution.starts import STALL_SECONDS, StallGuard, cannot_start
from pipeline.execution.workers import Drained, Worker, end_overdue, start_progress, words_of

_POLL_SECONDS = 0.3
_LEAVE_SECONDS = 5.0  # that a stopped stream may take to close by itself

# For a local Ray; a cluster keeps its own settings.
_LOCAL_RAY = {
    **MEMORY_ENVIRONMENT,
    # Its core prints an error for every actor pool of Ray Data (ray issue 53727: arguments in the
    # object store), which its own driver keeps alive.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # By default workers run at niceness 15: any other process would get 28 times their share of a core.
    "RAY_worker_niceness": "0",
}


@contextlib.contextmanager
def engine_session(
    address: str | None,
    num_cpus: int | None,
    chains: Sequence[Chain],
    wait_minutes: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Join the Ray at `address`, or start a local one, for the time of a run of `chains`.

    Raises: ConfigError when the nodes cannot hold a worker of every stage, after `wait_minutes`.
    """
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= local_options(num_cpus, chains)
    else:
        options["runtime_env"] = {"env_vars": MEMORY_ENVIRONMENT}
    with ray_session(address, options.pop("num_cpus", None), _LOCAL_RAY, **options):
        require_room(chains, wait_minutes, say)
        try:
            yield
        finally:
            # An abandoned stream fails when its Ray shuts down, and would log that at length.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)


class _Consumer(threading.Thread):
    """Pulls units through the stream, so that the main thread is free to report and to stop."""

    def __init__(self, dataset: ray.data.Dataset) -> None:
        super().__init__(daemon=True)
        self._dataset = dataset
        self.complete = True
        self.failure: BaseException | None = None
        self.leave = threading.Event()  # set once the rest of the stream will do nothing

    def run(self) -> None:
        try:
            for row in self._dataset.iter_rows():
                self.complete &= row["status"] != STOPPED
                if self.leave.is_set():
                    break
        except BaseException as error:  # handed to the main thread, which raises it
            self.failure = error


def run_ray(
    chain: Sequence[Work],
    units: Sequence[str],
    on_result: Callable[[UnitResult], None],
    stop: Stop | None = None,
    log: AttemptLog | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> bool:
    """Stream the units through the chain's actor pools.

    `on_result` is called once for every unit and stage, from this process. Returns False when
    the run had to stop, or was asked to by `stop`.

    Raises: StageError where the workers of a stage die before their first unit, or no worker shows any
    sign for `stall_seconds`.
    """
    if not units:
        return True
    with log_of(chain, log) as log:
        progress = start_progress(log.attempts())
        needs = sharing_gpus({work.name: work.resources for work in chain}, live_nodes())
        # Work can be megabytes (a tokenizer). This process owns it for the whole run, inside a list
        # so that Ray does not unpack it: a worker that dies can then always be started again.
        stored = [ray.put(work.with_share(needs[work.name])) for work in chain]
        consumer = _Consumer(_dataset(needs, units, stored, progress))
        consumer.start()
        guard = StallGuard(list(needs.items()), stall_seconds)
        return _follow(consumer, progress, on_result, stop or Stop(), log, guard)


def _follow(
    consumer: _Consumer,
    progress: Any,
    on_result: Callable[[UnitResult], None],
    stop: Stop,
    log: AttemptLog,
    guard: StallGuard,
) -> bool:
    """Report what happens in the stream until it ends; see `run_ray`."""
    seen: set[tuple[str, str]] = set()
    while True:
        # Asked before draining: once the stream has ended, the actor has all of its results.
        alive = consumer.is_alive()
        if stop.requested:
            progress.stop.remote()
        drained: Drained = ray.get(progress.drain.remote())
        stop.in_flight = len(drained.in_flight)
        _keep(log, drained)
        _require_life(guard, drained)
        for key, result in drained.results:
            if (result.stage, result.unit) in seen:  # a refusal, told to each retry of Ray's
                continue
            seen.add((result.stage, result.unit))
            if result.status == SET_ASIDE:
                result = log.refused(result.stage, key)
            else:
                log.forget(key)
            on_result(result)
        if drained.stopped and not stop.in_flight:  # thousands of units may have to pass through
            consumer.leave.set()
            consumer.join(_LEAVE_SECONDS)
            return False
        if not alive:
            break
        consumer.join(_POLL_SECONDS)
    if consumer.failure:
        raise consumer.failure
    return consumer.complete


def _require_life(guard: StallGuard, drained: Drained) -> None:
    """Raises: StageError where workers cannot start, or nothing happens any more."""
    starts = drained.starts
    if starts.broken:
        raise cannot_start(starts.broken)
    active = bool(drained.results or drained.in_flight or drained.lost)
    guard.check(active, starts.signs, starts.opened, live_nodes)


def _keep(log: AttemptLog, drained: Drained) -> None:
    """Keep what the next run must know, and end what does not end by itself."""
    for lost in drained.lost:
        left, how, of_node = words_of(lost)
        log.lost(lost, left, how, node_is_gone=of_node)
    log.see(drained.in_flight)
    end_overdue(drained.overdue)


def _dataset(
    chain: Chain, units: Sequence[str], stored: Sequence[Any], progress: Any
) -> ray.data.Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_items(
        [{"unit": unit, "status": ""} for unit in units], override_num_blocks=len(units)
    )
    pools = _pools(list(chain.values()), len(units))
    for (name, needs), work, pool in zip(chain.items(), stored, pools, strict=True):
        dataset = dataset.map_batches(
            Worker,
            fn_constructor_args=(name, [work], progress),
            batch_size=1,
            batch_format="numpy",
            compute=pool,
            **_ray_arguments(needs),
        )
    return dataset


def _ray_arguments(needs: Resources) -> dict[str, Any]:
    """Return what a worker reserves, as arguments of `map_batches`."""
    found: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus or None}
    if needs.memory:
        found["memory"] = int(needs.memory)
    if needs.others:
        found["resources"] = dict(needs.others)
    return found


def _pools(chain: Sequence[Resources], num_units: int) -> list[ActorPoolStrategy]:
    """Give each stage its pool: of a fixed size, or growing while its stage is the bottleneck.

    Growing pools begin with as many workers as fit when each stage has equally many: Ray Data adds
    them one after the other, each once the one before has loaded its model, while the nodes that
    there are then have room. On a cluster no pool has a most: nodes may be added.
    """
    nodes, unbounded = live_nodes(), may_grow()
    first = _even_share(chain, nodes)
    pools = []
    for needs in chain:
        if needs.workers:
            pools.append(ActorPoolStrategy(size=min(needs.workers, num_units)))
            continue
        fit = max(1, min(max_workers(needs.amounts(), nodes), num_units))
        most = num_units if unbounded else fit
        initial = min(max(1, int(first)), fit)
        pools.append(ActorPoolStrategy(min_size=1, max_size=most, initial_size=initial))
    return pools


def _even_share(chain: Sequence[Resources], nodes: Sequence[Amounts]) -> float:
    """Return how many workers each growing stage may have beside those of fixed number."""
    left: defaultdict[str, float] = defaultdict(float)
    for node in nodes:
        for name, amount in node.items():
            left[name] += amount
    asked: defaultdict[str, float] = defaultdict(float)
    for needs in chain:
        for name, amount in needs.amounts().items():
            if needs.workers:
                left[name] -= amount * needs.workers
            else:
                asked[name] += amount
    return min((left[name] / amount for name, amount in asked.items()), default=0.0)
