"""Audio, tars and corpora for tests, written as real files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "ogg": ("OGG", "VORBIS"),
}


def tone(seconds: float, audio_hz: int, hertz: float = 220.0) -> np.ndarray:
    """Make float32 [samples]: a wavering tone in soft noise, different at every place."""
    at = np.arange(round(seconds * audio_hz)) / audio_hz
    noise = np.random.default_rng(round(hertz)).standard_normal(at.size)
    wave = 0.4 * np.sin(2 * np.pi * hertz * at) * (1 + 0.3 * np.sin(2 * np.pi * 3 * at))
    return (wave + 0.02 * noise).astype(np.float32)


def encoded(audio: np.ndarray, audio_hz: int, kind: str = "wav") -> bytes:
    """Encode float32 [samples] or [samples, channels] as one of FORMATS."""
    container, subtype = FORMATS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, audio_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def clip(seconds: float = 0.5, audio_hz: int = 16_000, kind: str = "flac") -> bytes:
    return encoded(tone(seconds, audio_hz), audio_hz, kind)


def sample(key: str, seconds: float = 0.5, **fields: Any) -> list[tuple[str, bytes]]:
    """Make the members of one WebDataset sample in Emilia's layout."""
    values = {"_id": key, "text": f"文 {key}", "speaker": "S1", "dnsmos": 3.25, **fields}
    return [
        (f"{key}.json", json.dumps(values, ensure_ascii=False).encode()),
        (f"{key}.flac", clip(seconds)),
    ]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> list[tarfile.TarInfo]:
    """Write a tar and return its members with their places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return tar.getmembers()


def write_lines(path: Path, records: list[Any]) -> Path:
    """Write JSON lines; a string or bytes goes out as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        record
        if isinstance(record, bytes)
        else (
            record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)
        ).encode()
        for record in records
    ]
    path.write_bytes(b"\n".join(parts) + b"\n")
    return path
