"""Documents written for other trainers: every one, once, in order, with labels as koe trains on them."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import ConfigError, ContractError, StorageError
from koe.vocabulary import START_OF_AI
from tests.training.remote import memory_url, upload
from tests.training.shards import write_shards
from training.data.batches import IGNORED, collate
from training.data.shard_rows import ShardRows
from training.export import documents
from training.export.documents import export_documents
from training.places import RemoteFolder

VOCABULARY = 156_938


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), num_rows=9)


def expected(shards, split, loss_on):
    """Cut the batches that koe trains on into documents."""
    rows = ShardRows(shards, split)
    for number in range(len(rows)):
        row = rows[number]
        batch = collate([row], VOCABULARY, rows.sources, loss_on)
        stops = np.cumsum(row.document_lengths)
        for place, stop in enumerate(stops.tolist()):
            start = stop - int(row.document_lengths[place])
            yield {
                "input_ids": batch.input_ids[0, start:stop].tolist(),
                "attention_mask": [1] * (stop - start),
                "labels": batch.labels[0, start:stop].tolist(),
                "id": row.document_ids[place],
                "source": row.document_sources[place],
                "modality": row.document_modalities[place],
            }


@pytest.mark.parametrize("loss_on", ["all", "response"])
def test_every_document_is_there_once_with_its_labels(shards, tmp_path, loss_on, monkeypatch):
    monkeypatch.setattr(documents, "_GROUP_DOCUMENTS", 4)
    monkeypatch.setattr(documents, "_FILE_DOCUMENTS", 12)
    counts = export_documents(shards, tmp_path / "data", loss_on=loss_on, cache_gigabytes=1)
    assert counts == {"train": 27, "validation": 6}
    assert len(list((tmp_path / "data").glob("train-*.parquet"))) == 3
    loaded = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "validation"):
        assert list(loaded[split]) == list(expected(shards, split, loss_on))
    if loss_on == "response":
        for found in loaded["train"]:
            before = found["input_ids"].index(START_OF_AI) + 1
            assert set(found["labels"][:before]) == {IGNORED}
            assert found["labels"][before:] == found["input_ids"][before:]


def test_what_stays_is_never_written_over(shards, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="data already exists"):
        export_documents(shards, tmp_path / "data", loss_on="all", cache_gigabytes=1)
    with pytest.raises(ContractError, match="is not a folder of shards"):
        export_documents(tmp_path / "none", tmp_path / "new", loss_on="all", cache_gigabytes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_full_disk_leaves_nothing(shards, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(documents.dataset, "write_dataset", full)
    with pytest.raises(StorageError, match="data cannot be written because No space left"):
        export_documents(shards, tmp_path / "data", loss_on="all", cache_gigabytes=1)
    assert not list(tmp_path.iterdir())


def test_both_places_may_be_urls(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("KOE_CACHE", str(tmp_path / "cache"))
    url, remote = memory_url(), upload(shards, memory_url())
    export_documents(remote, f"{url}/data", loss_on="all", cache_gigabytes=1)
    names = RemoteFolder(f"{url}/data").sizes()
    assert sorted(names) == ["train-0.parquet", "validation-0.parquet"]
    found = pq.read_table(pa.BufferReader(RemoteFolder(f"{url}/data").read("train-0.parquet")))
    assert found.to_pylist() == list(expected(shards, "train", "all"))
