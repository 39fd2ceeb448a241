from __future__ import annotations

import pickle

import pytest

from koe.errors import BadRecord
from tests.stages.audio_files import write_tar
from tests.stages.records import reason
from tests.stages.sources.webdataset_source import MEMBERS, gaps, read_all, source_of


@pytest.mark.parametrize("unit_records", [1, 2, 100])
def test_a_damaged_header_takes_no_other_sample(tmp_path, unit_records):
    path = tmp_path / "a.tar"
    infos = write_tar(path, MEMBERS)
    whole = read_all(source_of(path))
    damaged = bytearray(path.read_bytes())
    damaged[infos[6].offset + 150] ^= 0x55  # in its checksum
    path.write_bytes(damaged)
    source = source_of(path, unit_records)
    records = read_all(source)
    assert [record for record in records if not record.bad] == [*whole[:3], *whole[4:]]
    (detail,) = gaps(records)
    assert "damaged" in detail
    assert sum(unit.lost_bytes for unit in source.units()) == infos[7].offset - infos[6].offset


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"<html>not found</html>", "not a tar archive"), (b"\x1f\x8b" * 600, "not a tar")],
)
def test_what_is_not_a_tar_is_one_record(tmp_path, data, message):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    source = source_of(path)
    (unit,) = source.units()
    assert (unit.records, unit.gaps, unit.lost_bytes) == (1, 1, len(data))
    (record,) = source.records_of(unit)
    assert message in record.bad.detail


def test_an_empty_file_is_one_record(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"")
    (record,) = read_all(source_of(path))
    assert (record.key, reason(record)) == ("a.tar", "empty_file")


@pytest.mark.parametrize("unit_records", [1, 3, 100])
def test_archives_joined_with_cat_are_read_to_the_end(tmp_path, unit_records):
    write_tar(tmp_path / "a.tar", MEMBERS[:2])
    write_tar(tmp_path / "b.tar", MEMBERS[2:])
    joined = tmp_path / "c.tar"
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    records = read_all(source_of(joined, unit_records))
    assert [record.key for record in records] == [f"c/{n:03d}" for n in range(7)]
    assert not any(record.bad for record in records)


def test_bad_records_survive_pickling():
    assert pickle.loads(pickle.dumps(BadRecord("a", "b"))).reason == "a"
