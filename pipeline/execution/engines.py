"""Opens the engine that a configuration names, and takes chains of stages through it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from koe.errors import StageError
from koe.stage import Resources
from pipeline.config.models import PipelineConfig, PlanConfig
from pipeline.execution.attempt_log import AttemptLog
from pipeline.execution.attempts import Limits
from pipeline.execution.plain import run_plain
from pipeline.execution.progress import RunProgress
from pipeline.execution.runner import Stop, UnitResult, Work
from pipeline.execution.starts import STALL_SECONDS
from pipeline.run_dir.storage import Storage

RunUnits = Callable[
    [Sequence[Work], Sequence[str], Callable[[UnitResult], None], Stop, AttemptLog], bool
]


@dataclass(frozen=True)
class Engine:
    """What takes units through stages, and what it asks on the way."""

    run_units: RunUnits
    stop: Stop
    log: AttemptLog
    suspicious: int = 1  # from how many attempts that did not end a unit is done last and alone


@contextmanager
def attempt_log(
    storage: Storage, plan: PlanConfig, retry: bool, stages: Collection[str]
) -> Iterator[AttemptLog]:
    """Open what is known of earlier attempts. `retry`: units of `stages` set aside are tried again."""
    most = None if plan.unit_minutes_max is None else 60 * plan.unit_minutes_max
    limits = Limits(plan.unit_attempts, most)
    log = AttemptLog.opened(storage, limits, lambda key: retry and key[0] in stages)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def open_engine(
    config: PipelineConfig,
    needed: Sequence[dict[str, Resources]],
    stop: Stop,
    log: AttemptLog,
    console: Console,
) -> Iterator[Engine]:
    """Open the engine. `needed`: as for `engine_session`."""
    if config.engine == "inline":
        yield Engine(run_plain, stop, log)
        return
    # importing Ray takes seconds, which the inline engine saves
    from pipeline.execution.on_ray import engine_session, run_ray

    def say(text: str) -> None:
        console.print(text, style="yellow", markup=False, soft_wrap=True)

    settings = config.ray
    with engine_session(settings.address, settings.num_cpus, needed, settings.wait_minutes, say):
        # Workers are processes of their own, and a run that is killed leaves a unit of each: all of
        # them alone, one after the other, would take a large cluster's time.
        patient = partial(run_ray, stall_seconds=max(STALL_SECONDS, 60 * settings.wait_minutes))
        yield Engine(patient, stop, log, log.limits.attempts)


def run_chain(
    engine: Engine, chain: Sequence[Work], units: Sequence[str], progress: RunProgress
) -> None:
    """Take units through a chain; those that were begun before and did not end go last, one by one.

    Raises: KeyboardInterrupt after Ctrl-C, StageError where the run cannot go on.
    """
    keys = ((work.stage.name, unit) for unit in units for work in chain)
    suspects = {unit for _, unit in engine.log.suspects(keys, engine.suspicious)}
    groups = [[unit for unit in units if unit not in suspects]]
    groups += [[unit] for unit in units if unit in suspects]
    for group in groups:
        if not engine.run_units(chain, group, progress.take, engine.stop, engine.log):
            _stopped(progress)


def forgetting(
    log: AttemptLog, on_result: Callable[[UnitResult], None]
) -> Callable[[UnitResult], None]:
    """Report units that are done already, and forget what was noted of attempts at them."""

    def report(result: UnitResult) -> None:
        log.forget((result.stage, result.unit))
        on_result(result)

    return report


def _stopped(progress: RunProgress) -> None:
    stopped = progress.stopped
    if stopped is None:  # by the user
        raise KeyboardInterrupt
    raise StageError(
        f"the run stopped at {stopped.stage} {stopped.unit}",
        stopped.error.removesuffix("."),
        "Finished work is kept: run the same command again.",
    )
