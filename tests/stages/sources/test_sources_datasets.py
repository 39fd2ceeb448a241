"""What Hugging Face's `datasets` writes: koe reads the same clips and samples from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Audio, ClassLabel, Dataset, Features, LargeList, List, Value
from datasets.table import embed_table_storage

from koe.errors import BadRecord, attempt
from koe.schema import unit_table
from koe.stage import Outcome, check_outcome
from stages.clips import load_clips
from stages.ingest import IngestStage
from stages.sources.checks.first_records import check_first_records
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from stages.text.conversation import turns
from tests.stages.audio_files import clip, tone

HZ = 16_000
TEXTS = ["一つ目。", "二つ目。", "三つ目。"]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Three recordings, of 0.3, 0.4 and 0.5 s."""
    for number, seconds in enumerate((0.3, 0.4, 0.5)):
        (tmp_path / f"{number}.wav").write_bytes(clip(seconds, HZ, "wav"))
    return [str(tmp_path / f"{number}.wav") for number in range(3)]


def of_audio(paths: list[Any], **columns: list[Any]) -> Dataset:
    rows = {"audio": paths, "transcription": TEXTS[: len(paths)], **columns}
    return Dataset.from_dict(rows).cast_column("audio", Audio())


def embedded(dataset: Dataset) -> Dataset:
    """Put the files into the table, as `push_to_hub` does before it uploads."""
    return dataset.with_format("arrow").map(embed_table_storage, batched=True)


def ingest(path: Path, unit_records: int = 1000, **settings: Any) -> Outcome:
    """Check the source as planning does, and run ingest on its units as one."""
    fields = {"text": "transcription", **settings.pop("fields", {})}
    where = {"name": "s", "kind": "parquet", "paths": [str(path)], "fields": fields}
    source = speech_source(SpeechSourceConfig.model_validate(where | settings), unit_records)
    units = list(source.units())
    check_first_records(source, units)
    stage = IngestStage((source,))
    outcome = stage.open()(unit_table(units))
    return check_outcome(stage, sum(unit.records for unit in units), outcome)


def shown(outcome: Outcome) -> list[tuple[str, float]]:
    """Return text and seconds of the clips that are kept, all of whose audio must load."""
    assert all(isinstance(audio, np.ndarray) for audio in load_clips(outcome.kept, HZ))
    return [(row["text"], round(row["seconds"], 3)) for row in outcome.kept.to_pylist()]


EXPECTED = list(zip(TEXTS, (0.3, 0.4, 0.5), strict=True))


def test_audio_embedded_as_on_the_hub(tmp_path, paths):
    embedded(of_audio(paths)).to_parquet(tmp_path / "a.parquet")
    for path in paths:
        os.remove(path)
    assert pq.read_table(tmp_path / "a.parquet")["audio"][0].as_py()["bytes"]
    assert shown(ingest(tmp_path / "a.parquet")) == EXPECTED


def test_audio_by_absolute_and_by_relative_paths(tmp_path, paths):
    of_audio(paths).to_parquet(tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet")["audio"][0].as_py() == {
        "bytes": None,
        "path": paths[0],
    }
    assert shown(ingest(tmp_path / "a.parquet")) == EXPECTED
    with contextlib.chdir(tmp_path):
        of_audio([Path(path).name for path in paths]).to_parquet("b.parquet")
    assert shown(ingest(tmp_path / "b.parquet")) == EXPECTED
    (tmp_path / "else").mkdir()
    (tmp_path / "b.parquet").rename(tmp_path / "else/b.parquet")
    assert shown(ingest(tmp_path / "else/b.parquet", audio_root=str(tmp_path))) == EXPECTED


def test_bytes_and_paths_in_one_column_and_rows_without_audio(tmp_path, paths):
    whole = Path(paths[1]).read_bytes()
    rows = [paths[0], {"bytes": whole, "path": "gone.wav"}, None]
    features = Features({"bytes": Value("binary"), "path": Value("string")})
    cells = [{"bytes": None, "path": row} if isinstance(row, str) else row for row in rows]
    dataset = Dataset.from_dict(
        {"audio": cells, "transcription": TEXTS},
        features=Features({"audio": dict(features), "transcription": Value("string")}),
    ).cast_column("audio", Audio())
    dataset.to_parquet(tmp_path / "a.parquet")
    outcome = ingest(tmp_path / "a.parquet")
    assert shown(outcome) == EXPECTED[:2]
    assert [row["reason"] for row in outcome.quarantined.to_pylist()] == ["missing_audio"]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("wrap", [List, LargeList])
