from __future__ import annotations

import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import BadRecord, ConfigError, StorageError
from koe.schema import CLIP
from stages.sources.location import AudioLocation, ClipReader, read_clips
from stages.sources.parquet import file as parquet_file
from stages.sources.parquet.rows import plan_rows
from stages.sources.planning import Slice
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.stages.audio_files import clip
from tests.stages.records import reason

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLIPS = [clip(0.1 + 0.01 * n, kind="wav") for n in range(10)]


def write_speech(path, cells, kind=AUDIO, row_group_size=4, **columns):
    table = pa.table(
        {
            "audio": pa.array(cells, kind),
            "text": [f"文{n}" for n in range(len(cells))],
            "meta": [{"id": f"id{n}", "x": n} for n in range(len(cells))],
            **columns,
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def source_of(path, unit_records=4, audio_root=None, **fields):
    return speech_source(
        SpeechSourceConfig(
            name="p", kind="parquet", paths=[str(path)], audio_root=audio_root, fields=fields
        ),
        unit_records,
    )


def read_all(source):
    records = []
    for unit in source.units():
        part = list(source.records_of(unit))
        assert len(part) <= source.unit_records
        records += part
    return records


def audio_of(records):
    """Read the audio of records through `read_clips`."""
    rows = [
        {
            **dict.fromkeys(CLIP.names),
            "audio_kind": r.audio.kind,
            "audio_path": r.audio.path,
            "audio_member": r.audio.member,
            "audio_offset": r.audio.offset,
            "audio_bytes": r.audio.num_bytes,
        }
        for r in records
    ]
    schema = pa.schema([field.with_nullable(True) for field in CLIP])
    return list(read_clips(pa.Table.from_pylist(rows, schema=schema)))


def test_row_groups_are_joined_and_only_large_ones_split():
    def plan(groups, size):
        return [(part.start, part.stop) for part in plan_rows(groups, size)]

    assert plan([(0, 4), (4, 8), (8, 10)], 8) == [(0, 8), (8, 10)]
    assert plan([(0, 4), (4, 8), (8, 10)], 6) == [(0, 4), (4, 10)]
    assert plan([(0, 10)], 4) == [(0, 4), (4, 8), (8, 10)]
    assert plan([(0, 2), (2, 12), (12, 13)], 4) == [(0, 2), (2, 6), (6, 10), (10, 13)]
    assert plan([(0, 0), (0, 3)], 4) == [(0, 3)]
    assert list(plan_rows([], 4)) == []
    assert next(iter(plan_rows([(0, 3)], 4))) == Slice(0, 3, 3)


@pytest.mark.parametrize("unit_records", [1, 3, 4, 100])
@pytest.mark.parametrize("kind", [AUDIO, pa.binary(), pa.large_binary()])
def test_audio_cells_come_back(tmp_path, monkeypatch, unit_records, kind):
    cells = [{"bytes": c, "path": "x.wav"} for c in CLIPS] if kind is AUDIO else CLIPS
    path = write_speech(tmp_path / "a.parquet", cells, kind)
    records = read_all(source_of(path, unit_records))
    assert records == read_all(source_of(path, 1000))
    assert [r.key for r in records] == [f"a/{n:08d}" for n in range(10)]
    assert [r.fields["text"] for r in records] == [f"文{n}" for n in range(10)]
    assert audio_of(records) == CLIPS
    monkeypatch.setattr(parquet_file, "BATCH_CELLS", 2)
    for order in (range(9, -1, -1), np.random.default_rng(0).permutation(10)):
        assert audio_of([records[n] for n in order]) == [CLIPS[n] for n in order]


def test_reading_records_does_not_read_audio(tmp_path, monkeypatch):
    path = write_speech(tmp_path / "a.parquet", [{"bytes": c, "path": None} for c in CLIPS])
    asked = []
    original = pq.ParquetFile.read_row_group

    def spy(self, group, columns=None, **options):
        asked.extend(columns)
        return original(self, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_: pytest.fail("read audio"))
    assert len(read_all(source_of(path))) == 10
    assert set(asked) == {"text", "audio.path"}


def test_each_row_group_is_read_once(tmp_path, monkeypatch):
    path = write_speech(tmp_path / "a.parquet", [{"bytes": c, "path": None} for c in CLIPS])
    records = read_all(source_of(path))
    groups = []
    original = pq.ParquetFile.iter_batches

    def spy(self, *args, row_groups, **options):
        groups.extend(row_groups)
        return original(self, *args, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    monkeypatch.setattr(parquet_file, "BATCH_CELLS", 3)
    assert audio_of(records) == CLIPS
    assert groups == [0, 1, 2]


@pytest.mark.parametrize("statistics", [True, False])
def test_cells_may_name_files_or_hold_nothing(tmp_path, statistics):
    (tmp_path / "1.wav").write_bytes(CLIPS[1])
    cells = [
        {"bytes": CLIPS[0], "path": "0.wav"},
        {"bytes": None, "path": "1.wav"},
        {"bytes": None, "path": "gone.wav"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": None},
    ]
    path = write_speech(tmp_path / "a.parquet", cells, row_group_size=6)
    pq.write_table(pq.read_table(path), path, write_statistics=statistics)
    records = read_all(source_of(path, 4))
    assert [r.audio.kind for r in records] == ["parquet", "file", "file", *["parquet"] * 3]
    audio = audio_of(records)
    assert audio[:2] == CLIPS[:2]
    assert [bad.reason for bad in audio[2:5]] == ["missing_audio"] * 3
    assert audio[5] == b""
    rooted = read_all(source_of(path, 4, audio_root="/elsewhere"))
    assert rooted[1].audio.path == "/elsewhere/1.wav"


def test_nested_fields_and_ids(tmp_path):
    path = write_speech(tmp_path / "a.parquet", CLIPS, pa.binary(), clip=[{"t": "x"}] * 10)
    records = read_all(source_of(path, text="clip.t", id="meta.id", speaker="text"))
    assert [r.key for r in records] == [f"id{n}" for n in range(10)]
    assert records[3].fields == {"clip": {"t": "x"}, "meta": {"id": "id3"}, "text": "文3"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "txt"}, "no column 'txt' for text .*did you mean 'text'"),
        ({"audio": "mp3"}, "no column 'mp3' for audio"),
        ({"audio": "meta"}, "neither bytes, nor a path, nor a struct"),
        ({"text": "meta.text"}, "no column 'meta.text' for text .*did you mean 'meta.x'"),
        ({"seconds": "length"}, "no column 'length' for seconds"),
        ({"ovrl": "dnsmos"}, "no column 'dnsmos' for ovrl"),
    ],
)
def test_wrong_columns_fail_before_any_work(tmp_path, fields, message):
    path = write_speech(tmp_path / "a.parquet", CLIPS, pa.binary())
    with pytest.raises(ConfigError, match=message.replace(" .*", "[^$]*")):
        list(source_of(path, **fields).units())


@pytest.mark.parametrize("keep", [3, 0.5, -1])
def test_a_truncated_file_is_one_record(tmp_path, keep):
    path = write_speech(tmp_path / "a.parquet", CLIPS, pa.binary())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
    (unit,) = source_of(path).units()
    assert (unit.records, unit.gaps, unit.lost_bytes) == (1, 1, path.stat().st_size)
    (record,) = read_all(source_of(path))
    assert reason(record) == "unreadable_bytes"
    assert "not a complete Parquet file" in record.bad.detail


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_page_costs_its_row_group_only(tmp_path, compression):
    path = tmp_path / "a.parquet"
    table = pa.table({"audio": pa.array(CLIPS, pa.binary()), "text": ["x" * 500] * 10})
    pq.write_table(table, path, row_group_size=4, compression=compression, use_dictionary=False)
    data = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(1)
    for column in (0, 1):
        place = group.column(column).data_page_offset
        data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    records = read_all(source_of(path))
    assert [reason(r) for r in records] == [*[""] * 4, *["broken_parquet"] * 4, *[""] * 2]
    place = [AudioLocation("parquet", str(path), "audio", row, 0) for row in range(10)]
    with ClipReader() as reader:
        for row in (0, 3, 8, 9, 0):
            assert reader.read(place[row]) == CLIPS[row]
        for row in (4, 7, 5, 4):
            with pytest.raises(BadRecord, match="broken_parquet"):
                reader.read(place[row])
        assert reader.read(place[1]) == CLIPS[1]
        with pytest.raises(StorageError, match="fewer rows"):
            reader.read(AudioLocation("parquet", str(path), "audio", 10, 0))


def test_text_that_is_no_utf8_costs_its_row_only(tmp_path):
    text = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"audio": pa.array(CLIPS[:3], pa.binary()), "text": text})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [reason(r) for r in read_all(source_of(tmp_path / "a.parquet"))] == [
        "",
        "broken_text",
        "",
    ]


def test_remote_files(tmp_path):
    path = write_speech(tmp_path / "a.parquet", CLIPS, pa.binary())
    fsspec.filesystem("memory").pipe("/koe-parquet/a.parquet", path.read_bytes())
    records = read_all(source_of("memory://koe-parquet/*.parquet"))
    assert [r.key for r in records] == [r.key for r in read_all(source_of(path))]
    assert audio_of(records) == CLIPS


def test_instruction_rows(tmp_path):
    rows = [{"messages": [{"role": "user", "content": str(n)}], "id": n} for n in range(7)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)

    def source(size, **fields):
        paths = [f"{tmp_path}/*.parquet"]
        config = TextSourceConfig(
            name="t", kind="parquet", layout="messages", paths=paths, fields=fields
        )
        return text_source(config, size)

    for size in (1, 2, 100):
        read = [r.fields for r in read_all(source(size))]
        assert read == [{"messages": row["messages"]} for row in rows]
    assert [r.key for r in read_all(source(2, id="id"))] == [str(n) for n in range(7)]
    assert read_all(pickle.loads(pickle.dumps(source(2)))) == read_all(source(2))
    with pytest.raises(ConfigError, match="no column 'uid'"):
        list(source(2, id="uid").units())
