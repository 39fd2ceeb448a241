"""What audio containers state as their length, where libsndfile adjusts or guesses it.

libsndfile silently shortens a truncated WAV or Ogg file, takes a WAV written to a pipe for empty,
and estimates the length of an MP3 file that has no Xing header from its first frame's bitrate.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Protocol

from koe.errors import BadRecord

_MAX_OGG_PAGE = 27 + 255 + 255 * 255
# WAV writers that cannot seek back leave 0, 2^32 - 1, or (SoX, arecord) a number near 2^31.
_STREAMED_BYTES = 0x7FFFF000

_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG1_HZ = (44100, 48000, 32000)


class Readable(Protocol):
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def read(self, num_bytes: int = -1, /) -> bytes: ...


def inspect(file: Readable, num_bytes: int) -> bool:
    """Check that a WAV, FLAC, MP3 or Ogg file is complete as far as its container tells.

    Returns whether `repair` must be applied before libsndfile sees the right length.

    Raises: BadRecord with reason truncated_audio or unreadable_audio.
    """
    start = _skip_id3(file)
    file.seek(start)
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return _inspect_wav(file, num_bytes) is not None
    if head[:4] == b"OggS":
        _require_last_page(file, num_bytes)
        return False
    if head[:4] == b"fLaC":
        _require_flac_length(file, start)
        return False
    if _mpeg_frame(head[:4]) is not None:
        return not _has_xing(file, start)
    raise BadRecord(
        "unreadable_audio", f"not a WAV, FLAC, MP3 or Ogg file: it begins with {head!r}"
    )


def repair(data: bytes) -> bytes:
    """Give a streamed WAV, or an MP3 without length, a header that states its true length.

    Raises: BadRecord with reason truncated_audio or unreadable_audio.
    """
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        size_at = _inspect_wav(io.BytesIO(data), len(data))
        return data if size_at is None else data[:size_at] + b"\xff" * 4 + data[size_at + 4 :]
    return _with_xing(data, _skip_id3(io.BytesIO(data)))


def _skip_id3(file: Readable) -> int:
    """Return where the audio begins after an ID3v2 tag (id3.org, ID3v2.4 section 3.1)."""
    file.seek(0)
    head = file.read(10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _inspect_wav(file: Readable, num_bytes: int) -> int | None:
    """Walk the chunks up to `data`; return where its size lies if a streaming writer left it 0."""
    file.seek(0)
    head = file.read(12)
    if len(head) < 12:
        raise BadRecord("truncated_audio", "the file ends within its header")
    order = ">" if head[:4] == b"RIFX" else "<"
    riff_bytes = struct.unpack(order + "I", head[4:8])[0] + 8
    place, wide_bytes = 12, None
    while place + 8 <= num_bytes:
        file.seek(place)
        name, size = struct.unpack(order + "4sI", file.read(8))
        if name == b"ds64" and place + 24 <= num_bytes:  # RF64: the 64-bit sizes (EBU Tech 3306)
            wide_bytes = struct.unpack(order + "8xQ", file.read(16))[0]
        if name == b"data":
            if size == 0xFFFFFFFF and head[:4] == b"RF64" and wide_bytes is not None:
                size = wide_bytes
            there = num_bytes - place - 8
            if size == 0 and there > 0 and riff_bytes != num_bytes:
                return place + 4
            if there < size and (head[:4] == b"RF64" or size < _STREAMED_BYTES):
                raise BadRecord("truncated_audio", f"{there} of {size} bytes of samples")
            return None
        place += 8 + size + size % 2
    raise BadRecord("truncated_audio", "the file ends before its samples")


def _require_last_page(file: Readable, num_bytes: int) -> None:
    """Check that the last Ogg page is complete and marked as the end of its stream (RFC 3533)."""
    start = max(0, num_bytes - _MAX_OGG_PAGE)
    file.seek(start)
    tail = file.read(num_bytes - start)
    page = tail.rfind(b"OggS\0")
    if page < 0 or len(tail) < page + 27:
        raise BadRecord("truncated_audio", "the file ends within a page header")
    num_segments = tail[page + 26]
    sizes = tail[page + 27 : page + 27 + num_segments]
    if len(sizes) < num_segments or len(tail) < page + 27 + num_segments + sum(sizes):
        raise BadRecord("truncated_audio", "the file ends within a page")
    if not tail[page + 5] & 4:
        raise BadRecord("truncated_audio", "the last page does not end its stream")


def _require_flac_length(file: Readable, start: int) -> None:
    """Refuse a STREAMINFO block without a sample count (RFC 9639, section 8.2)."""
    file.seek(start + 8)
    info = file.read(34)
    if len(info) < 34:
        raise BadRecord("truncated_audio", "the file ends within its header")
    if int.from_bytes(info[10:18], "big") & (1 << 36) - 1 == 0:
        raise BadRecord(
            "unreadable_audio", "the FLAC header states no length, as when written to a pipe"
        )


@dataclass(frozen=True)
class _MpegFrame:
    num_bytes: int
    side_bytes: int  # between the header and the place of a Xing tag
    header: int


def _mpeg_frame(head: bytes) -> _MpegFrame | None:
    """Parse an MPEG audio layer III frame header (ISO 11172-3 section 2.4.2.3)."""
    if len(head) < 4:
        return None
    header = int.from_bytes(head, "big")
    version, layer = header >> 19 & 3, header >> 17 & 3
    rate, hz = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or rate in (0, 15) or hz == 3:
        return None
    mono = header >> 6 & 3 == 3
    if version == 3:
        kbps, audio_hz, factor, side = _MPEG1_KBPS[rate], _MPEG1_HZ[hz], 144, 17 if mono else 32
    else:
        audio_hz = _MPEG1_HZ[hz] // (2 if version == 2 else 4)
        kbps, factor, side = _MPEG2_KBPS[rate], 72, 9 if mono else 17
    padding = header >> 9 & 1
    return _MpegFrame(factor * kbps * 1000 // audio_hz + padding, side, header)


def _has_xing(file: Readable, start: int) -> bool:
    file.seek(start)
    head = file.read(192)
    frame = _mpeg_frame(head[:4])
    if frame is None:
        return False
    tag = 4 + frame.side_bytes
    return head[tag : tag + 4] in (b"Xing", b"Info") or head[36:40] == b"VBRI"


def _with_xing(data: bytes, start: int) -> bytes:
    """Count the frames of an MP3 stream and put an Info frame with the count before them."""
    place, count = start, 0
    first = _mpeg_frame(data[start : start + 4])
    if first is None:
        raise BadRecord("unreadable_audio", "no MPEG layer III frame where the audio should begin")
    while (frame := _mpeg_frame(data[place : place + 4])) is not None:
        if place + frame.num_bytes > len(data):
            raise BadRecord("truncated_audio", f"the file ends within frame {count}")
        place, count = place + frame.num_bytes, count + 1
    _require_tags(data, place)
    # The first frame's header without checksum and padding, at a bitrate whose frame has room.
    header = (first.header | 1 << 16) & ~(0xF << 12) & ~(1 << 9) | 9 << 12
    room = _mpeg_frame(header.to_bytes(4, "big"))
    assert room is not None
    info = (
        header.to_bytes(4, "big")
        + bytes(first.side_bytes)
        + struct.pack(">4sII", b"Info", 1, count)
    )
    return info.ljust(room.num_bytes, b"\0") + data[start:place]


def _require_tags(data: bytes, place: int) -> None:
    """Accept only tags or padding after the last MPEG frame."""
    rest = data[place:]
    known = (b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN")
    if len(rest) >= 4 and not rest.startswith(known) and rest.strip(b"\0"):
        raise BadRecord("unreadable_audio", f"no MPEG frame at byte {place}")
