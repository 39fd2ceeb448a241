"""What statistics and proofs read of a run on an object store: each file once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from rich.console import Console

from koe.dataflow import receipt_path, stage_chain
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.jobs.run import run_job
from pipeline.run_dir import vouched
from pipeline.run_dir.plan import Plan, load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import full_stats, run_stats, stats_json
from pipeline.verify import not_made, verify_run
from tests.corpus import write_corpus
from tests.forging import Forged, sound_run
from tests.s3_server import S3Server


@pytest.fixture(scope="module")
def remote(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Forged:
    """Copy the sound run into a bucket."""
    run_dir = sound_run(tmp_path_factory.getbasetemp())
    remote = Forged(s3.make_bucket("reads") + "/run")
    for path in sorted(run_dir.rglob("*.*")):
        if path.is_file():
            remote.storage.write_bytes(str(path.relative_to(run_dir)), path.read_bytes())
    return remote


def gets_of(s3: S3Server, work: Callable[[], object]) -> Counter[str]:
    """Count how often each file of the run was fetched, or asked about."""
    s3.clear()
    work()
    asked = ((m, p.partition("/run/")[2]) for m, p, query in s3.log() if "list-type" not in query)
    return Counter(path for method, path in asked if method in ("GET", "HEAD"))


@pytest.mark.parametrize("held", [vouched._HELD_BYTES, 0])
def test_statistics_read_each_file_once(s3, remote, held, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(vouched, "_HELD_BYTES", held)
    plan = remote.plan
    found = gets_of(s3, lambda: full_stats(plan, remote.ledger))
    tables = {path: number for path, number in found.items() if path.endswith(".arrow")}
    units = [receipt for receipt in found if receipt.startswith("encode/")]
    assert units
    assert {path for path in tables if path.startswith("shards/")}
    # s3fs asks for the size of a file that it fetches into another one
    assert set(tables.values()) <= ({1} if held else {1, 2})
    receipts = {path: n for path, n in found.items() if path.endswith(".json")}
    assert set(receipts.values()) == {1}
    here = Forged(sound_run(tmp_path_factory.getbasetemp()))
    local = full_stats(here.plan, here.ledger)
    assert stats_json(full_stats(plan, remote.ledger)) == stats_json(local)


def test_the_end_of_a_run_reads_each_file_at_most_once(s3, remote):
    plan = remote.plan
    assert set(gets_of(s3, lambda: run_stats(plan, remote.ledger)).values()) == {1}


def test_a_run_reads_each_receipt_once_to_resume_and_once_for_what_it_says_of_it(s3, tmp_path):
    run_dir = s3.make_bucket("again") + "/run"
    config = load_config(write_corpus(tmp_path), [f"run_dir={run_dir}"])

    def run() -> None:
        selection = select_stages(None, "interleave", None, ())
        assert not run_job(config, selection, Console(quiet=True)).failed

    run()
    plan = load_plan(Storage(run_dir))
    assert plan is not None
    found = gets_of(s3, run)
    of_units = Counter({p: n for p, n in found.items() if p in set(all_receipts(plan))})
    tokenized = {p for p in of_units if p.startswith("tokenize/")}  # the order is made of these
    assert set(of_units) == set(all_receipts(plan))
    assert {of_units[path] for path in tokenized} == {3}
    assert {of_units[path] for path in set(of_units) - tokenized} == {2}


def all_receipts(plan: Plan) -> list[str]:
    return [
        receipt_path(stage, unit.unit)
        for unit in plan.units
        for stage in stage_chain(unit.modality)
    ]


def test_a_proof_reads_each_file_once(s3, remote):
    plan = remote.plan

    def prove() -> None:
        verify_run(plan, remote.ledger)
        assert not not_made(plan, remote.ledger)

    found = gets_of(s3, prove)
    # of units with samples that were cut, or with an id that occurs twice, the samples are read again
    pieces = remote.storage.read_table("interleave/order.arrow").to_pylist()
    excluded = remote.storage.read_table("interleave/order.excluded.arrow").to_pylist()
    again = {plan.units[piece["unit"]].unit for piece in pieces if piece["part"]}
    again_ids = {row["id"] for row in excluded if row["reason"] == "duplicate_id"}
    for unit in (unit.unit for unit in plan.units):
        ids = remote.storage.read_table(f"tokenize/{unit}.arrow")["id"].to_pylist()
        again |= {unit} if again_ids & set(ids) else set()
    twice = {path for path, number in found.items() if number > 1}
    assert twice <= {f"tokenize/{unit}.arrow" for unit in again}
    assert max(found.values()) == 2
