"""FLAC by its last frame, whatever STREAMINFO says of the number of samples (RFC 9639).

Each frame's header states its place, so that the last one tells how many samples there are. A file that
was written to a pipe has no number in STREAMINFO; a file that was cut off or joined has a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from koe.errors import BadRecord
from stages.audio.contents import BLOCK_BYTES, Contents, Range, chunks, whole
from stages.audio.links import AudioHeader, Cut, Scan, joined
from stages.audio.sndfile import Readable
from stages.audio.tags import before_trailing

_HEAD_BYTES = 42  # the marker, a block header and STREAMINFO
_TOTAL_MASK = (1 << 36) - 1
# How much of the tail is read where the largest frame is not known, and for tags behind it.
_TAIL_BYTES, _MORE_TAIL_BYTES = 1 << 16, 512
_MAX_HEADER_BYTES = 16
_BLOCK_SAMPLES = {1: 192, **{n: 144 << n for n in range(2, 6)}, **{n: 1 << n for n in range(8, 16)}}
_RATES = (
    0,
    88_200,
    176_400,
    192_000,
    8_000,
    16_000,
    22_050,
    24_000,
    32_000,
    44_100,
    48_000,
    96_000,
)
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_MAX_TAG_BYTES = 1 << 24
_JOINT = b"fLaC\0\0\0\x22"


@dataclass(frozen=True)
class FlacLink:
    """A FLAC stream of a file; `total_at` is where its header must state the number of samples."""

    start: int
    stop: int
    streaminfo: bytes
    header: AudioHeader
    index_bytes = 0

    def cut(self, data: Contents, start: int, num_frames: int) -> Cut:
        frames = Range(data, self.start + _HEAD_BYTES, self.stop)
        return Cut((whole(self.streaminfo), frames), start, 0)


@dataclass(frozen=True)
class _StreamInfo:
    """STREAMINFO (section 8.2), with the bytes before it in `head`."""

    head: bytes
    max_block: int
    max_frame_bytes: int
    audio_hz: int
    channels: int
    num_samples: int

    @classmethod
    def read(cls, head: bytes) -> _StreamInfo:
        if len(head) < _HEAD_BYTES:
            raise BadRecord("truncated_audio", "the file ends within its header")
        if head[4] & 0x7F != 0 or head[5:8] != b"\0\0\x22":
            raise BadRecord("unreadable_audio", "the FLAC stream does not begin with STREAMINFO")
        bits = int.from_bytes(head[18:26], "big")
        found = cls(
            head[:_HEAD_BYTES],
            int.from_bytes(head[10:12], "big"),
            int.from_bytes(head[15:18], "big"),
            bits >> 44,
            (bits >> 41 & 7) + 1,
            bits & _TOTAL_MASK,
        )
        if found.audio_hz == 0:
            raise BadRecord("unreadable_audio", "the FLAC header states a sample rate of 0")
        return found

    def link(self, start: int, stop: int, num_samples: int) -> FlacLink:
        bits = int.from_bytes(self.head[18:26], "big") & ~_TOTAL_MASK | num_samples
        head = self.head[:18] + bits.to_bytes(8, "big") + self.head[26:]
        header = AudioHeader(num_samples, self.audio_hz, self.channels, "FLAC")
        return FlacLink(start, stop, head, header)


def scan(file: Readable, start: int, num_bytes: int) -> Scan:
    """Scan the FLAC streams from `start` to the end of a file of `num_bytes`.

    Reads the head and the tail, and all of a file whose last frame does not confirm its header.

    Raises: BadRecord with reason truncated_audio, unreadable_audio, mixed_format or empty_audio.
    """
    file.seek(start)
    info = _StreamInfo.read(file.read(_HEAD_BYTES))
    if info.num_samples and _is_confirmed(file, start, num_bytes, info):
        return joined([info.link(start, num_bytes, info.num_samples)])
    data = file.contents()
    starts = [start]
    while (seam := data.find(_JOINT, starts[-1] + _HEAD_BYTES)) >= 0:
        starts.append(seam)
    stops = [*starts[1:], len(data)]
    return joined([_stream(data, *place) for place in zip(starts, stops, strict=True)])


def require_single(data: Contents, scanned: Scan) -> None:
    """Refuse streams of equal length that were joined, which head and tail alone do not tell.

    Raises: BadRecord with reason chained_stream.
    """
    (first, *others) = scanned.links
    if isinstance(first, FlacLink) and not others:
        seam = data.find(_JOINT, first.start + _HEAD_BYTES)
        if seam >= 0:
            raise BadRecord("chained_stream", f"another FLAC stream begins at byte {seam}")


def _stream(data: Contents, start: int, stop: int) -> FlacLink:
    """Walk the frames of the one stream in a range of `data`.

    Raises: BadRecord with reason truncated_audio or mixed_format.
    """
    info = _StreamInfo.read(data[start : start + _HEAD_BYTES])
    tail = max(start, stop - _MAX_TAG_BYTES)
    stop = tail + before_trailing(data[tail:stop])
    found, last = 0, None
    for place, header in _headers(data, start + _HEAD_BYTES, stop):
        frame = _frame(header, info)
        if frame is not None and frame.first == found:
            _require_format(frame, place, info)
            found, last = frame.stop, place
    if last is None:
        raise BadRecord("truncated_audio" if info.num_samples else "empty_audio", "no FLAC frame")
    if crc16(data[last:stop]) != 0:
        raise BadRecord(
            "truncated_audio",
            f"the frame at byte {last} is cut off, or others follow that it lacks",
        )
    if found < info.num_samples:
        raise BadRecord("truncated_audio", f"{found} of {info.num_samples} samples")
    return info.link(start, stop, found)


def _headers(data: Contents, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield where frames may begin, and the bytes there."""
    for first, chunk in chunks(data, start, stop, _MAX_HEADER_BYTES):
        for found in _SYNC.finditer(chunk):
            if found.start() < BLOCK_BYTES:
                yield (
                    first + found.start(),
                    chunk[found.start() : found.start() + _MAX_HEADER_BYTES],
                )