def test_arrays_that_datasets_decoded(tmp_path, channels, wrap):
    voices = [tone(0.3, HZ, 200.0 + 30 * number) for number in range(channels)]
    array = wrap(Value("float32")) if channels == 1 else List(wrap(Value("float32")))
    features = Features(
        {
            "audio": {"array": array, "sampling_rate": Value("int64"), "path": Value("string")},
            "transcription": Value("large_string"),
        }
    )
    cell = {"array": voices[0] if channels == 1 else voices, "sampling_rate": HZ, "path": "x"}
    rows = {"audio": [cell] * 2, "transcription": TEXTS[:2]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    outcome = ingest(tmp_path / "a.parquet")
    assert shown(outcome) == [(text, 0.3) for text in TEXTS[:2]]
    for audio in load_clips(outcome.kept, HZ):
        np.testing.assert_allclose(audio, np.mean(voices, axis=0), atol=1e-6)


def test_row_groups_and_units_cut_nothing(tmp_path, paths):
    dataset = embedded(of_audio(paths * 4, transcription=[f"文{n}" for n in range(12)]))
    dataset.to_parquet(tmp_path / "a.parquet", batch_size=5)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    kept = shown(ingest(tmp_path / "a.parquet", unit_records=4))
    assert kept == [(f"文{n}", (0.3, 0.4, 0.5)[n % 3]) for n in range(12)]


def test_a_label_of_a_class_is_a_speaker_by_number(tmp_path, paths):
    speakers = ClassLabel(names=["山", "川"])
    dataset = of_audio(paths, speaker=[0, 1, 0]).cast_column("speaker", speakers)
    dataset.to_parquet(tmp_path / "a.parquet")
    outcome = ingest(tmp_path / "a.parquet", fields={"speaker": "speaker"})
    assert outcome.kept["speaker"].to_pylist() == ["0", "1", "0"]


def test_a_table_without_rows_has_no_units(tmp_path, paths):
    of_audio(paths).select([]).to_parquet(tmp_path / "a.parquet")
    source = speech_source(
        SpeechSourceConfig.model_validate(
            {
                "name": "s",
                "kind": "parquet",
                "paths": [f"{tmp_path}/a.parquet"],
                "fields": {"text": "transcription"},
            }
        ),
        10,
    )
    assert list(source.units()) == []


CHATS = [
    [("human", "一"), ("gpt", "二")],
    [("system", "指示"), ("human", "一"), ("gpt", "二"), ("human", "三"), ("gpt", "四")],
]
TURNS = [[("一", "二")], [("指示\n\n一", "二"), ("三", "四")]]


def chats(form: str) -> Dataset:
    """Make conversations as a list of structs, or as the struct of lists of a former Sequence."""
    part = {"from": Value("string"), "value": Value("string")}
    lists = [[{"from": who, "value": text} for who, text in chat] for chat in CHATS]
    if form == "list":
        return Dataset.from_dict(
            {"conversations": lists, "note": ["a", "b"]},
            features=Features({"conversations": List(part), "note": Value("string")}),
        )
    columns = {name: List(value) for name, value in part.items()}
    structs = [
        {name: [message[name] for message in chat] for name in ("from", "value")} for chat in lists
    ]
    return Dataset.from_dict(
        {"conversations": structs, "note": ["a", "b"]},
        features=Features({"conversations": columns, "note": Value("string")}),
    )


def samples(path: Path, kind: str) -> Iterator[Any]:
    config = TextSourceConfig.model_validate(
        {"name": "s", "kind": kind, "layout": "sharegpt", "paths": [str(path)]}
    )
    source = text_source(config, 10)
    units = list(source.units())
    assert check_first_records(source, units) == {}
    for unit in units:
        for record in source.records_of(unit):
            assert "note" not in record.fields or kind == "jsonl"
            found = record.bad or attempt(turns, record.fields, "sharegpt")
            yield str(found) if isinstance(found, BadRecord) else found


@pytest.mark.parametrize("form", ["list", "sequence"])
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_conversations_in_both_forms(tmp_path, form, kind):
    dataset = chats(form)
    path = tmp_path / "a"
    dataset.to_parquet(path) if kind == "parquet" else dataset.to_json(path, force_ascii=False)
    assert list(samples(path, kind)) == TURNS


def test_lists_of_different_lengths_are_no_conversation(tmp_path):
    (tmp_path / "a").write_text('{"conversations": {"from": ["human"], "value": ["一", "二"]}}')
    config = TextSourceConfig(name="s", kind="jsonl", layout="sharegpt", paths=[f"{tmp_path}/a"])
    source = text_source(config, 10)
    (unit,) = source.units()
    (record,) = source.records_of(unit)
    found = attempt(turns, record.fields, "sharegpt")
    assert str(found) == "bad_conversation: conversations is an object, expected a list of messages"
