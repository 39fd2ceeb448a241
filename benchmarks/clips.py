"""Real clips for the benchmarks: the demo's recordings, or those of the folder that `--data` names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile

from koe.errors import ConfigError
from koe.schema import CLIP
from stages.audio.decode import resample
from stages.clips import load_file

PACKAGED = Path(str(resources.files("pipeline.demo"))) / "data" / "speech"
_EXTENSIONS = {".flac", ".mp3", ".ogg", ".opus", ".wav"}
# Of the lengths in seconds: a mean of 5 s, as in corpora of read and spontaneous Japanese.
_LOG_MEAN, _LOG_DEVIATION = np.log(5.0) - 0.55**2 / 2, 0.55


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, the folder of the recordings."""
    parser.add_argument(
        "--data",
        type=Path,
        default=PACKAGED,
        help="folder of recordings, searched with its subfolders; default: those of the demo",
    )


def recordings(data: Path) -> list[Path]:
    """Return the audio files below a folder, sorted.

    Raises: ConfigError when there are none.
    """
    found = sorted(path for path in data.rglob("*") if path.suffix.lower() in _EXTENSIONS)
    if not found:
        why = "it holds no flac, mp3, ogg, opus or wav" if data.is_dir() else "it is not a folder"
        raise ConfigError(
            f"there are no recordings in {data}",
            why,
            "Name a folder of recordings with --data, or leave it out for the demo's.",
        )
    return found


def clip_lengths(num_clips: int, seed: int = 0) -> np.ndarray:
    """Draw lengths in seconds, float64 [clips], between 0.5 and 30."""
    drawn = np.random.default_rng(seed).lognormal(_LOG_MEAN, _LOG_DEVIATION, num_clips)
    return drawn.clip(0.5, 30.0)


def real_clips(num_clips: int, audio_hz: int, data: Path, seed: int = 0) -> list[np.ndarray]:
    """Cut clips out of the recordings in `data`: float32 [samples] each, mono, within 1.

    Every third clip gets noise, so that scores lie on both sides of a threshold.
    Raises: ConfigError when there are no recordings.
    """
    rng = np.random.default_rng(seed)
    files = recordings(data)[: 4 * num_clips]
    stream = np.concatenate([load_file(str(path), audio_hz)[0] for path in files])
    clips = []
    for number, seconds in enumerate(clip_lengths(num_clips, seed)):
        length = int(seconds * audio_hz)
        start = int(rng.integers(0, max(1, len(stream) - length)))
        clip = np.resize(stream[start : start + length], length)
        if number % 3 == 0:
            clip = clip + rng.normal(0, 10 ** rng.uniform(-3, -1.3), length).astype(np.float32)
        clips.append(np.clip(clip, -1, 1))
    return clips


def flac_files(folder: Path, audios: Sequence[np.ndarray], from_hz: int, audio_hz: int) -> pa.Table:
    """Write float32 [samples] at `from_hz` as FLAC of `audio_hz`; return their rows of CLIP."""
    rows = []
    for number, audio in enumerate(audios):
        path = folder / f"{number}.flac"
        soundfile.write(path, resample(audio, from_hz, audio_hz).clip(-1, 1), audio_hz)
        rows.append(
            {
                **dict.fromkeys(CLIP.names),
                **dict.fromkeys(("text", "audio_member"), ""),
                "id": path.name,
                "source": "benchmark",
                "audio_kind": "file",
                "audio_path": str(path),
                "audio_offset": 0,
                "audio_bytes": path.stat().st_size,
                "start_seconds": 0.0,
                "seconds": soundfile.info(path).duration,
                "audio_hz": audio_hz,
                "channels": 1,
            }
        )
    return pa.Table.from_pylist(rows, schema=CLIP)
