from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import ContractError, StorageError
from koe.schema import CLIP, UNIT
from koe.stage import check_outcome
from stages.audio.decode import decode
from stages.ingest import IngestStage
from stages.settings import IngestConfig
from stages.sources.location import read_clips
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.real_data import UTTERANCES, WORDS
from tests.stages.audio_files import clip, encoded, sample, tone, write_lines, write_tar


def source_of(kind, path, unit_records=3, **fields):
    return speech_source(
        SpeechSourceConfig(name="s", kind=kind, paths=[str(path)], fields=fields), unit_records
    )


def ingest(source, max_seconds=60.0):
    """Run all units of a source; every unit's record counts must add up."""
    stage = IngestStage((source,), IngestConfig(max_seconds=max_seconds))
    transform = stage.open()
    kept, quarantined = [CLIP.empty_table()], []
    for unit in source.units():
        outcome = transform(pa.Table.from_pylist([asdict(unit)], schema=UNIT))
        check_outcome(stage, unit.records, outcome)
        assert outcome.rejected.num_rows == 0
        kept.append(outcome.kept)
        quarantined += outcome.quarantined.to_pylist()
    return pa.concat_tables(kept), quarantined


def reasons(quarantined):
    return {row["id"]: row["reason"] for row in quarantined}


def test_a_clip_row_says_all_about_a_clip(tmp_path):
    stereo = np.stack([tone(0.5, 8000), tone(0.5, 8000)], axis=1)
    (tmp_path / "1.wav").write_bytes(encoded(stereo, 8000))
    record = {"audio_filepath": "1.wav", "text": " 文 ", "who": 7, "mos": "3.5", "duration": 99}
    path = write_lines(tmp_path / "m.jsonl", [record])
    kept, quarantined = ingest(source_of("manifest", path, speaker="who", ovrl="mos"))
    assert quarantined == []
    assert kept.to_pylist() == [
        {
            "id": "s/1.wav",
            "source": "s",
            "text": " 文 ",
            "speaker": "7",
            "audio_kind": "file",
            "audio_path": str(tmp_path / "1.wav"),
            "audio_member": "",
            "audio_offset": 0,
            "audio_bytes": (tmp_path / "1.wav").stat().st_size,
            "start_seconds": 0.0,
            "seconds": 0.5,
            "audio_hz": 8000,
            "channels": 2,
            "channel": None,
            "source_ovrl": 3.5,
        }
    ]


