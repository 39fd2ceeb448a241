"""`koe status` tells what the receipts tell, reads none twice, and says whose its rates are."""

import io
import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from koe.schema import EXCLUDED, SPEECH, Unit
from koe.stage import Outcome
from pipeline.execution.node_status import UNNAMED
from pipeline.execution.status import (
    StatusReader,
    finished,
    follow,
    status_json,
    status_rows,
    status_table,
)
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import make_plan
from pipeline.run_dir.set_aside import AttemptsFile, InFlight, write_attempts
from pipeline.run_dir.storage import Storage
from tests.pipeline.run_dir.test_ledger import Numbers

NOW = 1_000_000.0
NUM_UNITS = 10
STAGES = ("ingest", "score", "encode", "tokenize")


class Source:
    name, modality = "s", SPEECH

    def units(self, known=None):
        return [
            Unit(f"u{k}", "s", SPEECH, "p", "1:1", 10 * k, 10 * k + 10, 10)
            for k in range(NUM_UNITS)
        ]

    def remarks(self, units):
        return {}


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path)))
    make_plan([(Source(), {})], ledger.storage)
    return ledger


def commit(ledger: Ledger, stage: str, unit: str, ago: float, before: str = "", mark: str = ""):
    """Store a unit of 10 records, one rejected, that took 20 s and was done `ago` seconds ago."""
    kept = pa.table({"id": [f"{unit}{k}{mark}" for k in range(9)], "seconds": [2.0] * 9,
                     "windows": [3] * 9})  # fmt: skip
    row = {"id": "x", "source": "s", "stage": stage, "outcome": "rejected", "reason": "r",
           "detail": "", "location": ""}  # fmt: skip
    receipt = ledger.commit(
        replace(Numbers(), name=stage), unit, before,
        Outcome(kept, pa.Table.from_pylist([row], schema=EXCLUDED), EXCLUDED.empty_table()),
        records_in=10, seconds=20.0,
    )  # fmt: skip
    os.utime(ledger.storage.local_path(f"{stage}/{unit}.json"), (NOW - ago, NOW - ago))
    return receipt.output.sha256


def commit_scored(ledger: Ledger, unit: str, ago: float):
    """Store a unit that was scored `ago` seconds ago, long after it was ingested."""
    commit(ledger, "score", unit, ago, before=commit(ledger, "ingest", unit, ago=100_000))


def reader(ledger: Ledger) -> StatusReader:
    return StatusReader(ledger, clock=lambda: NOW)


