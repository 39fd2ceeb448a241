"""Shards at a URL: the same rows as on a disk, read ahead through a bounded cache."""

import json

import numpy as np
import pytest

from koe.errors import ConfigError, ContractError
from tests.training.remote import cached_bytes, entries, gigabytes, memory_url, remote_shards
from training.data.loader import RowOrder
from training.data.shard_rows import ShardRows
from training.places import RemoteFolder

ROWS_PER_STEP = 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("KOE_CACHE", str(folder))
    return folder


@pytest.fixture
def open_rows():
    opened = []

    def open_(url, room, split="train"):
        opened.append(ShardRows(url, split, room))
        return opened[-1]

    yield open_
    for rows in opened:
        rows.close()


def assert_same_row(left, right):
    assert left.input_ids.tolist() == right.input_ids.tolist()
    assert left.document_lengths.tolist() == right.document_lengths.tolist()
    assert left.document_ids == right.document_ids
    assert left.document_sources == right.document_sources
    assert left.document_modalities == right.document_modalities


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_are_those_of_the_folder_in_any_order(tmp_path, open_rows, split):
    folder, url = remote_shards(tmp_path / "shards", num_rows=23, num_shards=5, batch_rows=2)
    here, there = ShardRows(folder, split), open_rows(url, gigabytes(folder, 5), split)
    assert len(here) == len(there)
    assert here.fingerprint == there.fingerprint
    assert here.source_modality == there.source_modality
    assert here.modality.tolist() == there.modality.tolist()
    for number in np.random.default_rng(0).permutation(len(here)).tolist():
        assert_same_row(here[number], there[number])


def test_opening_fetches_no_shard_and_a_second_time_nothing(s3, tmp_path, open_rows, cache):
    folder, url = remote_shards(
        tmp_path / "shards", s3.make_bucket("opening"), num_rows=64, row_tokens=2048, num_shards=2
    )
    stored = sum(entry["num_bytes"] for entry in entries(folder))
    s3.clear()
    rows = open_rows(url, 1.0)
    rows.modality.sum()
    assert cached_bytes(cache) == 0
    first = s3.counts()["GET"]
    assert first < 64
    s3.clear()
    assert open_rows(url, 1.0).modality.tolist() == rows.modality.tolist()
    assert s3.counts()["GET"] == 1, "the index alone is read again"
    assert stored > 400_000


def steps_through(rows, num_steps, after_step):
    order = RowOrder(rows.modality, ROWS_PER_STEP, 0)
    for step in range(num_steps):
        rows.expect(order.rows(step))
        for number in order.rows(step):
            assert rows[number].index == number
        rows._stored.settle()
        after_step()


def test_no_step_waits_after_the_first_and_the_room_is_bounded(tmp_path, open_rows, cache):
    folder, url = remote_shards(tmp_path / "shards", num_rows=60, num_shards=15)
    room = gigabytes(folder, 6)
    rows = open_rows(url, room + gigabytes(folder, 1, "validation"))
    waits, sizes = [], []

    def look():
        waits.append(rows._stored.waits)
        sizes.append(cached_bytes(cache))

    steps_through(rows, 15, look)
    assert waits == [1] * 15
    assert max(sizes) <= room * 1e9
    assert max(sizes) > 0.8 * room * 1e9
    assert rows._stored._cache.fetched == 15


def test_a_step_over_many_small_shards_is_read(tmp_path, open_rows):
    folder, url = remote_shards(tmp_path / "shards", num_rows=30, num_shards=30)
    rows = open_rows(url, gigabytes(folder, 15))
    rows.require_room(ROWS_PER_STEP, 7)
    steps_through(rows, 7, lambda: None)


