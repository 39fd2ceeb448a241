"""Ray gives every worker GPUs of its own, or its part of one; the GPUs themselves are made up."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from koe.ray_session import ray_session
from koe.schema import SPEECH, Unit
from koe.stage import Exclusions, Outcome, Resources, Transform
from pipeline.execution.on_ray import engine_session, run_ray
from pipeline.execution.runner import DONE
from pipeline.execution.stage_work import StageWork
from tests.pipeline.run_dir.test_ledger import OUT, Numbers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_SECONDS = 240.0  # for all workers to be there, on a machine that is busy


@dataclass(frozen=True)
class SeesGpus(Numbers):
    """Writes down what its worker sees, and waits until all `workers` of the stage have.

    It cannot wait for those of other stages: Ray Data starts one pool after the other.
    """

    folder: str = ""
    workers: int = 1

    def with_gpus(self, gpus: float) -> SeesGpus:
        return replace(self, resources=replace(self.resources, gpus=gpus, shares_gpu=False))

    def open(self) -> Transform:
        reserved = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        assert self.resources.gpus == reserved  # what it may take of the memory follows from it
        seen = [self.name, os.environ.get("CUDA_VISIBLE_DEVICES"), reserved]
        path = Path(self.folder) / f"{self.name}-{os.getpid()}"
        path.with_suffix(".part").write_text(json.dumps(seen))
        path.with_suffix(".part").rename(path.with_suffix(".json"))
        until = time.monotonic() + _SECONDS
        while len(list(path.parent.glob(f"{self.name}-*.json"))) < self.workers:
            assert time.monotonic() < until, "the other workers did not start"
            time.sleep(0.05)
        return self._pass_on

    def _pass_on(self, table: pa.Table) -> Outcome:
        row = {"id": table[0][0].as_py(), "seconds": 0.5}
        return Exclusions(self.name).outcome(pa.Table.from_pylist([row], schema=OUT))


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    with ray_session(None, 4, {"RAY_BACKEND_LOG_LEVEL": "fatal"}, num_gpus=2, **quiet):
        yield


def seen_by_workers(folder: Path, *needs: Resources) -> list[list]:
    """Run a chain of one stage for each of the `needs`; return what each worker saw."""
    (folder / "seen").mkdir()
    names = [f"stage{number}" for number in range(len(needs))]
    units = {
        f"u{number}": Unit(f"u{number}", "s", SPEECH, "p", "1:1", 0, 1, records=1)
        for number in range(4)
    }
    chain = [
        StageWork(
            SeesGpus(
                name=name, resources=item, folder=str(folder / "seen"), workers=item.workers or 1
            ),
            upstream,
            str(folder),
            units,
        )
        for name, upstream, item in zip(names, [None, *names], needs, strict=False)
    ]
    results = []
    with engine_session(None, None, [{work.name: work.resources for work in chain}]):
        assert run_ray(chain, list(units), results.append)
    assert {result.status for result in results} == {DONE}
    return [json.loads(path.read_text()) for path in (folder / "seen").glob("*.json")]


def test_each_worker_sees_a_gpu_of_its_own(session, tmp_path):
    seen = seen_by_workers(tmp_path, Resources(cpus=0.5, gpus=1.0, workers=2))
    assert sorted(devices for _, devices, _ in seen) == ["0", "1"]


def test_three_stages_share_two_gpus(session, tmp_path):
    alone = Resources(cpus=0.5, gpus=1.0, shares_gpu=True, workers=1)
    seen = seen_by_workers(tmp_path, alone, alone, alone)
    assert {stage for stage, *_ in seen} == {"stage0", "stage1", "stage2"}
    assert [reserved for *_, reserved in seen] == [0.5, 0.5, 0.5]
    assert {devices for _, devices, _ in seen} <= {"0", "1"}  # one each
