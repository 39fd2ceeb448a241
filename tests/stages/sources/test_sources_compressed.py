"""Compressed sources: their records are those of the plain file, from any unit on, whole or damaged."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import indexed_gzip
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import ConfigError
from koe.schema import unit_table
from stages.ingest import IngestStage
from stages.sources.files import compressed, source_index
from stages.sources.files.compressed import Decompressed, scanned
from stages.sources.files.source_index import build_index, load_index, save_index
from stages.sources.files.streams import pieces, plain_name
from stages.sources.location import read_clips
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.stages.audio_files import clip, sample, write_tar


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def in_parts(compress, data: bytes, num_parts: int) -> bytes:
    """Compress parts one by one, as pzstd, pigz and `cat` leave them."""
    size = -(-len(data) // num_parts) or 1
    return b"".join(compress(data[at : at + size]) for at in range(0, len(data) or 1, size))


WRITERS = {
    "one.gz": gz,
    "members.gz": lambda data: in_parts(gz, data, 5),
    "padded.gz": lambda data: gz(data) + bytes(700),
    "one.zst": zstd,
    "frames.zst": lambda data: in_parts(zstd, data, 5),
    "skippable.zst": lambda data: (
        zstd(data[:99]) + b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(data[99:])
    ),
}


@pytest.fixture(autouse=True)
def forget():
    """Each test opens its streams anew."""
    forget_all()


def forget_all():
    for stream in compressed._idle.values():
        stream.close()
    compressed._idle.clear()
    compressed._stream_index.cache_clear()


def text(num_bytes: int, seed: int = 0) -> bytes:
    """Make lines that compress to about a third."""
    draw = random.Random(seed)
    lines, size = [], 0
    while size < num_bytes:
        line = f"{draw.getrandbits(64)} 文 {'ab' * draw.randrange(40)}\n".encode()
        lines.append(line)
        size += len(line)
    return b"".join(lines)


@pytest.fixture(scope="module")
def long_text() -> bytes:
    return text(10 << 20)


def read_all(file) -> bytes:
    return b"".join(iter(lambda: file.read(1 << 20), b""))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("with_index", [True, False])
def test_a_stream_reads_from_any_byte_on(tmp_path, long_text, name, with_index):
    path = tmp_path / name
    path.write_bytes(WRITERS[name](long_text))
    index = None
    if with_index:
        with path.open("rb") as file:
            index = build_index(str(path), file)
        assert index.num_bytes == len(long_text)
        assert index.why == ""
    draw = random.Random(name)
    with Decompressed(str(path), index) as stream:
        for _ in range(6):
            place = draw.randrange(len(long_text) + 100)
            stream.seek(place)
            assert stream.read(500) == long_text[place : place + 500]
        assert stream.seek(-10, io.SEEK_END) == len(long_text) - 10
        assert read_all(stream) == long_text[-10:]
        stream.seek(0)
        assert read_all(stream) == long_text


@pytest.mark.parametrize("name", ["one.gz", "frames.zst"])
def test_with_checkpoints_only_what_is_asked_for_is_decompressed(
    tmp_path, long_text, name, monkeypatch
):
    path = tmp_path / name
    path.write_bytes(WRITERS[name](long_text))
    with path.open("rb") as file:
        index = build_index(str(path), file)
    begun = []
    monkeypatch.setattr(
        compressed,
        "pieces",
        lambda path, file, frame=0: begun.append(frame) or pieces(path, file, frame),
    )
    with Decompressed(str(path), index) as stream:
        stream.seek(len(long_text) - 1000)
        assert read_all(stream) == long_text[-1000:]
        if name.endswith(".gz"):
            assert begun == [0]  # opened, and never read from
            assert stream._next == 0
        else:
            assert begun[-1] == index.frames[-1][1] > 0


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=3000), st.integers(1, 6), st.data())
@pytest.mark.law
def test_any_bytes_in_any_parts_are_what_was_compressed(tmp_path_factory, content, parts, data):
    name = data.draw(st.sampled_from(["a.gz", "a.zst"]))
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(in_parts(gzip.compress if name == "a.gz" else zstd, content, parts))
    place = data.draw(st.integers(0, len(content) + 1))
    with Decompressed(str(path)) as stream:
        stream.seek(place)
        assert read_all(stream) == content[place:]
        stream.seek(0)
        assert read_all(stream) == content


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut a file off, change a byte of it, or append to it."""
    at = draw.randrange(len(data))
    changes = [data[:at], data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :], data + b"not gzip"]
    return draw.choice(changes)


