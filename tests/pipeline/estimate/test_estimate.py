"""The estimate says what the run then does, and touches nothing but the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from koe.errors import ConfigError
from koe.schema import Unit
from pipeline.config.load import load_config
from pipeline.estimate import StageEstimate, estimate_run
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import plan_run, run_job
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import run_stats
from tests.corpus import write_corpus

pytestmark = pytest.mark.slow

QUIET = Console(stderr=True, quiet=True)


class Clock:
    """A clock that goes on by as much at every look, whatever the machine is busy with."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = write_corpus(tmp_path_factory.mktemp("estimate"))
    config = load_config(path)
    plan = plan_run(config, QUIET)
    return path, config, plan, estimate_run(config, plan, seconds=600, clock=Clock())


def _by_stage(estimates: list[StageEstimate]) -> dict[str, StageEstimate]:
    return {item.stage: item for item in estimates}


def _stored(folder: Path, tables: str) -> int:
    return sum(
        path.stat().st_size for path in folder.glob(tables) if "excluded" not in path.suffixes[0]
    )


def test_a_corpus_that_was_measured_whole_is_estimated_as_it_is(measured):
    _, config, plan, estimates = measured
    run_dir = Path(config.run_dir)
    assert {path.name for path in run_dir.iterdir()} == {"plan.json", "config.json"}
    run_job(config, select_stages(None, "interleave", None, ()), QUIET)
    stats = run_stats(plan, Ledger(Storage(config.run_dir)))
    found = _by_stage(estimates)

    assert found["ingest"].records == stats.clips.records_in
    assert stats.scores is not None
    assert found["score"].totals == {"windows": stats.scores.windows}
    assert found["tokenize (text)"].records == stats.samples.records_in
    shards = stats.shards
    assert found["interleave"].totals == {"rows": shards.rows, "tokens": shards.tokens}
    assert all(item.worker_hours for item in estimates if item.stage != "train")
    assert all(item.error in (None, 0) for item in estimates)
    for stage in ("ingest", "score", "encode"):
        stored = _stored(run_dir / stage, "*.arrow")
        assert found[stage].disk_bytes == pytest.approx(stored, rel=0.1), stage
    stored = _stored(run_dir, "shards/*.arrow") + _stored(run_dir, "interleave/order.arrow")
    assert found["interleave"].disk_bytes == pytest.approx(stored, rel=0.1)
    left_out = stats.clips.rejected["ratio_exhausted"]
    assert ("the ratio leaves out" in found["interleave"].note) == (left_out > 0)


def test_a_corpus_a_hundred_times_larger_takes_a_hundred_times_as_long(measured):
    _, config, plan, estimates = measured
    one = _by_stage(estimates)
    many = tuple(
        Unit(**{**vars(unit), "unit": f"{unit.unit}-{k}"})
        for k in range(100)
        for unit in plan.units
    )
    plan = Plan(many, plan.modalities)
    large = _by_stage(estimate_run(config, plan, num_clips=20, seconds=10, clock=Clock()))
    assert large["score"].measured == 20
    # Not interleave: the copies have the same ids, so most of those drawn have no place.
    for stage, counted in (
        ("ingest", "records"),
        ("score", "windows"),
        ("tokenize", "tokens"),
        ("tokenize (text)", "tokens"),
    ):
        before, after = (
            {"records": item.records, **item.totals}[counted] for item in (one[stage], large[stage])
        )
        assert after == pytest.approx(100 * before, rel=large[stage].error or 1e-6), stage
        hours = after / large[stage].rates()[counted] / 3600
        assert large[stage].worker_hours == pytest.approx(hours, rel=0.2), stage


def test_gpus_and_cpus_of_the_workers_decide_the_hours(measured):
    path, _, plan, _ = measured
    config = load_config(path, ["score.gpus_per_worker=0.5", "score.cpus_per_worker=2"])
    found = _by_stage(estimate_run(config, plan, num_clips=2, seconds=2, clock=Clock()))
    assert found["score"].gpu_hours == pytest.approx(found["score"].worker_hours / 2)
    assert found["score"].cpu_hours == pytest.approx(found["score"].worker_hours * 2)


def test_what_a_run_would_refuse_the_estimate_refuses(measured):
    path, _, plan, _ = measured
    with pytest.raises(ConfigError, match="cannot be used"):
        estimate_run(load_config(path, ["score.provider=cuda"]), plan, num_clips=2)


def test_what_a_sample_cannot_tell_is_said(measured):
    path, _, plan, estimates = measured
    assert "unusual" not in _by_stage(estimates)["interleave"].note
    config = load_config(path, ["interleave.duplicates.codes=drop"])
    found = _by_stage(estimate_run(config, plan, num_clips=2, seconds=2, clock=Clock()))
    assert "does not tell which clips repeat others" in found["interleave"].note