def test_room_for_a_part_is_enough_for_one_epoch_only(tmp_path, open_rows):
    folder, url = remote_shards(tmp_path / "shards", num_rows=40, num_shards=10)
    rows = open_rows(url, gigabytes(folder, 7))
    rows.require_room(ROWS_PER_STEP, 10)
    with pytest.raises(ConfigError, match=r"more than once.*Raise train.shard_cache_gigabytes by"):
        rows.require_room(ROWS_PER_STEP, 11)
    order = RowOrder(rows.modality, ROWS_PER_STEP, 0)
    with pytest.raises(ConfigError, match="reads its shards again"):
        rows.expect(order.rows(10))
    all_of_them = open_rows(url, gigabytes(folder, 12))
    all_of_them.require_room(ROWS_PER_STEP, 100)
    steps_through(all_of_them, 25, lambda: None)
    assert all_of_them._stored._cache.fetched == 10
    with pytest.raises(ConfigError, match="a few steps and the next one"):
        open_rows(url, gigabytes(folder, 2)).require_room(ROWS_PER_STEP, 10)


def test_the_room_that_is_asked_for_is_enough(tmp_path, open_rows):
    _, url = remote_shards(tmp_path / "shards", num_rows=37, num_shards=11, row_tokens=64)
    for steps in (9, 20):
        with pytest.raises(ConfigError) as caught:
            open_rows(url, 1e-9).require_room(ROWS_PER_STEP, steps)
        assert "needs" in str(caught.value)
        needed = -open_rows(url, 1e-9)._stored._ahead_bytes
        for more in range(100):
            rows = open_rows(url, (needed + more * 1000) / 1e9)
            try:
                rows.require_room(ROWS_PER_STEP, steps)
            except ConfigError:
                continue
            steps_through(rows, steps, lambda: None)
            break
        else:
            raise AssertionError("no room was enough")


def test_a_damaged_shard_is_refused_by_name(tmp_path, open_rows):
    _, url = remote_shards(tmp_path / "shards", num_rows=12, num_shards=3)
    rows = open_rows(url, 1.0)
    remote = RemoteFolder(url)
    data = bytearray(remote.read("train-00001.arrow"))
    data[len(data) // 3] ^= 1
    remote.write("train-00001.arrow", bytes(data))
    assert rows[0].index == 0
    with pytest.raises(ContractError, match=rf"{url}/train-00001.arrow is not the one"):
        rows[5]
    rows.expect(range(4))
    rows._stored.settle()
    assert rows[11].index == 11, "those behind it are fetched all the same"


def test_single_columns_that_differ_from_the_shard_are_refused(tmp_path, open_rows, cache):
    _, url = remote_shards(tmp_path / "shards", num_rows=12, num_shards=1)
    open_rows(url, 1.0)
    (found,) = cache.glob("shards/*.summary.json")
    text = json.loads(found.read_text())
    text["sources"]["text-source"] = "speech"
    found.write_text(json.dumps(text))
    rows = open_rows(url, 1.0)
    with pytest.raises(ContractError, match="other sources or modalities"):
        rows[0]
    assert open_rows(url, 1.0)[0].index == 0
    found.write_bytes(b"{")
    assert open_rows(url, 1.0)[0].index == 0


def test_an_index_without_sizes_or_with_a_path_for_a_hash_is_refused(tmp_path):
    folder, _ = remote_shards(tmp_path / "shards")
    index = json.loads((folder / "index.json").read_text())
    for change in ({"num_bytes": 0}, {"sha256": "../../evil"}):
        url = memory_url()
        spoilt = index | {"shards": [index["shards"][0] | change]}
        RemoteFolder(url).write("index.json", json.dumps(spoilt).encode())
        with pytest.raises(ContractError, match=r"no sha256 and size of train-00000.arrow"):
            ShardRows(url, "train", 1.0)
    with pytest.raises(ContractError, match=r"no index.json"):
        ShardRows(memory_url(), "train", 1.0)
    with pytest.raises(ConfigError, match="cannot be opened"):
        ShardRows("nothing://there", "train", 1.0)


def test_file_urls_are_folders(tmp_path):
    folder, _ = remote_shards(tmp_path / "shards")
    rows, local = ShardRows(f"file://{folder}", "train"), ShardRows(folder, "train")
    assert_same_row(rows[3], local[3])