def test_bad_records_are_quarantined_with_reason_and_place(tmp_path):
    good = clip(0.5, kind="wav")
    files = {
        "good.wav": good,
        "other.wav": good,
        "empty.wav": b"",
        "no_frames.wav": encoded(np.zeros(0, np.float32), 8000),
        "cut.wav": good[:-100],
        "cut.opus": clip(0.5, kind="opus")[:-100],
        "noise.wav": bytes(range(256)),
        "long.wav": clip(2.0, kind="wav"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    records = [{"audio_filepath": name, "text": "x"} for name in [*files, "gone.wav"]]
    records += [
        {"audio_filepath": "good.wav", "text": "again"},
        {"audio_filepath": "other.wav", "text": None, "offset": 0},
        {"audio_filepath": "other.wav", "text": " \n", "offset": 0.1},
        {"audio_filepath": "other.wav", "offset": 0.2},
        '{"audio_filepath": "x',
        {"text": "x"},
    ]
    path = write_lines(tmp_path / "m.jsonl", records)
    kept, quarantined = ingest(source_of("manifest", path, 100), max_seconds=1.0)
    assert kept["id"].to_pylist() == ["s/good.wav", "s/other.wav"]
    found = reasons(quarantined)
    places = {row["id"]: row["location"] for row in quarantined}
    assert {key: value for key, value in found.items() if "m.jsonl" not in key} == {
        "s/empty.wav": "empty_audio",
        "s/no_frames.wav": "empty_audio",
        "s/cut.wav": "truncated_audio",
        "s/cut.opus": "truncated_audio",
        "s/noise.wav": "unreadable_audio",
        "s/long.wav": "too_long",
        "s/gone.wav": "missing_audio",
        "s/good.wav": "duplicate_id",
        "s/other.wav@0": "missing_transcript",
        "s/other.wav@0.1": "missing_transcript",
        "s/other.wav@0.2": "missing_transcript",
    }
    assert sorted(value for key, value in found.items() if "m.jsonl" in key) == [
        "broken_json",
        "missing_audio",
    ]
    assert all(place.startswith(f"{path}@") for place in places.values())
    assert all(row["detail"] for row in quarantined)


@pytest.mark.parametrize(
    ("segment", "start", "seconds"),
    [
        ({"offset": 0.5, "duration": 1.0}, 0.5, 1.0),
        ({"offset": 0.5}, 0.5, 1.5),
        ({"offset": 0}, 0.0, 2.0),
        ({"offset": "0.25", "duration": "0.5"}, 0.25, 0.5),
        ({"offset": 1.0, "duration": 1.05}, 1.0, 1.0),
        ({"offset": None, "duration": 1.0}, 0.0, 2.0),
        ({"duration": 1.0}, 0.0, 2.0),
    ],
)
def test_segments_of_a_file(tmp_path, segment, start, seconds):
    data = clip(2.0, kind="flac")
    (tmp_path / "1.flac").write_bytes(data)
    path = write_lines(tmp_path / "m.jsonl", [{"audio_filepath": "1.flac", "text": "x", **segment}])
    kept, _ = ingest(source_of("manifest", path))
    assert (kept["start_seconds"][0].as_py(), kept["seconds"][0].as_py()) == (start, seconds)
    audio, audio_hz = decode(next(read_clips(kept)), start, seconds)
    whole, _ = decode(data)
    at = round(start * audio_hz)
    assert np.array_equal(audio, whole[at : at + round(seconds * audio_hz)])


@pytest.mark.parametrize(
    "segment",
    [
        {"offset": 2.0},
        {"offset": -0.1},
        {"offset": 0.5, "duration": 2.0},
        {"offset": 0.5, "duration": 0},
        {"offset": 0.5, "duration": -1},
        {"offset": "early"},
        {"offset": True},
        {"offset": [1]},
        '{"audio_filepath": "1.flac", "text": "x", "offset": NaN}',
        '{"audio_filepath": "1.flac", "text": "x", "offset": 0.5, "duration": 1e999}',
    ],
)
def test_segments_outside_their_file(tmp_path, segment):
    (tmp_path / "1.flac").write_bytes(clip(2.0))
    whole = {"audio_filepath": "1.flac", "text": "x"}
    record = segment if isinstance(segment, str) else {**whole, **segment}
    _, quarantined = ingest(source_of("manifest", write_lines(tmp_path / "m.jsonl", [record])))
    assert [row["reason"] for row in quarantined] == ["bad_segment"]


@pytest.mark.parametrize(
    ("value", "ovrl"),
    [(3.25, 3.25), (3, 3.0), ("2.5", 2.5), (None, None), ("good", None), (True, None)],
)
def test_a_source_score_is_a_number_or_null(tmp_path, value, ovrl):
    write_tar(tmp_path / "a.tar", sample("1", dnsmos=value))
    kept, _ = ingest(source_of("webdataset", tmp_path / "a.tar", ovrl="dnsmos"))
    assert kept["source_ovrl"].to_pylist() == [ovrl]


@pytest.mark.parametrize("unit_records", [1, 2, 1000])
def test_every_kind_of_source_gives_the_same_clips(tmp_path, unit_records):
    audio = [clip(0.2 + 0.1 * n, kind="flac") for n in range(5)]
    texts = [f"文その{n}、「引用」" for n in range(5)]
    for n, data in enumerate(audio):
        (tmp_path / f"{n}.flac").write_bytes(data)
    manifest = [{"audio_filepath": f"{n}.flac", "text": text} for n, text in enumerate(texts)]
    write_lines(tmp_path / "m.jsonl", manifest)
    rows = "\n".join(f"{n}.flac,{text}" for n, text in enumerate(texts))
    (tmp_path / "metadata.csv").write_text("file_name,transcription\n" + rows)
    members = [(f"{n}.flac", audio[n]) for n in range(5)]
    texts_members = [(f"{n}.txt", texts[n].encode()) for n in range(5)]
    write_tar(
        tmp_path / "a.tar", [m for pair in zip(members, texts_members, strict=True) for m in pair]
    )
    cells = [{"bytes": data, "path": f"{n}.flac"} for n, data in enumerate(audio)]
    pq.write_table(pa.table({"audio": cells, "text": texts}), tmp_path / "a.parquet")
    paths = {"manifest": "m.jsonl", "folder": "", "webdataset": "a.tar", "parquet": "a.parquet"}
    for kind, name in paths.items():
        kept, quarantined = ingest(source_of(kind, f"{tmp_path}/{name}", unit_records))
        assert quarantined == [], kind
        assert kept["text"].to_pylist() == texts, kind
        assert kept["seconds"].to_pylist() == [3200 * (n + 2) / 2 / 16000 for n in range(5)], kind
        assert kept["audio_bytes"].to_pylist() == [len(data) for data in audio], kind
        assert list(read_clips(kept)) == audio, kind


def test_record_counts_of_a_truncated_tar_add_up(tmp_path):
    path = tmp_path / "a.tar"
    infos = write_tar(path, [m for n in range(5) for m in sample(str(n))])
    path.write_bytes(path.read_bytes()[: infos[7].offset_data + 100])  # within the fourth's audio
    kept, quarantined = ingest(source_of("webdataset", path, 2))
    assert kept["id"].to_pylist() == ["s/a/0", "s/a/1", "s/a/2"]
    assert Counter(row["reason"] for row in quarantined) == {
        "missing_audio": 1,
        "unreadable_bytes": 1,
    }
    path.write_bytes(b"")
    kept, quarantined = ingest(source_of("webdataset", path))
    assert kept.num_rows == 0
    assert [row["reason"] for row in quarantined] == ["empty_file"]


def test_unsafe_members_are_quarantined(tmp_path):
    write_tar(tmp_path / "a.tar", [*sample("1"), ("../../etc/2.flac", clip()), *sample("3")])
    kept, quarantined = ingest(source_of("webdataset", tmp_path / "a.tar"))
    assert kept["id"].to_pylist() == ["s/a/1", "s/a/3"]
    assert [row["reason"] for row in quarantined] == ["unsafe_tar_member"]


def test_null_cells_are_missing_audio(tmp_path):
    cells = [{"bytes": clip(), "path": None}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"audio": cells, "text": ["a", "b"]}), tmp_path / "a.parquet")
    kept, quarantined = ingest(source_of("parquet", tmp_path / "a.parquet"))
    assert kept.num_rows == 1
    assert [row["reason"] for row in quarantined] == ["missing_audio"]


