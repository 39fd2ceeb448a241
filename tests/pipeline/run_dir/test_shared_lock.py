"""The lock of a run directory on an object store: one holder, whatever dies, stalls or races."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fsspec.config import conf

from koe import cells
from koe.errors import ConfigError, StorageError
from koe.shared_lock import Held, Pace, take
from pipeline.execution.plain import run_plain
from pipeline.execution.runner import STOPPED
from pipeline.execution.stage_work import StageWork
from pipeline.run_dir import lock as lock_module
from pipeline.run_dir.lock import LOCK, run_lock, worker_storage
from pipeline.run_dir.storage import Storage
from tests.pipeline.run_dir.test_ledger import NAMES, Numbers, planned_units
from tests.s3_server import S3Server

# Heartbeats are seen soon, and no machine is too slow for them.
QUICK = Pace(beat=0.2, give_up=60.0, stale=80.0)
ME: dict[str, Any] = {"process": 1, "machine": "far", "command": "koe run", "since": "today"}
HOLD = """
import sys, time
from pipeline.run_dir import lock
from koe.shared_lock import Pace
from pipeline.run_dir.storage import Storage
lock.PACE = Pace(0.2, 60.0, 80.0)
sys.argv = ["koe", "run", "-c", "mine.yaml"]
with lock.run_lock(Storage(sys.stdin.readline().strip())):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "PACE", QUICK)


@pytest.fixture(params=["s3", "memory"])
def storage(request: pytest.FixtureRequest, s3: S3Server) -> Storage:
    name = f"lock-{abs(hash(request.node.name)) % 10**9}"
    return Storage(
        f"{s3.make_bucket(name)}/run" if request.param == "s3" else f"memory://{name}/run"
    )


@pytest.fixture
def on_s3(s3: S3Server, request: pytest.FixtureRequest) -> Storage:
    return Storage(f"{s3.make_bucket(f'lock-{abs(hash(request.node.name)) % 10**9}')}/run")


@pytest.fixture
def holder(on_s3: Storage) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{on_s3.root}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def held_by(storage: Storage) -> dict[str, Any]:
    return json.loads(storage.read_bytes(LOCK))


def test_a_second_run_is_refused_and_the_lock_is_released(storage: Storage) -> None:
    said: list[str] = []
    with run_lock(storage, said.append) as mine:
        assert held_by(storage)["process"] == os.getpid()
        words = rf"in use because `.*process {os.getpid()} on"
        with pytest.raises(ConfigError, match=words), run_lock(storage):
            pass
        mine.write_bytes("plan.json", b"{}")
    assert storage.names("") == ["plan.json"]
    has_conditions = storage.root.startswith("s3")
    assert said == [] if has_conditions else "no conditional writes" in said[0]


def test_the_holder_of_another_process_is_named(
    on_s3: Storage, holder: subprocess.Popen[str]
) -> None:
    first = held_by(on_s3)
    words = rf"`koe run -c mine.yaml`, process {holder.pid} on .*koe status --watch"
    with pytest.raises(ConfigError, match=words), run_lock(on_s3):
        pass
    deadline = time.monotonic() + 60
    while held_by(on_s3) == first:  # it gives signs of life
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_lock_of_a_process_of_this_machine_that_was_killed_is_taken_at_once(
    on_s3: Storage, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "PACE", replace(QUICK, stale=3600))
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run_lock(on_s3):
        assert held_by(on_s3)["process"] == os.getpid()


