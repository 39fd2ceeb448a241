"""The process that runs units on the cluster: `python -m tests.cluster.driver ADDRESS RUN_DIR`.

Its stages are made up, and slow enough that a machine can be lost in the middle of a unit.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from koe.schema import SPEECH, Unit
from koe.stage import Resources
from pipeline.execution.runner import StageWork
from tests.pipeline.run_dir.test_ledger import Doubled, Numbers

NUM_UNITS = 40
WORKER = Resources(cpus=0.5, memory=1e6)


@dataclass(frozen=True)
class SlowNumbers(Numbers):
    resources: Resources = field(default_factory=lambda: WORKER)
    seconds: float = 0.5

    def _run(self, units):
        time.sleep(self.seconds)
        return super()._run(units)


@dataclass(frozen=True)
class SlowDoubled(Doubled):
    resources: Resources = field(default_factory=lambda: WORKER)
    seconds: float = 0.2

    def _run(self, table):
        time.sleep(self.seconds)
        return super()._run(table)


def planned_units(number: int = NUM_UNITS) -> dict[str, Unit]:
    names = [f"u{k:03d}" for k in range(number)]
    return {
        name: Unit(name, "s", SPEECH, "p", "1:1", 10 * k + 1, 10 * k + 11, records=10)
        for k, name in enumerate(names)
    }


def chain(root: Path, slow: bool = True) -> list[StageWork]:
    first = SlowNumbers(seconds=0.5 if slow else 0.0)
    second = SlowDoubled(seconds=0.2 if slow else 0.0)
    units = planned_units()
    return [
        StageWork(first, None, str(root), units),
        StageWork(second, first.name, str(root), units),
    ]


def main(address: str, root: str) -> None:
    from pipeline.execution.on_ray import engine_session, run_ray

    works = chain(Path(root))
    results = []
    needs = {work.name: work.resources for work in works}
    with engine_session(address, None, [needs], wait_minutes=1.0, say=print):
        complete = run_ray(works, list(planned_units()), results.append)
    found = [[result.stage, result.unit, result.status, result.error] for result in results]
    Path(root, "results.json").write_text(json.dumps({"complete": complete, "results": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
