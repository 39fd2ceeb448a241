"""Everything ends: units that kill or stall their worker are set aside, and the rest is done."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from koe.errors import StageError
from koe.stage import Resources
from pipeline.execution.attempt_log import AttemptLog
from pipeline.execution.attempts import Limits
from pipeline.execution.on_ray import engine_session, run_ray
from pipeline.execution.runner import DONE, FAILED, SET_ASIDE, SKIPPED
from pipeline.execution.stage_work import StageWork
from pipeline.execution.starts import MAX_STARTS
from pipeline.run_dir.set_aside import read_attempts, read_set_aside
from pipeline.run_dir.storage import Storage
from tests.pipeline.execution.fatal import FATES as FATE
from tests.pipeline.execution.fatal import begun, fatal_work, planned
from tests.pipeline.run_dir.test_ledger import Numbers

FATES = {"u00": "segv", "u01": "kill", "u02": "hang", "u03": "raise"}
HOW = {"u00": "signal SIGSEGV", "u01": "without a word", "u02": "deadline of 6.0 s"}


@pytest.fixture(scope="module")
def session():
    with engine_session(None, 2, [{"fatal": Resources()}]):
        yield


@pytest.mark.slow
@pytest.mark.law
def test_fatal_units_are_set_aside_by_ray_and_the_rest_is_done(session, tmp_path: Path):
    storage, results = Storage(str(tmp_path)), []
    work = fatal_work(tmp_path, FATES, resources=Resources(cpus=1.0, workers=2))
    log = AttemptLog.opened(storage, Limits(attempts=2, max_seconds=6.0))
    assert run_ray([work], list(planned()), results.append, log=log)
    log.close()
    statuses = {result.unit: result.status for result in results}
    assert statuses == {
        "u00": SET_ASIDE, "u01": SET_ASIDE, "u02": SET_ASIDE, "u03": FAILED, "u04": DONE, "u05": DONE,
    }  # fmt: skip
    assert Counter(begun(tmp_path)) == {
        "u00": 2, "u01": 2, "u02": 2, "u03": 1, "u04": 1, "u05": 1,
    }  # fmt: skip
    for unit, how in HOW.items():
        found = read_set_aside(storage, "fatal", unit)
        assert found is not None
        assert len(found.attempts) == 2
        for death in found.attempts:
            assert how in death.how
            assert death.last_record == f"{unit}/record"
            assert death.ended == "worker"
            assert (unit == "u01") == (not death.traceback)
    assert read_attempts(storage).deaths == {}
    # A later run leaves them aside without trying, and does what failed again.
    again = []
    log = AttemptLog.opened(storage, Limits(attempts=2))
    assert run_ray([work], list(planned()), again.append, log=log)
    log.close()
    statuses = {result.unit: result.status for result in again}
    assert [statuses[f"u{k:02d}"] for k in range(6)] == [SET_ASIDE] * 3 + [FAILED] + [SKIPPED] * 2
    assert len(begun(tmp_path)) == 10


# The thread of an abandoned stream ends with SystemExit when its Ray does, which Python passes over.
abandons_its_stream = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)


class DiesOnOpening(StageWork):
    """Ends each worker while it opens the stage."""

    def open(self):
        with (Path(self.root) / "starts").open("a") as file:
            file.write("start\n")
        FATE["segv"]()


@abandons_its_stream
@pytest.mark.slow
@pytest.mark.law
def test_workers_that_die_before_their_first_unit_end_the_run(session, tmp_path: Path):
    stage = Numbers(resources=Resources(cpus=1.0, workers=1))
    work = DiesOnOpening(stage, None, str(tmp_path), planned())
    with pytest.raises(StageError, match="a worker of stage numbers cannot start"):
        run_ray([work], list(planned()), [].append)
    starts = len((tmp_path / "starts").read_text().split())
    assert MAX_STARTS <= starts <= MAX_STARTS + 2, "a try may begin while the run ends"


@abandons_its_stream
@pytest.mark.slow
@pytest.mark.law
def test_a_stage_that_no_node_can_hold_does_not_wait_without_end(session, tmp_path: Path):
    stage = Numbers(resources=Resources(cpus=1.0, others={"organ": 2.0}, workers=1))
    work = StageWork(stage, None, str(tmp_path), planned())
    with pytest.raises(StageError, match=r"numbers has no worker.*numbers asks for .*organ"):
        run_ray([work], list(planned()), [].append, stall_seconds=3.0)
