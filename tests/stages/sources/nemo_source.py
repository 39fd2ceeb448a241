"""Sources of NeMo's tarred sets, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from stages.sources.readers import speech_source
from stages.sources.settings import SpeechSourceConfig
from tests.stages.sources.reading import ingested, waves
from tests.stages.speech import synthetic_speech

AUDIO_HZ = 16_000


def source_of(*paths, unit_records=4, **settings):
    values = {
        "name": "s",
        "kind": "nemo_tarred",
        "paths": [str(path) for path in paths],
        **settings,
    }
    return speech_source(SpeechSourceConfig(**values), unit_records)


def recordings(folder: Path, num_files: int = 4, num_parts: int = 3) -> list[dict]:
    """Write recordings of 3 s, and describe parts of each as a NeMo manifest does."""
    entries = []
    for number in range(num_files):
        path = folder / f"tv.{number}/録音_{number}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, synthetic_speech(3 * AUDIO_HZ, AUDIO_HZ, seed=number), AUDIO_HZ)
        for part in range(num_parts):
            entries.append(
                {
                    "audio_filepath": str(path),
                    "offset": part * 0.9,
                    "duration": 0.75 + part / 100,
                    "text": f"文{number}の{part}。",
                    "speaker": f"話者{number}",
                }
            )
    return entries


def texts_of(source) -> dict[str, np.ndarray]:
    kept, left = ingested(source)
    assert not left
    found = {kept[key]["text"]: wave for key, wave in waves(source).items()}
    assert len(found) == len(kept)
    return found
