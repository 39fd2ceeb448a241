"""A name with dots descends into nested fields, in every kind of source and for every key."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from koe.errors import attempt
from koe.schema import unit_table
from stages.ingest import IngestStage
from stages.sources.checks.first_records import check_first_records
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from stages.text.conversation import turns
from tests.stages.audio_files import encoded, tone, write_tar

HZ = 16_000
CLIP = {
    "id": "z", "text": "文", "speaker": 7, "start_seconds": 0.25, "end_seconds": 0.75,
    "seconds": 0.5, "channel": 1, "ovrl": 3.5,
}  # fmt: skip
PART = {"id": "z", "system": "指示", "history": [["一", "二"]]}
SAMPLES = {
    "instruction": PART | {"instruction": "三", "input": "四", "output": "五"},
    "messages": PART
    | {"messages": [{"role": "user", "content": "三"}, {"role": "assistant", "content": "四"}]},
    "sharegpt": PART
    | {"messages": [{"role": "human", "content": "三"}, {"role": "gpt", "content": "四"}]},
}


def nested(record: dict[str, Any], depth: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Put the fields of a record `depth` levels down; return it and the name of each field."""
    names = {key: f"{'meta.' * depth}{key}_" for key in record}
    inner: Any = {f"{key}_": value for key, value in record.items()}
    for _ in range(depth):
        inner = {"meta": inner, "other": 0}
    return inner, names


def write_clips(folder: Path, kind: str, record: dict[str, Any]) -> Path:
    """Write one record of the recording st.flac, which is not named in it."""
    audio = encoded(np.stack([tone(1.0, HZ, h) for h in (220.0, 311.0)], axis=1), HZ, "flac")
    (folder / "st.flac").write_bytes(audio)
    line = json.dumps(record | {"audio_filepath": "st.flac"}).encode()
    path = folder / {"folder": "metadata.jsonl", "manifest.gz": "a.jsonl.gz"}.get(kind, "a")
    if kind == "webdataset":
        write_tar(path, [("1.json", json.dumps(record).encode()), ("1.flac", audio)])
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([record | {"audio": audio}]), path)
    else:
        path.write_bytes(gzip.compress(line) if kind == "manifest.gz" else line)
    return path


@pytest.mark.parametrize("kind", ["manifest", "manifest.gz", "folder", "webdataset", "parquet"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_fields_of_clips(tmp_path, kind, depth):
    record, names = nested(CLIP, depth)
    path = write_clips(tmp_path, kind, record)
    where = {"name": "s", "kind": kind.partition(".")[0], "paths": [str(path)], "fields": names}
    source = speech_source(SpeechSourceConfig.model_validate(where), 10)
    units = list(source.units())
    assert check_first_records(source, units) == {}
    (row,) = IngestStage((source,)).open()(unit_table(units)).kept.to_pylist()
    found = {key: row[key] for key in ("id", "text", "speaker", "channel", "source_ovrl")}
    assert found == {
        "id": "s/z", "text": "文", "speaker": "7", "channel": 1, "source_ovrl": 3.5,
    }  # fmt: skip
    assert (row["start_seconds"], row["seconds"]) == (0.25, 0.5)


@pytest.mark.parametrize("kind", ["manifest", "folder", "parquet"])
def test_the_path_of_the_audio(tmp_path, kind):
    record = {"a": {"b": {"path": "st.flac", "text": "文"}}}
    path = write_clips(tmp_path, "manifest" if kind == "parquet" else kind, record)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    fields = {"audio": "a.b.path", "text": "a.b.text"}
    where = {"name": "s", "kind": kind, "paths": [str(path)], "fields": fields}
    source = speech_source(SpeechSourceConfig.model_validate(where), 10)
    (unit,) = source.units()
    (row,) = IngestStage((source,)).open()(unit_table([unit])).kept.to_pylist()
    assert (row["text"], row["audio_path"]) == ("文", f"{tmp_path}/st.flac")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("layout", SAMPLES)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_fields_of_samples(tmp_path, kind, layout, depth):
    record, names = nested(SAMPLES[layout], depth)
    path = tmp_path / "a"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps([record] if kind == "json" else record))
    if layout != "instruction":
        names |= {"role": "role", "content": "content"}
    where = {"name": "s", "kind": kind, "layout": layout, "paths": [str(path)], "fields": names}
    config = TextSourceConfig.model_validate(where)
    source = text_source(config, 10)
    units = list(source.units())
    assert check_first_records(source, units) == {}
    (found,) = source.records_of(units[0])
    assert found.key == "z"
    said = "三\n四", "五"
    expected = [("指示\n\n一", "二"), said if layout == "instruction" else ("三", "四")]
    assert attempt(turns, found.fields, layout, config.fields) == expected
