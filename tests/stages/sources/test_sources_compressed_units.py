"""Units and records of compressed sources, and what is refused of them."""

from __future__ import annotations

import gzip
import json
import random
import tarfile
from dataclasses import replace

import pytest

from koe.errors import ConfigError
from koe.schema import unit_table
from stages.ingest import IngestStage
from stages.sources.files import compressed, source_index
from stages.sources.files.streams import pieces, plain_name
from stages.sources.location import read_clips
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.stages.audio_files import clip, sample, write_tar
from tests.stages.sources.compressed_files import WRITERS, forget_all, zstd

LINES = b"".join(
    json.dumps({"instruction": f"問い{n}", "output": f"答え{n}" * (n % 5)}).encode() + b"\n"
    for n in range(23)
).replace(b"\n", b"\n\n{broken\n", 3)


def texts(path, unit_records=4, kind="jsonl", folder=""):
    config = TextSourceConfig(name="t", kind=kind, paths=[str(path)])
    return text_source(config, unit_records, folder)


def records(source):
    """Read every unit, in an order of its own, and return records without their path."""
    units = list(source.units())
    found = {}
    for unit in random.Random(len(units)).sample(units, len(units)):
        found[unit.unit] = [
            replace(record, location=record.location.replace(unit.path, ""))
            for record in source.records_of(unit)
        ]
    return {unit.unit: repr((unit.start, unit.stop, found[unit.unit])) for unit in units}


@pytest.mark.law
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("unit_records", [1, 4, 100])
def test_unit_by_unit_the_records_are_those_of_the_plain_file(tmp_path, name, unit_records):
    array = b"[" + b",\n".join(LINES[: LINES.index(b"{broken")].split(b"\n")[:1] * 9) + b"]"
    for kind, content in (("jsonl", LINES), ("json", array)):
        plain = tmp_path / "plain" / f"a.{kind}"
        packed = tmp_path / "packed" / f"a.{kind}.{name.rpartition('.')[2]}"
        for path, data in ((plain, content), (packed, WRITERS[name](content))):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        expected = records(texts(plain, unit_records, kind))
        assert len(expected) > 1 or unit_records == 100
        assert records(texts(packed, unit_records, kind)) == expected
        assert records(texts(packed, unit_records, kind, str(tmp_path / "index"))) == expected


@pytest.mark.law
@pytest.mark.parametrize("name", WRITERS)
def test_units_that_begin_at_checkpoints_are_those_of_the_plain_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(source_index, "_MIN_SPACING", 1 << 16)
    monkeypatch.setattr(compressed, "_KEEP_INDEX_BYTES", 0)
    noise = random.Random(name)
    content = b"".join(
        json.dumps({"instruction": noise.randbytes(noise.randrange(4000)).hex()}).encode() + b"\n"
        for _ in range(250)
    )
    plain, packed = tmp_path / "a.jsonl", tmp_path / f"p/a.jsonl.{name.rpartition('.')[2]}"
    packed.parent.mkdir()
    plain.write_bytes(content)
    packed.write_bytes(WRITERS[name](content))
    expected = records(texts(plain, 9))
    folder = tmp_path / "index"
    assert records(texts(packed, 9, folder=str(folder))) == expected
    (kept,) = folder.iterdir()
    head, _, gzip_points = kept.read_bytes().partition(b"\n")
    # of Zstandard, only the start of a long frame can be entered
    assert len(gzip_points) > 1 << 17 or (len(json.loads(head)["frames"]) > 1) == (
        name == "frames.zst"
    )
    forget_all()
    assert records(texts(packed, 9)) == expected


MEMBERS = [member for n in range(7) for member in sample(f"{n:03d}", 0.2)]


def tars(path, unit_records=2, folder=""):
    config = SpeechSourceConfig(name="wds", kind="webdataset", paths=[str(path)])
    return speech_source(config, unit_records, folder)


