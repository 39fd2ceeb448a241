"""Tags before, between and after the frames of an audio stream, and padding with zeros."""

from __future__ import annotations

import re

from stages.audio.contents import Contents, chunks
from stages.audio.sndfile import Readable

_NONZERO = re.compile(rb"[^\0]")
_MAX_LYRICS_BYTES = 1_000_000  # their size has six digits
_ID3V1_BYTES, _ID3V1_EXTENDED_BYTES = 128, 227


def after_tags(data: Contents, place: int, stop: int) -> int:
    """Return where the tags and zeros at `place` end; `place` itself if there are none.

    ID3v2 (id3.org, ID3v2.4 section 3.1), ID3v1 and its extension, APEv1 and v2, Lyrics3.
    """
    while place < stop:
        head = data[place : min(place + 32, stop)]
        size = _tag_bytes(head)
        if head.startswith(b"LYRICSBEGIN"):
            size = _lyrics_bytes(data[place : min(stop, place + _MAX_LYRICS_BYTES)])
        if size > stop - place:
            return place  # a tag that states more than there is hides no audio
        if head.startswith(b"\0"):
            size = num_zeros(data, place, stop)
        if size == 0:
            return place
        place += size
    return place


def num_zeros(data: Contents, start: int, stop: int) -> int:
    """Count the zeros from `start` on."""
    for place, chunk in chunks(data, start, stop, 0):
        if found := _NONZERO.search(chunk):
            return place + found.start() - start
    return stop - start


def skip_leading(file: Readable) -> int:
    """Return where the audio of a file begins after any number of ID3v2 or APE tags and zeros.

    Zeros are skipped only after a tag: they are its padding, which some writers do not count.
    """
    place = 0
    while True:
        file.seek(place)
        head = file.read(4096)
        size = _tag_bytes(head[:32]) if head[:3] in (b"ID3", b"APE") else 0
        if size == 0 and place and head[:1] == b"\0":
            size = len(head) - len(head.lstrip(b"\0"))
        if size == 0:
            return place
        place += size


def before_trailing(tail: bytes) -> int:
    """Return where the tags and zeros at the end of `tail` begin."""
    stop = len(tail)
    while True:
        rest = tail[max(0, stop - 1024) : stop]
        size = len(rest) - len(rest.rstrip(b"\0"))
        if rest[-_ID3V1_BYTES:].startswith(b"TAG") and len(rest) >= _ID3V1_BYTES:
            size = _ID3V1_BYTES
        elif rest[-_ID3V1_EXTENDED_BYTES:].startswith(b"TAG+"):
            size = _ID3V1_EXTENDED_BYTES
        elif rest[-32:].startswith(b"APETAGEX"):
            footer = rest[-32:]
            has_header = footer[23] & 0x80
            size = int.from_bytes(footer[12:16], "little") + (32 if has_header else 0)
        elif rest.endswith((b"LYRICS200", b"LYRICSEND")):
            digits = rest[-15:-9]
            found = tail.rfind(b"LYRICSBEGIN", 0, stop)
            size = int(digits) + 15 if digits.isdigit() else stop - found if found >= 0 else 0
        if size == 0 or size > stop:
            return stop
        stop -= size


def _tag_bytes(head: bytes) -> int:
    """Return the size of the tag that begins with these 32 bytes, 0 if none does."""
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80 and head[3] < 0xFF:
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return 32 + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
    if head[:4] == b"TAG+":
        return _ID3V1_EXTENDED_BYTES
    return _ID3V1_BYTES if head[:3] == b"TAG" else 0


def _lyrics_bytes(data: bytes) -> int:
    ends = [data.find(mark) for mark in (b"LYRICS200", b"LYRICSEND")]
    return min((end + 9 for end in ends if end >= 0), default=0)
