"""Clips for the tests of the speech stages: real speech, or voiced noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import torch
import torchaudio

from koe.schema import CLIP
from stages.snac.architecture import ARCHITECTURE
from stages.snac.untrained import untrained_model
from tests.real_data import UTTERANCES


def synthetic_speech(num_samples: int, audio_hz: int, seed: int = 0) -> np.ndarray:
    """Return a harmonic voice in syllables over faint noise: float32 [samples], within 1."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(num_samples) / audio_hz
    pitch = 140 + 40 * rng.random() + 25 * np.sin(2 * np.pi * 0.7 * seconds)
    phase = 2 * np.pi * np.cumsum(pitch) / audio_hz
    voice = sum(np.sin(k * phase + rng.random()) / k for k in range(1, 16))
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * seconds + rng.random()), 0, None)
    audio = 0.15 * voice * syllables + 0.003 * rng.standard_normal(num_samples)
    return np.clip(audio, -1, 1).astype(np.float32)


def speech_16k(seconds: float) -> np.ndarray:
    """Return real Japanese speech, cut or repeated to `seconds`: float32 [samples]."""
    return _speech(round(seconds * 16_000), 16_000)


def speech_24k(num_samples: int, begin: int = 12_000) -> np.ndarray:
    """Return real Japanese speech from sample `begin` on: float32 [samples]."""
    return _speech(begin + num_samples, 24_000)[begin:]


def _speech(num_samples: int, audio_hz: int) -> np.ndarray:
    pieces, length = [], 0
    for path in sorted(UTTERANCES.glob("*.flac")):
        if length >= num_samples:
            break
        audio, file_hz = soundfile.read(path, dtype="float32")
        resampled = torchaudio.functional.resample(torch.from_numpy(audio), file_hz, audio_hz)
        pieces.append(resampled.numpy())
        length += len(pieces[-1])
    return np.clip(np.resize(np.concatenate(pieces), num_samples), -1, 1)


def clip_table(folder: Path, audios: dict[str, np.ndarray], audio_hz: int = 24_000) -> pa.Table:
    """Write every clip as FLAC into `folder` and return their CLIP table, in order."""
    rows = []
    for clip_id, audio in audios.items():
        path = folder / f"{clip_id}.flac"
        soundfile.write(path, audio, audio_hz)
        rows.append(clip_row(clip_id, path, len(audio) / audio_hz, audio_hz))
    return pa.Table.from_pylist(rows, schema=CLIP)


def clip_row(clip_id: str, path: Path, seconds: float, audio_hz: int = 24_000) -> dict:
    return {
        "id": clip_id,
        "source": "test",
        "text": "こんにちは",
        "speaker": None,
        "audio_kind": "file",
        "audio_path": str(path),
        "audio_member": "",
        "audio_offset": 0,
        "audio_bytes": path.stat().st_size if path.exists() else 0,
        "start_seconds": 0.0,
        "seconds": seconds,
        "audio_hz": audio_hz,
        "channels": 1,
        "channel": None,
        "source_ovrl": None,
    }


def write_snac_weights(folder: Path) -> Path:
    """Write the untrained weights, whose codes compete, in the published layout."""
    model, _ = untrained_model(0)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(ARCHITECTURE))
    return folder
