"""Sets of cuts as lhotse writes them, and what lhotse reads back from them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, MultiCut, Recording, SupervisionSegment

from tests.stages.speech import synthetic_speech

AUDIO_HZ = 16_000


def recording(folder: Path, number: int, channels: int = 1, seconds: float = 4.0) -> Recording:
    """Write a recording whose channels differ, and describe it as lhotse does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.wav"
    parts = [
        synthetic_speech(round(seconds * AUDIO_HZ), AUDIO_HZ, seed=10 * number + channel)
        for channel in range(channels)
    ]
    soundfile.write(path, np.stack(parts, axis=1), AUDIO_HZ, subtype="PCM_16")
    return Recording.from_file(path, recording_id=f"r{number}")


def supervision(cut_id: str, number: int, start: float, seconds: float, **other: Any):
    values: dict[str, Any] = {"text": f"文その{number}。", "speaker": f"S{number % 2}", **other}
    return SupervisionSegment(
        id=f"{cut_id}-{number}",
        recording_id="r",
        start=start,
        duration=seconds,
        **{"channel": 0, **values},
    )


def dialogues(folder: Path, num_cuts: int = 5) -> CutSet:
    """Make cuts that begin inside their recordings, each with two supervisions and another's text."""
    cuts = []
    for number in range(num_cuts):
        cut_id = f"podcast/対話.{number}"
        parts = [
            supervision(cut_id, 0, 0.1, 0.75, custom={"written": {"text": f"書き{number}"}}),
            supervision(cut_id, 1, 1.0, 1.5, language="ja"),
        ]
        source = recording(folder, number)
        cuts.append(MonoCut(cut_id, 0.5, 3.0, 0, parts, recording=source, custom={"snr": number}))
    return CutSet.from_cuts(cuts)


def two_channels(folder: Path) -> CutSet:
    """Make a cut of two channels: a supervision on each, and one on both."""
    parts = [
        supervision("stereo", number, number * 0.8, 0.7, channel=channel)
        for number, channel in enumerate((0, 1, [0, 1]))
    ]
    source = recording(folder, 90, channels=2)
    return CutSet.from_cuts([MultiCut("stereo", 0.25, 3.5, [0, 1], parts, recording=source)])


def write_shar(cuts: CutSet, folder: Path, audio: str = "flac", shard_size: int = 2) -> None:
    folder.mkdir(parents=True)
    cuts.to_shar(folder, fields={"recording": audio}, shard_size=shard_size)


def read_shar(folder: Path) -> CutSet:
    """Read a set as lhotse does, which leaves its files to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return CutSet.from_cuts(list(CutSet.from_shar(in_dir=folder)))


def clips_of(cuts: CutSet) -> dict[str, tuple[str | None, str | None, np.ndarray]]:
    """Let lhotse cut out every supervision: text, speaker and float32 [samples], by its id."""
    found = {}
    for cut in cuts.trim_to_supervisions(keep_overlapping=False):
        (own,) = cut.supervisions
        found[own.id] = own.text, own.speaker, cut.load_audio().mean(axis=0)
    return found