def test_counts_and_the_rates_of_one_worker_and_of_all(ledger):
    for k in range(4):  # two workers, the last two units 30 s ago
        commit_scored(ledger, f"u{k}", ago=30 + 20 * (k // 2))
    row = reader(ledger).read()[1]
    counts = {
        name: getattr(row, name)
        for name in ("stage", "done", "left", "records", "kept", "rejected")
    }
    assert counts == {
        "stage": "score", "done": 4, "left": 6, "records": 40, "kept": 36, "rejected": 4,
    }  # fmt: skip
    assert row.units_per_second == 4 / 80
    assert row.rates == {"windows": 4 * 27 / 80, "seconds": 4 * 18 / 80}
    assert row.run_units_per_second == pytest.approx(4 / 70)  # 40 s of two workers, 30 s idle
    assert row.run_eta_seconds == pytest.approx(6 * 70 / 4)
    assert row.run_rates["windows"] == pytest.approx(4 * 27 / 70)


def test_a_pause_before_the_recent_units_is_not_in_the_rates(ledger):
    commit_scored(ledger, "u0", ago=50_000)
    commit_scored(ledger, "u1", ago=0)
    assert reader(ledger).read()[1].run_units_per_second == pytest.approx(1 / 20)


def test_only_changed_receipts_are_read_again(ledger, monkeypatch):
    for k in range(3):
        commit(ledger, "ingest", f"u{k}", ago=30)
    read = []
    original = Ledger.receipts

    def watched(ledger, of):
        asked = list(of)
        read.extend(asked)
        return original(ledger, asked)

    monkeypatch.setattr(Ledger, "receipts", watched)
    followed = reader(ledger)
    followed.read()
    assert len(read) == 3
    followed.read()
    assert len(read) == 3
    commit(ledger, "ingest", "u1", ago=10)
    commit(ledger, "ingest", "u3", ago=10)
    assert followed.read()[0].done == 4
    assert sorted(read[3:]) == [("ingest", "u1"), ("ingest", "u3")]


def test_a_unit_whose_input_was_replaced_is_not_done(ledger):
    before = commit(ledger, "ingest", "u0", ago=30)
    commit(ledger, "score", "u0", ago=20, before=before)
    followed = reader(ledger)
    assert [row.done for row in followed.read()[:2]] == [1, 1]
    commit(ledger, "encode", "u0", ago=20, before=ledger.receipt("score", "u0").output_sha256)
    assert [row.done for row in followed.read()[:3]] == [1, 1, 1]
    commit(ledger, "ingest", "u0", ago=10, mark="new")
    # what was made from a stale output is no more done than the stale output itself
    assert [row.done for row in followed.read()[:3]] == [1, 0, 0]


def test_a_run_on_an_object_store_is_read_the_same_way():
    ledger = Ledger(Storage("memory://status-of-a-run"))
    make_plan([(Source(), {})], ledger.storage)
    none = EXCLUDED.empty_table()
    stage = replace(Numbers(), name="ingest")
    ledger.commit(stage, "u0", "", Outcome(none, none, none), records_in=0, seconds=1.0)
    assert ledger.storage.stamps("ingest", ".json").keys() == {"u0.json"}
    row = StatusReader(ledger).read()[0]
    assert (row.done, row.left) == (1, NUM_UNITS - 1)
    assert row.newest_seconds_ago < 60


def test_each_node_is_told_with_what_it_did_and_when(ledger, monkeypatch):
    for k in range(6):
        monkeypatch.setattr("platform.node", lambda k=k: f"node-{k % 2}")
        commit_scored(ledger, f"u{k}", ago=30 if k % 2 else 5000)
    row = reader(ledger).read()[1]
    first, second = row.nodes
    assert (first.node, first.done, first.seconds_ago) == ("node-0", 3, 5000.0)
    assert (second.node, second.done, second.seconds_ago) == ("node-1", 3, 30.0)
    assert first.units_per_second is None
    assert second.units_per_second == row.run_units_per_second == pytest.approx(3 / 50)
    assert second.rates["windows"] == pytest.approx(3 * 27 / 50)
    assert json.loads(json.dumps(status_json([row])))[0]["nodes"][1]["node"] == "node-1"
    console = Console(file=io.StringIO(), width=80)
    console.print(status_table(reader(ledger).read()))
    lines = console.file.getvalue().splitlines()
    assert lines[-3].split() == ["node", "ingest", "score", "units/min", "last", "seen"]
    assert lines[-2].split()[:4] == ["node-0", "3", "3", "-"]
    assert lines[-1].split() == ["node-1", "3", "3", "3.6", "30s", "ago"]


def test_units_in_flight_are_told_by_machine(ledger):
    commit_scored(ledger, "u0", ago=30)
    flying = [InFlight(stage="score", unit=f"u{k}", since=NOW - 5 - k, node="driver", boot="",
                       alone=False, machine="far-away") for k in (1, 2)]  # fmt: skip
    write_attempts(ledger.storage, AttemptsFile(in_flight=tuple(flying)))
    rows = reader(ledger).read()
    here, far = sorted(rows[1].nodes, key=lambda found: found.working)
    assert (here.node, here.done, here.working) == (platform.node(), 1, 0)
    assert (far.node, far.done, far.working, far.seconds_ago) == ("far-away", 0, 2, 6.0)
    console = Console(file=io.StringIO(), width=80)
    console.print(status_table(rows))
    (line,) = (line for line in console.file.getvalue().splitlines() if "far-away" in line)
    assert line.split() == ["far-away", "0", "+2", "-", "6s", "ago"]


def test_one_machine_gets_no_table_of_nodes(ledger):
    commit_scored(ledger, "u0", ago=30)
    assert [len(row.nodes) for row in reader(ledger).read()] == [1, 1, 0, 0, 0]
    console = Console(file=io.StringIO(), width=80)
    console.print(status_table(reader(ledger).read()))
    assert "last seen" not in console.file.getvalue()


def test_a_receipt_from_before_nodes_were_recorded_is_read(ledger):
    commit(ledger, "ingest", "u0", ago=30)
    path = Path(ledger.storage.local_path("ingest/u0.json"))
    stored = json.loads(path.read_text())
    assert stored.pop("node") == platform.node()
    path.write_text(json.dumps(stored))
    (node,) = reader(ledger).read()[0].nodes
    assert (node.node, node.done) == (UNNAMED, 1)


def test_rates_are_named_for_what_they_are(ledger):
    rows, note = status_rows(reader(ledger).read())
    assert note == "no unit is done yet"
    assert rows[0].rates == {}
    commit_scored(ledger, "u0", ago=50_000)
    rows, note = status_rows(reader(ledger).read())
    assert note.startswith("rates and ETA of one worker, nothing was done lately; ")
    assert rows[1].rates["windows"] == 27 / 20
    commit_scored(ledger, "u1", ago=10)
    rows, note = status_rows(reader(ledger).read())
    assert note == "rates and ETA of all workers, over their last units; newest unit done 10s ago"
    assert rows[1].rates["windows"] == pytest.approx(27 / 30)


def test_following_ends_when_every_unit_is_done(ledger):
    order = {"shards": 0.0}
    hashes = {}
    for stage in STAGES:
        for k in range(NUM_UNITS):
            hashes[k] = commit(ledger, stage, f"u{k}", ago=10, before=hashes.get(k, ""))
    followed = reader(ledger)
    assert not finished(followed.read())
    none = EXCLUDED.empty_table()
    stage = replace(Numbers(), name="interleave")
    ledger.commit(stage, "order", "", Outcome(none, none, none), records_in=0, seconds=1,
                  measures=order)  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    follow(followed, console, 60)  # returns without waiting
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [*STAGES, "interleave"]
    assert all(line.split()[-1] == "done" for line in lines[1:6])
    assert max(map(len, lines)) <= 80
