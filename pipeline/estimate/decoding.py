"""What must be done on cores for clips before a model sees them: read, decode and resample."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.estimate.timed import Clock
from stages.clips import load_clips
from stages.encode import EncodeStage
from stages.score import ScoreStage

S = TypeVar("S", ScoreStage, EncodeStage)

_CLIPS = 40  # tell what a second of audio costs: clips of one source are encoded alike


def decode_seconds(clips: pa.Table, audio_hz: int, index_folder: str, cpu_clock: Clock) -> float:
    """Decode some of the clips in one thread; return the seconds of a core that all of them take.

    `cpu_clock` counts the seconds of cores that this process uses.
    """
    if not clips.num_rows:
        return 0.0
    places = np.unique(np.linspace(0, clips.num_rows - 1, _CLIPS).astype(int))
    some = clips.take(pa.array(places))
    started = cpu_clock()
    for _ in load_clips(some, audio_hz, 1, index_folder):
        pass
    took = cpu_clock() - started
    return (
        took
        * float(np.sum(clips["seconds"].to_numpy()))
        / float(np.sum(some["seconds"].to_numpy()))
    )


def audio_bytes(clips: pa.Table) -> float:
    """Count the encoded bytes of clips; those of a recording with several of them once."""
    names = ("audio_path", "audio_member", "audio_offset", "audio_bytes")
    rows = zip(*(clips[name].to_pylist() for name in names), strict=True)
    recordings = {(path, member, offset): size for path, member, offset, size in rows}
    return float(sum(recordings.values()))


def fed(stage: S) -> S:
    """Return a stage whose GPU is fed by all cores of this machine, so that it shows its own speed."""
    if not stage.resources.gpus:
        return stage
    cpus = {"cpus_per_worker": float(os.cpu_count() or 1)}
    return replace(stage, settings=stage.settings.model_copy(update=cpus))
