"""Whoever asks how a run is, or where a record is, is told of units that are set aside."""

from __future__ import annotations

import json
import shutil

from koe.dataflow import receipt_path
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from tests.calling import koe
from tests.corpus import write_corpus
from tests.forging import sound_run
from tests.pipeline.jobs.test_poison import set_aside


def test_status_stats_and_inspect_name_a_unit_that_is_set_aside(tmp_path_factory, tmp_path):
    shutil.copytree(sound_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    config = ("-c", str(write_corpus(tmp_path)))
    storage = Storage(str(tmp_path / "run"))
    plan = load_plan(storage)
    assert plan is not None
    unit = next(unit.unit for unit in plan.units if unit.source == "clips")
    (kept,) = storage.read_table(f"ingest/{unit}.arrow").slice(0, 1)["id"].to_pylist()
    storage.remove(receipt_path("score", unit))
    set_aside(storage, ("score", unit), last_record=kept)

    rows = json.loads(koe("status", "--json", *config)[1])
    assert {row["stage"]: row["set_aside"] for row in rows if row["set_aside"]} == {"score": [unit]}
    shown = koe("status", *config)[1]
    assert f"score leaves aside what ended its worker: {unit}" in " ".join(shown.split())

    found = json.loads(koe("stats", "--json", *config)[1])["set_aside"]
    assert [(one["stage"], one["unit"]) for one in found] == [("score", unit)]
    assert f"the last record begun was {kept}" in found[0]["why"]
    assert f"set aside by score: {unit}" in koe("stats", *config)[1]

    code, out, _ = koe("inspect", kept, *config)
    assert code == 0
    assert "is set aside" in " ".join(out.split())
    code, _, err = koe("inspect", "clips/nobody", *config)
    assert code == 2
    assert f"set aside: {unit}" in err
