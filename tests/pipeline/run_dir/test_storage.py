"""Writes are whole or absent, the same rows give the same bytes, and a full disk is named."""

import errno
import os

import pyarrow as pa
import pytest

from koe.errors import ContractError, StorageError
from koe.fingerprint import sha256_bytes
from pipeline.run_dir.storage import Storage


@pytest.fixture(params=["{}", "memory://{}", "file://{}"])
def storage(request, tmp_path):
    return Storage(request.param.format(tmp_path))


def test_files_and_tables_round_trip(storage):
    written = storage.write_bytes("a/b.bin", b"123")
    assert (written.sha256, written.num_bytes) == (sha256_bytes(b"123"), 3)
    assert storage.read_bytes("a/b.bin") == b"123"
    assert (storage.size("a/b.bin"), storage.size("a/c.bin")) == (3, None)
    table = pa.table({"x": list(range(3000))})
    assert storage.write_table("a/t.arrow", table).rows == 3000
    assert storage.read_table("a/t.arrow").equals(table)
    assert storage.names("a") == ["b.bin", "t.arrow"]
    storage.remove("a/b.bin")
    storage.remove("a/b.bin")
    assert storage.names("a") == ["t.arrow"]
    assert storage.names("nowhere") == []


def test_chunking_of_a_table_does_not_show_in_its_bytes(storage):
    whole = pa.table({"x": [1, 2, 3, 4], "l": [[1], [2, 3], [], [4]]})
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 2), whole.slice(3)])
    one, two = storage.write_table("1", whole), storage.write_table("2", pieces)
    assert one.sha256 == two.sha256


def test_a_torn_table_is_refused(storage):
    storage.write_table("t.arrow", pa.table({"x": [1, 2]}))
    storage.write_bytes("t.arrow", storage.read_bytes("t.arrow")[:-20])
    with pytest.raises(ContractError, match=r"t\.arrow is not a complete Arrow file"):
        storage.read_table("t.arrow")


@pytest.mark.parametrize("keep", [0, 5, 300, -20])
def test_a_torn_table_is_refused_when_its_batches_are_read(storage, keep):
    storage.write_table("t.arrow", pa.table({"x": list(range(3000))}))
    storage.write_bytes("t.arrow", storage.read_bytes("t.arrow")[:keep])
    with (
        pytest.raises(ContractError, match=r"t\.arrow is not a complete Arrow file.*Run again"),
        storage.open_batches("t.arrow", ["x"]) as batches,
    ):
        list(batches)


def test_a_batch_that_is_broken_is_refused(storage):
    storage.write_table("t.arrow", pa.table({"x": list(range(3000))}))
    whole = storage.read_bytes("t.arrow")
    start = whole.index(b"\xff\xff\xff\xff", 100)  # of the first batch
    storage.write_bytes("t.arrow", whole[:start] + bytes(300) + whole[start + 300 :])
    with (
        pytest.raises(ContractError, match=r"t\.arrow is not a complete Arrow file"),
        storage.open_batches("t.arrow", ["x"]) as batches,
    ):
        list(batches)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.write_bytes("a", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*Free space"):
        storage.write_bytes("a", b"new")
    assert storage.read_bytes("a") == b"old"
    assert storage.names("") == ["a"]


def test_what_a_killed_writer_left_is_swept(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write_bytes("s/u.arrow", b"x")
    (tmp_path / "s" / ".u.arrow.123.tmp").write_bytes(b"half")
    assert storage.sweep(["s", "none"]) == 1
    assert storage.names("s") == ["u.arrow"]


@pytest.mark.parametrize("root", ["local", "memory://stream"])
def test_a_stream_of_tables_gives_the_bytes_of_one(tmp_path, root):
    storage = Storage(str(tmp_path) if root == "local" else root)
    table = pa.table(
        {"n": list(range(5000)), "s": [None if k % 7 else str(k) for k in range(5000)]}
    )
    whole = storage.write_table("whole.arrow", table)
    for sizes in ([5000], [1, 1023, 0, 1024, 2000, 952], [700] * 7 + [100]):
        ends = [sum(sizes[:k]) for k in range(len(sizes))]
        parts = (table.slice(end, size) for end, size in zip(ends, sizes, strict=True))
        streamed = storage.write_tables("parts.arrow", table.schema, parts)
        assert storage.read_bytes("parts.arrow") == storage.read_bytes("whole.arrow")
        assert (streamed.sha256, streamed.num_bytes, streamed.rows) == (
            whole.sha256, whole.num_bytes, 5000,
        )  # fmt: skip
    assert sha256_bytes(storage.read_bytes("whole.arrow")) == whole.sha256
    assert storage.read_table("parts.arrow").equals(table)
    with storage.open_batches("parts.arrow", ["s"]) as batches:
        assert pa.Table.from_batches(list(batches)).equals(table.select(["s"]))


@pytest.mark.parametrize("root", ["local", "memory://broken"])
def test_a_stream_that_breaks_off_leaves_nothing(tmp_path, root):
    storage = Storage(str(tmp_path) if root == "local" else root)

    def tables():
        yield pa.table({"n": [1] * 3000})
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        storage.write_tables("t.arrow", pa.schema([("n", pa.int64())]), tables())
    assert storage.size("t.arrow") is None
    assert storage.names(".") == []
