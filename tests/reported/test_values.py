"""Values that are not of the usual type, or are there twice: read as what they say, or named."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import BadRecord
from koe.schema import unit_table
from koe.stage import Outcome, check_outcome
from stages.ingest import IngestStage
from stages.sources.base import short_key
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.stages.audio_files import clip, write_lines, write_tar

NAN = float("nan")
LONG = 4.7  # seconds of 1.wav
CLIP = {"audio_filepath": "1.wav", "text": "文"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    (folder / "1.wav").write_bytes(clip(LONG, 16_000, "wav"))
    return folder


def ingest(path: Path, kind: str = "manifest", **fields: str) -> Outcome:
    config = SpeechSourceConfig(name="s", kind=kind, paths=[str(path)], fields=fields)
    source = speech_source(config, 1000)
    (unit,) = source.units()
    stage = IngestStage((source,))
    return check_outcome(stage, unit.records, stage.open()(unit_table([unit])))


def one(folder: Path, record: dict[str, Any], **fields: str) -> dict[str, Any] | str:
    """Return the row of a record that is kept, or why it is not."""
    outcome = ingest(write_lines(folder / "m.jsonl", [CLIP | record]), **fields)
    if outcome.kept.num_rows:
        return outcome.kept.to_pylist()[0]
    (row,) = outcome.quarantined.to_pylist()
    return f"{row['reason']}: {row['detail']}"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("山", "山"), (" 山 ", " 山 "), ("7", "7"), (7, "7"), (7.0, "7"), (7.5, "7.5"), (0, "0"),
        (10**18, "1000000000000000000"), ("a\nb", "a\nb"), ("x" * 4000, "x" * 4000), ("x" * 100_000, "x" * 100_000),
        (None, None), ("", None), (" \t", None), (NAN, None),
        (["山"], "['山']"), ({"id": 1}, "{'id': 1}"), (True, "True"),
        (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_speakers_and_ids_are_names(folder, value, name):
    """A list or a truth value is no name; a number is the same however it is written."""
    is_name = not isinstance(value, bool | list | dict) and value != float("inf")
    speaker = one(folder, {"by": value}, speaker="by")
    own = one(folder, {"key": value}, id="key")
    if not is_name:
        assert speaker == f"bad_speaker: field 'by' holds {name}, which is no name"
        assert own == f"missing_id: field 'key' holds {name}"
        return
    assert isinstance(speaker, dict)
    assert speaker["speaker"] == name
    if name is None:
        assert str(own).startswith("missing_id: field 'key' holds")
    else:
        assert isinstance(own, dict)
        assert own["id"] == f"s/{short_key(name)}"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (decimal.Decimal("7"), "7"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02 03:04:05"),
        (7.0, "7"),
        (b"\x01", None),
        (["a"], None),
    ],
)
def test_names_in_parquet(tmp_path, value, name):
    array = pa.array([str(value).encode(), b"x"]) if value is None else pa.array([value, None])
    table = pa.table({"audio": [clip(0.3)] * 2, "text": ["文"] * 2, "id": array})
    pq.write_table(table, tmp_path / "a.parquet")
    outcome = ingest(tmp_path / "a.parquet", "parquet", id="id", speaker="id")
    kept = [(row["id"], row["speaker"]) for row in outcome.kept.to_pylist()]
    assert kept == ([] if name is None else [(f"s/{name}", name)])
    assert {row["reason"] for row in outcome.quarantined.to_pylist()} == {"missing_id"}


@pytest.mark.parametrize(
    ("segment", "found"),
    [
        ({"offset": "1.2", "duration": "2"}, (1.2, 2.0)),
        ({"offset": " 1.2\n", "duration": 2}, (1.2, 2.0)),
        ({"offset": None, "duration": "x"}, (0.0, LONG)),
        ({"offset": "", "duration": 9}, (0.0, LONG)),
        (
            {"offset": 0, "duration": 4700},
            "0.0 s to 4700.0 s of 4.700 s of audio; as milliseconds they would lie in it",
        ),
        (
            {"offset": 1200, "duration": 2000},
            "1200.0 s to 3200.0 s of 4.700 s of audio; as milliseconds they would lie in it",
        ),
        ({"offset": 1200, "duration": None}, "as milliseconds they would lie in it"),
        ({"offset": 0, "duration": 4800}, "0.0 s to 4800.0 s of 4.700 s of audio"),
        ({"offset": -1, "duration": 2}, "-1.0 s to 1.0 s of 4.700 s of audio"),
        ({"offset": 5, "duration": 1}, "5.0 s to 6.0 s of 4.700 s of audio"),
        ({"offset": 1, "duration": 0}, "1.0 s to 1.0 s of 4.700 s of audio"),
        ({"offset": 1, "duration": -1}, "1.0 s to 0.0 s of 4.700 s of audio"),
        ({"offset": "00:01:02.5", "duration": 1}, "'00:01:02.5', which is not a number of seconds"),
        ({"offset": "1_0", "duration": 1}, "'1_0', which is not a number of seconds"),
        ({"offset": "1,2", "duration": 1}, "'1,2', which is not a number of seconds"),
        ({"offset": [1.2], "duration": 1}, "[1.2], which is not a number of seconds"),
        ({"offset": "inf", "duration": 1}, "'inf', which is not a number of seconds"),
        ({"offset": 1, "duration": "2 s"}, "'2 s', which is not a number of seconds"),
    ],
)
def test_times_are_seconds(folder, segment, found):
    row = one(folder, segment)
    if isinstance(found, str):
        assert isinstance(row, str)
        assert row.startswith("bad_segment: ")
        assert row.endswith(found)
    else:
        assert isinstance(row, dict)
        assert (row["start_seconds"], row["seconds"]) == found


def test_lengths_of_time_and_decimals_in_parquet_are_seconds(tmp_path):
    columns = {
        "audio": [clip(3.0)] * 2,
        "text": ["文"] * 2,
        "offset": pa.array([datetime.timedelta(seconds=1.5), None], pa.duration("ms")),
        "duration": pa.array([decimal.Decimal("1.25"), None], pa.decimal128(6, 3)),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    kept = ingest(tmp_path / "a.parquet", "parquet").kept.to_pylist()
    assert [(row["start_seconds"], row["seconds"]) for row in kept] == [(1.5, 1.25), (0.0, 3.0)]


def test_a_length_that_the_audio_does_not_have_is_said(folder):
    records = [CLIP | {"duration": seconds} for seconds in (LONG, "4.65", 4700, 2, None, "x", NAN)]
    records.append(CLIP | {"duration": 2, "offset": 0})
    outcome = ingest(write_lines(folder / "m.jsonl", records), id="duration")
    note = "`duration` is not the length of the audio, all of which is the clip"
    assert outcome.notes[note] == 2
    assert note not in ingest(folder / "m.jsonl", seconds="length").notes


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"audio_filepath": None}, "missing_audio: there is no path of audio in audio_filepath or"),
        (
            {"audio_filepath": ["1.wav"]},
            "missing_audio: the path of the audio is ['1.wav'], expect",
        ),
        ({"audio_filepath": 3}, "missing_audio: the path of the audio is 3, expected text"),
        ({"audio_filepath": "  "}, "missing_audio: the path of the audio is '  ', expected text"),
        (
            {"file_name": "2.wav"},
            "ambiguous_audio: audio_filepath and file_name name '1.wav' and '2.wav'; say which",
        ),
    ],
)
def test_audio_that_is_no_path_or_two(folder, record, why):
    assert str(one(folder, record)).startswith(why)


def test_two_names_of_one_path_are_one(folder):
    assert isinstance(one(folder, {"file_name": "1.wav"}), dict)
    assert isinstance(one(folder, {"file_name": "2.wav"}, audio="audio_filepath"), dict)


REPEATED = b'{"audio_filepath": "1.wav", "text": "a", "m": {"x": 1}, "text": "b"}'
NESTED = b'{"audio_filepath": "1.wav", "text": "a", "m": {"x": 1, "x": 2}}'
EQUAL = b'{"audio_filepath": "1.wav", "text": "a", "m": {"x": 1, "x": 1}, "text": "a"}'
GOOD = json.dumps(CLIP).encode()


def test_a_key_with_two_values_is_no_guess(folder):
    outcome = ingest(write_lines(folder / "m.jsonl", [GOOD, REPEATED, NESTED, EQUAL]))
    assert outcome.kept["text"].to_pylist() == ["文"]
    assert [(row["reason"], row["detail"]) for row in outcome.quarantined.to_pylist()] == [
        ("repeated_key", "the key 'text' is there twice, with 'a' and 'b'"),
        ("repeated_key", "the key 'x' is there twice, with 1 and 2"),
        ("duplicate_id", "an earlier record of the unit has this id"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_key_with_two_values_costs_no_neighbour(tmp_path, kind):
    pair = '{"instruction": "問", "output": "答"}'
    twice = '{"instruction": "問", "output": "答", "output": "答二"}'
    equal = '{"instruction": "問", "output": "答", "output": "答"}'
    texts = [pair, twice, equal, twice, pair]
    path = tmp_path / "a"
    path.write_text(f"[{', '.join(texts)}]" if kind == "json" else "\n".join(texts))
    source = text_source(TextSourceConfig(name="s", kind=kind, paths=[str(path)]), 2)
    found = [record for unit in source.units() for record in source.records_of(unit)]
    reasons = [record.bad.reason if record.bad else "" for record in found]
    assert reasons == ["", "repeated_key", "", "repeated_key", ""]
    assert isinstance(found[1].bad, BadRecord)
    assert "the key 'output' is there twice, with '答' and '答二'" in found[1].bad.detail


def test_a_key_with_two_values_in_a_tar(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.json", REPEATED), ("1.flac", clip(0.3))])
    (row,) = ingest(tmp_path / "a.tar", "webdataset").quarantined.to_pylist()
    assert row["reason"] == "repeated_key"


def test_a_text_beside_the_json_of_a_tar_that_says_something_else_is_said(tmp_path):
    note = "`txt` looks like the transcript and is not read: fields.text"
    fields = json.dumps({"text": "文"}).encode()
    for text, notes in ((b"other", {note: 1}), ("文\n".encode(), {})):
        members = [("1.json", fields), ("1.txt", text), ("1.flac", clip(0.3))]
        write_tar(tmp_path / "a.tar", members)
        outcome = ingest(tmp_path / "a.tar", "webdataset")
        assert (outcome.kept["text"].to_pylist(), outcome.notes) == (["文"], notes)