def test_the_content_names_what_decides_the_rows_only(tmp_path):
    path = write_lines(tmp_path / "m.jsonl", [])
    content = IngestStage((source_of("manifest", path),), IngestConfig(max_seconds=9.0)).content
    assert json.loads(json.dumps(content)) == content
    assert content["max_seconds"] == 9.0
    assert (
        IngestStage((source_of("manifest", path),), IngestConfig(max_seconds=8.0)).content
        != content
    )
    other = IngestStage(
        (source_of("manifest", path, 7, speaker="who"),), IngestConfig(max_seconds=9.0)
    ).content
    assert other == content, "how a source is read belongs to the input, not to the stage"


def test_the_stage_can_be_sent_to_workers(tmp_path):
    (tmp_path / "1.flac").write_bytes(clip())
    path = write_lines(tmp_path / "m.jsonl", [{"audio_filepath": "1.flac", "text": "x"}])
    source = source_of("manifest", path)
    stage = pickle.loads(pickle.dumps(IngestStage((source,), IngestConfig())))
    (unit,) = source.units()
    assert stage.open()(pa.Table.from_pylist([asdict(unit)], schema=UNIT)).kept.num_rows == 1


def test_failures_of_the_machine_are_no_bad_clips(tmp_path):
    write_tar(tmp_path / "a.tar", sample("1"))
    source = source_of("webdataset", tmp_path / "a.tar")
    (unit,) = source.units()
    transform = IngestStage((source,), IngestConfig()).open()
    (tmp_path / "a.tar").unlink()
    with pytest.raises(StorageError):
        transform(pa.Table.from_pylist([asdict(unit)], schema=UNIT))
    with pytest.raises(ContractError, match="does not know"):
        transform(pa.Table.from_pylist([{**asdict(unit), "source": "other"}], schema=UNIT))


def test_real_clips():
    manifest = UTTERANCES / "metadata.jsonl"
    kept, quarantined = ingest(source_of("manifest", manifest, 5))
    assert (kept.num_rows, quarantined) == (12, [])
    durations = [json.loads(line)["duration"] for line in manifest.read_text().splitlines()]
    assert np.abs(np.array(durations) - kept["seconds"].to_numpy()).max() < 0.01
    kept, quarantined = ingest(source_of("folder", WORDS, 4))
    assert (kept.num_rows, quarantined) == (9, [])
    assert set(kept["channels"].to_pylist()) == {1, 2}
    assert kept["seconds"].to_numpy().min() > 0.2
