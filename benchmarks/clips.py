"""Real clips of a log-normal mix of lengths, the same for every benchmark of a stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from stages.audio.decode import resample

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
# Of the lengths in seconds: a mean of 5 s, as in corpora of read and spontaneous Japanese.
_LOG_MEAN, _LOG_DEVIATION = np.log(5.0) - 0.55**2 / 2, 0.55


def clip_lengths(num_clips: int, seed: int = 0) -> np.ndarray:
    """Draw lengths in seconds, float64 [clips], between 0.5 and 30."""
    drawn = np.random.default_rng(seed).lognormal(_LOG_MEAN, _LOG_DEVIATION, num_clips)
    return drawn.clip(0.5, 30.0)


def real_clips(num_clips: int, audio_hz: int, data: Path = DATA, seed: int = 0) -> list[np.ndarray]:
    """Cut clips out of the recordings under `data`: float32 [samples] each, mono, within 1.

    Every third clip gets noise, so that scores lie on both sides of a threshold.
    Raises: FileNotFoundError when there are no recordings.
    """
    files = sorted((data / "ja_speech/utterances").glob("*.flac"))
    if not files:
        raise FileNotFoundError(f"no recordings under {data}; name their folder with --data")
    rng = np.random.default_rng(seed)
    stream = np.concatenate([_read(path, audio_hz) for path in files[: 4 * num_clips]])
    clips = []
    for number, seconds in enumerate(clip_lengths(num_clips, seed)):
        length = int(seconds * audio_hz)
        start = int(rng.integers(0, max(1, len(stream) - length)))
        clip = np.resize(stream[start : start + length], length)
        if number % 3 == 0:
            clip = clip + rng.normal(0, 10 ** rng.uniform(-3, -1.3), length).astype(np.float32)
        clips.append(np.clip(clip, -1, 1))
    return clips


def _read(path: Path, audio_hz: int) -> np.ndarray:
    audio, from_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return resample(np.ascontiguousarray(audio.mean(axis=1)), from_hz, audio_hz)