@pytest.mark.law
@pytest.mark.parametrize("name", WRITERS)
def test_clips_of_a_compressed_tar_are_those_of_the_plain_one(tmp_path, name):
    members = [*MEMBERS[:6], ("../evil.flac", b"x"), ("lone.flac", clip()), *MEMBERS[6:]]
    write_tar(tmp_path / "a.tar", members)
    packed = tmp_path / "packed" / f"a.tar.{name.rpartition('.')[2]}"
    packed.parent.mkdir()
    packed.write_bytes(WRITERS[name]((tmp_path / "a.tar").read_bytes()))
    folder = str(tmp_path / "index")
    rows = []
    for source in (tars(tmp_path / "a.tar"), tars(packed), tars(packed, folder=folder)):
        stage = IngestStage((source,))
        outcomes = [stage.open()(unit_table([unit])) for unit in source.units()]
        kept = [row for outcome in outcomes for row in outcome.kept.to_pylist()]
        audio = [data for o in outcomes for data in read_clips(o.kept, source.index_folder)]
        left = [row["reason"] for o in outcomes for row in o.quarantined.to_pylist()]
        rows.append(([{**row, "audio_path": ""} for row in kept], audio, left))
    assert len(rows[0][0]) == 7
    assert rows[1] == rows[2] == rows[0]


def test_a_tgz_is_a_tar(tmp_path):
    write_tar(tmp_path / "a.tar", MEMBERS)
    with tarfile.open(tmp_path / "b.tgz", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "inner.tar")
    (tmp_path / "c.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert [plain_name(name) for name in ("a.tar", "x/c.tgz", "a.JSONL.GZ", "a.tzst")] == [
        "a.tar",
        "x/c.tar",
        "a.JSONL",
        "a.tar",
    ]
    source = tars(tmp_path / "c.tgz")
    keys = [record.key for unit in source.units() for record in source.read(unit)]
    assert keys == [f"c/{n:03d}" for n in range(7)]


def test_a_file_and_its_compressed_copy_are_two_files_of_one_name(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    with pytest.raises(ConfigError, match=r"both called 'a\.jsonl'"):
        list(texts(tmp_path / "a.jsonl*").units())


@pytest.mark.parametrize("name", ["one.gz", "members.gz", "one.zst", "frames.zst"])
def test_what_cannot_be_decompressed_is_one_record_with_its_bytes(tmp_path, name):
    content = b"".join(b'{"instruction": "%d", "output": "a"}\n' % n for n in range(20_000))
    data = WRITERS[name](content)
    path = tmp_path / f"a.jsonl.{name.rpartition('.')[2]}"
    at = len(data) * 2 // 3
    for rest in (b"", random.Random(0).randbytes(len(data) - at)):
        path.write_bytes(data[:at] + rest)
        source = texts(path, 1000)
        *units, last = source.units()
        assert (last.records, last.gaps) == (1, 1)
        assert len(rest) // 3 <= last.lost_bytes <= len(rest) + 1
        assert len(rest) // 10 <= last.lost_records < 10_000
        (lost,) = source.records_of(last)
        assert lost.bad.reason == "unreadable_bytes"
        assert ("damaged" if rest else "breaks off") in lost.bad.detail
        read = [record for unit in units for record in source.records_of(unit)]
        said = [record.fields.get("instruction") for record in read]
        # gzip finds damage late: from there on, what comes out may be anything
        good = said[: 10_000 if name.endswith(".gz") or rest else -1]
        assert good == [str(n) for n in range(len(good))]
        assert len(good) >= 10_000


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_not_what_its_name_says(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    source = texts(tmp_path / name)
    (unit,) = source.units()
    (record,) = source.records_of(unit)
    assert record.bad.reason == "unreadable_bytes"
    assert unit.lost_bytes == len(LINES)
    (tmp_path / name).write_bytes(b"")
    (unit,) = source.units()
    (record,) = source.records_of(unit)
    assert record.bad.reason == "empty_file"


@pytest.mark.parametrize("suffix", ["bz2", "xz", "zip", "7z", "lz4"])
def test_other_compression_is_refused_with_the_remedy(tmp_path, suffix):
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(b"x")
    with pytest.raises(ConfigError, match="compress it with gzip or zstd"):
        list(texts(tmp_path / "*").units())


def test_parquet_is_not_read_from_a_compressed_file(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="Decompress it first"):
        list(texts(tmp_path / "*", kind="parquet").units())


def test_a_worker_that_goes_on_does_not_start_over(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(LINES * 50))
    source = texts(path, 100)
    units = list(source.units())
    begun = []
    monkeypatch.setattr(
        compressed,
        "pieces",
        lambda path, file, frame=0: begun.append(frame) or pieces(path, file, frame),
    )
    read = [record for unit in units for record in source.records_of(unit)]
    assert len(read) == sum(unit.records for unit in units) > 1000
    assert begun == [0]
