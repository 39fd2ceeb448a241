"""Manifests whose fields are named, counted or measured in other ways than usual."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import BadRecord, attempt
from koe.schema import unit_table
from koe.stage import Outcome, check_outcome
from stages.audio.decode import AudioHeader, decode
from stages.clips import load_clips
from stages.ingest import IngestStage, clip_range
from stages.sources.json_files.manifest import segment_name
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechFields, SpeechSourceConfig
from tests.real_data import REPORTS, WORDS
from tests.stages.audio_files import clip, encoded, tone, write_lines

HZ = 16_000
LONG = 4.703  # seconds of u0.flac
ENDS = SpeechFields(end_seconds="end", channel="channel")


def ingest(path: Path, kind: str = "manifest", **fields: str) -> Outcome:
    """Run ingest on the one unit of a file."""
    config = SpeechSourceConfig(name="s", kind=kind, paths=[str(path)], fields=fields)
    source = speech_source(config, 1000)
    (unit,) = source.units()
    stage = IngestStage((source,))
    return check_outcome(stage, unit.records, stage.open()(unit_table([unit])))


def reported(tmp_path: Path, name: str) -> Path:
    """Put a reported manifest beside the recordings that it names."""
    for number, word in enumerate(sorted(WORDS.glob("*.mp3"))):
        shutil.copy(word, tmp_path / f"w{number}.mp3")
    (tmp_path / "u0.flac").write_bytes(clip(LONG, 24_000))
    return Path(shutil.copy(REPORTS / name, tmp_path))


def sound(outcome: Outcome) -> list[np.ndarray]:
    """Return the audio of all clips that were kept, float32 [samples] at 16 kHz."""
    return [audio for audio in load_clips(outcome.kept, HZ) if isinstance(audio, np.ndarray)]


def refused(outcome: Outcome) -> list[tuple[str, str]]:
    return [(row["reason"], row["detail"]) for row in outcome.quarantined.to_pylist()]


def stereo(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write two voices, one in each channel, and return both: float32 [samples] at 16 kHz."""
    left, right = tone(1.0, HZ, 220.0), tone(1.0, HZ, 311.0)
    path.write_bytes(encoded(np.stack([left, right], axis=1), HZ, "float.wav"))
    return left, right


def test_a_field_names_the_channel_of_a_clip(tmp_path):
    left, right = stereo(tmp_path / "st.wav")
    path = reported(tmp_path, "D/d12_channel.jsonl")
    mixed, chosen = sound(ingest(path, channel="channel"))
    np.testing.assert_allclose(mixed, (left + right) / 2, atol=1e-6)
    np.testing.assert_array_equal(chosen, right[2:])  # from 0.0001 s
    chosen, mixed = sound(ingest(path, channel="channel_selector"))
    np.testing.assert_array_equal(chosen, left)
    np.testing.assert_allclose(mixed, (left + right)[2:] / 2, atol=1e-6)


def test_channels_of_one_recording_are_clips_of_their_own(tmp_path):
    stereo(tmp_path / "st.wav")
    record = {"audio_filepath": "st.wav", "text": "文"}
    told = [0, 1, "1", 1.0, None, "average", 2, -1, [0, 1], "left", 0.5, True]
    records = [record | {"channel": channel} for channel in told]
    outcome = ingest(write_lines(tmp_path / "m.jsonl", records), channel="channel")
    kept = outcome.kept.select(["id", "channel"]).to_pylist()
    assert [tuple(row.values()) for row in kept] == [
        *(("s/st.wav#0", 0), ("s/st.wav#1", 1), ("s/st.wav#1.0", 1)),
        *(("s/st.wav", None), ("s/st.wav#average", None)),
    ]
    assert refused(outcome) == [
        ("duplicate_id", "an earlier record of the unit has this id"),
        ("bad_channel", "channel 2 of audio whose channels are 0 to 1"),
        ("bad_channel", "channel -1 of audio whose channels are 0 to 1"),
        *(
            ("bad_channel", f"field 'channel' holds {value!r}, expected one number counted from 0")
            for value in ([0, 1], "left", 0.5, True)
        ),
    ]


