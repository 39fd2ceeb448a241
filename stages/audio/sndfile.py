"""libsndfile on byte ranges and pieces of bytes; whatever it refuses is a bad record."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO, Protocol, cast

import numpy as np
import soundfile

from koe.errors import BadRecord
from stages.audio.links import AudioHeader, Bytes, Cut

_MAX_FRAMES = 1 << 48  # libsndfile gives 2^63 - 1 for a length that it does not know


class Readable(Protocol):
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, num_bytes: int = -1, /) -> bytes: ...


class _Place:
    """The position in a file of `_size` bytes."""

    def __init__(self, size: int) -> None:
        self._size, self._place = size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def _wanted(self, num_bytes: int) -> int:
        left = max(0, self._size - self._place)
        return left if num_bytes < 0 else min(num_bytes, left)


class Window(_Place):
    """A byte range of a file as a file; it remembers the exception that libsndfile swallows."""

    def __init__(self, file: BinaryIO, start: int, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._file, self._start = file, start
        self.in_libsndfile = False
        self.error: Exception | None = None

    def read(self, num_bytes: int = -1, /) -> bytes:
        wanted = self._wanted(num_bytes)
        if self.error is not None or wanted == 0:
            return b""
        try:
            self._file.seek(self._start + self._place)
            data = self._file.read(wanted)
        except Exception as error:
            if not self.in_libsndfile:
                raise
            self.error = error  # raised by `header` once libsndfile has returned
            return b""
        self._place += len(data)
        return data


class Pieces(_Place):
    """Pieces of bytes, one after another, as a file."""

    def __init__(self, pieces: Sequence[Bytes]) -> None:
        self._pieces = [memoryview(piece) for piece in pieces if len(piece)]
        self._stops = list(accumulate(map(len, self._pieces)))
        super().__init__(self._stops[-1] if self._stops else 0)

    def readinto(self, buffer: memoryview, /) -> int:
        wanted, done = self._wanted(len(buffer)), 0
        piece = bisect_right(self._stops, self._place)
        while done < wanted:
            behind = self._stops[piece] - self._place
            part = self._pieces[piece][-behind:][: wanted - done]
            buffer[done : done + len(part)] = part
            done += len(part)
            self._place += len(part)
            piece += 1
        return done


def header(file: Window | Pieces) -> AudioHeader:
    """Read the header of a file as libsndfile understands it.

    Raises: BadRecord with reason empty_audio or unreadable_audio; whatever reading `file` raises.
    """
    with _open(file) as opened:
        if opened.frames <= 0 or opened.samplerate <= 0:
            raise BadRecord("empty_audio", "no samples")
        if opened.frames > _MAX_FRAMES:
            raise BadRecord("unreadable_audio", "the file does not tell how long it is")
        name = opened.subtype if opened.format == "OGG" else opened.format
        return AudioHeader(opened.frames, opened.samplerate, opened.channels, name)


def read(cut: Cut, num_frames: int, wanted: AudioHeader) -> np.ndarray:
    """Decode float32 [num_frames, channels], all of it or an error.

    Raises: BadRecord with reason unreadable_audio or truncated_audio.
    """
    with _open(Pieces(cut.pieces)) as opened:
        if (opened.samplerate, opened.channels) != (wanted.audio_hz, wanted.channels):
            raise BadRecord(
                "unreadable_audio",
                f"the decoder gives {opened.samplerate} Hz with {opened.channels} channel(s), "
                f"the file states {wanted.audio_hz} Hz with {wanted.channels}",
            )
        settle = cut.start if cut.settle_frames is None else min(cut.start, cut.settle_frames)
        try:
            if cut.start > settle:
                opened.seek(cut.start - settle)
            samples = opened.read(settle + num_frames, dtype="float32", always_2d=True)[settle:]
        except soundfile.LibsndfileError as error:
            # libsndfile calls a FLAC frame that it cannot decode an internal error.
            reason = "truncated_audio" if opened.format == "FLAC" else "unreadable_audio"
            raise BadRecord(
                reason, f"decoding stopped: {error.error_string or error.code}"
            ) from None
    if len(samples) < num_frames:
        raise BadRecord("truncated_audio", f"{len(samples)} of {num_frames} samples")
    return samples


def _open(file: Window | Pieces) -> soundfile.SoundFile:
    file.seek(0)
    window = file if isinstance(file, Window) else None
    if window is not None:
        window.in_libsndfile = True
    try:
        opened = soundfile.SoundFile(cast(BinaryIO, file))
    except soundfile.LibsndfileError as error:
        if window is not None and window.error is not None:
            raise window.error from None
        detail = error.error_string.strip().rstrip(":") or f"libsndfile error {error.code}"
        raise BadRecord("unreadable_audio", detail.split(" <", 1)[0]) from None
    finally:
        if window is not None:
            window.in_libsndfile = False
    if window is not None and window.error is not None:
        opened.close()
        raise window.error
    return opened
