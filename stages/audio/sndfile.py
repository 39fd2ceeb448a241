"""libsndfile on byte ranges of files; whatever it refuses is a bad record."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import BinaryIO, cast

import numpy as np
import soundfile

from koe.errors import BadRecord
from stages.audio.contents import BLOCK_BYTES, Blocks, Contents, Range
from stages.audio.links import AudioHeader, Cut

UNREADABLE = "unreadable_audio"  # the reason for whatever a decoder or a walk refuses
_MAX_FRAMES = 1 << 48  # libsndfile gives 2^63 - 1 for a length that it does not know


class Readable(ABC):
    """Bytes as a file, for reading only.

    libsndfile swallows the exceptions of a file that it reads: they are kept in `error`.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes, self._place = num_bytes, 0
        self.in_libsndfile = False
        self.error: Exception | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._num_bytes}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, num_bytes: int = -1, /) -> bytes:
        left = max(0, self._num_bytes - self._place)
        wanted = left if num_bytes < 0 else min(num_bytes, left)
        if self.error is not None or wanted == 0:
            return b""
        try:
            data = self._bytes(self._place, self._place + wanted)
        except Exception as error:
            if not self.in_libsndfile:
                raise
            self.error = error  # raised by `_opened` once libsndfile has returned
            return b""
        self._place += len(data)
        return data

    def readinto(self, buffer: memoryview, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def contents(self) -> Contents:
        """Return all bytes, read when they are wanted if they are many."""
        if self._num_bytes > BLOCK_BYTES:
            return Blocks(self._num_bytes, self._bytes)
        return self._bytes(0, self._num_bytes)

    @abstractmethod
    def _bytes(self, start: int, stop: int) -> bytes: ...


class Window(Readable):
    """A byte range of an open file."""

    def __init__(self, file: BinaryIO, start: int, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._file, self._start = file, start

    def _bytes(self, start: int, stop: int) -> bytes:
        self._file.seek(self._start + start)
        return self._file.read(stop - start)


class Joined(Readable):
    """Ranges of bytes, one after another."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = [part for part in ranges if part.stop > part.start]
        self._stops = list(accumulate(part.stop - part.start for part in self._ranges))
        super().__init__(self._stops[-1] if self._stops else 0)

    def contents(self) -> Contents:
        first = self._ranges[0] if self._ranges else Range(b"", 0, 0)
        if (first.start, first.stop) == (0, self._num_bytes) == (0, len(first.contents)):
            return first.contents
        return super().contents()

    def _bytes(self, start: int, stop: int) -> bytes:
        parts: list[bytes] = []
        number = bisect_right(self._stops, start)
        while start < stop:
            part = self._ranges[number]
            begin = part.stop - (self._stops[number] - start)
            end = min(part.stop, begin + stop - start)
            parts.append(part.contents[begin:end])
            start += end - begin
            number += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)


def header(file: Readable) -> AudioHeader:
    """Read the header of a file as libsndfile understands it.

    Raises: BadRecord with reason empty_audio or unreadable_audio; whatever reading `file` raises.
    """
    with _opened(file) as opened:
        if opened.frames <= 0 or opened.samplerate <= 0:
            raise BadRecord("empty_audio", "no samples")
        if opened.frames > _MAX_FRAMES:
            raise BadRecord("unreadable_audio", "the file does not tell how long it is")
        name = opened.subtype if opened.format == "OGG" else opened.format
        return AudioHeader(opened.frames, opened.samplerate, opened.channels, name)


def read(cut: Cut, num_frames: int, wanted: AudioHeader) -> np.ndarray:
    """Decode float32 [num_frames, channels], all of it or an error.

    Raises: BadRecord with reason unreadable_audio or truncated_audio; whatever reading the file
    raises.
    """
    with _opened(Joined(cut.pieces)) as opened:
        if (opened.samplerate, opened.channels) != (wanted.audio_hz, wanted.channels):
            raise BadRecord(
                "unreadable_audio",
                f"the decoder gives {opened.samplerate} Hz with {opened.channels} channel(s), "
                f"the file states {wanted.audio_hz} Hz with {wanted.channels}",
            )
        from_start = cut.settle_frames is None or not opened.seekable()  # as of GSM 6.10 in WAV
        settle = cut.start if from_start else min(cut.start, cut.settle_frames or 0)
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


@contextmanager
def _opened(file: Readable) -> Iterator[soundfile.SoundFile]:
    """Open a file by libsndfile; if reading it fails within, that is what is raised."""
    file.seek(0)
    file.in_libsndfile = True
    try:
        with _sound(file) as opened:
            yield opened
    except BadRecord:
        if file.error is None:
            raise
    finally:
        file.in_libsndfile = False
    if file.error is not None:
        raise file.error


def _sound(file: Readable) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(cast(BinaryIO, file))
    except soundfile.LibsndfileError as error:
        detail = error.error_string.strip().rstrip(":") or f"libsndfile error {error.code}"
        raise BadRecord("unreadable_audio", detail.split(" <", 1)[0]) from None
