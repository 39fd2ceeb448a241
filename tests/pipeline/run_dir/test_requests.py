"""What a unit and stage may ask of an object store, counted by a server."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from koe.errors import ConfigError
from koe.remote import fresh_file_system
from pipeline.execution.done_before import leave_done
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import SKIPPED
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage, remote
from tests.pipeline.run_dir.test_ledger import NAMES, Doubled, Numbers, planned_units, statuses
from tests.s3_server import S3Server

FIRST = Numbers()


def chain_of(root: str, first: Numbers = FIRST, force: bool = False) -> list[StageWork]:
    units = planned_units()
    return [
        StageWork(first, None, root, units, force=force),
        StageWork(Doubled(), first.name, root, units),
    ]


def run(root: str, first: Numbers = FIRST, force: bool = False) -> list:
    """Run as the driver does: what is done is decided in bulk, the rest goes through the stages."""
    results: list = []
    chain = chain_of(root, first, force)
    ledger = Ledger(Storage(root))
    for works, units in leave_done([(chain, NAMES)], ledger, results.append):
        assert run_plain(works, units, results.append)
    return results


def test_the_budget_of_requests(s3: S3Server) -> None:
    root = s3.make_bucket("budget") + "/run"
    units = len(NAMES)
    s3.clear()
    assert statuses(run(root)) == ["done"] * 2 * units
    # Of a unit: is it done? its output, what it left out, its receipt. Then: the receipt and the table
    # of the stage before, is it done? its output, its receipt.
    assert without_lists(s3) == {"GET": (1 + 3) * units, "PUT": (3 + 2) * units}
    s3.clear()
    assert statuses(run(root)) == [SKIPPED] * 2 * units
    assert s3.counts() == {"LIST": 2, "GET": 2 * units}
    s3.clear()
    # receipts go before outputs, and of the second stage what was left out before
    assert set(statuses(run(root, Numbers(reject_every=4)))) == {"done"}
    assert s3.counts()["DELETE"] == units + 2 * units
    assert s3.counts()["HEAD"] == 0


def without_lists(s3: S3Server) -> Counter[str]:
    counts = s3.counts()
    assert counts.pop("LIST") <= 4  # of stages, which are empty
    return counts


def test_receipts_go_before_the_outputs_that_they_vouch_for(s3: S3Server) -> None:
    root = s3.make_bucket("order") + "/run"
    run(root)
    s3.clear()
    run(root, Numbers(reject_every=4))
    writes = [(m, path) for m, path, _ in s3.log() if m in ("PUT", "DELETE") and "/u0." in path]
    assert [(m, path.partition("/run/")[2]) for m, path in writes] == [
        ("DELETE", "numbers/u0.json"),
        ("PUT", "numbers/u0.arrow"),
        ("PUT", "numbers/u0.excluded.arrow"),
        ("PUT", "numbers/u0.json"),
        ("DELETE", "doubled/u0.json"),
        ("PUT", "doubled/u0.arrow"),
        ("DELETE", "doubled/u0.excluded.arrow"),
        ("PUT", "doubled/u0.json"),
    ]


def test_what_was_left_out_and_has_no_receipt_is_removed(s3: S3Server) -> None:
    root = s3.make_bucket("strays") + "/run"
    run(root)
    storage = Storage(root)
    for unit in NAMES:
        storage.remove(f"numbers/{unit}.json")
    run(root, Numbers(reject_every=100))
    excluded = [name for name in storage.names("numbers") if "excluded" in name]
    assert excluded == ["u2.excluded.arrow"]  # whose last record cannot be read


def big_table() -> pa.Table:
    return pa.table({"x": list(range(2_000_000))})


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SPOOLED_BYTES", 2**20)


def test_a_large_table_is_uploaded_in_parts(
    s3: S3Server, little_memory: None, tmp_path: Path
) -> None:
    bucket = s3.make_bucket("parts")
    table = big_table()
    local = Storage(str(tmp_path)).write_table("t.arrow", table)
    s3.clear()
    assert Storage(f"{bucket}/run").write_table("t.arrow", table) == local
    assert s3.counts()["POST"] == 2
    assert Storage(f"{bucket}/run").read_table("t.arrow").equals(table)


def test_an_upload_that_fails_is_aborted(s3: S3Server, little_memory: None) -> None:
    storage = Storage(s3.make_bucket("aborted") + "/run")

    def tables():
        yield big_table()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        storage.write_tables("t.arrow", pa.schema([("x", pa.int64())]), tables())
    assert storage.size("t.arrow") is None
    assert uploads("s3://aborted") == []


def uploads(bucket: str) -> list[str]:
    system, place = fresh_file_system(bucket)
    return [upload["Key"] for upload in system.list_multipart_uploads(place)]


def test_uploads_that_a_killed_run_left_are_aborted_and_no_others(s3: S3Server) -> None:
    bucket = s3.make_bucket("abandoned")
    system, place = fresh_file_system(bucket)
    for key in ("run/score/u.arrow", "run/shards/t.arrow", "run2/score/u.arrow", "other"):
        system.call_s3("create_multipart_upload", Bucket=place, Key=key)
    assert Storage(f"{bucket}/run").sweep(["score"]) == 2
    assert sorted(uploads(bucket)) == ["other", "run2/score/u.arrow"]


def test_a_copying_file_system_is_no_place_for_a_run() -> None:
    with pytest.raises(ConfigError, match=r"read through a cache.*without what stands before"):
        Storage("simplecache::memory://run").names("score")
