import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import ipc

from pipeline.errors import ContractError
from pipeline.schema import ROW
from pipeline.vocabulary import NUM_EMBEDDINGS, PAD
from tests.training.helpers import VOCABULARY, small_shards
from tests.training.shards import write_shards
from training.data import (
    IGNORED,
    MODALITIES,
    Row,
    ShardRows,
    StepLoader,
    collate,
    rows_of_step,
    split_rows,
)


def stored_rows(folder, split="train"):
    entries = json.loads((folder / "index.json").read_text())["shards"]
    return [
        row
        for entry in entries
        if entry["split"] == split
        for row in ipc.open_file(str(folder / entry["path"])).read_all().to_pylist()
    ]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_row_is_read_back_in_stored_order(tmp_path, split):
    folder = write_shards(tmp_path, num_rows=11, num_shards=3, batch_rows=2)
    rows, expected = ShardRows(folder, split), stored_rows(folder, split)
    assert len(rows) == len(expected)
    for number, want in enumerate(expected):
        row = rows[number]
        assert row.index == number
        assert row.input_ids.dtype == np.int32
        assert row.input_ids.tolist() == want["input_ids"]
        assert row.document_lengths.tolist() == want["document_lengths"]
        for column in ("document_sources", "document_ids", "document_modalities"):
            assert getattr(row, column) == want[column]
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_rows_are_views_of_the_mapped_file(tmp_path):
    folder = write_shards(tmp_path, num_rows=64, row_tokens=2048, num_documents=2)
    before = pa.total_allocated_bytes()
    rows = ShardRows(folder, "train")
    views = [rows[number].input_ids for number in range(len(rows))]
    stored = sum(view.nbytes for view in views)
    assert stored > 300_000
    assert pa.total_allocated_bytes() - before < stored / 20
    assert not any(view.flags.owndata or view.flags.writeable for view in views)


def test_a_shard_with_other_rows_than_the_index_is_refused(tmp_path):
    folder = write_shards(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["rows"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ContractError, match=r"train-00001.arrow has 6 rows.*says 7"):
        ShardRows(folder, "train")


def test_another_schema_is_refused(tmp_path):
    folder = write_shards(tmp_path)
    table = pa.table({"input_ids": pa.array([[1, 2]], pa.list_(pa.int64()))})
    with ipc.new_file(str(folder / "train-00000.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ContractError, match="input_ids"):
        ShardRows(folder, "train")


def test_a_truncated_shard_is_refused(tmp_path):
    folder = write_shards(tmp_path)
    path = folder / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ContractError, match="cannot be read"):
        ShardRows(folder, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}'])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ContractError, match="cannot be read"):
        ShardRows(tmp_path, "train")


def test_a_folder_without_index_or_split_is_refused(tmp_path):
    with pytest.raises(ContractError, match=r"no index.json"):
        ShardRows(tmp_path, "train")
    with pytest.raises(ContractError, match="no rows of the split 'test'"):
        ShardRows(write_shards(tmp_path / "shards"), "test")


def test_lengths_that_do_not_add_up_are_refused(tmp_path):
    folder = write_shards(tmp_path, num_rows=2, num_shards=1)
    bad = stored_rows(folder)
    bad[1]["document_lengths"][0] += 1
    with ipc.new_file(str(folder / "train-00000.arrow"), ROW) as writer:
        writer.write_table(pa.Table.from_pylist(bad, schema=ROW))
    rows = ShardRows(folder, "train")
    assert rows[0].index == 0
    with pytest.raises(ContractError, match=r"row 1 .*document lengths"):
        rows[1]


def test_collate_marks_documents():
    rows = [
        Row(0, np.array([5, 6, 7, 8, 9], np.int32), np.array([2, 3], np.int32),
            ["a", "b"], ["0", "1"], ["text", "speech"]),
        Row(1, np.array([3, 4], np.int32), np.array([2], np.int32), ["a"], ["2"], ["speech"]),
    ]  # fmt: skip
    batch = collate(rows, NUM_EMBEDDINGS)
    no, text, speech = IGNORED, MODALITIES.index("text"), MODALITIES.index("speech")
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[no, 6, no, 8, 9], [no, 4, no, no, no]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]
    assert batch.document_index.tolist() == [[0, 0, 1, 1, 1], [0, 0, -1, -1, -1]]
    assert batch.modality.tolist() == [[text] * 2 + [speech] * 3, [speech] * 2 + [-1] * 3]
    assert (batch.num_supervised, batch.num_tokens) == (4, 7)


def test_an_id_without_embedding_is_refused(tmp_path):
    rows = ShardRows(write_shards(tmp_path), "train")
    with pytest.raises(ContractError, match=r"row 0 .*512 embeddings"):
        collate([rows[0]], VOCABULARY)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_step_is_the_same_rows_at_every_world_size(world):
    rows = rows_of_step(3, 64, 100)
    assert rows == [number % 100 for number in range(192, 256)]
    parts = [split_rows(rows, rank, world, 2) for rank in range(world)]
    assert {len(part) for part in parts} == {64 // 2 // world}
    in_turn = [n for micro in zip(*parts, strict=True) for part in micro for n in part]
    assert in_turn == rows


def test_the_loader_yields_the_rows_of_any_step(tmp_path):
    folder = small_shards(tmp_path, num_rows=10)
    rows = ShardRows(folder, "train")
    settings = {"rows_a_step": 4, "micro_batch_rows": 1, "num_embeddings": VOCABULARY}
    with StepLoader(rows, rank=1, world=2, **settings) as loader:
        for step in (0, 1, 2, 7, 8):
            batches = loader.batches(step)
            numbers = [(4 * step + 1) % 10, (4 * step + 3) % 10]
            assert len(batches) == 2
            for batch, number in zip(batches, numbers, strict=True):
                assert torch.equal(batch.input_ids, collate([rows[number]], VOCABULARY).input_ids)
