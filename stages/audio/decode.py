"""Encoded audio to samples: headers, decoding, mixing down and resampling."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, cast

import numpy as np
import soundfile
import torch
import torchaudio

from koe.errors import BadRecord
from stages.audio.containers import inspect, repair

# Durations in manifests are rounded, and MP3 encoders pad: a clip may end this much past its file.
SEGMENT_TOLERANCE_SECONDS = 0.1
# An MP3 header may count the encoder's delay that decoders drop; one MPEG frame is 1152 samples.
_MP3_TOLERANCE_FRAMES = 2 * 1152
# Opus decoders settle after a seek: RFC 7845 asks for 80 ms, and libsndfile needs more (measured:
# up to 0.0076 of full scale off without, at most 0.0024 and mostly nothing with 1 s).
_OPUS_SETTLE_SECONDS = 1.0
# Rates whose ratio has large terms need a resampling kernel of their product: 4 Mi floats, 16 MiB.
_MAX_KERNEL_ENTRIES = 1 << 22


@dataclass(frozen=True)
class AudioHeader:
    """What the header of an audio file states; `num_frames` counts the samples of each channel."""

    num_frames: int
    audio_hz: int
    channels: int
    format: str

    @property
    def seconds(self) -> float:
        return self.num_frames / self.audio_hz


class _Window:
    """A byte range of a file as a file; it remembers the exception that libsndfile swallows."""

    def __init__(self, file: BinaryIO, start: int, num_bytes: int) -> None:
        self._file, self._start, self._size, self._place = file, start, num_bytes, 0
        self.in_libsndfile = False
        self.error: Exception | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, num_bytes: int = -1, /) -> bytes:
        left = max(0, self._size - self._place)
        wanted = left if num_bytes < 0 else min(num_bytes, left)
        if self.error is not None or wanted == 0:
            return b""
        try:
            self._file.seek(self._start + self._place)
            data = self._file.read(wanted)
        except Exception as error:
            if not self.in_libsndfile:
                raise
            self.error = error  # raised by `raise_error` once libsndfile has returned
            return b""
        self._place += len(data)
        return data

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error


def read_header(
    audio: bytes | BinaryIO, start: int = 0, num_bytes: int | None = None
) -> AudioHeader:
    """Read the header of audio given as bytes or as a byte range of a file.

    Reads only what the format needs: the head, and the tail of an Ogg file too. A length that
    the header claims but the container visibly lacks is refused here already.

    Raises: BadRecord with reason empty_audio, unreadable_audio or truncated_audio; whatever
    reading `audio` raises.
    """
    file = io.BytesIO(audio) if isinstance(audio, bytes) else audio
    if num_bytes is None:
        num_bytes = file.seek(0, os.SEEK_END) - start
    with _open(_Window(file, start, num_bytes), num_bytes) as opened:
        return _header(opened)


def decode(
    data: bytes,
    start_seconds: float = 0.0,
    clip_seconds: float | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a clip: one channel, counted from 0, or the average of all.

    Returns float32 [samples] and their rate audio_hz. `clip_seconds` None means up to the end.

    Raises: BadRecord with reason empty_audio, unreadable_audio, truncated_audio, bad_segment,
    bad_channel, nonfinite_audio, opposite_channels or all_zero_audio.
    """
    with _open(_Window(io.BytesIO(data), 0, len(data)), len(data)) as opened:
        header = _header(opened)
        start, num_frames = segment_frames(header, start_seconds, clip_seconds)
        require_channel(header, channel)
        samples = _read_frames(opened, start, num_frames)
    return check(_mono(samples, channel)), header.audio_hz


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
    if samples.any() and not audio.any():
        raise BadRecord(
            "opposite_channels",
            f"the {num_channels} channels cancel each other out: fields.channel takes one of them",
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
    with torch.inference_mode():
        return _resampler(from_hz, to_hz)(torch.from_numpy(audio)).numpy()


_resampler = lru_cache(maxsize=32)(torchaudio.transforms.Resample)


def _open(window: _Window, num_bytes: int) -> soundfile.SoundFile:
    if num_bytes == 0:
        raise BadRecord("empty_audio", "no bytes")
    try:
        if inspect(window, num_bytes):
            window.seek(0)
            repaired = repair(window.read())
            window = _Window(io.BytesIO(repaired), 0, len(repaired))
        window.seek(0)
        window.in_libsndfile = True
        opened = soundfile.SoundFile(cast(BinaryIO, window))
    except soundfile.LibsndfileError as error:
        window.raise_error()
        detail = error.error_string.strip().rstrip(":") or f"libsndfile error {error.code}"
        raise BadRecord("unreadable_audio", detail.split(" <", 1)[0]) from None
    window.raise_error()
    return opened


def _header(opened: soundfile.SoundFile) -> AudioHeader:
    if opened.frames == 0:
        raise BadRecord("empty_audio", "no samples")
    name = opened.subtype if opened.format == "OGG" else opened.format
    return AudioHeader(opened.frames, opened.samplerate, opened.channels, name)


def _read_frames(opened: soundfile.SoundFile, start: int, num_frames: int) -> np.ndarray:
    """Read float32 [num_frames, channels] from sample `start`, all of it or an error."""
    settle = int(_OPUS_SETTLE_SECONDS * opened.samplerate) if opened.subtype == "OPUS" else 0
    settle = min(start, settle)
    try:
        if start:
            opened.seek(start - settle)
        samples = opened.read(settle + num_frames, dtype="float32", always_2d=True)[settle:]
    except soundfile.LibsndfileError as error:
        # libsndfile calls a FLAC frame that it cannot decode an internal error.
        reason = "truncated_audio" if opened.format == "FLAC" else "unreadable_audio"
        raise BadRecord(reason, f"decoding stopped: {error.error_string or error.code}") from None
    missing = num_frames - len(samples)
    if missing > (_MP3_TOLERANCE_FRAMES if opened.format == "MP3" else 0) or len(samples) == 0:
        raise BadRecord("truncated_audio", f"{len(samples)} of {num_frames} samples")
    return samples