@pytest.fixture
def silent(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Held:
    """Let a run on another machine have taken the lock and then stand still until it is stale."""
    held = take(storage.cell(LOCK), storage.root, ME, replace(QUICK, beat=3600))
    cell = storage.cell(LOCK)
    seen = cell.read()
    assert seen is not None
    elsewhere = {**json.loads(seen.data), "where": "another machine"}
    held.tag = cell.swap(json.dumps(elsewhere).encode(), seen.tag) or ""
    age = cells._age
    monkeypatch.setattr(cells, "_age", lambda a: 1000.0 if a["ETag"] == held.tag else age(a))
    held.beaten -= 1000
    if storage.root.startswith("memory"):  # whose files have no age: the lock is watched
        monkeypatch.setattr(lock_module, "PACE", replace(QUICK, stale=1.0))
    return held


def test_a_lock_without_a_heartbeat_is_taken_over_and_its_holder_writes_no_more(
    storage: Storage, silent: Held
) -> None:
    losers = [replace(storage, fence=silent), worker_storage(storage.root, silent.token)]
    work = StageWork(Numbers(), None, storage.root, planned_units()).under(silent.token)
    with run_lock(storage) as mine:
        mine.write_bytes("b", b"1")
        for loser in losers:
            with pytest.raises(StorageError, match=r"no longer this run's"):
                loser.write_bytes("b", b"2")
            with pytest.raises(StorageError, match=r"no longer this run's"):
                loser.remove("b")
        results: list = []
        assert not run_plain([work], NAMES, results.append)
        assert [result.status for result in results] == [STOPPED]
        assert mine.read_bytes("b") == b"1"
        assert mine.names("numbers") == []
        silent.release()  # of a lock that it lost
        assert held_by(storage)["process"] == os.getpid()


def test_a_worker_writes_nothing_where_the_lock_was_not_renewed_for_long(
    on_s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_lock(on_s3) as mine:
        worker = worker_storage(on_s3.root, mine.token)
        monkeypatch.setattr(cells, "_age", lambda answer: QUICK.give_up + 1)
        with pytest.raises(StorageError, match=r"was not renewed for 61 seconds"):
            worker.write_bytes("a", b"1")
        monkeypatch.undo()
        worker.write_bytes("a", b"1")


def robbed(storage: Storage) -> None:
    """Put another holder into the lock, and write until that is noticed."""
    with run_lock(storage) as mine:
        cell, another = storage.cell(LOCK), json.dumps({**ME, "token": "another"}).encode()
        while (seen := cell.read()) is not None and cell.swap(another, seen.tag) is None:
            continue
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            mine.write_bytes("a", b"1")
            time.sleep(0.05)


def test_a_heartbeat_that_finds_another_holder_ends_the_run(on_s3: Storage) -> None:
    with pytest.raises(StorageError, match=r"taken over: `koe run`, process 1 on far"):
        robbed(on_s3)
    assert held_by(on_s3)["token"] == "another"


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
def test_of_many_takers_one_wins(storage: Storage, silent: Held) -> None:
    for _ in range(3):  # the stale lock is taken over, then the place is empty
        holders: list[Held] = []
        refused: list[ConfigError] = []
        gate = threading.Barrier(8)

        def race(gate=gate, holders=holders, refused=refused) -> None:
            cell = Storage(storage.root).cell(LOCK)
            gate.wait()
            try:
                holders.append(take(cell, storage.root, {**ME, "process": os.getpid()}, QUICK))
            except ConfigError as error:
                refused.append(error)

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(holders), len(refused)) == (1, 7)
        assert held_by(storage)["token"] == holders[0].token
        holders[0].release()
        assert storage.size(LOCK) is None


def test_a_lost_answer_is_no_lost_lock(s3: S3Server, on_s3: Storage, monkeypatch) -> None:
    """A PUT whose answer is lost is repeated, and refused because of itself."""
    put = cells.S3Cell._put

    def twice(cell, data, **condition):
        put(cell, data, **condition)
        return put(cell, data, **condition)

    monkeypatch.setattr(cells.S3Cell, "_put", twice)
    with run_lock(on_s3) as mine:
        before = held_by(on_s3)
        deadline = time.monotonic() + 60
        while held_by(on_s3) == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        mine.write_bytes("a", b"1")
    assert on_s3.names("") == ["a"]


@pytest.mark.parametrize("how", ["ignored", "refused"])
def test_a_store_without_conditions_is_said_and_keeps_what_is_there(
    on_s3: Storage, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    call = cells.S3Cell._call

    def without(cell, method, IfNoneMatch=None, IfMatch=None, **more):
        if how == "refused" and (IfNoneMatch or IfMatch):
            from botocore.exceptions import ClientError
            from s3fs.errors import translate_boto_error

            answer = {"Error": {"Code": "NotImplemented", "Message": "no such header"}}
            raise translate_boto_error(ClientError(answer, method))
        return call(cell, method, **more)

    monkeypatch.setattr(cells.S3Cell, "_call", without)
    said: list[str] = []
    with run_lock(on_s3, said.append):
        assert "no conditional writes" in said[0]
        with pytest.raises(ConfigError, match="is in use"), run_lock(on_s3):
            pass
    assert on_s3.size(LOCK) is None


def test_a_run_that_cannot_release_its_lock_ends_well_and_says_so(
    s3: S3Server, on_s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf["s3"], "config_kwargs", {"retries": {"total_max_attempts": 1}})
    said: list[str] = []
    with run_lock(on_s3, said.append):
        s3.fail(kind="error", share=1, methods=["DELETE"])
    s3.fail()
    assert "refuses requests for now" in said[0]
    assert "free 80 seconds" in said[0]


def test_the_lock_of_a_bucket_that_is_not_there_is_not_taken(s3: S3Server) -> None:
    words = r"cannot lock s3://no-bucket.*no such bucket"
    with pytest.raises(StorageError, match=words), run_lock(Storage("s3://no-bucket/run")):
        pass


def test_work_keeps_its_lock_on_the_way_to_a_worker() -> None:
    work = StageWork(Numbers(), None, "memory://x", planned_units())
    sent = pickle.loads(pickle.dumps(work.under("a-token")))
    assert (sent.lock, work.lock, sent) == ("a-token", "", work)
