"""The cache of shards by itself: bounded, shared, and nothing enters it unchecked."""

import fcntl
import hashlib
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import ContractError, StorageError
from tests.training.remote import cached_bytes, memory_url
from training.data import shard_cache
from training.data.shard_cache import ShardCache
from training.data.shard_index import ShardEntry
from training.places import RemoteFolder


def shard_of(number: int, size: int) -> tuple[ShardEntry, bytes]:
    data = bytes([number]) * size
    sha256 = hashlib.sha256(data).hexdigest()
    return ShardEntry(f"train-{number:05d}.arrow", "train", 1, sha256, size), data


def stored(url: str, sizes: list[int]) -> list[ShardEntry]:
    made = [shard_of(number, size) for number, size in enumerate(sizes)]
    for entry, data in made:
        RemoteFolder(url).write(entry.path, data)
    return [entry for entry, _ in made]


def cache_in(folder: Path, url: str, limit: int) -> ShardCache:
    return ShardCache(RemoteFolder(url), folder / "shards", limit)


def names(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "shards").glob("*.arrow")}


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    limit=st.integers(40, 120),
    moves=st.lists(st.tuples(st.sampled_from(["hold", "release", "fetch"]), st.integers(0, 5))),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_asked_the_room_is_bounded_and_what_is_held_stays(sizes, limit, moves):
    with tempfile.TemporaryDirectory() as name:
        folder, url = Path(name), memory_url()
        entries = stored(url, sizes)
        cache, held = cache_in(folder, url, limit), {}
        for move, number in moves:
            entry = entries[number % len(entries)]
            if move == "release" and entry in held:
                held.pop(entry).release()
            elif move == "fetch":
                keep = {other.sha256 for other in entries[:2]}
                before = names(folder)
                assert cache.fetch(entry, keep) == (entry.sha256 in names(folder))
                assert before & keep <= names(folder)
            elif move == "hold" and entry not in held:
                try:
                    held[entry] = cache.hold(entry, seconds=0)
                except StorageError:
                    assert sum(e.num_bytes for e in held) + entry.num_bytes > limit
            assert cached_bytes(folder) <= limit
            for entry, shard in held.items():
                assert hashlib.sha256(shard.path.read_bytes()).hexdigest() == entry.sha256
        for shard in held.values():
            shard.release()


def test_the_least_recently_needed_makes_room(tmp_path):
    url = memory_url()
    entries = stored(url, [10, 10, 10, 10])
    cache = cache_in(tmp_path, url, 30)
    for number in (0, 1, 2):
        cache.hold(entries[number]).release()
        os.utime(tmp_path / "shards" / f"{entries[number].sha256}.arrow", ns=(number, number))
    cache.hold(entries[0]).release()
    cache.hold(entries[3]).release()
    assert names(tmp_path) == {entries[number].sha256 for number in (0, 2, 3)}
    assert cache.fetched == 4


def test_a_damaged_shard_is_fetched_twice_then_refused_by_name(tmp_path, monkeypatch):
    url = memory_url()
    (entry,) = stored(url, [10])
    RemoteFolder(url).write(entry.path, b"x" * 10)
    downloads = []
    download = RemoteFolder.download

    def counted(self, name, path):
        downloads.append(name)
        download(self, name, path)

    monkeypatch.setattr(RemoteFolder, "download", counted)
    with pytest.raises(ContractError, match=rf"{url}/train-00000.arrow is not the one.*sha256"):
        cache_in(tmp_path, url, 30).hold(entry)
    assert len(downloads) == 2
    assert cached_bytes(tmp_path) == 0
    RemoteFolder(url).write(entry.path, b"x" * 9)
    with pytest.raises(ContractError, match="it has 9 bytes, not 10"):
        cache_in(tmp_path, url, 30).hold(entry)


def test_bytes_that_are_damaged_on_the_way_once_are_fetched_again(tmp_path, monkeypatch):
    url = memory_url()
    (entry,) = stored(url, [10])
    download, spoilt = RemoteFolder.download, []

    def spoil_first(self, name, path):
        download(self, name, path)
        if not spoilt:
            spoilt.append(path.write_bytes(b"0123456789"))

    monkeypatch.setattr(RemoteFolder, "download", spoil_first)
    held = cache_in(tmp_path, url, 30).hold(entry)
    assert held.path.read_bytes() == b"\0" * 10
    held.release()


def test_a_missing_shard_and_a_full_disk_are_named(tmp_path, monkeypatch):
    url = memory_url()
    (entry,) = stored(url, [10])
    missing = ShardEntry("train-00007.arrow", "train", 1, "0" * 64, 10)
    with pytest.raises(ContractError, match=r"train-00007.arrow is missing"):
        cache_in(tmp_path, url, 30).hold(missing)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache, "_sync", full)
    with pytest.raises(StorageError, match=r"cannot be kept in .*No space left.*KOE_CACHE"):
        cache_in(tmp_path, url, 30).hold(entry)
    assert cached_bytes(tmp_path) == 0


def test_room_that_others_use_is_waited_for_then_missed(tmp_path):
    url = memory_url()
    first, second = stored(url, [10, 10])
    cache = cache_in(tmp_path, url, 15)
    held = cache.hold(first)
    assert not cache.fetch(second, ())
    with pytest.raises(StorageError, match=r"no room for shard train-00001.arrow"):
        cache.hold(second, seconds=0)
    held.release()
    cache.hold(second, seconds=0).release()
    assert names(tmp_path) == {second.sha256}


def hold_and_wait(folder, url, entry, limit, ready):
    held = cache_in(folder, url, limit).hold(entry)
    part = folder / "shards" / f"{'a' * 64}.10.part"
    with open(part.with_name(f"{'a' * 64}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part.touch()
        ready.set()
        signal.pause()
    held.release()


@pytest.mark.slow
def test_what_a_killed_process_used_or_was_fetching_makes_room(s3, tmp_path):
    url = s3.make_bucket("killed")
    first, second = stored(url, [10, 10])
    context = multiprocessing.get_context("spawn")  # its environment names this server
    ready = context.Event()
    process = context.Process(target=hold_and_wait, args=(tmp_path, url, first, 20, ready))
    process.start()
    assert ready.wait(120)
    cache = cache_in(tmp_path, url, 20)
    assert not cache.fetch(second, ())
    process.kill()
    process.join()
    cache.hold(second).release()
    assert cached_bytes(tmp_path) <= 20
    assert second.sha256 in names(tmp_path)


def hold_all(folder, url, entries, start, fetched):
    cache = cache_in(folder, url, 10_000)
    start.wait()
    held = [cache.hold(entry) for entry in entries]
    for shard, entry in zip(held, entries, strict=True):
        assert shard.path.stat().st_size == entry.num_bytes
    fetched.put(cache.fetched)


@pytest.mark.slow
def test_processes_of_a_machine_fetch_each_shard_once(s3, tmp_path):
    url = s3.make_bucket("shared")
    entries = stored(url, [100] * 12)
    s3.clear()
    context = multiprocessing.get_context("spawn")  # its environment names this server
    start, fetched = context.Barrier(2), context.Queue()
    work = (tmp_path, url, entries, start, fetched)
    processes = [context.Process(target=hold_all, args=work) for _ in range(2)]
    for process in processes:
        process.start()
    assert sum(fetched.get(timeout=120) for _ in processes) == 12
    for process in processes:
        process.join()
        assert process.exitcode == 0
    got = [path for method, path, _ in s3.log() if method == "GET" and path.endswith(".arrow")]
    assert sorted(got) == sorted(f"/shared/{entry.path}" for entry in entries)
