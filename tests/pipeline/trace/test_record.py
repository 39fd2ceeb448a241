"""The way of a record through the run: where it was kept or left out, and where it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from koe.errors import ConfigError
from koe.schema import ENCODED
from pipeline.run_dir.plan import Plan
from pipeline.run_dir.storage import Storage
from pipeline.terminal.trace import records_view
from pipeline.trace.record import PENDING, ShardPlace, StageOutcome, find_records, record_json
from tests.written_run import (
    CODES,
    KINDS,
    PLAN,
    SPOKEN,
    WRITTEN,
    clip,
    commit,
    filled,
    run_dir_of,
    shown,
    spelled,
    write_run,
)


@pytest.fixture(params=KINDS)
def root(request, tmp_path) -> str:
    return run_dir_of(request.param, tmp_path)


def outcomes(record) -> dict[str, str]:
    return {outcome.stage: outcome.outcome for outcome in record.stages}


def test_a_record_is_followed_to_its_place(root):
    ledger = write_run(root)
    (kept, again) = find_records(PLAN, ledger, "a/0")
    assert outcomes(kept) == dict.fromkeys(
        ("ingest", "score", "encode", "tokenize", "interleave"), "kept"
    )
    assert kept.places == (ShardPlace("train-00000", 1020, 10, 0),)
    np.testing.assert_array_equal(kept.codes, CODES)
    np.testing.assert_array_equal(kept.input_ids, SPOKEN)
    assert again.stages == (
        StageOutcome("ingest", "quarantined", "duplicate_id", "so it is", "x.jsonl@9"),
    )
    (text,) = find_records(PLAN, ledger, "t/1")
    assert text.places == (ShardPlace("train-00001", 0, 0, 0), ShardPlace("train-00001", 1, 1, 1))
    found = record_json(text, spelled)
    assert (found["text"], found["clip"], found["tokens"]) == ("1 2\n3\n4\n5", None, len(WRITTEN))
    assert [place["row"] for place in found["places"]] == [0, 1]


def test_a_record_that_was_left_out_says_where_and_why(root):
    ledger = write_run(root)
    (low,) = find_records(PLAN, ledger, "a/2")
    assert list(outcomes(low).items())[-1] == ("encode", "rejected")
    assert (low.stages[-1].reason, low.codes is None) == ("below_threshold", False)  # of SCORED
    (ratio,) = find_records(PLAN, ledger, "a/3")
    assert (ratio.stages[-1].stage, ratio.stages[-1].reason) == ("interleave", "ratio_exhausted")
    assert ratio.places == ()
    (bad,) = find_records(PLAN, ledger, "a/bad-a1")
    assert (bad.unit, bad.clip) == ("a1", None)
    view = shown(records_view([low, ratio, bad], spelled))
    for words in ("below_threshold: so it is", "ratio_exhausted", "x.jsonl@7", "ovrl 3.500"):
        assert words in view
    assert record_json(bad, spelled)["text"] is None


def test_a_record_is_found_by_the_row_of_its_unit(root):
    ledger = write_run(root)
    by_id = find_records(PLAN, ledger, "t/1")
    (unit,) = {record.unit for record in by_id}
    ids = ledger.storage.read_table(f"tokenize/{unit}.arrow")["id"].to_pylist()
    (found,) = find_records(PLAN, ledger, f"{unit}#{ids.index('t/1')}")
    assert (found.id, found.places) == ("t/1", by_id[0].places)
    for row in (str(len(ids)), "x", ""):
        with pytest.raises(ConfigError, match=f"no sample {unit}#{row}.* has {len(ids)} samples"):
            find_records(PLAN, ledger, f"{unit}#{row}")


def test_what_is_not_done_yet_is_pending(root):
    ledger = write_run(root)
    (behind,) = find_records(PLAN, ledger, "a/9")
    assert outcomes(behind) == {"ingest": "kept", "score": PENDING}
    both = find_records(PLAN, ledger, "a/1")
    assert [record.unit for record in both] == ["a0", "a1"]
    commit(ledger, "score", "a0", filled(ENCODED, [clip("a/1")]), after="ingest")  # anew
    assert outcomes(find_records(PLAN, ledger, "a/1")[0]) == {
        "ingest": "kept", "score": "kept", "encode": PENDING,
    }  # fmt: skip


def test_an_order_of_other_samples_is_not_believed(root):
    ledger = write_run(root)
    moved = Plan((PLAN.units[1], PLAN.units[0], PLAN.units[2]), PLAN.modalities)
    (record, _) = find_records(moved, ledger, "a/1")  # its index is now that of `t/1`
    assert outcomes(record)["interleave"] == PENDING
    assert record.places == ()


def test_an_unknown_id_is_refused_and_only_units_of_its_source_are_searched(root, monkeypatch):
    ledger = write_run(root)
    with pytest.raises(ConfigError, match=r"b/0 is neither a shard.*sources are t, a"):
        find_records(PLAN, ledger, "b/0")
    many = Plan((), {f"source-{k}": "text" for k in range(40)})
    with pytest.raises(ConfigError, match=r"sources are source-3, .* …and 35 more\. Write"):
        find_records(many, ledger, "sourc-3/0")
    read: list[tuple[str, tuple[str, ...]]] = []
    open_batches = Storage.open_batches

    def noted(self, path, columns):
        read.append((path, tuple(columns)))
        return open_batches(self, path, columns)

    monkeypatch.setattr(Storage, "open_batches", noted)
    monkeypatch.setattr(Storage, "read_table", None)
    with pytest.raises(ConfigError, match="there is no record a/none"):
        find_records(PLAN, ledger, "a/none")
    assert {columns for _, columns in read} == {("id",)}
    assert {Path(path).name for path, _ in read} == {
        f"{name}{suffix}" for name in ("a0", "a1") for suffix in (".arrow", ".excluded.arrow")
    }
