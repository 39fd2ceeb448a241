"""Everything ends, with the plain engine: what kills the process is found by the runs after it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.run_dir.set_aside import read_attempts, read_set_aside
from pipeline.run_dir.storage import Storage
from tests.pipeline.execution.fatal import begun, planned

ROOT = Path(__file__).resolve().parents[2]


def start(root: Path, fates: dict[str, str], seconds: float = 6.0) -> subprocess.Popen[str]:
    code = f"from tests.pipeline.execution.fatal import run_inline; run_inline({str(root)!r}, {fates}, {seconds})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(root: Path, fates: dict[str, str], seconds: float = 6.0) -> tuple[int, str]:
    process = start(root, fates, seconds)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.law
def test_what_kills_the_process_is_set_aside_by_the_next_runs(tmp_path: Path):
    fates = {"u00": "segv", "u01": "kill", "u02": "hang", "u03": "raise"}
    codes, storage = [], Storage(str(tmp_path))
    for _ in range(3):  # each run dies of one unit, which the next ones do last
        code, errors = finish(tmp_path, fates)
        codes.append(code)
    assert codes == [-signal.SIGSEGV, -signal.SIGKILL, 1]
    assert "fatal u02 was still running after its deadline of 6.0 s" in errors
    assert "tests/pipeline/execution/fatal.py" in errors, "the message has the traceback"
    code, errors = finish(tmp_path, fates)
    assert code == 1
    assert "an ordinary error" in errors
    found = {unit: read_set_aside(storage, "fatal", unit) for unit in planned()}
    assert {unit for unit, why in found.items() if why} == {"u00", "u01", "u02"}
    ended = {unit: [death.ended for death in why.attempts] for unit, why in found.items() if why}
    assert ended == {
        "u00": ["worker", "worker"], "u01": ["run", "worker", "worker"], "u02": ["worker", "worker"],
    }  # fmt: skip
    for unit, how in {"u00": "SIGSEGV", "u01": "SIGKILL", "u02": "deadline"}.items():
        why = found[unit]
        assert why is not None
        assert how in why.attempts[-1].how
        assert {death.last_record for death in why.attempts} == {f"{unit}/record"}
    receipts = sorted(path.stem for path in tmp_path.glob("fatal/u0?.json"))
    assert receipts == ["u04", "u05"]
    assert Counter(begun(tmp_path)) == {
        "u00": 2, "u01": 3, "u02": 2, "u03": 1, "u04": 1, "u05": 1,
    }  # fmt: skip
    assert not read_attempts(storage).deaths


@pytest.mark.slow
@pytest.mark.law
def test_kills_from_outside_set_no_good_unit_aside(tmp_path: Path):
    """Every unit is in flight at a kill again and again, and the next run does it all the same."""
    chance, storage = random.Random(0), Storage(str(tmp_path))
    fates = dict.fromkeys(planned(), "short")
    for _ in range(6):
        process = start(tmp_path, fates)
        seen = len(begun(tmp_path)) if (tmp_path / "diary").exists() else 0
        deadline = time.monotonic() + 100
        while len(begun(tmp_path) if (tmp_path / "diary").exists() else []) <= seen:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, errors = finish(tmp_path, {})
    assert code == 0, errors
    assert not list(tmp_path.glob("fatal/*.set-aside.json"))
    assert len(list(tmp_path.glob("fatal/u0?.json"))) == len(planned())
    assert not read_attempts(storage).deaths