@pytest.mark.law
@given(st.integers(1, 4), st.data())
@settings(max_examples=30, deadline=None)
def test_a_channel_sounds_like_a_file_that_holds_it_alone(num_channels, data):
    voices = [tone(0.3, HZ, 200.0 + 40 * number) for number in range(num_channels)]
    kind = data.draw(st.sampled_from(["wav", "float.wav", "flac"]))
    together = encoded(np.stack(voices, axis=1), HZ, kind)
    channel = data.draw(st.integers(0, num_channels - 1))
    start, seconds = data.draw(st.sampled_from([(0.0, None), (0.1, None), (0.1, 0.05)]))
    alone, _ = decode(encoded(voices[channel], HZ, kind), start, seconds)
    np.testing.assert_array_equal(decode(together, start, seconds, channel)[0], alone)
    with pytest.raises(BadRecord, match="bad_channel"):
        decode(together, start, seconds, num_channels)


def test_opposite_channels_are_not_called_zero(tmp_path):
    voice = tone(0.5, HZ)
    data = encoded(np.stack([voice, -voice], axis=1), HZ, "float.wav")
    with pytest.raises(BadRecord, match="opposite_channels: the 2 channels cancel each other out"):
        decode(data)
    np.testing.assert_array_equal(decode(data, channel=1)[0], -voice)


