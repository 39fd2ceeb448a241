"""AudioFolder of `datasets`: koe reads the clips and texts that the library itself reads."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.records import read_all
from tests.stages.speech import synthetic_speech

Rows = list[dict[str, str]]


def write_csv(folder: Path, rows: Rows) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (folder / "metadata.csv").write_text(text.getvalue(), encoding="utf-8", newline="")


def write_jsonl(folder: Path, rows: Rows) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def write_parquet(folder: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")


FOLDER = {"kind": "folder"}
PARQUET = {"kind": "parquet", "fields": {"audio": "file_name", "text": "transcription"}}


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `datasets` find the encoder that it imports before it takes a path as it is."""
    module = ModuleType("torchcodec.encoders")
    module.AudioEncoder = None  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", module)


# `datasets` leaves the metadata.csv open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("write", "name", "settings"),
    [
        (write_csv, "", FOLDER),
        (write_jsonl, "", FOLDER),
        (write_parquet, "/metadata.parquet", PARQUET),
    ],
)
def test_an_audio_folder_is_read_as_datasets_reads_it(
    tmp_path: Path, write: Callable[[Path, Rows], None], name: str, settings: dict[str, object]
):
    texts = ["一つ", 'カンマ, と "引用符"', "改行を\n含む文", " 空白 ", "5"]
    rows = []
    for number, text in enumerate(texts):
        path = tmp_path / f"data/{'sub' if number % 2 else '.'}/{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, synthetic_speech(800 + number, 16_000, seed=number), 16_000)
        shown = str(path.relative_to(tmp_path / "data"))
        rows.append({"file_name": shown, "transcription": text})
    write(tmp_path / "data", rows)
    found = datasets.load_dataset(
        "audiofolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "c"), split="train"
    ).cast_column("audio", datasets.Audio(decode=False))
    expected = {row["audio"]["path"]: row["transcription"] for row in found}
    assert sorted(expected.values()) == sorted(texts)
    config = {"name": "s", "paths": [f"{tmp_path}/data{name}"], **settings}
    records = read_all(speech_source(SpeechSourceConfig.model_validate(config), 2))
    text = SpeechSourceConfig.model_validate(config).fields.text
    assert {r.audio.path: r.fields[text] for r in records if r.audio} == expected
