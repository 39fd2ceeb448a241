"""Manifests and folders: clips in files of their own."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from koe.errors import ConfigError
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.real_data import WORDS
from tests.stages.audio_files import write_lines
from tests.stages.records import reason


def source_of(kind, path, unit_records=2, audio_root=None, **fields):
    return speech_source(
        SpeechSourceConfig(
            name="s", kind=kind, paths=[str(path)], audio_root=audio_root, fields=fields
        ),
        unit_records,
    )


def read_all(source):
    records = []
    for unit in source.units():
        part = list(source.read(unit))
        assert len(part) == unit.records <= source.unit_records
        records += part
    return records


def same_for_all_sizes(kind, path, **options):
    """Read with several unit sizes, which must agree, and return the records."""
    reads = [read_all(source_of(kind, path, size, **options)) for size in (1, 2, 3, 1000)]
    assert repr(reads[0]) == repr(reads[1]) == repr(reads[2]) == repr(reads[3])
    return reads[0]


def test_manifest_lines_are_records(tmp_path):
    path = write_lines(
        tmp_path / "m.jsonl",
        [
            b'\xef\xbb\xbf{"audio_filepath": "a/1.wav", "text": "x"}',
            "   ",
            {"audio_filepath": "/abs/2.wav", "text": "y", "offset": 1.5, "duration": 2},
            '{"audio_filepath": "3.wav", "te',
            "",
            "[1, 2]",
            b'{"text": "\xff"}',
            '{"text": "\\udc00", "audio_filepath": "4.wav"}',
            {"text": "no audio"},
            "[" * 100_000,
            {"file_name": "5.wav", "text": "z"},
        ],
    )
    records = same_for_all_sizes("manifest", path)
    assert [reason(record) for record in records] == [
        *("", "", "broken_json", "broken_json", "broken_json", "broken_json"),
        *("missing_audio", "broken_json", ""),
    ]
    assert [records[n].key for n in (0, 1, 8)] == ["a/1.wav", "/abs/2.wav@1.5+2", "5.wav"]
    assert [records[n].audio.path for n in (0, 1)] == [f"{tmp_path}/a/1.wav", "/abs/2.wav"]
    data = path.read_bytes()
    for record in records:
        at = int(record.location.rpartition("@")[2])
        assert at == 0 or data[at - 1 : at] == b"\n"
    at = int(records[2].location.rpartition("@")[2])
    assert data[at:].startswith(b'{"audio_filepath": "3.wav", "te\n')


def test_a_manifest_without_final_newline_and_an_empty_one(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio_filepath": "1.wav"}\r\n{"audio_filepath": "2.wav"}')
    assert [record.key for record in same_for_all_sizes("manifest", path)] == ["1.wav", "2.wav"]
    path.write_text("\n \n")
    assert same_for_all_sizes("manifest", path) == []


def test_the_audio_root_and_manifests_of_several_folders(tmp_path):
    for folder in "ab":
        write_lines(tmp_path / folder / "m.jsonl", [{"audio_filepath": "1.wav"}])
    source = source_of("manifest", f"{tmp_path}/*/m.jsonl")
    assert [r.key for r in read_all(source)] == ["a/1.wav", "b/1.wav"]
    assert [r.audio.path for r in read_all(source)] == [
        f"{tmp_path}/a/1.wav",
        f"{tmp_path}/b/1.wav",
    ]
    rooted = source_of("manifest", f"{tmp_path}/*/m.jsonl", audio_root="s3://bucket/audio")
    assert {r.audio.path for r in read_all(rooted)} == {"s3://bucket/audio/1.wav"}


def test_mapped_manifest_fields(tmp_path):
    record = {"wav": {"path": "1.wav"}, "meta": {"id": 7}}
    path = write_lines(tmp_path / "m.jsonl", [record, {"wav": {"path": "2.wav"}}])
    first, second = same_for_all_sizes("manifest", path, audio="wav.path", id="meta.id")
    assert (first.key, first.audio.path) == ("7", f"{tmp_path}/1.wav")
    assert reason(second) == "missing_id"


ROWS = [
    ["1.wav", "ふつうの文"],
    ["2.wav", "改行を\n含む\r\n文"],
    ["3.wav", 'カンマ, と "引用符"'],
    ["4.wav", ""],
    ["5.wav", "最後"],
]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_rows_may_span_lines(tmp_path, delimiter, newline):
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=newline)
    writer.writerows([["file_name", "transcription"], *ROWS])
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode() + b"\n\n")
    records = same_for_all_sizes("folder", tmp_path)
    assert [[r.fields["file_name"], r.fields["text"]] for r in records] == ROWS
    assert records[0].audio.path == f"{tmp_path}/1.wav"
    assert records[0].key == f"{tmp_path.name}/1.wav"


def test_an_unbalanced_quote_costs_its_own_row_only(tmp_path):
    lines = ["file_name,text", "1.wav,a", '2.wav,"never closed', "3.wav,b", '4.wav,"c, d"', "5.wav"]
    path = tmp_path / "m.csv"
    path.write_text("\n".join([*lines, "6.wav,e"]))
    records = same_for_all_sizes("folder", path)
    reasons = [reason(record) for record in records]
    assert reasons == ["", "broken_csv", "", "", "broken_csv", ""]
    assert [r.fields["text"] for r in records if not reason(r)] == ["a", "b", "c, d", "e"]
    data = path.read_bytes()
    assert data[int(records[1].location.rpartition("@")[2]) :].startswith(b"2.wav")


def test_a_csv_cell_that_is_no_utf8(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"file_name,text\n1.wav,\xff\n2.wav,b\n")
    assert [reason(r) for r in same_for_all_sizes("folder", tmp_path / "m.csv")] == [
        "broken_csv",
        "",
    ]


def test_ljspeech_lines_have_neither_header_nor_quotes(tmp_path):
    text = 'LJ001-0001|He said "yes|He said yes\nLJ001-0002|12, or so|twelve, or so\n'
    (tmp_path / "metadata.csv").write_text(text)
    records = same_for_all_sizes("folder", tmp_path)
    assert [r.fields["text"] for r in records] == ['He said "yes', "12, or so"]
    assert records[1].fields["normalized_text"] == "twelve, or so"
    assert records[0].audio.path == f"{tmp_path}/wavs/LJ001-0001.wav"


def test_a_header_may_use_bars(tmp_path):
    (tmp_path / "metadata.csv").write_text("text|file_name\na, b|1.wav\n")
    (record,) = same_for_all_sizes("folder", tmp_path)
    assert (record.fields["text"], record.key) == ("a, b", f"{tmp_path.name}/1.wav")


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("path,text\n", {}, "no column of audio paths"),
        ("file_name,txet\n", {}, "did you mean 'txet'"),
        ("file_name,text\n", {"id": "uid"}, "no column 'uid' for id"),
        ("file_name,text\n", {"audio": "wav"}, "without wav"),
        ("file_name,text,text\n", {}, "repeats a column"),
    ],
)
def test_wrong_columns_fail_before_any_work(tmp_path, content, fields, message):
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        list(source_of("folder", tmp_path, **fields).units())


def test_a_folder_needs_one_metadata_file(tmp_path):
    with pytest.raises(ConfigError, match=r"neither metadata.csv nor metadata.jsonl"):
        list(source_of("folder", tmp_path).units())
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("file_name,text\n")
    with pytest.raises(ConfigError, match=r"metadata\.csv and metadata\.jsonl"):
        list(source_of("folder", tmp_path).units())


def test_several_folders_by_glob(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metadata.csv").write_text("file_name,text\n1.wav,x\n")
    records = read_all(source_of("folder", f"{tmp_path}/*"))
    assert [record.key for record in records] == ["a/1.wav", "b/1.wav"]


def test_real_folder_with_jsonl():
    records = read_all(source_of("folder", WORDS, 2))
    assert len(records) == len({record.key for record in records}) == 9
    assert all(Path(record.audio.path).exists() for record in records)
