"""Manifests and folders: clips in files of their own."""

from __future__ import annotations

from pathlib import Path

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
            {"audio_filepath": f"{tmp_path}/abs/2.wav", "text": "y", "offset": 1.5, "duration": 2},
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
    assert [records[n].key for n in (0, 1, 8)] == [
        "a/1.wav",
        f"{tmp_path}/abs/2.wav@1.5+2",
        "5.wav",
    ]
    assert [records[n].audio.path for n in (0, 1)] == [
        f"{tmp_path}/a/1.wav",
        f"{tmp_path}/abs/2.wav",
    ]
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


def test_real_folder_with_jsonl():
    records = read_all(source_of("folder", WORDS, 2))
    assert len(records) == len({record.key for record in records}) == 9
    assert all(Path(record.audio.path).exists() for record in records)
