"""Whatever a decoder or parser raises fails one record; what storage raises fails the run."""

from __future__ import annotations

import errno
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from aiohttp import ClientPayloadError
from botocore.exceptions import ReadTimeoutError

from koe.errors import BadRecord, ConfigError, StorageError
from koe.schema import unit_table
from koe.stage import check_outcome
from stages.audio.containers import scan
from stages.boundary import DEFECT, attempt_read, planned
from stages.clips import load_clips, load_file
from stages.ingest import IngestStage
from stages.sources.checks.first_records import check_first_records
from stages.sources.json_files.manifest import ManifestSource
from stages.sources.readers import speech_source, text_source
from stages.sources.settings import SpeechSourceConfig, TextSourceConfig
from stages.text.tokenizer import TextEncoder
from stages.tokenize import TokenizeText
from tests.fuzz.reading import tokenizer
from tests.stages.audio_files import clip, write_lines

OF_DATA = [
    ValueError("negative dimensions are not allowed"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    OverflowError("int too large"),
    RecursionError("maximum recursion depth exceeded"),
    struct.error("unpack requires 4 bytes"),
    zlib.error("invalid block type"),
    pa.ArrowInvalid("bad data"),
    soundfile.SoundFileRuntimeError("error"),
]
UNEXPECTED = [
    IndexError("index out of range"),
    KeyError("a"),
    TypeError("no"),
    ZeroDivisionError("division by zero"),
    AssertionError(),
    RuntimeError("generator raised StopIteration"),
]
STORAGE = [
    OSError(errno.EIO, "I/O error"),
    PermissionError(13, "denied"),
    TimeoutError("slow"),
    ReadTimeoutError(endpoint_url="http://x"),
    ClientPayloadError("cut"),
]


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("error", [*OF_DATA, *UNEXPECTED], ids=lambda error: type(error).__name__)
def test_what_a_parser_raises_is_a_bad_record(error):
    bad = attempt_read("broken_x", failing(error))
    assert isinstance(bad, BadRecord)
    assert bad.reason == "broken_x"
    assert str(error) in bad.detail
    assert (DEFECT in bad.detail) == (error in UNEXPECTED)


@pytest.mark.parametrize("error", [MemoryError("huge"), pa.ArrowMemoryError("malloc of size 9")])
def test_a_size_that_fits_nowhere_is_a_bad_record(error):
    bad = attempt_read("broken_x", failing(error))
    assert isinstance(bad, BadRecord)
    assert bad.reason == "record_too_large"


@pytest.mark.parametrize("error", [*STORAGE, StorageError("x"), ConfigError("y")])
def test_what_storage_raises_passes(error):
    with pytest.raises(type(error)):
        attempt_read("broken_x", failing(error))
    with pytest.raises(type(error)), planned("s"):
        raise error


@pytest.fixture
def source(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.wav").write_bytes(clip(0.1 + number / 100, kind="wav"))
    lines = [{"audio_filepath": f"{number}.wav", "text": "文"} for number in range(5)]
    path = write_lines(tmp_path / "m.jsonl", lines)
    return speech_source(SpeechSourceConfig(name="s", kind="manifest", paths=[str(path)]), 10)


def ingest(source):
    (unit,) = source.units()
    return IngestStage((source,)).open()(unit_table([unit]))


def quarantined(outcome):
    return {row["id"]: (row["reason"], row["detail"]) for row in outcome.quarantined.to_pylist()}


@pytest.mark.parametrize("error", [OF_DATA[0], UNEXPECTED[0]])
def test_a_walk_over_audio_that_fails_costs_one_clip(source, monkeypatch, error):
    def fail_once(file, num_bytes):
        if num_bytes == len(clip(0.12, kind="wav")):
            raise error
        return scan(file, num_bytes)

    monkeypatch.setattr("stages.audio.decode.scan", fail_once)
    outcome = ingest(source)
    assert outcome.kept.num_rows == 4
    assert quarantined(outcome)["s/2.wav"][0] == "unreadable_audio"
    monkeypatch.undo()
    monkeypatch.setattr("stages.audio.recording.scan", fail_once)
    found = list(load_clips(ingest(source).kept, 16_000))
    assert [isinstance(audio, np.ndarray) for audio in found] == [True, True, False, True, True]
    assert found[2].reason == "unreadable_audio"


def test_a_reader_that_fails_costs_the_records_that_it_has_not_given(source, monkeypatch):
    clip_of = ManifestSource.read

    def read(self, unit):
        yield from list(clip_of(self, unit))[:3]
        raise KeyError("a defect")

    monkeypatch.setattr(ManifestSource, "read", read)
    outcome = ingest(source)
    assert outcome.kept.num_rows == 3
    found = quarantined(outcome)
    assert found.keys() == {"s/m.jsonl@0#3", "s/m.jsonl@0#4"}
    assert all(reason == "unreadable_bytes" for reason, _ in found.values())


def test_a_file_that_cannot_be_planned_is_one_record(source, monkeypatch, tmp_path):
    monkeypatch.setattr(ManifestSource, "slices", failing(IndexError("a defect")))
    (unit,) = source.units()
    assert (unit.records, unit.gaps, unit.lost_bytes) == (
        1,
        1,
        (tmp_path / "m.jsonl").stat().st_size,
    )
    ((reason, detail),) = quarantined(ingest(source)).values()
    assert reason == "unreadable_bytes"
    assert "IndexError: a defect" in detail


def test_failing_storage_is_no_bad_record(source, monkeypatch):
    for error in STORAGE:
        monkeypatch.setattr("stages.sources.location.open_binary", failing(error))
        with pytest.raises(StorageError):
            ingest(source)


def test_what_planning_did_not_expect_names_the_source(source, monkeypatch):
    units = list(source.units())
    monkeypatch.setattr("stages.sources.checks.first_records.Notes", failing(KeyError("a")))
    with pytest.raises(ConfigError, match=r"source s cannot be planned.*KeyError"):
        check_first_records(source, units)
    monkeypatch.setattr(ManifestSource, "files", failing(KeyError("a")))
    with pytest.raises(ConfigError, match="source s cannot be planned"):
        list(source.units())


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/tty", "."])
def test_a_file_to_score_that_is_none_is_named(name):
    with pytest.raises(BadRecord, match=r"unreadable_file: it is a (device|folder), not a file"):
        load_file(name, 16_000)


def test_a_text_at_which_the_tokenizer_fails_costs_its_sample(tmp_path, monkeypatch):
    records = [{"instruction": f"問{n}", "output": "答"} for n in range(4)]
    path = write_lines(tmp_path / "a.jsonl", records)
    config = TextSourceConfig(name="t", kind="jsonl", paths=[str(path)])
    stage = TokenizeText(tokenizer(), source=text_source(config, 10))
    encode = TextEncoder.encode

    def fail_at_one(self, texts):
        if "問2" in texts:
            raise TypeError("no text")
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", fail_at_one)
    (unit,) = stage.source.units()
    outcome = check_outcome(stage, 4, stage.open()(unit_table([unit])))
    assert outcome.kept.num_rows == 3
    ((key, (reason, _)),) = quarantined(outcome).items()
    line = path.read_bytes().splitlines(keepends=True)
    assert (key, reason) == (f"t/a@{sum(map(len, line[:2]))}", "broken_text")
