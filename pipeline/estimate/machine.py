"""What a run takes on a machine, which part of the machine is short, and what to change.

Ray takes units through all stages of a chain at once, so a chain takes as long as the part of the machine
that its stages need longest: the GPUs, the cores or the reading of the audio. The sums are those of a
machine that is never waiting: starts, ends and uneven units come on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from koe.stage import Resources
from pipeline.execution.placement import Amounts, sharing_gpus

GPUS, CORES, READING = "GPUs", "cores", "reading"
_WORTH = 0.99  # a change of settings is told where it leaves less of the time
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Machine:
    """A machine, or all nodes of a cluster together. What is not known of reading bounds nothing."""

    cores: float
    gpus: float = 0.0
    read_bytes_per_second: float | None = None

    @staticmethod
    def of(nodes: Sequence[Amounts]) -> Machine:
        """Add up the nodes of a cluster."""
        return Machine(*(sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")))


@dataclass(frozen=True)
class StageLoad:
    """What one stage needs for all records of a run.

    `worker_seconds`: of one worker that has its GPU or its CPUs to itself. `decode_seconds`: of one core
    that reads, decodes and resamples; on a GPU this is done beside the worker's own thread, which
    launches what the GPU computes, and on a CPU it is part of `worker_seconds`.
    """

    stage: str
    resources: Resources
    worker_seconds: float
    decode_seconds: float = 0.0
    read_bytes: float = 0.0

    @property
    def on_gpu(self) -> bool:
        return self.resources.gpus > 0

    @property
    def cores_per_gpu(self) -> float:
        """How many cores keep one GPU at work; nan of a stage on CPUs, or of one without work."""
        if not self.on_gpu or not self.worker_seconds:
            return math.nan
        return 1 + self.decode_seconds / self.worker_seconds

    @property
    def gpu_part(self) -> float:
        """Return the GPUs that one worker keeps from others."""
        part = self.resources.gpus
        return 1 / int((1 + _ROUNDING) / part) if 0 < part < 1 else part

    @property
    def waits_for_decoding(self) -> bool:
        return self.on_gpu and self._decoding > self._computing * (1 + _ROUNDING)

    @property
    def _computing(self) -> float:
        """Seconds of one of several workers that share a GPU."""
        return self.worker_seconds / min(self.gpu_part, 1.0) if self.on_gpu else self.worker_seconds

    @property
    def _decoding(self) -> float:
        return self.decode_seconds / self.resources.threads if self.on_gpu else 0.0

    def own_seconds(self) -> float:
        """How long the stage takes with one worker."""
        return max(self._computing, self._decoding)

    def loads(self, machine: Machine) -> dict[str, float]:
        """Return for how many seconds the stage needs each part of a machine, and its fixed pool."""
        own = self.own_seconds()
        busy = self.decode_seconds + self.worker_seconds if self.on_gpu else 0.0
        needed = {GPUS: self.gpu_part * own, CORES: max(self.resources.cpus * own, busy)}
        has = {GPUS: machine.gpus, CORES: machine.cores}
        found = {name: _divided(value, has[name]) for name, value in needed.items()}
        if machine.read_bytes_per_second is not None:
            found[READING] = self.read_bytes / machine.read_bytes_per_second
        if self.resources.workers:
            found[f"the workers of {self.stage}"] = own / self.resources.workers
        return found

    def with_cpus(self, cpus: float) -> StageLoad:
        return replace(self, resources=replace(self.resources, cpus=cpus))


def _divided(needed: float, has: float) -> float:
    return needed / has if has else math.inf if needed else 0.0


def loads(stages: Sequence[StageLoad], machine: Machine) -> dict[str, float]:
    """Return for how many seconds stages that work at the same time need each part of a machine."""
    found: dict[str, float] = {}
    for stage in sharing(stages, machine):
        for name, seconds in stage.loads(machine).items():
            found[name] = found.get(name, 0.0) + seconds
    return found


def sharing(stages: Sequence[StageLoad], machine: Machine) -> list[StageLoad]:
    """Give stages that may share a GPU their part of it, where there are fewer GPUs than stages."""
    room = {"CPU": math.inf, "GPU": machine.gpus, "memory": math.inf}
    names = {name for stage in stages for name in stage.resources.others}
    chain = {stage.stage: stage.resources for stage in stages}
    shared = sharing_gpus(chain, [room | dict.fromkeys(names, math.inf)])
    return [replace(stage, resources=shared[stage.stage]) for stage in stages]


def seconds_on(stages: Sequence[StageLoad], machine: Machine) -> float:
    """Return how long stages that work at the same time take on a machine; inf where one cannot run."""
    return max(loads(stages, machine).values(), default=0.0)


def bottlenecks(stages: Sequence[StageLoad], machine: Machine) -> tuple[str, ...]:
    """Name the parts that are needed longest: several where only more of all of them would help."""
    found = loads(stages, machine)
    longest = max(found.values(), default=0.0)
    if not longest:
        return ()
    return tuple(name for name, value in found.items() if value >= longest * (1 - _ROUNDING))


def better_cpus(stages: Sequence[StageLoad], machine: Machine) -> dict[str, int]:
    """Return the `cpus_per_worker` of stages on GPUs with which a run takes less time, by stage.

    Threads that decode follow from it. Empty where no choice saves a hundredth.
    """
    chosen = list(stages)
    for _ in range(2):  # each once more, beside what the others were given
        for place, stage in enumerate(chosen):
            if stage.on_gpu:
                chosen[place] = _fastest(chosen, place, machine)
    if not seconds_on(chosen, machine) < _WORTH * seconds_on(stages, machine):
        return {}
    return {
        after.stage: int(after.resources.cpus)
        for before, after in zip(stages, chosen, strict=True)
        if after.resources.cpus != before.resources.cpus
    }


def _fastest(stages: Sequence[StageLoad], place: int, machine: Machine) -> StageLoad:
    """Return the stage at `place` with the fewest CPUs of those that make the run fastest."""
    stage = stages[place]
    if not stage.worker_seconds:
        return stage
    enough_cpus = math.ceil(stage.cores_per_gpu * max(stage.gpu_part, 1.0))
    most = min(int(machine.cores), enough_cpus)
    tried = [stage, *(stage.with_cpus(float(number)) for number in range(1, most + 1))]
    times = [seconds_on([*stages[:place], one, *stages[place + 1 :]], machine) for one in tried]
    enough = min(times) * (1 + _ROUNDING)
    return next(one for one, time in zip(tried, times, strict=True) if time <= enough)


@dataclass(frozen=True)
class StageOnMachine:
    """One stage that has the machine to itself: its seconds, and the parts that are short.

    `threads` decode for each worker. `cores_per_gpu` as in `StageLoad`.
    """

    stage: str
    seconds: float
    short: tuple[str, ...]
    threads: int
    waits_for_decoding: bool
    cores_per_gpu: float


@dataclass(frozen=True)
class OnMachine:
    """Stages that work at the same time on a machine: their seconds, and those of the machine's parts.

    With the `cpus_per_worker` in `cpus`, by stage, they take `seconds_then` and are short of
    `short_then`.
    """

    stages: tuple[StageOnMachine, ...]
    seconds: float
    needed: Mapping[str, float]
    short: tuple[str, ...]
    cpus: Mapping[str, int]
    seconds_then: float
    short_then: tuple[str, ...]
    read_bytes: float


def on_machine(stages: Sequence[StageLoad], machine: Machine) -> OnMachine:
    """Tell how long stages that work at the same time take on a machine, and what they wait for."""
    cpus = better_cpus(stages, machine)
    then = [one.with_cpus(cpus[one.stage]) if one.stage in cpus else one for one in stages]
    return OnMachine(
        stages=tuple(_by_itself(one, machine) for one in stages),
        seconds=seconds_on(stages, machine),
        needed=loads(stages, machine),
        short=bottlenecks(stages, machine),
        cpus=cpus,
        seconds_then=seconds_on(then, machine),
        short_then=bottlenecks(then, machine),
        read_bytes=sum(one.read_bytes for one in stages),
    )


def _by_itself(stage: StageLoad, machine: Machine) -> StageOnMachine:
    return StageOnMachine(
        stage=stage.stage,
        seconds=seconds_on([stage], machine),
        short=bottlenecks([stage], machine),
        threads=stage.resources.threads,
        waits_for_decoding=stage.waits_for_decoding,
        cores_per_gpu=stage.cores_per_gpu,
    )
