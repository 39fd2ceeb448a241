"""A stage that ends its process at some units, or never ends there."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from koe import last_record
from koe.schema import SPEECH, Unit
from pipeline.config.models import PlanConfig
from pipeline.execution.engines import Engine, attempt_log, run_chain
from pipeline.execution.plain import run_plain
from pipeline.execution.progress import RunProgress
from pipeline.execution.runner import Stop
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir.storage import Storage
from tests.pipeline.run_dir.test_ledger import Numbers

NUM_UNITS = 6


@dataclass(frozen=True)
class Fatal(Numbers):
    """Fails at the units that `fates` names; each time it begins one a line is added to `diary`.

    A fate is `segv`, `kill`, `exit`, `hang` (in C, with the interpreter's lock), or `raise`.
    """

    fates: tuple[tuple[str, str], ...] = ()
    diary: str = ""
    name: str = "fatal"

    def _run(self, units):
        unit = units["unit"][0].as_py()
        with Path(self.diary).open("a") as file:
            file.write(f"{unit}\n")
        last_record.began(f"{unit}/record")
        fate = dict(self.fates).get(unit)
        if fate is not None:
            FATES[fate]()
        return super()._run(units)


def _raise():
    raise ValueError("an ordinary error")


def _end_by(number):
    signal.raise_signal(number)
    time.sleep(60)  # another thread may have got it, and this one must not finish its unit before


FATES = {
    "segv": lambda: _end_by(signal.SIGSEGV),
    "kill": lambda: _end_by(signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "hang": lambda: ctypes.PyDLL(None).sleep(1000),  # unlike CDLL it keeps the lock
    "slow": lambda: time.sleep(1000),
    "short": lambda: time.sleep(0.3),  # and then it is done
    "raise": _raise,
}


def planned(count: int = NUM_UNITS) -> dict[str, Unit]:
    return {
        f"u{k:02d}": Unit(f"u{k:02d}", "s", SPEECH, "p", "1:1", 10 * k + 1, 10 * k + 11, records=10)
        for k in range(count)
    }


def fatal_work(root: Path, fates: dict[str, str], count: int = NUM_UNITS, **options) -> StageWork:
    root.mkdir(exist_ok=True, parents=True)
    stage = Fatal(fates=tuple(fates.items()), diary=str(root / "diary"), **options)
    return StageWork(stage, None, str(root), planned(count))


def begun(root: Path) -> list[str]:
    """List the units in the order in which they were begun."""
    return (root / "diary").read_text().split()


def run_inline(root: str, fates: dict[str, str], seconds: float = 6.0, attempts: int = 2) -> None:
    """Run the stage as `koe run` does with the inline engine; exits with 1 where units are left."""
    plan = PlanConfig(unit_attempts=attempts, unit_minutes_max=seconds / 60)
    storage, units = Storage(root), list(planned())
    work = fatal_work(Path(root), fates)
    with (
        attempt_log(storage, plan, False, ["fatal"]) as log,
        RunProgress(Console(stderr=True)) as progress,
    ):
        progress.expect([work], len(units))
        run_chain(Engine(run_plain, Stop(), log), [work], units, progress)
    raise SystemExit(1 if progress.failures else 0)
