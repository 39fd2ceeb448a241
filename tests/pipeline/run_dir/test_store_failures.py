"""A store that fails ends the run with what helps: it neither hangs nor fails unit after unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.config import conf

from koe.errors import StorageError
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import STOPPED
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir.ledger import Ledger
from pipeline.run_dir.storage import Storage
from tests.calling import koe
from tests.corpus import write_corpus
from tests.pipeline.run_dir.test_ledger import NAMES, Numbers, planned_units
from tests.s3_server import S3Server

QUICK = {"read_timeout": 0.3, "connect_timeout": 0.3, "retries": {"total_max_attempts": 1}}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> Iterator[S3Server]:
    """Wait for an answer of S3 no longer than a moment, as fsspec's own configuration may say."""
    monkeypatch.setitem(conf["s3"], "config_kwargs", QUICK)
    yield s3
    s3.fail()


def uses(storage: Storage) -> list:
    return [
        lambda: storage.read_bytes("score/u.json"),
        lambda: storage.find_bytes("score/u.json"),
        lambda: list(storage.read_many(["score/u.json", "score/v.json"])),
        lambda: storage.write_bytes("score/u.json", b"{}"),
        lambda: storage.size("score/u.json"),
        lambda: storage.names("score"),
        lambda: storage.stamps("score"),
        lambda: storage.remove("score/u.json"),
        lambda: storage.sweep(["score"]),
    ]


@pytest.mark.slow
def test_a_stalled_store_is_given_up(impatient: S3Server) -> None:
    storage = Storage(impatient.make_bucket("stalled") + "/run")
    impatient.fail(kind="stall", share=1, seconds=15)
    for use in uses(storage):
        with pytest.raises(StorageError, match=r"did not answer in time.*Check the network"):
            use()


@pytest.mark.slow
def test_each_write_to_a_stalled_store_is_given_up(impatient: S3Server) -> None:
    """Some writes that ask first ("Expect: 100-continue") have no timeout in aiohttp 3.14."""
    storage = Storage(impatient.make_bucket("writes") + "/run")
    impatient.fail(kind="stall", share=1, seconds=15)
    for _ in range(10):
        with pytest.raises(StorageError, match="did not answer in time"):
            storage.write_bytes("score/u.json", b"{}")


def test_a_store_that_refuses_is_given_up(impatient: S3Server) -> None:
    storage = Storage(impatient.make_bucket("refusing") + "/run")
    impatient.fail(kind="error", share=1)
    for use in uses(storage):
        with pytest.raises(StorageError, match=r"because .*Run the same command again later"):
            use()


def test_a_store_that_is_not_there_is_named(impatient: S3Server) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(conf["s3"], "endpoint_url", "http://127.0.0.1:9")
        for use in uses(Storage("s3://nowhere/run")):
            with pytest.raises(StorageError, match=r"cannot be reached.*Check the network"):
                use()


def test_a_bucket_that_is_not_there_is_named(impatient: S3Server) -> None:
    for use in uses(Storage("s3://no-such-bucket/run")):
        with pytest.raises(StorageError, match=r"there is no such bucket.*Make the bucket"):
            use()


def test_missing_credentials_are_named(
    impatient: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # a cached file system of another test would still have its credentials
    monkeypatch.setitem(conf["s3"], "config_kwargs", {**QUICK, "connect_timeout": 0.31})
    with pytest.raises(StorageError, match=r"no valid credentials.*AWS_ACCESS_KEY_ID"):
        Storage("s3://bucket/run").names("score")


def test_a_failing_store_stops_the_run_at_its_first_unit(impatient: S3Server) -> None:
    root = impatient.make_bucket("stops") + "/run"
    work = StageWork(Numbers(), None, root, planned_units())
    impatient.fail(kind="error", share=1, methods=["PUT"])
    results: list = []
    assert not run_plain([work], NAMES, results.append)
    assert [result.status for result in results] == [STOPPED]
    assert "refuses requests for now" in results[0].error
    impatient.fail()
    assert run_plain([work], NAMES, results.append)
    assert Ledger(Storage(root)).receipt("numbers", "u2") is not None


@pytest.mark.slow
def test_a_command_says_what_is_wrong_with_the_store(impatient: S3Server, tmp_path: Path) -> None:
    config = write_corpus(tmp_path)
    code, _, errors = koe("run", "-c", str(config), "--set", "run_dir=s3://missing-bucket/run")
    assert code in (1, 2)
    assert "there is no such bucket" in errors


@pytest.mark.slow
def test_a_run_outlives_requests_that_fail_now_and_then(s3: S3Server, tmp_path: Path) -> None:
    root = s3.make_bucket("shaky") + "/run"
    s3.clear()
    s3.fail(kind="error", share=0.12, seed=7)
    results: list = []
    try:
        for storage in (Storage(root), Storage(str(tmp_path))):
            work = StageWork(Numbers(), None, storage.root, planned_units())
            assert run_plain([work], NAMES, results.append)
    finally:
        s3.fail()
    assert [result.status for result in results] == ["done"] * 2 * len(NAMES)
    for unit in NAMES:
        path = f"numbers/{unit}.arrow"
        assert Storage(root).read_bytes(path) == Storage(str(tmp_path)).read_bytes(path)
