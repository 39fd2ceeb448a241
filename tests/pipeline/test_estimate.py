"""The estimate scales what it measured to the corpus, and touches nothing but the plan."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.config_file import load_config
from pipeline.errors import ConfigError
from pipeline.estimate import StageEstimate, estimate_run
from pipeline.job import plan_run, run_job
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.plan_view import estimate_view, plan_rows, plan_view
from pipeline.schema import Unit
from pipeline.selection import select_stages
from pipeline.stats import run_stats
from pipeline.storage import Storage
from tests.corpus import write_corpus

QUIET = Console(stderr=True, quiet=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    path = write_corpus(tmp_path_factory.mktemp("estimate"))
    config = load_config(path)
    plan = plan_run(config, QUIET)
    return path, config, plan, estimate_run(config, plan, num_clips=100)


def _by_stage(estimates: list[StageEstimate]) -> dict[str, StageEstimate]:
    return {item.stage: item for item in estimates}


def test_a_sample_of_everything_estimates_what_the_run_does(measured):
    _, config, plan, estimates = measured
    assert {p.name for p in Path(config.run_dir).iterdir()} == {"plan.json", "config.json"}
    run_job(config, select_stages(None, "interleave", None, ()), QUIET)
    stats = run_stats(plan, Ledger(Storage(config.run_dir)))
    found = _by_stage(estimates)

    assert found["ingest"].records == stats["accounting"]["clips_in"]
    assert found["score"].totals["windows"] == pytest.approx(stats["scores"]["windows"], rel=0.35)
    assert found["tokenize (text)"].records == stats["samples"]["samples_in"]
    assert found["interleave"].totals["tokens"] == pytest.approx(stats["shards"]["tokens"], rel=0.3)
    assert all(item.worker_hours > 0 for item in estimates)
    stored = sum(f.stat().st_size for f in (Path(config.run_dir) / "score").glob("*.arrow"))
    assert found["score"].disk_bytes == pytest.approx(stored, rel=0.5)


def test_a_corpus_a_thousand_times_larger_takes_a_thousand_times_as_long(measured):
    _, config, plan, _ = measured
    one = _by_stage(estimate_run(config, plan, num_clips=6))
    many = tuple(
        Unit(**{**vars(unit), "unit": f"{unit.unit}-{k}"})
        for k in range(100)
        for unit in plan.units
    )
    large = _by_stage(estimate_run(config, Plan(many, plan.modalities), num_clips=6))
    assert large["score"].measured < 3 * one["score"].measured
    for stage in ("score", "encode", "tokenize (text)"):
        assert large[stage].records == pytest.approx(100 * one[stage].records, rel=0.3)
        hours = large[stage].worker_hours * one[stage].seconds / large[stage].seconds
        scale = large[stage].records / one[stage].records
        per_record = one[stage].measured / large[stage].measured
        assert hours / one[stage].worker_hours == pytest.approx(scale * per_record, rel=0.05)


def test_gpus_and_cpus_of_the_workers_decide_the_hours(measured):
    path, _, plan, _ = measured
    config = load_config(
        path,
        ["score.gpus_per_worker=0.5", "score.cpus_per_worker=2", "train.base_model=some/llama"],
    )
    found = _by_stage(estimate_run(config, plan, num_clips=2))
    assert found["score"].gpu_hours == pytest.approx(found["score"].worker_hours / 2)
    assert found["score"].cpu_hours == pytest.approx(found["score"].worker_hours * 2)
    assert found["train"].measured == 0
    assert "not measured" in found["train"].note
    assert found["train"].totals["tokens"] == config.train.max_steps * (
        config.train.workers
        * config.train.micro_batch_rows
        * config.train.accumulation_steps
        * config.interleave.max_row_tokens
    )


def test_what_a_run_would_refuse_the_estimate_refuses(measured):
    path, _, plan, _ = measured
    with pytest.raises(ConfigError, match="cannot be used"):
        estimate_run(load_config(path, ["score.provider=tensorrt"]), plan, num_clips=2)


def test_the_views_say_what_was_measured(measured):
    _, _, plan, estimates = measured
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(plan_view(plan), estimate_view(estimates, cpus=4))
    text = console.export_text()
    assert "windows" in text
    assert "hours on 4 CPUs" in text
    assert "Measured by one worker" in text
    rows = plan_rows(plan)
    assert sum(row["records"] for row in rows) == sum(unit.records for unit in plan.units)
