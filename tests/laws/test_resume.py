"""Kill and resume: whatever the moment, the final bytes are those of an uninterrupted run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from koe.dataflow import is_temporary
from tests.calling import koe
from tests.corpus import run_bytes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = [sys.executable, "-c", "from pipeline.cli import main; main()", "run", "--to", "interleave"]


def start(config: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RUN, "-c", str(config), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(config: Path, *options: str) -> str:
    """Run to the end in this process, which has imported and compiled everything already."""
    code, output, errors = koe("run", "--to", "interleave", "-c", str(config), *options)
    assert code == 0, errors
    return output + errors


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the run and all its workers, as a machine that loses power does."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(run_dir: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until the run has written a file of this pattern, or ended."""
    deadline = time.monotonic() + 200
    while not list(run_dir.glob(pattern)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def corpus(finished_run) -> Path:
    return finished_run


@pytest.fixture(scope="module")
def whole(finished_run) -> dict[str, bytes]:
    return run_bytes(finished_run.parent / "run")


@pytest.mark.law
@pytest.mark.parametrize("moment", ["score/*.json", "encode/*.arrow", "shards/train-*.arrow"])
def test_kill_and_resume_same_bytes(corpus, whole, tmp_path, moment):
    run_dir = tmp_path / "run"
    process = start(corpus, "--set", f"run_dir={run_dir}")
    wait_for(run_dir, moment, process)
    kill(process)
    receipts = [path for path in run_dir.glob("*/*.json") if not is_temporary(path.stem)]
    done_before = {path: path.stat().st_mtime_ns for path in receipts}
    assert done_before
    assert "shards/index.json" not in {str(p.relative_to(run_dir)) for p in done_before}
    finish(corpus, "--set", f"run_dir={run_dir}")
    assert run_bytes(run_dir) == whole
    again = {path: path.stat().st_mtime_ns for path in done_before}
    assert again == done_before, "units that were done were done again"
    assert not list(run_dir.rglob("*.tmp"))
    assert not list(run_dir.rglob("*.segments"))


@pytest.mark.law
def test_ray_kill_and_resume_same_bytes(corpus, whole, tmp_path):
    run_dir = tmp_path / "run"
    options = ("--set", f"run_dir={run_dir}", "--set", "engine=ray", "--set", "ray.num_cpus=2")
    process = start(corpus, *options)
    wait_for(run_dir, "score/*.json", process)
    kill(process)
    finish(corpus, *options)
    assert run_bytes(run_dir) == whole


@pytest.mark.law
def test_corrupt_and_lost_outputs_are_redone(corpus, whole, tmp_path):
    run_dir = tmp_path / "run"
    finish(corpus, "--set", f"run_dir={run_dir}")
    shard = next(run_dir.glob("shards/train-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:100])
    next(run_dir.glob("encode/*.arrow")).unlink()
    output = finish(corpus, "--set", f"run_dir={run_dir}")
    assert "is incomplete or missing" in output
    assert run_bytes(run_dir) == whole
    shutil.rmtree(run_dir)
