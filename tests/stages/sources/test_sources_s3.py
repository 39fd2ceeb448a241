"""Sources on S3: an object that is missing costs its clip, a store that fails stops the run and says so."""

from __future__ import annotations

import itertools
import json

import fsspec
import pytest

from koe.errors import StorageError
from koe.schema import unit_table
from stages.clips import load_clips
from stages.ingest import IngestStage
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.audio_files import clip

pytestmark = pytest.mark.slow
NUMBERS = itertools.count()
WAV = clip(0.2, kind="wav")


@pytest.fixture
def source(s3):
    """Put a manifest of five clips into a bucket of its own; the third is not there."""
    bucket = s3.make_bucket(f"clips-{next(NUMBERS)}")
    fs, _ = fsspec.core.url_to_fs(bucket)
    folder = f"{bucket}/set"
    for number in (0, 1, 3, 4):
        fs.pipe_file(f"{folder}/{number}.wav", WAV)
    lines = [json.dumps({"audio_filepath": f"{n}.wav", "text": "文"}) for n in range(5)]
    fs.pipe_file(f"{folder}/m.jsonl", "\n".join(lines).encode())
    yield speech_source(
        SpeechSourceConfig(name="s", kind="manifest", paths=[f"{folder}/m.jsonl"]), 10
    )
    s3.fail()


def ingest(source, units):
    return IngestStage((source,)).open()(unit_table(units))


def test_a_missing_object_costs_its_clip(source):
    outcome = ingest(source, list(source.units()))
    assert outcome.kept.num_rows == 4, outcome.quarantined.to_pylist()
    ((reason, detail),) = [(r["reason"], r["detail"]) for r in outcome.quarantined.to_pylist()]
    assert reason == "missing_audio"
    assert "2.wav" in detail


def test_requests_that_are_refused_now_and_then_are_repeated(source, s3):
    units = list(source.units())
    s3.fail(share=0.2, seed=3)
    outcome = ingest(source, units)
    assert outcome.kept.num_rows == 4
    assert all(not isinstance(audio, Exception) for audio in load_clips(outcome.kept, 16_000))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"kind": "error"}, "refuses requests for now"),
        ({"kind": "stall", "seconds": 5}, "did not answer in time"),
    ],
)
def test_a_store_that_fails_stops_the_run_with_its_remedy(source, s3, fault, why, monkeypatch):
    units = list(source.units())
    be_quick(monkeypatch)
    s3.fail(share=1, contains=".wav", **fault)
    with pytest.raises(StorageError, match=why) as caught:
        ingest(source, units)
    assert "it resumes" in str(caught.value)


def test_a_store_that_fails_while_clips_are_decoded_stops_the_run(source, s3, monkeypatch):
    kept = ingest(source, list(source.units())).kept
    be_quick(monkeypatch)
    s3.fail(share=1, contains=".wav")
    with pytest.raises(StorageError, match="refuses requests for now"):
        list(load_clips(kept, 16_000))


def be_quick(monkeypatch):
    """Give up after a second instead of minutes."""
    quick = {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setattr("koe.remote._S3_CONFIG", quick)
    monkeypatch.setattr("koe.remote._S3_TRIES", 1)
