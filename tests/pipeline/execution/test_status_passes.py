"""`koe status` tells how far the two passes before the shards are, at each moment of theirs."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from pipeline.execution.status import StatusReader, status_json, status_table
from pipeline.run_dir.passes import PassStatus
from pipeline.run_dir.set_aside import AttemptsFile, InFlight, write_attempts
from stages.settings import InterleaveSettings
from tests.pipeline.jobs.shards_run import Killed, ShardsRun
from tests.stages.samples import corpus

SETTINGS = InterleaveSettings(seed=0, shard_megabytes=0.05, validation_share=0.05)


@pytest.fixture
def run(tmp_path) -> ShardsRun:
    found = ShardsRun(str(tmp_path), corpus(num_samples=80), SETTINGS, group_tokens=30_000)
    found.store_samples()
    return found


def row_of(run: ShardsRun):
    return StatusReader(run.ledger).read()[-1]


def shown(run: ShardsRun) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(status_table(StatusReader(run.ledger).read()))
    return console.file.getvalue()


def put_in_flight(run: ShardsRun, *units: tuple[str, str]) -> None:
    flying = [
        InFlight(stage=stage, unit=unit, since=1.0, node="n", boot="", alone=False, machine="n")
        for stage, unit in units
    ]
    write_attempts(run.storage, AttemptsFile(in_flight=tuple(flying)))


def test_each_moment_of_the_passes_is_told(run):
    groups = [unit for unit in run.make() if unit.startswith("exchange")]
    assert len(groups) > 2
    assert row_of(run).passes == (), "the shards are made"
    assert "before the shards" not in shown(run)
    for number in range(2, 2 + len(groups)):  # the order and the placements are done
        run.kill_at = number
        with pytest.raises(Killed):
            run.make(force=True)
        found = row_of(run)
        done = number - 2
        assert found.passes == (
            PassStatus("placements", 1, 0),
            PassStatus("exchange", done, len(groups) - done),
        )
        assert f"placements 1/1, exchange {done}/{len(groups)}\n" in shown(run)


def test_units_in_flight_are_told_with_their_pass(run):
    run.kill_at = 1
    with pytest.raises(Killed):
        run.make()
    assert row_of(run).passes == (), "nothing of the passes is begun"
    put_in_flight(run, ("placements", "placements"))
    assert row_of(run).passes == (
        PassStatus("placements", 0, 1, 1),
        PassStatus("exchange", 0, None),
    )
    assert "placements 0/1 (+1 in work), exchange 0/?" in shown(run)
    run.kill_at = 3
    with pytest.raises(Killed):
        run.make(force=True)
    put_in_flight(run, ("exchange", "exchange-00001"), ("exchange", "exchange-00002"))
    found = row_of(run)
    assert found.passes[1].working == 2
    stored = json.loads(json.dumps(status_json([found])))[0]["passes"]
    assert stored[1] == {"name": "exchange", "done": 1, "left": found.passes[1].left, "working": 2}


def test_placements_of_an_order_before_do_not_count(run):
    run.kill_at = 3
    with pytest.raises(Killed):
        run.make()
    assert row_of(run).passes
    again = ShardsRun(run.root, run.tables, SETTINGS.model_copy(update={"seed": 1}), kill_at=1)
    with pytest.raises(Killed):
        again.make()
    assert row_of(again).passes == ()
