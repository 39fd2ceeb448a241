"""Kills at random moments: of the whole run, its driver, single workers, and the raylet."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.s3_server import S3Server
from tests.soak.runs import Case, Differs, Whole, complete, count_files, wait_until
from tests.soak.table import SAME, Report

ON_RAY = ("engine=ray", "ray.num_cpus=2")
ALL, DRIVER, WORKER, RAYLET = "the whole run", "the driver alone", "one worker", "the raylet"
# Which processes of a run on Ray are meant, by how their command lines begin or what they hold.
_OF = {WORKER: "ray::MapWorker", RAYLET: "/raylet/raylet"}


@dataclass(frozen=True)
class Kind:
    """What is killed in which runs; `share` of all kills."""

    what: str
    where: str
    share: float
    options: tuple[str, ...] = ()
    on_s3: bool = False

    @property
    def name(self) -> str:
        return f"{self.what}, {self.where}"


KINDS = (
    Kind(ALL, "inline", 0.36),
    Kind(ALL, "inline on S3", 0.2, on_s3=True),
    Kind(ALL, "Ray", 0.12, ON_RAY),
    Kind(DRIVER, "Ray", 0.08, ON_RAY),
    Kind(WORKER, "Ray", 0.16, ON_RAY),
    Kind(RAYLET, "Ray", 0.08, ON_RAY),
)


class Progress:
    """How far a run is: the files that it has written, or on S3 the requests that it has made."""

    def __init__(self, case: Case, server: S3Server | None) -> None:
        self._case, self._server = case, server
        self._before = 0 if server is None else len(server.log())
        self.stride = 20 if server is None else 150  # until the next kill, at most

    def now(self) -> int:
        if self._server is None:
            return count_files(Path(self._case.run_dir))
        return len(self._server.log()) - self._before


def kill_and_resume(
    report: Report,
    kinds: tuple[Kind, ...],
    number: int,
    make_case: Callable[[Kind], Case],
    whole: Whole,
    rng: random.Random,
    server: S3Server | None = None,
) -> None:
    """Make `number` kills in all, of each kind its share; every run must end as `whole`."""
    for kind in kinds:
        left = max(1, round(number * kind.share / sum(k.share for k in kinds)))
        while left > 0:
            case = make_case(kind)
            # a unit whose worker dies three times is set aside, as it should be
            kills = min(left, rng.randint(1, 2 if kind.what == WORKER else 4))
            made = _attempt(report, kind, kills, case, whole, rng, server if kind.on_s3 else None)
            left -= max(made, 1)


def _attempt(
    report: Report,
    kind: Kind,
    kills: int,
    case: Case,
    whole: Whole,
    rng: random.Random,
    server: S3Server | None,
) -> int:
    made = 0

    def attempt() -> str:
        nonlocal made
        try:
            made = _kill_often(kind, kills, case, rng, server)
            case.sweep_processes()
            complete(case, whole)
        finally:
            case.sweep_processes()
        return SAME

    report.run("kills", kind.name, attempt, lambda: made)
    return made


def _kill_often(
    kind: Kind, kills: int, case: Case, rng: random.Random, server: S3Server | None
) -> int:
    """Start a run until it has been killed `kills` times, or is done; return the number of kills."""
    made = 0
    while made < kills:
        progress, process = Progress(case, server), case.start()
        most = kills - made if kind.what == WORKER else 1
        made_now = _kill_one_start(kind, most, case, process, progress, rng)
        made += made_now
        if not made_now or kind.what in _OF:  # it must come to its end by itself
            _require_end(case.wait(process), made_now, case)
        if process.exitcode == 0:
            break
    return made


def _kill_one_start(
    kind: Kind, most: int, case: Case, process: BaseProcess, progress: Progress, rng: random.Random
) -> int:
    made = 0
    while made < most:
        moment = progress.now() + rng.randint(1, progress.stride)
        reached = wait_until(lambda moment=moment: progress.now() >= moment, process)
        if not reached or not _kill(kind, case, process, rng):
            break
        made += 1
    return made


def _require_end(code: int, kills: int, case: Case) -> None:
    """Allow a run that lost a part to be done, or to have failed with a message."""
    if code != 0 and not (kills and code == 1):
        raise Differs(f"a run with {kills} kills ended with {code}: {case.last_lines()}")


def _kill(kind: Kind, case: Case, process: BaseProcess, rng: random.Random) -> bool:
    """Kill what the kind names; return whether there was one."""
    if kind.what == ALL:
        case.kill_all(process)
        return True
    if kind.what == DRIVER:
        process.kill()
        process.join()
        return True
    found = [pid for pid, line in case.processes().items() if _OF[kind.what] in line]
    with suppress(ProcessLookupError):
        if found:
            os.kill(rng.choice(sorted(found)), signal.SIGKILL)
            return True
    return False