def summary(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Map the id of each clip that was kept to its start and length in seconds."""
    rows = outcome.kept.select(["id", "start_seconds", "seconds"]).to_pylist()
    return {row["id"].removeprefix("s/"): (row["start_seconds"], row["seconds"]) for row in rows}


def test_segments_that_end_after_their_file(tmp_path):
    outcome = ingest(reported(tmp_path, "D/d01_over.jsonl"))
    assert summary(outcome) == {
        "u0.flac@0+4.75": (0.0, LONG),
        "u0.flac@4.0+0.703": (4.0, 0.703),
        "u0.flac@4.69+0.1": (4.69, 0.013),
    }
    assert [reason for reason, _ in refused(outcome)] == ["bad_segment"] * 5
    outcome = ingest(reported(tmp_path, "D/d14_over.jsonl"))
    assert summary(outcome) == {"u0.flac@0+4.75": (0.0, LONG), "u0.flac@4.0+0.8": (4.0, 0.703)}
    assert [reason for reason, _ in refused(outcome)] == ["bad_segment"] * 4


def test_numbers_as_text_and_as_no_number(tmp_path):
    outcome = ingest(reported(tmp_path, "D/d02_numbers.jsonl"))
    assert summary(outcome) == {
        "u0.flac@1.5+2.0": (1.5, 2.0),
        "u0.flac@0.5": (0.5, LONG - 0.5),
        "u0.flac": (0.0, LONG),
    }
    no_number = "which is not a number of seconds"
    assert refused(outcome) == [
        ("bad_segment", f"field 'offset' holds nan, {no_number}"),
        ("bad_segment", f"field 'duration' holds nan, {no_number}"),
        ("bad_segment", f"field 'offset' holds '00:00:01.5', {no_number}"),
        ("bad_segment", "0.25 s to -0.75 s of 4.703 s of audio"),
        ("bad_segment", f"field 'offset' holds True, {no_number}"),
    ]


def test_lines_that_are_not_json_lines(tmp_path):
    assert len(summary(ingest(reported(tmp_path, "D/d03_bom_crlf.jsonl")))) == 4
    for name, why in {
        "D/d04_utf16.jsonl": "as text in UTF-16 does: save the file as UTF-8",
        "D/d05_cr_only.jsonl": "holds a carriage return: end the lines of the file with a line feed",
        "D/d07_array.jsonl": "expected an object, found a list",
        "D/d08_pretty.jsonl": "holds a part of an object: write each object on one line",
    }.items():
        outcome = ingest(reported(tmp_path, name))
        assert outcome.kept.num_rows == 0
        reason, detail = refused(outcome)[0]
        assert (reason, detail[-len(why) :]) == ("broken_json", why)


def test_paths_are_taken_as_they_stand(tmp_path):
    path = reported(tmp_path, "D/d06_paths.jsonl")
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:10]))  # without URLs
    (tmp_path / "\u30ab\u3099行.mp3").write_bytes((tmp_path / "w0.mp3").read_bytes())
    outcome = ingest(path)
    assert set(summary(outcome)) == {"./w3.mp3", "\u30ab\u3099行.mp3"}
    reasons = [reason for reason, _ in refused(outcome)]
    assert (reasons.count("missing_audio"), reasons.count("outside_path")) == (7, 1)


def test_a_transcript_that_cannot_be_seen_is_missing(tmp_path):
    outcome = ingest(reported(tmp_path, "D/d10_text.jsonl"))
    assert outcome.kept["text"].to_pylist() == ["a\x00b", "文\x07\x1b[0m"]
    assert refused(outcome) == [
        ("missing_transcript", f"field 'text' holds {value!r}")
        for value in (None, 123, ["文"], "", "\u3000", "\u200b\ufeff")
    ]
    outcome = ingest(reported(tmp_path, "D/d11_text2.jsonl"))
    assert outcome.kept.num_rows == 6
    assert [reason for reason, _ in refused(outcome)] == ["broken_json", "broken_json"]


def test_a_field_names_the_end_of_a_clip(tmp_path):
    path = reported(tmp_path, "D/d13_start_end.jsonl")
    assert summary(ingest(path, start_seconds="start", end_seconds="end")) == {
        "u0.flac@0.0-1.0": (0.0, 1.0),
        "u0.flac@1.0-2.5": (1.0, 1.5),
        "u0.flac@2.5-4.0": (2.5, 1.5),
    }


def test_start_and_length_make_the_id(tmp_path):
    outcome = ingest(reported(tmp_path, "D/d15_same_start.jsonl"))
    assert summary(outcome) == {"u0.flac@0+1.0": (0.0, 1.0), "u0.flac@0+2.0": (0.0, 2.0)}


@pytest.mark.parametrize(
    ("segment", "found"),
    [
        ({"end": 2}, (0.0, 2.0)),
        ({"start": 1, "end": 2}, (1.0, 1.0)),
        ({"start": 1, "end": "2", "duration": 1.05}, (1.0, 1.0)),
        ({"start": 1, "end": None, "duration": 2}, (1.0, 2.0)),
        ({"start": 4, "end": 4.75}, (4.0, 0.703)),
        ({"start": 1, "end": 1}, "it ends at 1.0 s and starts at 1.0 s"),
        ({"start": 2, "end": 1}, "it ends at 1.0 s and starts at 2.0 s"),
        ({"start": 2, "end": 3, "duration": 1.2}, "its length is said to be 1.2 s"),
        ({"start": 2, "end": 9}, "2.0 s to 9.0 s of 4.703 s of audio"),
        ({"start": 2, "end": "three"}, "field 'end' holds 'three', which is not a number of"),
        ({"start": 2, "end": float("nan")}, "field 'end' holds nan, which is not a number of"),
    ],
)
def test_start_length_and_end_agree_or_are_named(tmp_path, segment, found):
    (tmp_path / "u0.flac").write_bytes(clip(LONG, 24_000))
    record = {"audio_filepath": "u0.flac", "text": "文", **segment}
    path = write_lines(tmp_path / "m.jsonl", [record])
    outcome = ingest(path, start_seconds="start", end_seconds="end")
    if isinstance(found, str):
        ((reason, detail),) = refused(outcome)
        assert reason == "bad_segment"
        assert found in detail
    else:
        assert list(summary(outcome).values()) == [found]


@pytest.mark.law
@given(st.integers(1, 10**5), st.integers(1, 10**6), st.sampled_from([8000, 22_050, 44_100]))
@settings(deadline=None)
def test_an_end_says_the_same_as_a_length(start, length, audio_hz):
    start_seconds, seconds = start / 10**4, length / 10**4
    header = AudioHeader(200 * audio_hz, audio_hz, 1, "WAV")
    end = (start + length) / 10**4
    assert clip_range({"offset": start_seconds, "duration": seconds}, ENDS, header) == clip_range(
        {"offset": start_seconds, "end": end}, ENDS, header
    )


@pytest.mark.law
@given(st.lists(st.tuples(*[st.sampled_from([None, 0.0, 0.5, 1.0])] * 4), unique=True))
@settings(deadline=None)
def test_clips_that_differ_have_names_that_differ(segments):
    records = [
        dict(zip(("offset", "end", "duration", "channel"), s, strict=True)) for s in segments
    ]
    header = AudioHeader(10 * HZ, HZ, 2, "WAV")
    clips = {}
    for record in records:
        found = attempt(clip_range, record, ENDS, header)
        if not isinstance(found, BadRecord):
            part = (*found, record["channel"])
            assert clips.setdefault(segment_name(record, ENDS), part) == part
