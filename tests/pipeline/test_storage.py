"""Writes are whole or absent, the same rows give the same bytes, and a full disk is named."""

import errno

import pyarrow as pa
import pytest

from pipeline import storage as storage_module
from pipeline.errors import ContractError, StorageError
from pipeline.fingerprint import sha256_bytes
from pipeline.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


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
    with pytest.raises(ContractError, match=r"t\.arrow is not a whole Arrow file"):
        storage.read_table("t.arrow")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.write_bytes("a", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage_module.os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*Free space"):
        storage.write_bytes("a", b"new")
    assert storage.read_bytes("a") == b"old"
    assert storage.names("") == ["a"]


def test_what_a_killed_writer_left_is_swept(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write_bytes("s/u.arrow", b"x")
    (tmp_path / "s" / ".u.arrow.123.tmp").write_bytes(b"half")
    assert storage.sweep("s") == 1
    assert storage.names("s") == ["u.arrow"]
