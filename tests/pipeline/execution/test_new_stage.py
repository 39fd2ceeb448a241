"""A stage that nobody knows of goes through run, status, stats and verify once it is declared."""

import time
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console

from koe import dataflow
from koe.dataflow import StageEntry
from koe.schema import CLIP, SAMPLE, SPEECH, TEXT
from koe.stage import Exclusions, Outcome, Resources
from pipeline.config.load import load_config
from pipeline.execution.selection import select_stages
from pipeline.execution.status import StatusReader, finished
from pipeline.jobs import assembly
from pipeline.jobs.run import run_job
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.reading import read_index
from pipeline.run_dir.storage import Storage
from pipeline.stats import run_stats
from pipeline.trace.record import find_records
from pipeline.verify import not_made, verify_run
from tests.corpus import write_corpus

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Sieve:
    """Rejects the first record of every unit."""

    output_schema: pa.Schema
    name: str = "sieve"
    version: int = 1
    resources: Resources = field(default_factory=Resources)

    @property
    def content(self):
        return {}

    def open(self):
        return self._run

    def _run(self, table: pa.Table) -> Outcome:
        time.sleep(0.002)  # receipts count milliseconds, and what takes none has no rate
        exclusions = Exclusions(self.name)
        for record in table.slice(0, 1).select(["id", "source"]).to_pylist():
            exclusions.reject(record["id"], record["source"], "first", "of its unit")
        return exclusions.outcome(table.slice(1))


def declare(monkeypatch, after: str, chains: tuple[str, ...], output: pa.Schema) -> None:
    """Put the sieve into the table of stages and among those that can be built."""
    names = list(dataflow.stage_names())
    place = names.index(after) + 1
    entry = StageEntry("sieve", chains, output, rates=("seconds",))
    monkeypatch.setattr(
        dataflow, "TABLE", (*dataflow.TABLE[:place], entry, *dataflow.TABLE[place:])
    )
    monkeypatch.setitem(assembly.SPEECH_STAGES, "sieve", lambda _: Sieve(output))
    monkeypatch.setitem(assembly.TEXT_STAGES, "sieve", lambda _, source: Sieve(output))


def run_to(folder, last: str):
    config = load_config(write_corpus(folder))
    report = run_job(config, select_stages(None, last, None, []), QUIET)
    assert not report.failed
    ledger = Ledger(Storage(config.run_dir))
    plan = load_plan(ledger.storage)
    assert plan is not None
    return plan, ledger


def test_stage_of_clips(tmp_path, monkeypatch):
    declare(monkeypatch, "ingest", (SPEECH,), CLIP)
    plan, ledger = run_to(tmp_path, "sieve")
    rows = {row.stage: row for row in StatusReader(ledger).read()}
    assert list(rows) == ["ingest", "sieve", "score", "encode", "tokenize", "interleave"]
    num_units = len(plan.units_of(SPEECH))
    assert (rows["sieve"].done, rows["sieve"].left) == (num_units, 0)
    assert rows["sieve"].rates.keys() == {"seconds"}
    clips = run_stats(plan, ledger).clips
    assert clips.adds_up
    assert clips.rejected == {"first": num_units}
    assert verify_run(plan, ledger)
    assert not any("sieve" in missing for missing in not_made(plan, ledger))


def test_stage_of_samples(tmp_path, monkeypatch):
    declare(monkeypatch, "tokenize", (SPEECH, TEXT), SAMPLE)
    plan, ledger = run_to(tmp_path, "interleave")
    assert finished(StatusReader(ledger).read())
    stats = run_stats(plan, ledger)
    assert stats.clips.rejected["first"] == len(plan.units_of(SPEECH))
    assert stats.samples.rejected["first"] == len(plan.units_of(TEXT))
    assert stats.clips.adds_up
    assert stats.samples.adds_up
    assert stats.clips.kept + stats.samples.kept > 0
    index = read_index(ledger)
    assert index is not None
    shards = [ledger.storage.read_table(f"shards/{e['path']}") for e in index["shards"]]
    shown = {id for table in shards for id in pc.list_flatten(table["document_ids"]).to_pylist()}
    unit = plan.units_of(TEXT)[0]
    receipt = ledger.receipt("sieve", unit.unit)
    assert receipt is not None
    excluded = ledger.read_excluded(receipt)
    assert excluded is not None
    (rejected,) = excluded["id"].to_pylist()
    assert rejected not in shown
    (record,) = find_records(plan, ledger, rejected)
    assert [outcome.outcome for outcome in record.stages] == ["kept", "rejected"]
    assert verify_run(plan, ledger)
    assert not_made(plan, ledger) == []


@pytest.mark.parametrize("modality", [SPEECH, TEXT])
def test_every_declared_stage_is_built(modality):
    built = assembly.SPEECH_STAGES if modality == SPEECH else assembly.TEXT_STAGES
    assert tuple(built) == dataflow.stage_chain(modality)
