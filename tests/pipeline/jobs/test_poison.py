"""The records that end their worker are found, and just these are quarantined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from koe.errors import ConfigError
from koe.stage import Exclusions
from pipeline.execution.attempt_log import AttemptLog
from pipeline.execution.attempts import Limits
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import DONE, SET_ASIDE, SKIPPED
from pipeline.execution.stage_work import StageWork
from pipeline.jobs.assembly import SPEECH_STAGES
from pipeline.jobs.poison import find_poison
from pipeline.run_dir.killers import REASON, forget_killers, read_killers
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.set_aside import Death, read_set_aside
from pipeline.run_dir.storage import Storage
from stages.ingest import IngestStage
from tests.calling import koe
from tests.corpus import write_corpus
from tests.pipeline.execution.fatal import FATES
from tests.pipeline.run_dir.test_ledger import NAMES, Numbers, planned_units


@dataclass(frozen=True)
class Deadly(Numbers):
    """Passes its table on, and meets the fate of the records in it, or of `pair` if both are."""

    fates: tuple[tuple[str, str], ...] = ()
    pair: tuple[str, ...] = ()
    name: str = "deadly"

    def _run(self, table):
        ids = table["id"].to_pylist()
        if self.pair and set(self.pair) <= set(ids):
            FATES["segv"]()
        for id in ids:
            if fate := dict(self.fates).get(id):
                FATES[fate]()
        return Exclusions(self.name).outcome(table)


@dataclass(frozen=True)
class DeadlyIngest(IngestStage):
    """Ends its process at two clips."""

    def _clip(self, record, *rest):
        for name, fate in (("1.flac", "segv"), ("2.flac", "exit")):
            if record.bad is None and record.audio.path.endswith(name):
                FATES[fate]()
        return super()._clip(record, *rest)


def set_aside(storage: Storage, key: tuple[str, str], last_record: str = "") -> None:
    log = AttemptLog.opened(storage, Limits())
    death = Death(ended="worker", at="", node="", how="signal SIGSEGV", last_record=last_record)
    log.deaths[key] = [death]
    log.put_aside(key)
    log.close()


def deadly_run(root: Path, stage: Deadly, last_record: str = ""):
    """Have a unit set aside by `stage`; return its work, the ledger, the log and what was said."""
    units = planned_units()
    run_plain([StageWork(Numbers(), None, str(root), units)], NAMES, lambda result: None)
    ledger, said = Ledger(Storage(str(root))), []
    set_aside(ledger.storage, ("deadly", "u0"), last_record)
    log = AttemptLog.opened(ledger.storage, Limits(max_seconds=4.0))
    work = StageWork(stage, "numbers", str(root), units)
    find_poison([work], "u0", ledger, log, said.append)
    work = replace(work, killers=read_killers(ledger.storage).found.get("deadly", {}))
    return work, ledger, log, "\n".join(said)


@pytest.mark.slow
@pytest.mark.law
def test_two_records_that_kill_and_stall_are_left_out_and_the_rest_is_done(tmp_path):
    stage = Deadly(fates=(("4", "segv"), ("8", "hang")))
    work, ledger, log, said = deadly_run(tmp_path, stage, last_record="4")
    assert "4 ends its worker: signal SIGSEGV" in said
    assert "8 ends its worker: was still running after its deadline" in said
    assert read_set_aside(ledger.storage, "deadly", "u0") is None
    results: list = []
    assert run_plain([work], NAMES, results.append, log=log)
    assert {result.status for result in results} == {DONE}
    receipt = ledger.receipt("deadly", "u0")
    assert receipt is not None
    assert receipt.quarantined == {REASON: 2}
    assert receipt.records_in == receipt.kept + 2
    excluded = ledger.read_excluded(receipt)
    assert excluded is not None
    assert excluded["id"].to_pylist() == ["4", "8"]
    assert "SIGSEGV" in excluded["detail"][0].as_py()
    assert not {"4", "8"} & set(ledger.read(receipt)["id"].to_pylist())
    # The list is part of what is recorded: with it nothing is done again, with another the unit is.
    assert run_plain([work], ["u0"], results.append, log=log)
    assert results[-1].status == SKIPPED
    check = ledger.check(work.stage, "u0", receipt.input_sha256)
    assert check.why == f"settings changed: {REASON}"
    # With another input nothing is known of its records.
    assert work.killers_of("u0", "another") == ()
    ledger.storage.remove("deadly/u0.json")
    assert run_plain([work], ["u0"], results.append, log=log)
    again = ledger.receipt("deadly", "u0")
    assert again is not None
    assert (again.output, again.excluded) == (receipt.output, receipt.excluded)
    forget_killers(ledger.storage, ["deadly"])
    assert ledger.storage.find_bytes("killers.json") is None


@pytest.mark.slow
def test_records_that_kill_only_together_are_not_blamed(tmp_path):
    work, ledger, log, said = deadly_run(tmp_path, Deadly(pair=("1", "8")))
    assert "no single record" in said
    assert "stays set aside" in said
    assert not read_killers(ledger.storage).found
    results: list = []
    assert run_plain([work], ["u0"], results.append, log=log)
    assert results[0].status == SET_ASIDE
    with pytest.raises(ConfigError, match="set aside are deadly u0"):
        find_poison([work], "u1", ledger, log, print)


@pytest.mark.slow
def test_the_command_finds_what_kills_ingest(tmp_path, monkeypatch):
    monkeypatch.setitem(SPEECH_STAGES, "ingest", lambda self: DeadlyIngest(self.speech_sources))
    config = str(write_corpus(tmp_path))
    assert koe("plan", "--clips", "0", "-c", config)[0] == 0
    storage = Storage(str(tmp_path / "run"))
    plan = load_plan(storage)
    assert plan is not None
    unit = next(unit.unit for unit in plan.units if unit.source == "clips")
    search = ["run", "--only", "ingest", "--find-poison", "--unit", unit, "-c", config]
    code, _, err = koe(*search)
    assert code == 2
    assert f"unit {unit} is not set aside by ingest" in err
    set_aside(storage, ("ingest", unit))
    code, _, err = koe(*search)
    assert code == 0, err
    assert "signal SIGSEGV. Quarantined: kills_the_worker" in err
    ledger = Ledger(storage)
    receipt = ledger.receipt("ingest", unit)
    assert receipt is not None
    assert receipt.quarantined[REASON] == 2
    excluded = ledger.read_excluded(receipt)
    assert excluded is not None
    rows = [row for row in excluded.to_pylist() if row["reason"] == REASON]
    assert [row["detail"] for row in rows] == ["signal SIGSEGV", "exit code 3"]
    assert all("manifest.jsonl" in row["location"] for row in rows)
    assert koe("verify", "--partial", "-c", config)[0] == 0
    for wrong in (["--unit", unit], ["--find-poison", "--retry-set-aside"]):
        assert koe("run", "-c", config, *wrong)[0] == 2
