"""Manifests whose fields are named, counted or measured in other ways than usual."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koe.errors import BadRecord
from koe.schema import unit_table
from koe.stage import Outcome, check_outcome
from stages.audio.decode import decode
from stages.clips import load_clips
from stages.ingest import IngestStage
from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.real_data import REPORTS, UTTERANCES, WORDS
from tests.stages.audio_files import encoded, tone, write_lines

HZ = 16_000


def ingest(path: Path, kind: str = "manifest", **fields: str) -> Outcome:
    """Run ingest on the one unit of a file."""
    config = SpeechSourceConfig(name="s", kind=kind, paths=[str(path)], fields=fields)
    source = speech_source(config, 1000)
    (unit,) = source.units()
    stage = IngestStage((source,))
    return check_outcome(stage, unit.num_records, stage.open()(unit_table([unit])))


def reported(tmp_path: Path, name: str) -> Path:
    """Put a reported manifest beside the recordings that it names."""
    for number, word in enumerate(sorted(WORDS.glob("*.mp3"))):
        shutil.copy(word, tmp_path / f"w{number}.mp3")
    shutil.copy(sorted(UTTERANCES.glob("*.flac"))[0], tmp_path / "u0.flac")
    return Path(shutil.copy(REPORTS / name, tmp_path))


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
    mixed, chosen = load_clips(ingest(path, channel="channel").kept, HZ)
    np.testing.assert_allclose(mixed, (left + right) / 2, atol=1e-6)
    np.testing.assert_array_equal(chosen, right[2:])  # from 0.0001 s
    chosen, mixed = load_clips(ingest(path, channel="channel_selector").kept, HZ)
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
