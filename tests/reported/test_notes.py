"""What records have and nobody reads is said; a field that no record has is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import ConfigError
from koe.schema import unit_table
from stages.ingest import IngestStage
from stages.sources.checks.first_records import check_first_records
from stages.sources.checks.notes import Notes
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from tests.real_data import REPORTS
from tests.stages.audio_files import clip, sample, write_lines, write_tar

AUDIO = "there is no path of audio in audio_filepath or file_name; the record has"


def speech(path: Path | str, kind: str = "manifest", unit_records: int = 1000, **fields: str):
    config = SpeechSourceConfig(name="s", kind=kind, paths=[str(path)], fields=fields)
    return speech_source(config, unit_records)


def text(path: Path | str, kind: str = "jsonl", layout: str = "instruction", **fields: str):
    config = TextSourceConfig(name="s", kind=kind, layout=layout, paths=[str(path)], fields=fields)
    return text_source(config, 1000)


def checked(source: Any) -> dict[str, int]:
    return check_first_records(source, list(source.units()))


def ingested(source: Any) -> dict[str, int]:
    """Return the notes of all units, added up."""
    total: dict[str, int] = {}
    for unit in source.units():
        for note, number in IngestStage((source,)).open()(unit_table([unit])).notes.items():
            total[note] = total.get(note, 0) + number
    return total


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def test_start_and_end_that_are_not_read_are_said(tmp_path):
    (tmp_path / "u0.flac").write_bytes(clip(4.703))
    path = tmp_path / "m.jsonl"
    path.write_bytes((REPORTS / "D/d13_start_end.jsonl").read_bytes())
    source = speech(path)
    assert (
        checked(source)
        == ingested(source)
        == {
            "`end` looks like the end of a segment and is not read: fields.end_seconds": 3,
            "`start` looks like the start of a segment and is not read: fields.start_seconds": 3,
        }
    )
    no_length = (
        "a clip with a start and no length runs to the end of a file that other clips share: "
        "fields.seconds, fields.end_seconds"
    )
    assert ingested(speech(path, start_seconds="start"))[no_length] == 3
    assert ingested(speech(path, start_seconds="start", end_seconds="end")) == {}
    lines = [{"audio_filepath": f"{n}.flac", "text": "文", "offset": 0} for n in range(3)]
    assert ingested(speech(write_lines(tmp_path / "m.jsonl", lines))) == {}


def test_the_channel_of_another_name_is_said(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes((REPORTS / "D/d12_channel.jsonl").read_bytes())
    touch(tmp_path, "st.wav")
    assert checked(speech(path, channel="channel")) == {
        "`channel_selector` looks like the channel of a clip and is not read: fields.channel": 1
    }


def test_look_alikes_are_counted_where_they_hold_something(tmp_path):
    touch(tmp_path, "a", "b", "c")
    records = [
        {"audio_filepath": "a", "text": "文", "Speaker-ID": "s", "normalized_text": "ぶん"},
        {"audio_filepath": "b", "text": "文", "Speaker-ID": None, "normalized_text": "文"},
        {"audio_filepath": "c", "text": "文", "Speaker-ID": 0, "lang": "ja", "spoken": "x"},
    ]
    assert checked(speech(write_lines(tmp_path / "m.jsonl", records))) == {
        "`Speaker-ID` looks like the speaker and is not read: fields.speaker": 2,
        "`normalized_text` looks like the transcript and is not read: fields.text": 1,
    }


@pytest.mark.parametrize("kind", ["manifest", "parquet", "webdataset"])
def test_fields_beside_a_nested_one_are_said_too(tmp_path, kind):
    touch(tmp_path, "1.flac")
    meta = {"meta": {"text": "文", "speaker": "s", "x": 1}, "id": 7}
    if kind == "webdataset":
        write_tar(tmp_path / "a", [("1.json", json.dumps(meta).encode()), ("1.flac", clip())])
    elif kind == "manifest":
        write_lines(tmp_path / "a", [meta | {"audio_filepath": "1.flac"}])
    else:
        pq.write_table(pa.Table.from_pylist([meta | {"audio": clip()}]), tmp_path / "a")
    assert checked(speech(tmp_path / "a", kind, text="meta.text")) == {
        "`id` looks like the id and is not read: fields.id": 1,
        "`meta.speaker` looks like the speaker and is not read: fields.speaker": 1,
    }


def test_samples_say_what_is_not_read_too(tmp_path):
    record = {"prompt": "問", "response": "答", "context": "文", "functions": ["f"], "uuid": "1"}
    source = text(
        write_lines(tmp_path / "a.jsonl", [record]), instruction="prompt", output="response"
    )
    assert checked(source) == {
        "`context` looks like what follows what the user asks and is not read: fields.input": 1,
        "`functions` looks like tools that may be called and is not read: fields.tools": 1,
        "`uuid` looks like the id and is not read: fields.id": 1,
    }
    assert checked(text(REPORTS / "F/f02_sharegpt.jsonl", layout="sharegpt")) == {
        "`conversation` looks like the conversation and is not read: fields.messages": 1,
        "`id` looks like the id and is not read: fields.id": 1,
    }


def _written(root: str, folder: Path, name: str, data: bytes) -> str:
    """Write a file into a local folder or an object store and return its path or URL."""
    if root == "local":
        (folder / name).write_bytes(data)
        return str(folder / name)
    fsspec.filesystem("memory").pipe(f"/{folder.name}/{name}", data)
    return f"memory://{folder.name}/{name}"


def _lines(*records: dict[str, Any]) -> bytes:
    return "\n".join(json.dumps(record) for record in records).encode()


def _parquet(folder: Path, **columns: Any) -> bytes:
    pq.write_table(pa.table(columns), folder / "made.parquet")
    return (folder / "made.parquet").read_bytes()


def _tar(folder: Path) -> bytes:
    write_tar(folder / "made.tar", sample("1"))
    return (folder / "made.tar").read_bytes()


CLIP = {"audio_filepath": "1.flac", "sentence": "文", "end": 1.0}
CSV = b"file_name,sentence,end\n1.flac,x,1.0\n"
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize("root", ["local", "object store"])
@pytest.mark.parametrize(
    ("kind", "fields", "key", "hint"),
    [
        ("manifest", {}, "text", "did you mean 'sentence'"),
        ("manifest", {"text": "sentnce"}, "text", "did you mean 'sentence'"),
        (
            "manifest",
            {"text": "sentence", "end_seconds": "ends"},
            "end_seconds",
            "did you mean 'end'",
        ),
        ("manifest", {"text": "sentence", "channel": "side"}, "channel", "there is audio_filepath"),
        ("manifest", {"text": "sentence", "id": "uid"}, "id", "there is audio_filepath"),
        ("manifest", {"text": "sentence", "audio": "wav"}, "audio", "no path of audio in wav; the"),
        ("webdataset", {"text": "txet"}, "text", "did you mean 'text'"),
        ("webdataset", {"speaker": "who"}, "speaker", "did you mean 'speaker'"),
        ("webdataset", {"audio": "wav"}, "audio", "of 1.json, 1.flac none has the extension"),
        ("parquet", {}, "text", "did you mean 'sentence'"),
        ("parquet", {"text": "sentence", "seconds": "length"}, "seconds", "there is audio"),
        ("folder", {}, "text", "did you mean 'sentence'"),
        ("folder", {"text": "sentence", "speaker": "who"}, "speaker", "there is end, file_name"),
    ],
)
def test_a_wrong_field_of_clips_is_refused_before_any_work(tmp_path, root, kind, fields, key, hint):
    data = {
        "manifest": lambda: _lines(CLIP, CLIP),
        "webdataset": lambda: _tar(tmp_path),
        "parquet": lambda: _parquet(tmp_path, audio=[clip()], sentence=["x"], end=[1.0]),
        "folder": lambda: CSV,
    }[kind]()
    name = {"folder": "metadata.csv"}.get(kind, "a")
    source = speech(_written(root, tmp_path, name, data), kind, **fields)
    with pytest.raises(ConfigError) as refused:
        checked(source)
    assert hint in str(refused.value)
    assert f"fields.{key}" in refused.value.remedy


@pytest.mark.parametrize("root", ["local", "object store"])
@pytest.mark.parametrize(
    ("kind", "layout", "fields", "why"),
    [
        ("jsonl", "instruction", {}, "no field 'instruction' for instruction"),
        ("jsonl", "messages", {"messages": "message"}, "did you mean 'messages'"),
        ("jsonl", "messages", {"role": "form"}, "no field 'form' for role in its messages"),
        ("jsonl", "sharegpt", {"messages": "messages"}, "no field 'from' for role in its messages"),
        ("jsonl", "messages", {"tools": "functions"}, "no field 'functions' for tools"),
        ("jsonl", "messages", {"id": "uid"}, "no field 'uid' for id"),
        ("json", "messages", {"system": "prompt"}, "no field 'prompt' for system"),
        ("json", "messages", {"content": "text"}, "no field 'text' for content in its messages"),
        ("parquet", "messages", {"content": "text"}, "no column 'text' for content"),
        ("parquet", "messages", {"history": "past"}, "no column 'past' for history"),
        ("parquet", "instruction", {}, "no column 'instruction' for instruction"),
    ],
)
def test_a_wrong_field_of_samples_is_refused_before_any_work(
    tmp_path, root, kind, layout, fields, why
):
    data = {
        "jsonl": lambda: _lines(CHAT, CHAT),
        "json": lambda: json.dumps([CHAT, CHAT]).encode(),
        "parquet": lambda: _parquet(tmp_path, messages=[CHAT["messages"]]),
    }[kind]()
    source = text(_written(root, tmp_path, "a", data), kind, layout, **fields)
    with pytest.raises(ConfigError) as refused:
        checked(source)
    assert why in str(refused.value)


def test_a_field_that_only_some_records_have_is_no_mistake(tmp_path):
    touch(tmp_path, *(f"{n}.flac" for n in range(2000)))
    lines = [{"audio_filepath": f"{n}.flac", "text": "文"} for n in range(2000)]
    lines[-1]["speaker"] = "s"
    path = write_lines(tmp_path / "m.jsonl", lines)
    source = speech(path, unit_records=50, speaker="speaker")
    units = list(source.units())
    assert check_first_records(source, units) == {}  # found in the last of the units that are tried
    lines[-1].pop("speaker")
    lines[3]["speaker"] = None
    write_lines(path, lines)
    assert checked(speech(path, unit_records=50, speaker="speaker")) == {}
    with pytest.raises(ConfigError, match="none of its first 550 records has it"):
        checked(speech(path, unit_records=50, speaker="who"))


def test_what_is_broken_is_no_mistake_of_the_configuration(tmp_path):
    touch(tmp_path, "1.flac")
    for lines in ([], ["{", "[1]"], [{"audio_filepath": "1.flac", "text": ""}, "{"]):
        assert checked(speech(write_lines(tmp_path / "m.jsonl", lines))) == {}
    path = write_lines(tmp_path / "m.jsonl", [{"path": "1.flac", "text": "文"}])
    with pytest.raises(ConfigError, match=f"finds no audio .* {AUDIO} path, text"):
        checked(speech(path))


def test_an_input_may_stand_for_the_instruction(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"input": "問", "output": "答"}])
    assert checked(text(path)) == {}
    with pytest.raises(ConfigError, match="no field 'ask' for instruction"):
        checked(text(path, instruction="ask"))


def test_a_name_is_known_in_any_spelling(tmp_path):
    notes = Notes(speech(tmp_path / "m.jsonl")).names
    assert notes.role_of("segment.End-Time") == "end_seconds"
    assert notes.role_of("Client ID") == "speaker"
    assert notes.role_of("language") is None