@pytest.mark.law
@pytest.mark.parametrize("seed", range(40))
def test_of_a_damaged_stream_the_same_bytes_are_read_with_and_without_checkpoints(
    tmp_path, seed, monkeypatch
):
    monkeypatch.setattr("stages.sources.files.source_index._MIN_SPACING", 1 << 18)
    draw = random.Random(seed)
    content = text(1 << 20, seed)
    name = draw.choice(list(WRITERS))
    path = tmp_path / name
    path.write_bytes(damaged(WRITERS[name](content), draw))
    with path.open("rb") as file:
        index = build_index(str(path), file)
    read = []
    for given_index in (index, None):
        with Decompressed(str(path), given_index) as stream:
            stream.seek(draw.randrange(len(content)))
            stream.read(10)
            stream.seek(0)
            read.append(read_all(stream))
    assert read[0] == read[1]
    assert len(read[0]) == index.num_bytes
    assert index.why or read[0] == content


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_wrong_checksum_says_that_records_may_be_wrong(tmp_path, name):
    """It comes behind what it is of, and does not tell which of the records is damaged."""
    lines = "".join(json.dumps({"instruction": f"問{n}", "output": "答"}) + "\n" for n in range(9))
    data = gzip.compress(lines.encode())
    place = -8
    if name.endswith(".zst"):
        data = zstandard.ZstdCompressor(write_checksum=True).compress(lines.encode())
        place = -4
    damaged = bytearray(data)
    damaged[place] ^= 1
    (tmp_path / name).write_bytes(damaged)
    config = TextSourceConfig(name="t", kind="jsonl", paths=[str(tmp_path / name)])
    source = text_source(config, 100)
    found = [record for unit in source.units() for record in source.records_of(unit)]
    (bad,) = [record.bad for record in found if record.bad]
    assert "records that were read of it before may be wrong too" in bad.detail


def test_a_stream_that_was_cut_off_gives_all_that_precedes_the_cut(tmp_path):
    content = text(1 << 20)
    for name, data in (("a.gz", gzip.compress(content)), ("a.zst", zstd(content))):
        path = tmp_path / name
        path.write_bytes(data[:-1])
        with path.open("rb") as file:
            index = build_index(str(path), file)
        assert "breaks off" in index.why
        assert index.num_bytes >= len(content) - (1 << 17)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the checksum, or the length
        with path.open("rb") as file:
            index = build_index(str(path), file)
        assert index.num_bytes == len(content)
        assert "damaged" in index.why


def test_the_index_is_kept_and_an_unusable_one_is_not_believed(tmp_path, long_text):
    path, folder = tmp_path / "a.gz", str(tmp_path / "index")
    path.write_bytes(gz(long_text))
    with scanned(str(path), folder) as file:
        assert file.readline() == long_text[: long_text.index(b"\n") + 1]
    (kept,) = Path(folder).iterdir()
    mark = compressed.stamp(str(path))
    index = load_index(folder, str(path), mark)
    assert index is not None
    assert index.num_bytes == len(long_text)
    assert load_index(folder, str(path), mark + "0") is None
    kept.write_bytes(kept.read_bytes()[:-1])
    assert load_index(folder, str(path), mark) is None
    # of another file: indexed_gzip refuses it, and the stream is read from its start
    other = tmp_path / "b.gz"
    other.write_bytes(gz(text(9 << 20, 1)))
    with Decompressed(str(other), index) as stream:
        stream.seek(5 << 20)
        assert stream.read(100) == text(9 << 20, 1)[5 << 20 :][:100]


def test_the_index_of_an_object_store(tmp_path, long_text):
    path, folder = tmp_path / "a.gz", "memory://koe-index/run/source_index"
    path.write_bytes(gz(long_text))
    with path.open("rb") as file:
        index = build_index(str(path), file)
    save_index(folder, str(path), "1:2", index)
    assert load_index(folder, str(path), "1:2") == index


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


def test_indexed_gzip_reads_what_its_index_says_of_this_file():
    """A truncated stream and a wrong checksum pass through indexed_gzip unseen: koe looks itself."""
    content = text(1 << 20)
    cut = gzip.compress(content)[:-2000]
    with indexed_gzip.IndexedGzipFile(fileobj=io.BytesIO(cut)) as file:
        file.build_full_index()
        assert len(read_all(file)) < len(content)
