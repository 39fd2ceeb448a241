"""The process that runs units on the cluster: `python -m tests.cluster.driver ADDRESS RUN_DIR NUMBER`.

Its stages are made up, and slow enough that a machine can be lost in the middle of a unit.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koe.schema import SPEECH, Unit
from koe.stage import Resources
from pipeline.execution.stage_work import StageWork
from tests.pipeline.run_dir.test_ledger import Doubled, Numbers

WORKER = Resources(cpus=0.5, memory=1e6)


@dataclass(frozen=True)
class _Slow:
    resources: Resources = field(default_factory=lambda: WORKER)
    seconds: float = 0.5

    def _run(self, given: Any) -> Any:
        time.sleep(self.seconds)
        return super()._run(given)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class SlowNumbers(_Slow, Numbers):
    pass


@dataclass(frozen=True)
class SlowDoubled(_Slow, Doubled):
    seconds: float = 0.2


def planned_units(number: int) -> dict[str, Unit]:
    names = [f"u{k:03d}" for k in range(number)]
    return {
        name: Unit(name, "s", SPEECH, "p", "1:1", 10 * k + 1, 10 * k + 11, records=10)
        for k, name in enumerate(names)
    }


def chain(root: Path, units: dict[str, Unit], slow: bool = True) -> list[StageWork]:
    first = SlowNumbers(seconds=0.5 if slow else 0.0)
    second = SlowDoubled(seconds=0.2 if slow else 0.0)
    return [
        StageWork(first, None, str(root), units),
        StageWork(second, first.name, str(root), units),
    ]


def main(address: str, root: str, number: str) -> None:
    from pipeline.execution.on_ray import engine_session, run_ray

    units = planned_units(int(number))
    works = chain(Path(root), units)
    results = []
    needs = {work.name: work.resources for work in works}
    with engine_session(address, None, [needs], wait_minutes=1.0, say=print):
        complete = run_ray(works, list(units), results.append)
    found = [[result.stage, result.unit, result.status, result.error] for result in results]
    Path(root, "results.json").write_text(json.dumps({"complete": complete, "results": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