def _is_confirmed(file: Readable, start: int, stop: int, info: _StreamInfo) -> bool:
    """Tell whether the last frame ends with the sample that STREAMINFO states."""
    window = info.max_frame_bytes + _MORE_TAIL_BYTES if info.max_frame_bytes else _TAIL_BYTES
    first = max(start + _HEAD_BYTES, stop - window)
    file.seek(first)
    tail = file.read(stop - first)
    for place in _syncs(tail):
        frame = _frame(tail[place : place + _MAX_HEADER_BYTES], info)
        if frame is not None:
            return frame.stop == info.num_samples and frame.has_format(info)
    return False


def _syncs(tail: bytes) -> Iterator[int]:
    """Yield where frames may begin, from the end."""
    marks = (b"\xff\xf8", b"\xff\xf9")
    places = [tail.rfind(mark) for mark in marks]
    while (place := max(places)) >= 0:
        yield place
        found = places.index(place)
        places[found] = tail.rfind(marks[found], 0, place + 1)


class _Frame(NamedTuple):
    """What the header of a frame says: the samples before it and up to its end, and its format.

    `audio_hz` is 0 where the header leaves it to STREAMINFO.
    """

    first: int
    stop: int
    audio_hz: int
    channels: int

    def has_format(self, info: _StreamInfo) -> bool:
        return self.audio_hz in (0, info.audio_hz) and self.channels == info.channels


def _require_format(frame: _Frame, place: int, info: _StreamInfo) -> None:
    """Refuse a frame of another format than STREAMINFO states, by which a decoder would play it."""
    if not frame.has_format(info):
        raise BadRecord(
            "mixed_format",
            f"the header states {info.audio_hz:,} Hz and {info.channels} channels, the frame at byte "
            f"{place} {frame.audio_hz or info.audio_hz:,} Hz and {frame.channels}",
        )


def _frame(header: bytes, info: _StreamInfo) -> _Frame | None:
    """Read the header of a frame; None if this is none.

    Section 9.1: codes, the coded number, what the codes leave to be stated, a checksum.
    """
    if len(header) < 4:
        return None
    size_code, rate_code = header[2] >> 4, header[2] & 15
    coded = _coded_number(header[4:11])
    if size_code == 0 or rate_code == 15 or header[3] & 1 or coded is None:
        return None
    number, place = coded[0], 4 + coded[1]
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    rate_bytes = {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    stated = int.from_bytes(header[place : place + size_bytes], "big") + 1
    end = place + size_bytes + rate_bytes
    if len(header) <= end or _crc8(header[:end]) != header[end]:
        return None
    samples = stated if size_bytes else _BLOCK_SAMPLES[size_code]
    first = number if header[1] & 1 else number * info.max_block
    rate = int.from_bytes(header[end - rate_bytes : end], "big") * {12: 1_000, 14: 10}.get(
        rate_code, 1
    )
    audio_hz = rate if rate_bytes else _RATES[rate_code]
    channel_code = header[3] >> 4
    return _Frame(first, first + samples, audio_hz, channel_code + 1 if channel_code < 8 else 2)


def _coded_number(data: bytes) -> tuple[int, int] | None:
    """Decode a number and its size, coded like UTF-8 but up to 7 bytes; None if it is not one."""
    if not data or 0x80 <= data[0] < 0xC0 or data[0] == 0xFF:
        return None
    size = 1 if data[0] < 0x80 else 8 - (data[0] ^ 0xFF).bit_length()
    number = data[0] & (0x7F if size == 1 else 0x7F >> size)
    for byte in data[1:size]:
        if byte & 0xC0 != 0x80:
            return None
        number = number << 6 | byte & 0x3F
    return (number, size) if len(data) >= size else None


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return tuple(table)


_CRC8, _CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def crc16(data: bytes) -> int:
    """Compute the checksum of a frame; it is 0 for a whole frame with its own checksum behind."""
    value = 0
    for byte in data:
        value = (value & 0xFF) << 8 ^ _CRC16[value >> 8 ^ byte]
    return value
