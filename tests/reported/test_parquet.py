"""Parquet files with columns that nobody asked for, nested columns, and audio in other forms."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import BadRecord, ConfigError
from koe.schema import unit_table
from koe.stage import Outcome, check_outcome
from stages.clips import load_clips
from stages.ingest import IngestStage
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.real_data import REPORTS
from tests.reported.parquet_files import TEXTS, samples, write
from tests.stages.audio_files import clip, tone

HZ = 16_000


def ingest(path: Path | str, audio_root: str | None = None, **fields: str) -> Outcome:
    """Run ingest on the one unit of a file."""
    config = SpeechSourceConfig(
        name="s", kind="parquet", paths=[str(path)], audio_root=audio_root, fields=fields
    )
    source = speech_source(config, 1000)
    (unit,) = source.units()
    stage = IngestStage((source,))
    return check_outcome(stage, unit.records, stage.open()(unit_table([unit])))


def sound(outcome: Outcome, audio_hz: int = HZ) -> list[np.ndarray]:
    """Return the audio of all clips that were kept, float32 [samples]."""
    audios = [
        audio for audio in load_clips(outcome.kept, audio_hz) if isinstance(audio, np.ndarray)
    ]
    assert len(audios) == outcome.kept.num_rows
    return audios


@pytest.mark.parametrize("name", ["C/c21_ts_year_10000.parquet", "C/c23_date_min.parquet"])
def test_columns_that_nobody_asked_for_are_not_read(name):
    table = pq.read_table(REPORTS / name)
    with pytest.raises(OverflowError):
        table["created"].to_pylist()
    wanted = zip(table["instruction"].to_pylist(), table["output"].to_pylist(), strict=True)
    assert samples(REPORTS / name) == [[pair] for pair in wanted]


def test_a_value_that_cannot_be_read_costs_its_row_only():
    path = REPORTS / "C/c21_ts_year_10000.parquet"
    found = samples(path, id="created")
    why = [bad.reason for bad in found if isinstance(bad, BadRecord)]
    assert len(found) == 2
    assert set(why) == {"unreadable_value"}
    assert "column 'created' of type timestamp[us]" in str(found)


def test_nested_columns():
    outcome = ingest(REPORTS / "C/nested.parquet", audio="data.audio", text="data.text")
    assert outcome.kept["text"].to_pylist() == ["入れ子0", "入れ子1"]
    assert outcome.kept["audio_member"].to_pylist() == ["data.audio"] * 2
    cells = pq.read_table(REPORTS / "C/nested.parquet")["data"].to_pylist()
    assert outcome.kept["audio_bytes"].to_pylist() == [len(c["audio"]["bytes"]) for c in cells]
    assert all(len(audio) > HZ / 2 for audio in sound(outcome))
    path = REPORTS / "C/c30_nested_names.parquet"
    assert samples(path, instruction="data.q", output="data.a") == [[("問", "答")]]


def test_decoded_audio_of_datasets_is_read():
    path = REPORTS / "C/hf_decoded.parquet"
    outcome = ingest(path)
    cells = pq.read_table(path)["audio"].to_pylist()
    assert outcome.kept["audio_hz"].to_pylist() == [cell["sampling_rate"] for cell in cells]
    assert outcome.kept["seconds"].to_pylist() == pytest.approx(
        [len(cell["array"]) / cell["sampling_rate"] for cell in cells]
    )
    loaded = sound(outcome, cells[0]["sampling_rate"])
    for audio, cell in zip(loaded, cells, strict=True):
        np.testing.assert_array_equal(audio, np.array(cell["array"], np.float32))


@pytest.mark.parametrize(("rate", "is_read"), [(16_000.0, True), (16_000.5, False), (0.0, False)])
def test_a_sampling_rate_may_be_stored_as_a_float(tmp_path, rate, is_read):
    cells = [{"array": [0.1] * 16_000, "sampling_rate": rate}]
    outcome = ingest(write(tmp_path / "a.parquet", {"audio": pa.array(cells), "text": ["a"]}))
    assert outcome.kept["seconds"].to_pylist() == ([1.0] if is_read else [])


def test_binary_views():
    outcome = ingest(REPORTS / "C/bin_view.parquet")
    assert outcome.kept["text"].to_pylist() == ["文0", "文1"]
    assert all(len(audio) > HZ / 2 for audio in sound(outcome))


WAV = clip(0.3, HZ, "wav")
BINARY = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "fixed": pa.binary(len(WAV)),
}


@pytest.mark.parametrize("binary", BINARY)
@pytest.mark.parametrize("text", TEXTS)
def test_every_type_of_bytes_and_of_text_is_read(tmp_path, binary, text):
    columns = {
        "audio": pa.array([WAV, WAV], BINARY[binary]),
        "text": pa.array(["文", "文"]).cast(TEXTS[text]),
    }
    outcome = ingest(write(tmp_path / "a.parquet", columns))
    assert outcome.kept["text"].to_pylist() == ["文", "文"]
    assert [len(audio) for audio in sound(outcome)] == [0.3 * HZ] * 2


@pytest.mark.parametrize("text", TEXTS)
def test_audio_by_path(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.wav").write_bytes(WAV)
    paths = pa.array(["a/1.wav", "gone.wav", None, ""]).cast(TEXTS[text])
    path = write(tmp_path / "a.parquet", {"file": paths, "text": ["一", "二", "三", "四"]})
    outcome = ingest(path, audio="file")
    assert outcome.kept.select(["text", "audio_kind", "audio_path"]).to_pylist() == [
        {"text": "一", "audio_kind": "file", "audio_path": f"{tmp_path}/a/1.wav"}
    ]
    assert [row["reason"] for row in outcome.quarantined.to_pylist()] == ["missing_audio"] * 3
    shutil.move(tmp_path / "a.parquet", tmp_path / "a/b.parquet")
    rooted = ingest(tmp_path / "a/b.parquet", str(tmp_path), audio="file")
    assert [len(audio) for audio in sound(rooted)] == [0.3 * HZ]


def _decoded(arrays: list[Any], kind: pa.DataType, rate: int | None = HZ) -> pa.StructArray:
    rates = pa.array([rate] * len(arrays), pa.int64())
    return pa.StructArray.from_arrays([pa.array(arrays, kind), rates], ["array", "sampling_rate"])


FLOATS = {"float": pa.float32(), "double": pa.float64(), "half": pa.float16()}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("channels", [None, 1, 2])
def test_decoded_audio_of_every_precision_and_channel(tmp_path, name, channels):
    kind, voices = FLOATS[name], [tone(0.2, HZ, 200.0 + n) for n in range(channels or 1)]
    values = [voice.astype(kind.to_pandas_dtype()) for voice in voices]
    cell = values if channels else values[0]
    column = pa.list_(pa.list_(kind)) if channels else pa.list_(kind)
    path = write(tmp_path / "a.parquet", {"audio": _decoded([cell], column), "text": ["文"]})
    outcome = ingest(path)
    assert outcome.kept["channels"].to_pylist() == [channels or 1]
    expected = np.mean([value.astype(np.float32) for value in values], axis=0)
    np.testing.assert_allclose(sound(outcome)[0], expected, atol=1e-7)


def test_decoded_audio_that_is_none_is_named(tmp_path):
    arrays = [[0.5] * 100, None, [], [0.5, None]]
    path = write(
        tmp_path / "a.parquet",
        {"audio": _decoded(arrays, pa.list_(pa.float32())), "text": list("abcd")},
    )
    found = {row["id"]: row["reason"] for row in ingest(path).quarantined.to_pylist()}
    assert list(found.values()) == ["missing_audio", "missing_audio", "unreadable_audio"]
    samples_first = [[[0.1, 0.2]] * 1000]
    columns = {"audio": _decoded(samples_first, pa.list_(pa.list_(pa.float32()))), "text": ["a"]}
    (row,) = ingest(write(tmp_path / "b.parquet", columns)).quarantined.to_pylist()
    assert row["detail"] == (
        "row 0 holds 1000 lists of 2 to 2 samples, expected one list of equal length per channel"
    )
    columns = {"audio": _decoded([[0.1]], pa.list_(pa.float32()), None), "text": ["a"]}
    (row,) = ingest(write(tmp_path / "c.parquet", columns)).quarantined.to_pylist()
    assert row["detail"] == "row 0 has a sampling_rate of None, expected a whole number of hertz"


@pytest.mark.parametrize(
    ("columns", "fields", "why"),
    [
        ({"audio": [[0.1]]}, {}, "holds list<.*> there, neither bytes"),
        ({"audio": [{"array": ["a"], "sampling_rate": 1}]}, {}, "neither bytes, nor a path"),
        ({"wav": [WAV]}, {}, "has no column 'audio' for audio"),
        ({"audio": [WAV]}, {"text": "sentence"}, "has no column 'sentence' for text"),
        ({"audio": [WAV]}, {"end_seconds": "end"}, "has no column 'end' for end_seconds"),
        (
            {"audio": [WAV], "m": [{"txt": "a"}]},
            {"text": "m.text"},
            r"did you mean '(m\.txt|text)'",
        ),
        ({"data": [{"audio": WAV}]}, {}, "did you mean 'data.audio'"),
    ],
)
@pytest.mark.parametrize("root", ["{}", "memory://{}"])
def test_a_wrong_column_is_refused_before_any_work(tmp_path, columns, fields, why, root):
    path = write(tmp_path / "a.parquet", {"text": ["a"], **columns})
    if "memory" in root:
        fsspec.filesystem("memory").pipe(str(path), path.read_bytes())
    source = SpeechSourceConfig(name="s", kind="parquet", paths=[root.format(path)], fields=fields)
    with pytest.raises(ConfigError, match=why):
        list(speech_source(source, 10).units())


def test_columns_of_one_name_are_refused(tmp_path):
    columns = [pa.array([WAV]), pa.array(["a"]), pa.array(["b"])]
    table = pa.Table.from_arrays(columns, names=["audio", "text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="more than one column of this name"):
        ingest(tmp_path / "a.parquet")


def test_a_literal_column_with_dots_wins(tmp_path):
    columns = {"audio": [WAV], "m": [{"text": "nested"}], "m.text": ["literal"]}
    assert ingest(write(tmp_path / "a.parquet", columns), text="m.text").kept[
        "text"
    ].to_pylist() == ["literal"]
    columns = {"data.audio": [{"bytes": WAV, "path": None}], "text": ["文"]}
    outcome = ingest(write(tmp_path / "b.parquet", columns), audio="data.audio")
    assert [len(audio) for audio in sound(outcome)] == [0.3 * HZ]


@pytest.mark.law
@given(
    depth=st.integers(0, 3),
    form=st.sampled_from(["bytes", "struct", "array"]),
    is_null=st.lists(st.booleans(), min_size=1, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_audio_is_found_however_deep_it_lies(tmp_path_factory, depth, form, is_null):
    folder = tmp_path_factory.mktemp("nested")
    voice, hz = soundfile.read(io.BytesIO(WAV), dtype="float32")
    cell = {
        "bytes": WAV,
        "struct": {"bytes": WAV, "path": "x"},
        "array": {"array": voice.tolist(), "sampling_rate": hz},
    }[form]
    rows: list[Any] = [None if null else cell for null in [*is_null, False]]
    for level in range(depth):
        rows = [None if row is None else {f"l{level}": row} for row in rows]
    name = ".".join(["audio", *(f"l{level}" for level in reversed(range(depth)))])
    path = write(folder / "a.parquet", {"audio": rows, "text": ["文"] * len(rows)})
    outcome = ingest(path, audio=name)
    assert outcome.kept.num_rows == len(rows) - sum(is_null)
    assert {row["reason"] for row in outcome.quarantined.to_pylist()} <= {"missing_audio"}
    for audio in sound(outcome):
        np.testing.assert_allclose(audio, voice, atol=1e-7)
