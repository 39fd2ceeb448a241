import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from koe.errors import ContractError
from koe.schema import ROW
from tests.mutants import mutants
from tests.training.shards import write_shards
from training.data.shard_rows import ShardRows


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


def test_a_row_is_no_copy_and_makes_no_names_until_asked(tmp_path):
    folder = write_shards(tmp_path, num_rows=4, num_shards=1)
    row = ShardRows(folder, "train")[2]
    assert "document_ids" not in vars(row)
    assert row.document_ids == [f"train-00000.arrow:2/{place}" for place in range(3)]
    for view in (row.document_lengths, row.document_parts):
        assert not view.flags.owndata
        assert not view.flags.writeable


def spoil(folder, **columns):
    """Change the columns of row 1 of the first shard by the functions given."""
    bad = stored_rows(folder)
    for name, change in columns.items():
        bad[1][name] = change(bad[1][name])
    with ipc.new_file(str(folder / "train-00000.arrow"), ROW) as writer:
        writer.write_table(pa.Table.from_pylist(bad, schema=ROW))


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("document_sources", lambda v: v[1:], "a column does not describe all of its 3 documents"),
        ("document_ids", lambda v: [*v, "x"], "a column does not describe all of its 3 documents"),
        (
            "document_modalities",
            lambda v: v[:1],
            "a column does not describe all of its 3 documents",
        ),
        ("document_parts", lambda v: [], "a column does not describe all of its 3 documents"),
        ("document_modalities", lambda v: ["song", *v[1:]], r"its modalities are \['song', "),
        ("document_lengths", lambda v: [sum(v), 0, 0], r"lengths \[\d+, 0, 0\] do not add up"),
        ("input_ids", lambda v: v * 40, r"has \d+ tokens; the index allows 1 to 2048"),
        ("input_ids", lambda v: [], "has 0 tokens"),
    ],
)
def test_a_broken_row_is_refused_and_no_other(tmp_path, column, change, message):
    folder = write_shards(tmp_path, num_rows=3, num_shards=1)
    expected = stored_rows(folder)
    spoil(folder, **{column: change})
    rows = ShardRows(folder, "train")
    with pytest.raises(ContractError, match=rf"row 1 .*{message}"):
        rows[1]
    for number in (0, 2):
        assert rows[number].input_ids.tolist() == expected[number]["input_ids"]
        assert rows[number].document_sources == expected[number]["document_sources"]
        assert rows[number].document_ids == expected[number]["document_ids"]


@pytest.mark.parametrize("column", ["input_ids", "document_sources", "document_ids"])
def test_nulls_are_refused(tmp_path, column):
    folder = write_shards(tmp_path, num_rows=3, num_shards=1)
    spoil(folder, **{column: lambda values: [None, *values[1:]]})
    with pytest.raises(ContractError, match="nulls"):
        ShardRows(folder, "train")


def test_a_shard_with_other_rows_than_the_index_is_refused(tmp_path):
    folder = write_shards(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1]["rows"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ContractError, match=r"train-00001.arrow has 6 rows.*says 7"):
        ShardRows(folder, "train")


def test_another_schema_is_refused(tmp_path):
    folder = write_shards(tmp_path)
    table = ROW.empty_table().set_column(0, "input_ids", pa.array([], pa.list_(pa.int64())))
    with ipc.new_file(str(folder / "train-00000.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ContractError, match=r"column input_ids holds list<item: int64>"):
        ShardRows(folder, "train")


def test_a_truncated_shard_is_refused(tmp_path):
    folder = write_shards(tmp_path)
    path = folder / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ContractError, match="is not a complete Arrow file"):
        ShardRows(folder, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}'])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ContractError, match="cannot be read"):
        ShardRows(tmp_path, "train")


def test_a_folder_without_index_or_split_is_refused(tmp_path):
    with pytest.raises(ContractError, match=r"no index.json"):
        ShardRows(tmp_path, "train")
    with pytest.raises(ContractError, match="no rows in the split 'test'"):
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


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_shard_is_refused_or_read_and_never_ends_the_process(data):
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), num_rows=5, num_shards=1, row_tokens=32)
        path = folder / "train-00000.arrow"
        path.write_bytes(data.draw(mutants(path.read_bytes())))
        try:
            rows = ShardRows(folder, "train")
            assert len(rows.sources) >= 1
            assert len(rows.modality) == 5
            for number in range(5):
                assert int(rows[number].input_ids.sum()) is not None
        except ContractError:
            pass
