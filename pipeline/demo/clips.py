"""The demo's clips: the packaged recordings, re-encoded in many formats and some of them degraded."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
import soundfile

from pipeline.demo.degrade import DEGRADATIONS
from stages.audio.decode import resample

DATA = resources.files("pipeline.demo") / "data"
# The periods below have no common factor, so that every combination occurs.
_SOURCES = ("manifest", "tar", "manifest", "parquet", "manifest", "folder", "tar", "parquet")
_RATES_HZ = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_DEGRADED_EVERY, _STEREO_EVERY = 3, 11
_CODECS = {
    "manifest": ("flac", "wav"),
    "tar": ("mp3", "flac"),
    "parquet": ("opus", "flac"),
    "folder": ("wav",),
}
_FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}


@dataclass(frozen=True)
class Clip:
    """A clip as it lies in the corpus. `degradation` names one of DEGRADATIONS, or is empty."""

    id: str
    text: str
    source: str
    codec: str
    audio_hz: int
    channels: int
    degradation: str
    seconds: float
    audio: bytes

    @property
    def file_name(self) -> str:
        return f"{self.id}.{self.codec}"

    def manifest_entry(self) -> dict[str, Any]:
        """Return the fields that the demo's manifest and tars state of a clip."""
        return {"id": self.id, "text": self.text, "duration": round(self.seconds, 3)}


def recordings() -> list[dict[str, Any]]:
    """Return the transcripts of the packaged recordings: audio_filepath, text, duration."""
    return list(read_json_lines(DATA / "speech" / "transcripts.jsonl"))


def read_json_lines(path: Traversable) -> Iterator[dict[str, Any]]:
    """Read the objects of a packaged JSONL file."""
    return map(json.loads, path.read_text("utf-8").splitlines())


def make_clips(num_clips: int, seed: int) -> list[Clip]:
    """Make the corpus' good clips from the first `num_clips` recordings."""
    return [
        _make_clip(index, recording, np.random.default_rng([seed, index]))
        for index, recording in enumerate(recordings()[:num_clips])
    ]


def _make_clip(index: int, recording: dict[str, Any], rng: np.random.Generator) -> Clip:
    source = _SOURCES[index % len(_SOURCES)]
    codec = _CODECS[source][index // len(_SOURCES) % len(_CODECS[source])]
    name = recording["audio_filepath"]
    data = (DATA / "speech" / name).read_bytes()
    audio, audio_hz = soundfile.read(io.BytesIO(data), dtype="float32")
    channels, degradation = 1, ""
    # Opus stays as it is: libsndfile draws the serial of an Ogg stream at random, and the same
    # parameters must give the same bytes.
    if codec != "opus":
        to_hz = _RATES_HZ[index % len(_RATES_HZ)]
        audio, audio_hz = resample(audio, audio_hz, to_hz), to_hz
        if index % _DEGRADED_EVERY == _DEGRADED_EVERY - 1:
            degradation = list(DEGRADATIONS)[index // _DEGRADED_EVERY % len(DEGRADATIONS)]
            audio = DEGRADATIONS[degradation](audio, audio_hz, rng)
        audio = audio / max(1.0, float(np.abs(audio).max()) / 0.99)
        if index % _STEREO_EVERY == 1:
            channels = 2  # the voice is a little to the left
            audio = np.stack([audio, audio * 0.7], axis=1)
        data = encode(audio, audio_hz, codec)
    return Clip(
        id=name.partition(".")[0],
        text=recording["text"],
        source=source,
        codec=codec,
        audio_hz=audio_hz,
        channels=channels,
        degradation=degradation,
        seconds=len(audio) / audio_hz,
        audio=data,
    )


def encode(audio: np.ndarray, audio_hz: int, codec: str) -> bytes:
    """Write audio, [samples] or [samples, channels], as wav, flac or mp3."""
    container, subtype = _FORMATS[codec]
    file = io.BytesIO()
    soundfile.write(file, audio, audio_hz, format=container, subtype=subtype)
    return file.getvalue()
