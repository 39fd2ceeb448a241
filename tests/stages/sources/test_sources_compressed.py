"""Compressed sources: their records are those of the plain file, from any unit on, whole or damaged."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import indexed_gzip
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.sources.files import compressed
from stages.sources.files.compressed import Decompressed, scanned
from stages.sources.files.source_index import build_index, load_index, save_index
from stages.sources.files.streams import pieces
from stages.sources.readers import text_source
from stages.sources.settings import TextSourceConfig
from tests.stages.sources.compressed_files import WRITERS, gz, in_parts, zstd


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


def test_indexed_gzip_reads_what_its_index_says_of_this_file():
    """A truncated stream and a wrong checksum pass through indexed_gzip unseen: koe looks itself."""
    content = text(1 << 20)
    cut = gzip.compress(content)[:-2000]
    with indexed_gzip.IndexedGzipFile(fileobj=io.BytesIO(cut)) as file:
        file.build_full_index()
        assert len(read_all(file)) < len(content)
