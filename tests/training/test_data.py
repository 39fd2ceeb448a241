import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from pipeline.errors import ContractError
from pipeline.schema import ROW
from pipeline.vocabulary import (
    END_OF_AI,
    END_OF_TEXT,
    NUM_EMBEDDINGS,
    PAD,
    START_OF_SPEECH,
    conversation_ids,
    speech_ids,
)
from tests.training.helpers import VOCABULARY
from tests.training.shards import write_shards
from training.data import IGNORED, Row, ShardRows, collate, in_response


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


def row_of(index, ids, lengths, sources, parts=None):
    return Row(
        index, np.array(ids, np.int32), np.array(lengths, np.int32), sources,
        [f"{index}/{place}" for place in range(len(lengths))], ["text"] * len(lengths),
        np.array(parts or [0] * len(lengths), np.int32),
    )  # fmt: skip


def test_collate_marks_documents():
    rows = [row_of(0, [5, 6, 7, 8, 9], [2, 3], ["b", "a"]), row_of(1, [3, 4], [2], ["b"])]
    batch = collate(rows, NUM_EMBEDDINGS, ["a", "b"])
    no = IGNORED
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[no, 6, no, 8, 9], [no, 4, no, no, no]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]
    assert batch.document_index.tolist() == [[0, 0, 1, 1, 1], [0, 0, -1, -1, -1]]
    assert batch.source.tolist() == [[1, 1, 0, 0, 0], [1, 1, -1, -1, -1]]
    assert (batch.num_supervised, batch.num_tokens) == (4, 7)


def test_an_id_without_embedding_is_refused(tmp_path):
    rows = ShardRows(write_shards(tmp_path), "train")
    with pytest.raises(ContractError, match=r"row 0 .*512 embeddings"):
        collate([rows[0]], VOCABULARY, rows.sources)


def test_only_responses_are_predicted_when_asked():
    turns = conversation_ids([([11, 12], [21, 22]), ([13], [23])])
    spoken = speech_ids([14], np.arange(7, dtype=np.uint16))
    row = row_of(0, [*turns, *spoken], [len(turns), len(spoken)], ["t", "s"])
    labels = collate([row], NUM_EMBEDDINGS, ["t", "s"], "response").labels[0]
    kept = labels[labels != IGNORED].tolist()
    first, second = [21, 22, END_OF_TEXT, END_OF_AI], [23, END_OF_TEXT, END_OF_AI]
    assert kept == [*first, *second, *spoken[list(spoken).index(START_OF_SPEECH) :]]
    everything = collate([row], NUM_EMBEDDINGS, ["t", "s"]).labels[0]
    assert int((everything != IGNORED).sum()) == len(row.input_ids) - 2


@pytest.mark.parametrize("cut", range(1, 19))
def test_the_later_part_of_a_split_sample_goes_on_where_the_first_ended(cut):
    ids = conversation_ids([([11, 12], [21, 22]), ([13], [23])])
    assert len(ids) == 19
    whole, before = (
        in_response(ids, np.array([len(ids)]), np.array([0])),
        np.array([5, 6]),
    )
    parts = np.concatenate([before, ids[cut:]])
    found = in_response(parts, np.array([2, len(ids) - cut]), np.array([0, 1]))
    assert not found[:2].any()
    np.testing.assert_array_equal(found[2:], whole[cut:])


def test_sources_and_modalities_are_those_of_all_rows(tmp_path):
    folder = write_shards(tmp_path, num_rows=7, num_shards=3, batch_rows=2, num_documents=1)
    rows, stored = ShardRows(folder, "train"), stored_rows(folder)
    assert rows.source_modality == {"speech-source": "speech", "text-source": "text"}
    bits = [sum({"text": 1, "speech": 2}[m] for m in set(r["document_modalities"])) for r in stored]
    assert rows.modality.tolist() == bits
    assert len(set(bits)) == 2
    both = ShardRows(write_shards(tmp_path / "both", num_documents=2), "train")
    assert 3 in both.modality
    assert rows.splits == {"train", "validation"}
