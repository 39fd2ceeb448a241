"""Parquet files that try a reader: damage costs the rows that it reaches, and no other."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import ConfigError
from tests.real_data import WORDS
from tests.stages.records import clips_and_bad, conversations

AUDIO = [path.read_bytes() for path in sorted(WORDS.glob("*.mp3"))[:6]]
TABLE = pa.table(
    {
        "audio": pa.array(AUDIO, pa.binary()),
        "text": [f"語{n}" for n in range(6)],
        "instruction": [f"問{n}" for n in range(6)],
        "output": ["答"] * 6,
    }
)


def written(table=TABLE, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **{"row_group_size": 2, **options})
    return file.getvalue()


WHOLE = written(write_page_checksum=True)
METADATA = pq.read_metadata(io.BytesIO(WHOLE))
FOOTER = len(WHOLE) - 8 - int.from_bytes(WHOLE[-8:-4], "little")


def texts(folder, data, unit_records=2):
    """Read a file as clips and as samples; return what is kept of each, and why the rest is not."""
    path = folder / "t.parquet"
    path.write_bytes(data)
    kept, bad = clips_and_bad(unit_records, kind="parquet", paths=[str(path)])
    pairs, bad_pairs = conversations(unit_records, kind="parquet", paths=[str(path)])
    return [clip["text"] for clip in kept], bad, [pair[0][0] for pair in pairs], bad_pairs


def with_bytes(place, values):
    return WHOLE[:place] + values + WHOLE[place + len(values) :]


def page(group, name):
    """Return where the first page of a column begins in a row group, and its size."""
    row_group = METADATA.row_group(group)
    columns = [row_group.column(number) for number in range(row_group.num_columns)]
    column = next(column for column in columns if column.path_in_schema == name)
    return column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (WHOLE[:-100], "not a complete Parquet file"),
        (WHOLE[:-8], "not a complete Parquet file"),
        (b"PAR1", "smaller than the minimum"),
        (b"PAR1PAR1", "not a complete Parquet file"),
        (b"x" * 1000, "not a complete Parquet file"),
        (WHOLE[:-8] + b"\xff\xff\xff\x7fPAR1", "not a complete Parquet file"),
        (WHOLE[:-8] + bytes(4) + b"PAR1", "not a complete Parquet file"),
        (with_bytes(FOOTER, b"\xaa" * 200), "not a complete Parquet file"),
        (b"PARE" + WHOLE[4:-4] + b"PARE", "encrypted"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "no Parquet file but a pointer of Git LFS",
        ),
        (b"<!doctype html><title>404</title>", "no Parquet file but a page of HTML"),
    ],
)
def test_a_file_whose_footer_cannot_be_read_is_one_record(tmp_path, data, why):
    kept, bad, pairs, bad_pairs = texts(tmp_path, data)
    assert kept == pairs == []
    ((reason, detail),) = bad.values()
    assert reason == "unreadable_bytes"
    assert why in detail
    assert list(bad_pairs.values()) == [(reason, detail)]


@pytest.mark.parametrize("name", ["audio", "text", "instruction"])
@pytest.mark.parametrize("place", ["header", "middle", "end"])
@pytest.mark.parametrize("unit_records", [1, 2, 100])
def test_a_damaged_page_costs_the_rows_of_its_group(tmp_path, name, place, unit_records):
    start, size = page(1, name)
    at = {"header": start, "middle": start + size // 2, "end": start + size - 4}[place]
    data = with_bytes(at, bytes(value ^ 0xFF for value in WHOLE[at : at + 4]))
    kept, bad, pairs, bad_pairs = texts(tmp_path, data, unit_records)
    whole = [f"語{n}" for n in range(6)]
    assert kept == (whole if name == "instruction" else [*whole[:2], *whole[4:]])
    assert pairs == [f"問{n}" for n in range(6) if name != "instruction" or n not in (2, 3)]
    assert {reason for reason, _ in [*bad.values(), *bad_pairs.values()]} == {"broken_parquet"}
    assert len(bad) + len(bad_pairs) == 2


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_every_codec_is_read(tmp_path, codec):
    assert texts(tmp_path, written(compression=codec))[1::2] == ({}, {})


def test_a_codec_that_nothing_reads_is_named(tmp_path):
    """The codec is field 4 of a column's metadata, a varint in zigzag: 1 is Snappy, 3 is LZO."""
    data = written(compression="snappy")
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data = data[:footer] + data[footer:].replace(b"\x15\x02\x16", b"\x15\x06\x16")
    kept, bad, pairs, bad_pairs = texts(tmp_path, data)
    assert kept == pairs == []
    for reason, detail in [*bad.values(), *bad_pairs.values()]:
        assert (reason, "LZO" in detail) == ("broken_parquet", True)
    assert len(bad) == len(bad_pairs) == 6


def test_no_rows_are_no_records(tmp_path):
    assert texts(tmp_path, written(TABLE.slice(0, 0))) == ([], {}, [], {})


def test_no_columns_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no column 'text'"):
        texts(tmp_path, written(pa.table({})))


def test_a_file_damaged_anywhere_is_read_or_counted(tmp_path):
    """Whatever bytes are wrong, nothing but a sentence about the file or its settings comes back."""
    rng = np.random.default_rng(7)
    for number in range(150):
        data = bytearray(WHOLE)
        first = int(rng.integers(FOOTER if number % 2 else 0, len(data)))
        for place in first + rng.integers(0, 40, int(rng.integers(1, 6))):
            data[min(int(place), len(data) - 1)] = int(rng.integers(0, 256))
        try:
            kept, bad, _, _ = texts(tmp_path, bytes(data), int(rng.integers(1, 9)))
        except ConfigError:  # a column is called otherwise now
            continue
        assert number % 2 or len(kept) + len(bad) == 6
