"""Encoded audio to samples: headers, decoding, mixing down and resampling."""

from __future__ import annotations

import io
import math
import os
from typing import BinaryIO

import numpy as np

from koe.errors import BadRecord
from stages.audio.containers import scan
from stages.audio.links import AudioHeader
from stages.audio.recording import Recording
from stages.audio.resampling import resampled
from stages.audio.sndfile import Window

# Durations in manifests are rounded, and MP3 encoders pad: a clip may end this much past its file.
SEGMENT_TOLERANCE_SECONDS = 0.1
# Channels whose average is this much smaller than they are hold the same sound in antiphase.
_CANCELLED = 1e-4
# Rates whose ratio has large terms need a resampling kernel of their product: 4 Mi floats, 16 MiB.
_MAX_KERNEL_ENTRIES = 1 << 22


def read_header(
    audio: bytes | BinaryIO, start: int = 0, num_bytes: int | None = None
) -> AudioHeader:
    """Find out what audio holds that is given as bytes or as a byte range of a file.

    The length is the number of samples that `decode` gives. Reads what that takes: the head of a
    WAV file, head and tail of a FLAC file, all of an MP3 or Ogg file.

    Raises: BadRecord with reason empty_audio, unreadable_audio, truncated_audio, mixed_format or
    length_mismatch; whatever reading `audio` raises.
    """
    file = io.BytesIO(audio) if isinstance(audio, bytes) else audio
    if num_bytes is None:
        num_bytes = file.seek(0, os.SEEK_END) - start
    return scan(Window(file, start, num_bytes), num_bytes).header


def decode(
    audio: bytes | Recording,
    start_seconds: float = 0.0,
    clip_seconds: float | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a clip: one channel, counted from 0, or the average of all.

    Returns float32 [samples] and their rate audio_hz. `clip_seconds` None means up to the end.

    Raises: BadRecord as `read_header` does, and with reason chained_stream, bad_segment,
    bad_channel, nonfinite_audio, opposite_channels or all_zero_audio.
    """
    recording = Recording(audio) if isinstance(audio, bytes) else audio
    header = recording.header
    start, num_frames = segment_frames(header, start_seconds, clip_seconds)
    require_channel(header, channel)
    return check(_mono(recording.read(start, num_frames), channel)), header.audio_hz


def require_channel(header: AudioHeader, channel: int | None) -> None:
    """Raise BadRecord with reason bad_channel where the audio lacks the channel asked for."""
    if channel is not None and not 0 <= channel < header.channels:
        detail = f"channel {channel} of audio whose channels are 0 to {header.channels - 1}"
        raise BadRecord(
            "bad_channel", detail if header.channels > 1 else f"channel {channel} of mono audio"
        )


def _mono(samples: np.ndarray, channel: int | None) -> np.ndarray:
    """Reduce float32 [samples, channels] to the channel asked for, or to their average."""
    num_channels = samples.shape[1]
    if channel is not None or num_channels == 1:
        return np.ascontiguousarray(samples[:, channel or 0])
    audio = samples.mean(axis=1)
    peak, left = float(np.abs(samples).max()), float(np.abs(audio).max())
    if 0 < peak < math.inf and left <= _CANCELLED * peak:
        raise BadRecord(
            "opposite_channels",
            f"the {num_channels} channels cancel each other out (their peak is {peak:.3g}, that of "
            f"their average {left:.3g}): fields.channel takes one of them",
        )
    return audio


def segment_frames(
    header: AudioHeader, start_seconds: float, clip_seconds: float | None
) -> tuple[int, int]:
    """Return where a clip lies in its audio: first sample and number of samples, cut at the end.

    Raises: BadRecord with reason bad_segment when it is empty or lies outside.
    """
    stop_seconds = header.seconds if clip_seconds is None else start_seconds + clip_seconds
    latest = header.seconds + SEGMENT_TOLERANCE_SECONDS
    if not (0 <= start_seconds < header.seconds and start_seconds < stop_seconds <= latest):
        raise BadRecord(
            "bad_segment",
            f"{start_seconds} s to {stop_seconds} s of {header.seconds:.3f} s of audio",
        )
    start = round(start_seconds * header.audio_hz)
    length = math.inf if clip_seconds is None else round(clip_seconds * header.audio_hz)
    num_frames = int(min(length, header.num_frames - start))
    if num_frames < 1:
        raise BadRecord("bad_segment", f"{clip_seconds} s hold no sample")
    return start, num_frames


def check(audio: np.ndarray) -> np.ndarray:
    """Return `audio`, float32 [samples], if it can be a clip.

    Raises: BadRecord with reason empty_audio, nonfinite_audio or all_zero_audio.
    """
    if audio.size == 0:
        raise BadRecord("empty_audio", "no samples")
    if not np.isfinite(audio).all():
        raise BadRecord("nonfinite_audio", f"{int((~np.isfinite(audio)).sum())} samples")
    if not audio.any():
        raise BadRecord("all_zero_audio", f"{audio.size} samples")
    return audio


def resample(audio: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resample float32 [samples] with torchaudio's default windowed sinc.

    Raises: BadRecord with reason unsupported_rate when the ratio of the rates has terms so large
    that the kernel would fill the memory.
    """
    if from_hz == to_hz:
        return audio
    divisor = math.gcd(from_hz, to_hz)
    if (from_hz // divisor) * (to_hz // divisor) > _MAX_KERNEL_ENTRIES:
        raise BadRecord("unsupported_rate", f"{from_hz} Hz to {to_hz} Hz")
    return resampled(audio, from_hz // divisor, to_hz // divisor)
