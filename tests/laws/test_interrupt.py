"""Ctrl-C: once stops after the units in flight, twice at once; either way the run resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from koe.stage import Resources
from pipeline.execution.interrupt import interruptible
from pipeline.execution.on_ray import engine_session, run_ray
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import DONE, STOPPED, Stop
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from tests.calling import koe
from tests.corpus import run_bytes
from tests.laws.test_engine import planned_units
from tests.pipeline.run_dir.test_ledger import Doubled, Numbers

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-c", "from pipeline.cli import main; main()", "run", "--to", "interleave"]


def start(config: Path, run_dir: Path, engine: str) -> subprocess.Popen[str]:
    options = ("run_dir=" + str(run_dir), "engine=" + engine, "ray.num_cpus=2")
    return subprocess.Popen(
        [*RUN, "-c", str(config), *(word for option in options for word in ("--set", option))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # A shell without job control starts what it puts behind it with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def first_unit(run_dir: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not list(run_dir.glob("ingest/*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_whole(run_dir: Path) -> None:
    """Assert that every receipt vouches for its output, and that nothing half-written is left."""
    ledger = Ledger(Storage(str(run_dir)))
    receipts = [path for stage in ("ingest", "score", "encode", "tokenize")
                for path in (run_dir / stage).glob("*.json")]  # fmt: skip
    assert receipts
    for path in receipts:
        receipt = ledger.receipt(path.parent.name, path.stem)
        assert receipt is not None
        assert ledger.storage.size(receipt.output.path) == receipt.output.num_bytes
    assert not list(run_dir.rglob("*.tmp"))


@pytest.fixture(scope="module")
def corpus(finished_run) -> Path:
    return finished_run


@pytest.fixture(scope="module")
def whole(finished_run) -> dict[str, bytes]:
    return run_bytes(finished_run.parent / "run")


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.parametrize(("engine", "presses"), [("ray", 1), ("ray", 2), ("inline", 1)])
def test_ctrl_c_and_resume_same_bytes(corpus, whole, tmp_path, engine, presses):
    run_dir = tmp_path / "run"
    process = start(corpus, run_dir, engine)
    first_unit(run_dir, process)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        time.sleep(0.5)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "press Ctrl-C again to stop now" in errors
    assert "Finished work is kept; resume with: koe run --to interleave -c" in errors
    assert "failed" not in errors
    if presses == 1:
        assert_whole(run_dir)
    assert not list(run_dir.glob("shards/index.json"))
    # In this process and without Ray; that Ray finishes what was killed is test_resume's.
    code, _, errors = koe(
        "run", "--to", "interleave", "-c", str(corpus), "--set", f"run_dir={run_dir}"
    )
    assert code == 0, errors
    assert_whole(run_dir)
    assert run_bytes(run_dir) == whole


class Slow(Numbers):
    """A stage that takes 0.3 s a unit."""

    def _run(self, units):
        time.sleep(0.3)
        return super()._run(units)


def stopped_after_the_first(engine, root: Path) -> tuple[list, Stop, bool]:
    stop, results, half = Stop(), [], Resources(cpus=0.5, workers=1)
    units = planned_units()
    first, second = Slow(resources=half), Doubled(resources=half)
    chain = [
        StageWork(first, None, str(root), units),
        StageWork(second, first.name, str(root), units),
    ]

    def on_result(result):
        results.append(result)
        stop.requested = True

    complete = engine(chain, list(units), on_result, stop)
    return results, stop, complete


@pytest.mark.slow
def test_stop_lets_units_in_flight_finish(tmp_path):
    results, stop, complete = stopped_after_the_first(run_plain, tmp_path / "plain")
    assert (len(results), complete, stop.in_flight) == (1, False, 0)
    with engine_session(None, 2, [{"numbers": Resources(cpus=2)}]):
        results, stop, complete = stopped_after_the_first(run_ray, tmp_path / "ray")
    assert {result.status for result in results} == {DONE}
    assert 1 <= len(results) <= 6
    assert not complete
    ledger = Ledger(Storage(str(tmp_path / "ray")))
    receipts = list((tmp_path / "ray").glob("*/*.json"))
    assert len(receipts) == len(results), "a unit ended that nobody was told of"
    assert all(ledger.receipt(path.parent.name, path.stem) for path in receipts)
    assert STOPPED not in {result.status for result in results}


def test_first_ctrl_c_stops_and_second_raises():
    said = threading.Event()
    lines = []

    def say(text):
        lines.append(text)
        said.set()

    def press_twice():
        with interruptible(say) as stop:
            stop.in_flight = 3
            signal.raise_signal(signal.SIGINT)
            assert said.wait(60)
            assert stop.requested
            assert lines == ["finishing 3 units in flight; press Ctrl-C again to stop now"]
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert signal.getsignal(signal.SIGINT) is before
    with interruptible(say):
        pass
    assert len(lines) == 1
