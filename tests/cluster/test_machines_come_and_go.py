"""Machines are lost in the middle of a run and others join: the bytes are those of the plain runner."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.execution.plain import run_plain
from pipeline.execution.runner import DONE
from tests.cluster.driver import chain, planned_units
from tests.cluster.machines import Machines, why_not
from tests.laws.test_engine import outputs

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def receipts(root: Path) -> list[dict]:
    """Read the receipts that are there; one that is being written counts as absent."""
    paths = [path for path in root.glob("*/u*.json") if not path.name.startswith(".")]
    return [json.loads(path.read_text()) for path in paths]


def by_machine(root: Path) -> Counter[str]:
    return Counter(receipt["node"] for receipt in receipts(root))


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.timeout(400)
def test_a_machine_is_lost_and_another_joins(tmp_path):
    root = tmp_path / "run"
    with Machines() as machines:
        machines.start("head", cpus=1)
        driver = [sys.executable, "-m", "tests.cluster.driver", machines.address, str(root)]
        machines.start("lost", cpus=1)
        run = machines.run("head", driver)
        machines.wait(lambda: by_machine(root)["lost"] >= 4, 120, "the work of the second machine")
        assert run.poll() is None, machines.printed()
        assert machines.kill("lost") > 3
        machines.start("joined", cpus=2)
        machines.wait(lambda: run.poll() is not None, 200, "the run")
        assert run.returncode == 0, machines.printed()
        done_by = by_machine(root)
        printed = machines.printed()
    found = json.loads((root / "results.json").read_text())
    (root / "results.json").unlink()
    assert found["complete"], printed
    assert Counter(result[2] for result in found["results"]) == {DONE: 2 * len(planned_units())}
    assert set(done_by) == {"head", "lost", "joined"}, printed

    plain = tmp_path / "plain"
    assert run_plain(chain(plain, slow=False), list(planned_units()), lambda result: None)
    assert outputs(root) == outputs(plain)
