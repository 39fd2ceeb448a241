"""A run whose machines are lost one after the other, while others join: what the test and the soak do."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from pipeline.execution.plain import run_plain
from pipeline.execution.runner import DONE, SKIPPED
from tests.cluster.driver import chain, planned_units
from tests.cluster.machines import Machines

Loss = Literal["killed", "cut off"]
UNITS_PER_LOSS = 40


def lose_machines(folder: Path, losses: int = 1, how: Loss = "killed") -> Counter[str]:
    """Run made-up stages on a cluster that loses `losses` machines; return the units by machine.

    A machine that is cut off goes on with its programs, and writes to the run directory.
    Raises: AssertionError, with what the machines printed, unless the bytes are the plain runner's.
    """
    root, number = folder / "run", UNITS_PER_LOSS * losses
    with Machines() as machines:
        machines.start("head", cpus=1)
        machines.start("lost-0", cpus=1)
        driver = ["-m", "tests.cluster.driver", machines.address, str(root), str(number)]
        run = machines.run("head", [sys.executable, *driver])
        for loss in range(losses):
            name = f"lost-{loss}"
            machines.wait(
                lambda name=name: by_machine(root)[name] >= 4 or run.poll() is not None,
                180, f"the work of {name}",
            )  # fmt: skip
            assert run.poll() is None, f"too early\n{machines.printed()}"
            if how == "killed":
                assert machines.kill(name) > 3
            else:
                machines.cut_off(name)
            is_last = loss == losses - 1
            machines.start("joined" if is_last else f"lost-{loss + 1}", cpus=2 if is_last else 1)
        machines.wait(lambda: run.poll() is not None, 240, "the run")
        assert run.returncode == 0, machines.printed()
        printed = machines.printed()
    check_same_bytes(root, folder / "plain", number, printed)
    return by_machine(root)


def by_machine(root: Path) -> Counter[str]:
    """Count the receipts that are there by the machine that they name."""
    paths = [path for path in root.glob("*/u*.json") if not path.name.startswith(".")]
    return Counter(json.loads(path.read_text())["node"] for path in paths)


def check_same_bytes(root: Path, plain: Path, number: int, printed: str) -> None:
    """Compare the outputs with those of the plain runner. Raises: AssertionError."""
    found = json.loads((root / "results.json").read_text())
    assert found["complete"], printed
    units = planned_units(number)
    told = {(stage, unit): status for stage, unit, status, _ in found["results"]}
    assert told.keys() == {(s, u) for s in ("numbers", "doubled") for u in units}, printed
    # What was committed just before its machine was lost is found done by the next attempt.
    assert set(told.values()) <= {DONE, SKIPPED}, printed
    assert run_plain(chain(plain, units, slow=False), list(units), lambda result: None)
    assert outputs(root) == outputs(plain), printed


def outputs(root: Path) -> dict[str, bytes]:
    paths = sorted(path for path in root.rglob("*.arrow") if not path.name.startswith("."))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}
