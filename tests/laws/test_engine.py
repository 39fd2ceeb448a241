"""Ray and the plain runner give the same bytes, with one worker or several, through a worker's death."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from koe.ray_session import without_greeting
from koe.schema import SPEECH, Unit
from koe.stage import Resources
from pipeline.execution import on_ray
from pipeline.execution.on_ray import _pools, engine_session, run_ray
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import DONE, FAILED, SKIPPED, STOPPED
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from tests.pipeline.run_dir.test_ledger import Doubled, Numbers

NUM_UNITS = 12


def planned_units() -> dict[str, Unit]:
    names = [f"u{number:02d}" for number in range(NUM_UNITS)]
    return {
        name: Unit(name, "s", SPEECH, "p", "1:1", 10 * number + 1, 10 * number + 11, records=10)
        for number, name in enumerate(names)
    }


@dataclass(frozen=True)
class DiesOnce(Numbers):
    """Kills its own process at one unit, the first time."""

    grave: str = ""
    resources: Resources = Resources(cpus=1)  # noqa: RUF009
    content_names: ClassVar[tuple[str, ...]] = ()

    def _run(self, units):
        grave = Path(self.grave)
        if units["unit"][0].as_py() == "u05" and not grave.exists():
            grave.write_text("here")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return super()._run(units)


@pytest.fixture(scope="module")
def session():
    with engine_session(None, 2, [{"numbers": Resources()}, {"doubled": Resources(cpus=2)}]):
        yield


def outputs(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.arrow"))
    }


def chain(root: Path, first=None, workers: int | None = None, second=None) -> list[StageWork]:
    resources = Resources(cpus=0.5, workers=workers)
    first = first or Numbers(resources=resources)
    units = planned_units()
    return [
        StageWork(first, None, str(root), units),
        StageWork(second or Doubled(resources=resources), first.name, str(root), units),
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("plain")
    assert run_plain(chain(root), list(planned_units()), lambda result: None)
    found = outputs(root)
    assert len(found) >= 2 * NUM_UNITS
    return found


@pytest.mark.slow
@pytest.mark.law
@pytest.mark.parametrize("workers", [1, 2])
def test_one_worker_equals_n(session, tmp_path, plain, workers):
    results = []
    assert run_ray(chain(tmp_path, workers=workers), list(planned_units()), results.append)
    assert [result.status for result in results] == [DONE] * 2 * NUM_UNITS
    assert {(r.stage, r.unit) for r in results} == {
        (s, u) for s in ("numbers", "doubled") for u in planned_units()
    }
    assert outputs(tmp_path) == plain
    again = []
    assert run_ray(chain(tmp_path, workers=workers), list(planned_units()), again.append)
    assert {result.status for result in again} == {SKIPPED}


@pytest.mark.slow
@pytest.mark.law
def test_killed_worker_same_bytes(session, tmp_path, plain):
    root = tmp_path / "run"
    first = DiesOnce(grave=str(tmp_path / "grave"))
    results = []
    assert run_ray(chain(root, first), list(planned_units()), results.append)
    assert (tmp_path / "grave").exists()
    assert {result.status for result in results if result.stage == "doubled"} == {DONE}
    assert outputs(root) == plain


@pytest.mark.slow
def test_failing_unit_stops_no_other(session, tmp_path):
    resources = Resources(cpus=0.5)
    results = []
    assert run_ray(
        chain(tmp_path, second=Doubled(boom="stage", resources=resources)),
        list(planned_units()),
        results.append,
    )
    failed = [result for result in results if result.status == FAILED]
    assert [(result.stage, result.unit) for result in failed] == [("doubled", "u01")]
    assert len(results) == 2 * NUM_UNITS
    assert Ledger(Storage(str(tmp_path))).receipt("doubled", "u01") is None


@pytest.mark.slow
def test_failing_storage_stops_the_run(session, tmp_path):
    (tmp_path / "doubled").write_bytes(b"a file where the folder should be")
    results = []
    assert not run_ray(chain(tmp_path, workers=1), list(planned_units()), results.append)
    assert STOPPED in {result.status for result in results}


def test_pools_start_with_the_workers_that_fit(monkeypatch):
    def sizes(cpus, *needs, units=1000, gpus=0.0, memory=1e15, grows=False):
        nodes = [{"CPU": cpus, "GPU": gpus, "memory": memory}]
        monkeypatch.setattr(on_ray, "live_nodes", lambda: nodes)
        monkeypatch.setattr(on_ray, "may_grow", lambda: grows)
        return [(p.initial_size, p.max_size) for p in _pools(needs, units)]

    cpu, quarter = Resources(cpus=1.0), Resources(cpus=0.25)
    assert sizes(2.0, cpu) == [(2, 2)]
    assert sizes(8.0, cpu, units=3) == [(3, 3)]
    assert sizes(2.0, quarter, cpu, cpu) == [(1, 8), (1, 2), (1, 2)]
    assert sizes(64.0, quarter, cpu) == [(51, 256), (51, 64)]
    assert sizes(64.0, Resources(cpus=1.0, workers=10), cpu) == [(10, 10), (54, 64)]
    on_gpu = Resources(cpus=1.0, gpus=0.5)
    assert sizes(64.0, on_gpu, cpu, gpus=2.0) == [(4, 4), (4, 64)]
    heavy = Resources(cpus=1.0, memory=4e9)
    assert sizes(64.0, heavy, cpu, memory=16e9) == [(4, 4), (4, 64)]
    assert sizes(2.0, cpu, grows=True) == [(2, 1000)]
    assert sizes(2.0, Resources(cpus=1.0, workers=10), grows=True) == [(10, 10)]


def test_only_the_greeting_of_ray_is_hidden(capfd):
    def start(broken):
        with without_greeting():
            os.write(2, b"[I 1] Set ray log level from environment variable X to 3\nanother line\n")
            if broken:
                raise ValueError

    start(False)
    assert capfd.readouterr().err == "another line\n"
    with pytest.raises(ValueError):
        start(True)
    assert capfd.readouterr().err == "another line\n"
