"""What `koe stats` says of duplicates is what a run then drops, and the rest trains as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from koe.schema import REJECTED
from pipeline.config.load import load_config
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.plan import load_plan
from pipeline.run_dir.storage import Storage
from pipeline.stats import full_stats
from pipeline.stats.duplicates import KINDS
from pipeline.verify import verify_run
from tests.calling import koe
from tests.texts_run import copied_run, in_section, run

pytestmark = pytest.mark.slow

KEYS = {key: kind for kind, (_, key) in KINDS.items() if key}


def dropped(path: Path, *keys: str) -> tuple[dict[str, int], set[str]]:
    """Run with these duplicates dropped; return the counts by key, and the ids in the shards."""
    made = run(path, in_section("interleave.duplicates", dict.fromkeys(keys, "drop")))
    assert made.stats is not None
    assert all(account.adds_up for account in made.stats.sources.values())
    storage = Storage(load_config(path).run_dir)
    ledger, plan = Ledger(storage), load_plan(storage)
    assert plan is not None
    verify_run(plan, ledger)
    counts = dict.fromkeys(KEYS, 0)
    for account in made.stats.sources.values():
        for reason, number in account.reasons(REJECTED).items():
            counts[reason.removeprefix("duplicate_")] += number
    pieces = storage.read_table("interleave/order.arrow").to_pylist()
    placed = {(piece["unit"], piece["sample"]) for piece in pieces}
    ids = {
        unit.unit: storage.read_table(f"tokenize/{unit.unit}.arrow")["id"] for unit in plan.units
    }
    return counts, {ids[plan.units[unit].unit][row].as_py() for unit, row in placed}


@pytest.mark.law
def test_the_forecast_of_duplicates_is_what_a_run_drops(tmp_path_factory, tmp_path):
    path = copied_run(tmp_path_factory.getbasetemp(), tmp_path)
    storage = Storage(load_config(path).run_dir)
    plan = load_plan(storage)
    assert plan is not None
    forecast = full_stats(plan, Ledger(storage)).duplicates
    nothing, everything = dropped(path)
    assert not any(nothing.values())
    assert len(everything) == 38 + 17 + 3
    for key, kind in KEYS.items():
        counts, stayed = dropped(path, key)
        assert counts == dict.fromkeys(KEYS, 0) | {key: forecast[kind].clips}, key
        assert forecast[kind].clips > 0
        assert stayed < everything
        assert len(stayed) == len(everything) - forecast[kind].clips
        for first, *again in forecast[kind].examples:
            assert first in stayed
            assert not stayed & set(again)


def test_inspect_names_the_clip_that_stays_and_finds_it(tmp_path_factory, tmp_path):
    path = copied_run(tmp_path_factory.getbasetemp(), tmp_path)
    dropped(path, "text")
    code, out, _ = koe("inspect", "said/n15", "-c", str(path), "--json")
    assert code == 0
    left = json.loads(out)["records"][0]["stages"][-1]
    assert left["reason"] == "duplicate_text"
    code, out, _ = koe("inspect", left["detail"].split(" ")[-1], "-c", str(path), "--json")
    assert code == 0
    assert json.loads(out)["records"][0]["id"] == "said/n0"
    assert koe("inspect", "said#0", "-c", str(path))[0] == 2
